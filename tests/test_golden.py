"""Two decoders that share no code agree: on golden files, random checkpoints, the example of FORMAT.md, and what they refuse.

`make_golden.py` makes the files, `reference_decoder` is the slow decoder written from FORMAT.md alone.
"""
from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nnc
from nnc.coder import chain_digests, checksum, pack_words
from nnc.directory import Directory, Unit
from nnc.entropy.explicit import ModelBank
from nnc.entropy.scales import encode_codes
from nnc.fields import Codes, Steps
from nnc.kernels.words import encode_tile
from nnc.partition.grid import Grid
from nnc.quantize.trellis import make_trellis
from nnc.unit import Coding, Record, join_parts

sys.path.insert(0, str(Path(__file__).parent))
import reference_decoder as decoder  # noqa: E402
from golden_cases import CASES, GOLDEN, STATES  # noqa: E402
from golden_damage import BAD, container_bytes  # noqa: E402
from make_golden import in_bytes, loaded  # noqa: E402

NOTES = sorted(GOLDEN.glob("*.json"))
LONG = {"networks-ctus", "networks-memory-hyper", "networks-memory-context", "joined-networks-context", "joined-networks-hyper", "networks-own", "tiled-coarse",
        "tiled-own", "networks-hyper", "networks-context", "networks-shipped", "trees-1", "trees-bypass", "predicted-shards", "predicted-chain", "tools-ctus",
        "joined-predicted-calibrated"}  # half a second to six in the slow decoder
BAD_NOTES = sorted((GOLDEN / "bad").glob("*.json"))
FORMAT = Path(nnc.__file__).parent / "FORMAT.md"


def path_of(note: Path) -> Path:
    """The golden file or folder beside a note."""
    folder = note.with_suffix("")
    return folder if folder.is_dir() else note.with_suffix(".safetensors")


def files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def check_decoders_agree(path: Path, reference: dict[str, torch.Tensor] | None = None) -> dict[str, decoder.Tensor]:
    """reference: what the file is a difference to, if that is not to be found by its hint."""
    expected = decoder.decode(path, None if reference is None else in_bytes(reference))
    assert list(loaded(path, threads=1, reference=reference).items()) == list(expected.items())
    return expected


def check_refused(path: Path, error: type[nnc.NncError]) -> None:
    for read in (nnc.load, nnc.verify):
        with pytest.raises(error):
            read(path)
    with pytest.raises(ValueError) as caught:
        decoder.decode(path)
    assert isinstance(caught.value, decoder.OtherVersion) == (error is nnc.Unsupported)
    assert isinstance(caught.value, decoder.WrongReference) == (error is nnc.InvalidArgument)


# ---- golden files ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("note", [pytest.param(note, marks=[pytest.mark.slow] * (note.stem in LONG), id=note.stem) for note in NOTES])
def test_golden_file(note):
    listing = json.loads(note.read_text())["tensors"]
    path = path_of(note)
    for tensors in (loaded(path, threads=1), loaded(path, threads=2), decoder.decode(path)):
        assert list(tensors) == list(listing)
        for name, (dtype, shape, data) in tensors.items():
            assert {"dtype": dtype, "shape": list(shape), "sha256": hashlib.sha256(data).hexdigest()} == listing[name], name
    assert nnc.verify(path) == len(listing)


def test_every_case_has_its_golden_file():
    assert {case.note for case in CASES} <= set(NOTES)
    assert {case.path.with_suffix(".json") for case in BAD} <= set(BAD_NOTES)


def test_tied_weights_share_their_memory_and_equal_ones_do_not():
    state = nnc.load(GOLDEN / "ties.safetensors")
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr() != state["copy.weight"].data_ptr()


@pytest.fixture(scope="module")
def covered() -> set[tuple]:
    """What the golden files use of the format, as (field, value)."""
    found: set[tuple] = set()
    for path in (file for note in NOTES for file in files_of(path_of(note))):
        container = decoder.read_container(path.read_bytes())
        directory = decoder.read_directory(container)
        found |= {("shards", min(directory.shards, 2)), *(("renamed", key.endswith("#")) for key in container.entries)}
        found |= {("unit", unit.own, unit.records[0].kind) for unit in directory.units}
        found |= {("records", min(len(unit.records), 2)) for unit in directory.units}
        for record in directory.records:
            found |= {("kind", record.kind), ("dtype", record.dtype), ("axes", min(len(record.shape), 3)),
                      ("empty", record.elements == 0)}
            if record.kind == decoder.EXACT:
                found |= {("filter", record.filter), ("size of filter", record.filter, record.size)}
            if record.kind == decoder.ALIAS:
                found.add(("tied", record.tied))
            if record.coding:
                c = record.coding
                found |= {("coded dtype", record.dtype), ("quantizer", c.states, c.labelling), ("follow", c.follow),
                          ("bypass", c.shift > 0), ("model", min(c.model, 8)),
                          ("bypass and states", c.shift > 0, c.states > 1), ("bypass and explicit", c.shift > 0, c.model >= 8),
                          ("row codes", c.row_codes.mode), ("column codes", c.column_codes.mode), ("transposed", c.transposed),
                          ("row step unit", c.row_steps.unit), ("column step unit", c.column_steps.unit),
                          ("row steps and labelling", c.row_steps.mode > 0, c.labelling),
                          ("rows of CTUs", c.height < c.rows), ("columns of CTUs", c.width < c.columns),
                          ("streams", any(c.lengths), not all(c.lengths))}
                if c.tools.memory:
                    found.add(("limit of a memory", c.tools.memory.limit))
                if c.model >= 72:
                    kind = directory.networks[c.model - 72].kind
                    found |= {("network", kind, "transposed", c.transposed), ("network", kind, "bypass", c.shift > 0),
                              ("network", kind, "states", c.states > 1), ("network", kind, "CTUs", len(c.lengths) > 1),
                              ("network", kind, "tools", bool(c.tools.transform), bool(c.tools.memory))}
            if record.kind == decoder.PREDICTED:
                p = record.coding.prediction
                rows = c.columns if c.transposed else c.rows
                columns = c.rows if c.transposed else c.columns
                found |= {("predicted", "rows", group_of(directory, p.row_order, rows)),
                          ("predicted", "columns", group_of(directory, p.column_order, columns)),
                          ("predicted", "confidence", p.confidence.mode), ("predicted", "dtype", record.dtype),
                          ("predicted", "transposed", c.transposed), ("predicted", "labelling", c.labelling),
                          ("predicted", "states", c.states > 1), ("predicted", "bypass", c.shift > 0),
                          ("predicted", "steps", c.row_steps.mode > 0, c.column_steps.mode > 0),
                          ("predicted", "CTUs", len(c.lengths) > 1),
                          ("predicted", "hint of", Path(directory.reference.hint).suffix if directory.reference else None),
                          ("predicted", "by an earlier one", p.back > 0, record.dtype)}
            if record.kind == decoder.TILED:
                t = record.tiling
                found |= {("tiled", "dtype", record.dtype), ("tiled", "predictor", bool(t.depth) + bool(t.units)),
                          *(("tiled", "transform", bool(t.depth), kind) for kind in t.transforms[:1 + bool(t.depth)]),
                          ("tiled", "tables", t.tables.mode > 0), ("tiled", "depth", t.depth), ("tiled", "reach", min(t.reach, 1)),
                          ("tiled", "square", t.height == t.width), ("tiled", "ragged", t.rows % t.height > 0),
                          ("tiled", "offset", t.offset != 0), ("tiled", "mean", t.mean > 0)}
        if directory.reference:
            found |= {("order", min(len(order) >> 8, 1)) for order in directory.reference.permutations}
    return found


def group_of(directory, number: int, size: int) -> str:
    """How an axis is reordered: not at all, entry by entry or in groups."""
    if number == 0:
        return "as it is"
    return "entries" if len(directory.reference.permutations[number - 1]) == size else "groups"


NOT_YET: set[tuple] = set()  # what no golden file covers yet


def expected_coverage() -> set[tuple]:
    both = (False, True)
    quantizers = {(states, labelling) for states in decoder.STATES for labelling in (0, 1)} - {(1, 1)} | {(1, 2)}
    return {
        ("shards", 1), ("shards", 2), ("records", 1), ("records", 2), ("unit", False, decoder.CODED),
        ("unit", True, decoder.CODED), ("unit", True, decoder.EXACT), ("unit", True, decoder.PLAIN),
        *(("renamed", b) for b in both), ("unit", False, decoder.PREDICTED), ("unit", True, decoder.PREDICTED),
        ("unit", False, decoder.SAME),
        *(("kind", k) for k in range(8)), *(("dtype", d.name) for d in decoder.DTYPES), *(("axes", a) for a in range(4)),
        *(("empty", b) for b in both), *(("filter", f) for f in range(5)), *(("tied", b) for b in both),
        *(("coded dtype", d) for d in ("float32", "float16", "bfloat16")), *(("quantizer", *q) for q in quantizers),
        ("follow", 0), ("follow", 1), *(("bypass", b) for b in both), *(("bypass and states", True, b) for b in both),
        *(("model", m) for m in range(9)), *(("row codes", m) for m in range(4)), *(("column codes", m) for m in range(4)),
        *(("rows of CTUs", b) for b in both), *(("columns of CTUs", b) for b in both), ("transposed", 0), ("transposed", 1),
        *(("row step unit", u) for u in (0, *decoder.UNITS)), *(("column step unit", u) for u in (0, *decoder.UNITS)),
        *(("row steps and labelling", b, labelling) for b in both for labelling in (0, 1, 2)),
        *(("size of filter", decoder.REFERENCE, size) for size in (1, 2, 4, 8)), *(("size of filter", decoder.EARLIER, size) for size in (2, 4)), ("order", 0), ("order", 1),
        *(("predicted", "rows", way) for way in ("as it is", "entries")), *(("predicted", "CTUs", b) for b in both),
        *(("predicted", "columns", way) for way in ("as it is", "entries", "groups")),
        *(("predicted", "confidence", mode) for mode in range(4)), *(("predicted", "transposed", b) for b in (0, 1)),
        *(("predicted", "dtype", d) for d in ("float32", "float16", "bfloat16")),
        *(("predicted", "labelling", n) for n in (0, 1)),
        *(("predicted", "states", b) for b in both), *(("predicted", "bypass", b) for b in both),
        ("predicted", "steps", False, False), ("predicted", "steps", True, True),
        *(("predicted", "hint of", suffix) for suffix in (".safetensors", "")),
        *(("predicted", "by an earlier one", True, dtype) for dtype in ("float32", "float16")), *(("limit of a memory", n) for n in (16, 17)),
        *(("network", kind, what, b) for kind in (0, 1) for what in ("transposed", "bypass", "states", "CTUs") for b in both),
        *(("network", kind, "tools", b, False) for kind in (0, 1) for b in both),
        ("unit", False, decoder.TILED), ("unit", True, decoder.TILED), *(("tiled", "predictor", n) for n in range(3)),
        *(("tiled", "dtype", d) for d in ("float32", "float16", "bfloat16")), *(("tiled", "depth", n) for n in range(3)),
        *(("tiled", what, b) for what in ("tables", "square", "ragged", "offset", "mean") for b in both),
        ("tiled", "reach", 0), ("tiled", "reach", 1), ("tiled", "transform", False, 1),
        *(("tiled", "transform", True, kind) for kind in range(3))}


@pytest.mark.slow
def test_golden_files_cover_the_format(covered):
    assert expected_coverage() - covered == NOT_YET


def test_golden_files_hold_escapes(monkeypatch):
    lengths = []
    bits = decoder.Coder.bits
    monkeypatch.setattr(decoder.Coder, "bits", lambda self, count: lengths.append(count) or bits(self, count))
    decoder.decode(GOLDEN / "escapes.safetensors")
    assert lengths.count(5) >= 3 and max(lengths) >= 18                # an excess of more than 2^18


# ---- damaged files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("note", BAD_NOTES, ids=lambda note: note.stem)
def test_damaged_golden_file(note):
    check_refused(note.with_suffix(".safetensors"), getattr(nnc, json.loads(note.read_text())["error"]))


@pytest.fixture
def shards(tmp_path) -> Path:
    g = torch.Generator().manual_seed(3)
    nnc.compress({f"w{i}": torch.randn(40, 40, generator=g) for i in range(4)}, tmp_path / "s", step=0.5, shard_bytes=1000,
                 threads=1)
    return tmp_path / "s"


def test_a_shard_alone_is_refused(shards):
    check_refused(files_of(shards)[0], nnc.Corruption)


def test_shards_of_two_checkpoints_are_refused(shards, tmp_path):
    g = torch.Generator().manual_seed(4)
    nnc.compress({f"w{i}": torch.randn(40, 40, generator=g) for i in range(4)}, tmp_path / "t", step=0.5, shard_bytes=1000,
                 threads=1)
    other = {path.name: path for path in files_of(tmp_path / "t")}
    first = files_of(shards)[0]
    first.write_bytes(other[first.name].read_bytes())
    check_refused(shards, nnc.Corruption)


@pytest.mark.parametrize("change", [
    lambda names: names.pop("w3"), lambda names: names.update(w4=names["w0"]), lambda names: names.update(w0="../" + names["w0"]),
                                    lambda names: names.clear()])
def test_an_index_that_does_not_match_is_refused(shards, change):
    index = shards / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    check_refused(shards, nnc.Corruption)


# ---- agreement -------------------------------------------------------------------------------------------------------

def random_tensor(chance: random.Random, g: torch.Generator) -> torch.Tensor:
    shape = chance.choice([(1,), (7,), (300,), (1, 40), (40, 1), (30, 50), (64, 48), (9, 4, 3, 3), (2, 3, 4, 5), (200, 6),
                           (6, 200)])
    w = torch.randn(*shape, generator=g) * 10.0 ** chance.randint(-4, 3)
    kind = chance.randrange(9)
    if kind == 1:
        w = w * torch.exp(chance.uniform(0.3, 3) * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=g))
    elif kind == 2:
        w = w * torch.exp(chance.uniform(0.3, 3) * torch.randn(shape[-1], generator=g))
    elif kind == 3:
        w = w * (torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g) < 0.3)
    elif kind == 4:
        w = w.abs() + 1e-3
    elif kind == 5:
        w = w ** 5
    elif kind == 6:
        w = torch.round(w / w.abs().max() * chance.choice([1, 2, 5])) * 0.37
    elif kind == 7:
        w[0] = w[0] * 1e4
    elif kind == 8:
        return torch.randint(-100, 100, shape, generator=g, dtype=chance.choice([torch.int64, torch.int16, torch.int8]))
    return w.to(chance.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]))


def random_options(chance: random.Random) -> dict:
    target = chance.choice([{"bits": chance.uniform(2, 8)}, {"snr": chance.uniform(3, 60)},
                            {"step": 10.0 ** chance.uniform(-4, 1)}])
    options = {"effort": chance.choice(["fast", "fast", "default", "high"])} | target
    if chance.random() < 0.7:
        options["states"] = states = chance.choice(STATES)
        options["labelling"] = chance.choice(["auto", "plain", "sign-symmetric"]) if states > 1 else "auto"
    if chance.random() < 0.3:
        options["lagrangian"] = chance.uniform(0, 0.5)
    if chance.random() < 0.4:
        options["rules"] = (f"t0={chance.choice(['exact', 'skip', 'finer:3', 'coarser:5'])}",)
    if chance.random() < 0.2:
        options["shard_bytes"] = 3000
    return options


@pytest.mark.parametrize("seed", range(16))
def test_random_checkpoint(seed, tmp_path):
    chance, g = random.Random(seed), torch.Generator().manual_seed(seed)
    tensors = {f"t{i}": random_tensor(chance, g) for i in range(chance.randint(1, 7))}
    if chance.random() < 0.5:
        tensors["twin"] = tensors["t0"].clone()
    nnc.compress(tensors, tmp_path / "c", threads=1, **random_options(chance))
    assert list(check_decoders_agree(tmp_path / "c")) == list(tensors)


def test_changed_directories_agree(tmp_path):
    """Single bits of the directory, with its checksum set right again: both decoders read the same tensors or both refuse."""
    g = torch.Generator().manual_seed(2)
    path = tmp_path / "c.safetensors"
    tensors = {"a": torch.randn(12, 9, generator=g) * torch.logspace(-1, 1, 12)[:, None], "b": torch.arange(20),
               "nnc": torch.zeros(2), "c": torch.rand(9, generator=g) + 1}
    nnc.compress(tensors, path, step=0.5, threads=1, rules=("nnc=skip",))
    container = decoder.read_container(path.read_bytes())
    sound, read = container.directory, 0
    for position in range(len(sound)):
        container.directory = sound[:position] + bytes([sound[position] ^ 1 << position % 8]) + sound[position + 1:]
        path.write_bytes(container_bytes(container))
        try:
            expected = decoder.decode(path)
        except ValueError:
            with pytest.raises((nnc.Corruption, nnc.Unsupported)):
                nnc.load(path, threads=1)
        else:
            read += 1
            assert list(loaded(path, threads=1).items()) == list(expected.items())
    assert 0 < read < len(sound)                                       # the origin changes no tensor, nearly all else does


# ---- steps of rows and columns, transposed planes: records that are made here, not by the encoder ---------------------

def any_codes(chance: random.Random, count: int, dead: bool) -> np.ndarray:
    """-64..64, at times near each other or all 0; the one that means dead only where it may."""
    reach = chance.choice([0, 2, 8, 64])
    codes = np.array([chance.randint(-reach, reach) for _ in range(count)])
    return codes if dead else np.maximum(codes, -63)


def coded_by_hand(chance: random.Random, logarithmic: bool = False) -> tuple[Record, bytes, int]:
    """A coded record with random fields and levels, its bytes and the digest of its unit.  The scale indices are those of section
    8, computed here anew."""
    shape = chance.choice([(1,), (40,), (6, 9), (25, 1), (4, 3, 5), (70, 130)])
    split, transposed = chance.randint(0, len(shape)), not logarithmic and chance.random() < 0.5
    states, reach = (1, 399) if logarithmic else (chance.choice(STATES), 999)
    rows, columns = int(np.prod(shape[:split])), int(np.prod(shape[split:]))
    rows, columns = (columns, rows) if transposed else (rows, columns)
    height, width = (rows, columns) if rows < 60 or columns < 70 else (60, 70)
    shift, base, dead = chance.choice([0, 0, 0, 5]), chance.randint(0, 36), chance.random() < 0.3
    scale = [any_codes(chance, n, dead) for n in (rows, columns)]
    step = [any_codes(chance, n, True) for n in (rows, columns)]
    units = [chance.choice(decoder.UNITS) for _ in range(2)]
    if logarithmic:                                                    # no exponent leaves its range at a row step of 2^5
        step = [np.minimum(step[0], 640 // units[0]), 0 * step[1]]
    index = [code - (unit * moved + 16) // 32 for code, unit, moved in zip(scale, units, step)]
    c = np.clip(base + index[0][:, None] + index[1], 1, 36)
    live = (scale[0] != -64)[:, None] & (scale[1] != -64)
    streams, digests, tables = [], [], ModelBank().table_set(2).arrays
    for top, bottom, left, right in Grid(rows, columns, height, width).tiles():
        codes = c[top:bottom, left:right].T[live[top:bottom, left:right].T].astype(np.uint8)
        levels = np.array([chance.choice([0, 1, -1, 3, chance.randint(-reach, reach)]) for _ in codes], np.int32)
        words = np.empty(4 * len(levels) + 4, np.uint32)
        number, digest = encode_tile(levels, codes, tables, make_trellis(states).next_state, shift, words)
        streams.append(pack_words(words[:number]))
        digests.append(int(digest))
    parts = [encode_codes(codes) for codes in (*scale, *step)]
    fields = [Codes(mode, spread, len(data)) for mode, spread, data in parts]
    moved = [Steps(codes, unit if codes.mode != "none" else 64) for codes, unit in zip(fields[2:], units)]
    labelling = 2 if logarithmic else chance.randint(0, states > 1)
    coding = Coding(split, transposed, not logarithmic and chance.random() < 0.5, height, width, states, labelling, shift,
                    10.0 ** chance.uniform(-6, 3), 2, base, 0, *fields[:2], *moved, tuple(map(len, streams)))
    dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
    return (Record("w", dtype, shape, "coded", coding=coding), join_parts(b"".join([data for _, _, data in parts]), streams),
            chain_digests(digests))


@pytest.mark.parametrize("seed", range(75))
def test_coded_tensor_made_by_hand(seed, tmp_path):
    record, data, digest = coded_by_hand(random.Random(seed), logarithmic=seed >= 60)
    origin = '{"kind":"module","metadata":[],"wrapper":"","extras":""}'
    directory = Directory(ModelBank(), origin, (record,), (Unit(1, False, checksum(data), digest),)).write()
    path = tmp_path / "w.safetensors"
    path.write_bytes(container_bytes(decoder.Container(0, directory, data, {})))
    assert list(check_decoders_agree(path)) == ["w"]


# ---- the page itself -------------------------------------------------------------------------------------------------

def test_worked_example_of_the_format_page(tmp_path):
    """The bytes of section 17, as printed, are a file that both decoders read as the tensor printed there."""
    text = FORMAT.read_text().split("## 17. Worked example")[1]
    header = re.search(r"^    (\{\"__metadata__.*)$", text, re.M)[1].replace("␠", " ").encode()
    before, after = text.split("The directory, inflated:")[0].split("␠\n")
    dump = [re.match(r"^    ((?:[0-9a-f]{2} {1,3})*[0-9a-f]{2})(?: {4}|$)", line) for line in after.splitlines()]
    data = b"".join(bytes.fromhex(line[1]) for line in dump if line)
    path = tmp_path / "example.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    size = int(re.search(r"It has (\d+) bytes", before)[1])
    assert path.stat().st_size == size
    printed = text.split("The tensor is")[1].split("\n## ")[0].split()
    expected = np.array([float(v) for v in printed], "<f4")
    assert check_decoders_agree(path) == {"w": ("float32", (3, 4), expected.tobytes())}


def test_check_values_of_the_format_page():
    """The numbers that section 9 and 11 give for checking."""
    assert [decoder.POWERS[i] for i in (0, 1, 2, 255)] == [4294967296, 4283353945, 4271771996, 2153306066]
    gauss, heavy, narrow = decoder.parametric_table(0, 17, 0), decoder.parametric_table(7, 36,
                                                                                            1), decoder.parametric_table(5, 1,
                                                                                                                           0)
    assert (gauss.low, len(gauss.frequencies), max(gauss.frequencies)) == (-8, 18, 6697334)
    assert (heavy.low, len(heavy.frequencies), heavy.frequencies[:3]) == (-128, 257, [1252, 1287, 1325])
    assert (narrow.low, narrow.frequencies) == (-2, [1, 3, 16776184, 3, 1, 1024])
    assert decoder.scale_table(0).frequencies[127:130] == [7385, 16762192, 7385]
    assert [(decoder.next_state(8, s, 0), decoder.next_state(8, s, 1)) for s in range(8)] == [
        (0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4)]
