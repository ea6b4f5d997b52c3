"""Two decoders that share no code agree on files that are the difference to a reference: random ones, records made by hand,
directories with changed bits, and where the reference is looked for."""
from __future__ import annotations

import os
import random
import shutil
import sys
import zlib
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nnc
from nnc.coder import checksum
from nnc.container import open_file
from nnc.directory import Directory, ReferenceEntry, Unit
from nnc.entropy.explicit import ModelBank
from nnc.entropy.scales import encode_codes
from nnc.fields import Codes, Orders, Prediction
from nnc.unit import DTYPES, Record

sys.path.insert(0, str(Path(__file__).parent))
import reference_decoder as decoder  # noqa: E402
from golden_cases import GOLDEN  # noqa: E402
from golden_damage import container_bytes, hint  # noqa: E402
from make_golden import bytes_of, in_bytes, loaded  # noqa: E402
from test_golden import (  # noqa: E402
    check_decoders_agree,
    check_refused,
    coded_by_hand,
    files_of,
    random_options,
    random_tensor,
)

ORIGIN = '{"kind":"module","metadata":[],"wrapper":"","extras":""}'
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
State = dict[str, torch.Tensor]

# ---- random checkpoints ----------------------------------------------------------------------------------------------


def relative(chance: random.Random, g: torch.Generator, base: torch.Tensor) -> torch.Tensor:
    """A tensor that has something of another one, or all, or nothing."""
    kind = chance.randrange(7)
    if kind == 0:
        return base.clone()
    if not base.is_floating_point():
        return base + torch.randint(-1, 2, base.shape, generator=g).to(base.dtype)
    wide = base.float()
    noise = wide.abs().mean() * torch.randn(base.shape, generator=g)
    if kind == 1:
        wide = wide[torch.randperm(len(wide), generator=g)]
    elif kind == 2 and wide.ndim > 1:
        wide = wide[:, torch.randperm(wide.shape[1], generator=g)]
    elif kind == 3:
        wide = wide * torch.rand(len(wide), *[1] * (wide.ndim - 1), generator=g)
    elif kind == 4:
        wide = noise
    return (wide + chance.choice([0.003, 0.1, 0.5]) * noise).to(chance.choice([base.dtype, base.dtype, *FLOATS]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_pair(seed, tmp_path):
    chance, g = random.Random(seed), torch.Generator().manual_seed(seed)
    base = {f"t{i}": random_tensor(chance, g) for i in range(chance.randint(1, 7))}
    tensors = {name: relative(chance, g, tensor) for name, tensor in base.items()}
    tensors["own"] = random_tensor(chance, g)
    options = random_options(chance)
    if "bits" in options:                                              # which may be too few for one so small
        options["snr"] = 5 * options.pop("bits")
    if chance.random() < 0.25:
        options = {"lossless": True}
    form = chance.choice(["mapping", "safetensors", "file", "folder"])
    place = tmp_path / {"mapping": "none", "safetensors": "base.safetensors", "file": "base.safetensors", "folder": "base"}[form]
    if form == "safetensors":
        save_file(base, place)
    elif form != "mapping":
        nnc.compress(base, place, snr=30, threads=1)
    given = base if form == "mapping" else place
    target = tmp_path / chance.choice(["delta", "delta.safetensors"])
    if target.suffix:
        options.pop("shard_bytes", None)
    nnc.compress(tensors, target, threads=1, reference=given, **options)
    taken = any(record.referenced for file in files_of(target) for record in open_file(file).directory.records)
    found = check_decoders_agree(target, base if form == "mapping" and taken else None)
    assert list(found) == list(tensors)
    if "lossless" in options:
        assert found == in_bytes(tensors)


# ---- records that are made here, not by the encoder -------------------------------------------------------------------

def tensor_digest(tensor: torch.Tensor) -> bytes:
    """Section 12, computed here anew."""
    return blake2b(bytes([DTYPES.id(tensor.dtype)]) + bytes_of(tensor), digest_size=8).digest()


def unit_digest(*taken: torch.Tensor) -> bytes:
    return blake2b(b"".join(map(tensor_digest, taken)), digest_size=8).digest()


def write(path: Path, records: tuple[Record, ...], taken: tuple[torch.Tensor, ...], data: bytes = b"", name: str = "",
          digest: int = 0, permutations: tuple[np.ndarray, ...] = ()) -> Path:
    """A file of one unit; taken: the tensors of the reference that its records are differences to; name: hint."""
    unit = Unit(len(records), False, checksum(data), digest, unit_digest(*taken) if taken else b"")
    directory = Directory(ModelBank(), ORIGIN, records, (unit,), reference=ReferenceEntry(name, permutations))
    path.write_bytes(container_bytes(decoder.Container(0, directory.write(), data, {})))
    return path


def any_order(chance: random.Random, size: int) -> np.ndarray | None:
    """A permutation whose length divides `size`, None if it is too short for one."""
    lengths = [m for m in range(2, size + 1) if size % m == 0]
    if not lengths or chance.random() < 0.3:
        return None
    return np.random.default_rng(chance.randrange(1 << 30)).permutation(chance.choice(lengths))


def any_confidence(chance: random.Random, count: int) -> np.ndarray:
    """Codes for which every mode is the shortest at times."""
    kind = chance.randrange(5)
    codes = [0] * count
    if kind == 1:
        codes = [chance.randint(-8, 0) for _ in range(count)]
    elif kind == 2:
        codes = [min(0, max(-8, -8 * i // count + chance.randint(-1, 1))) for i in range(count)]
    elif kind == 3:
        codes = [-8 if i % 16 else -3 for i in range(count)]
    elif kind == 4:
        codes = [-8] * count
    return np.array(codes, np.int16)


def predicted_by_hand(seed: int, path: Path) -> tuple[str, State]:
    """Writes a file of one predicted record with random fields; the mode of its confidences, and its reference."""
    chance, g = random.Random(seed), torch.Generator().manual_seed(seed)
    record, data, digest = coded_by_hand(chance)
    coding, orders = record.coding, []
    sizes = [int(np.prod(record.shape[:coding.split])), int(np.prod(record.shape[coding.split:]))]
    permutations = [np.random.default_rng(seed).permutation(5)]        # nobody needs it
    for size in sizes:
        order = any_order(chance, size)
        permutations += [] if order is None else [order]
        orders.append(0 if order is None else len(permutations))
    mode, spread, packed = encode_codes(any_confidence(chance, sizes[0]))
    at = sum(codes.length for codes in (coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes))
    data = data[:at] + packed + data[at:]
    prediction = Prediction(Orders(*orders), Codes(mode, spread, len(packed)))
    base = {"w": (torch.randn(record.shape, generator=g) * 10.0 ** chance.randint(-3, 3)).to(chance.choice(FLOATS))}
    record = replace(record, coding=replace(coding, prediction=prediction))
    write(path, (record,), (base["w"],), data, digest=digest, permutations=tuple(permutations))
    return mode, base


@pytest.mark.parametrize("seed", range(60))
def test_predicted_tensor_made_by_hand(seed, tmp_path):
    path = tmp_path / "w.safetensors"
    _, base = predicted_by_hand(seed, path)
    assert list(check_decoders_agree(path, base)) == ["w"]


def test_predicted_tensors_made_by_hand_use_all_modes(tmp_path):
    assert {predicted_by_hand(seed, tmp_path / "w.safetensors")[0] for seed in range(60)} == {
        "none", "direct", "differences", "deflated"}


def dead(shape: tuple[int, ...], split: int, orders: tuple[int, int] = (0, 0), confidence: bytes = b"") -> tuple[Record, bytes]:
    """A predicted record without a coded weight, and its bytes; confidence: signed codes of the rows, deflated."""
    record, _, _ = coded_by_hand(random.Random(0))
    rows = int(np.prod(shape[:split]))
    codes, trust = zlib.compress(b"\xc0" * rows), zlib.compress(confidence) if confidence else b""
    none = Codes("none", 0, 0)
    coding = replace(record.coding, split=split, transposed=False, follow=False, height=rows, width=int(np.prod(shape[split:])),
                     labelling=0, rows=Codes("deflated", 0, len(codes)), columns=none, streams=(0,),
                     row_steps=replace(record.coding.row_steps, codes=none),
                     column_steps=replace(record.coding.column_steps, codes=none),
                     prediction=Prediction(Orders(*orders), Codes("deflated" if trust else "none", 0, len(trust))))
    return Record("w", torch.float32, shape, "coded", coding=coding), codes + trust


@pytest.mark.parametrize("size", [2, 255, 256, 257, 65536, 65537])
def test_orders_of_all_widths(size, tmp_path):
    order = np.random.default_rng(size).permutation(size)
    record, data = dead((3 * size,), 0, (0, 1))
    base = {"w": torch.arange(3.0 * size)}
    path = write(tmp_path / "w.safetensors", (record,), (base["w"],), data, permutations=(order,))
    found = np.frombuffer(check_decoders_agree(path, base)["w"][2], "<f4")
    assert (found == (3 * order[:, None] + np.arange(3)).ravel()).all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("code", [0, -4, -8])
def test_a_reference_that_is_not_finite_is_refused(value, code, tmp_path):
    """Also where the confidence is 0: nothing times infinity is not a number."""
    record, data = dead((2, 3), 1, confidence=bytes([256 + code & 255, 0]))
    base = {"w": torch.tensor([[1.0, value, 2.0], [3.0, 4.0, 5.0]])}
    path = write(tmp_path / "w.safetensors", (record,), (base["w"],), data)
    with pytest.raises(nnc.Corruption):
        nnc.load(path, threads=1, reference=base)
    with pytest.raises(ValueError, match="infinite"):
        decoder.decode(path, in_bytes(base))


def test_signs_of_zero_and_subnormal_predictions(tmp_path):
    record, data = dead((2, 4), 1, confidence=b"\xf8\xff")
    base = {"w": torch.tensor([[-1.0, 1.0, -0.0, 0.0], [-0.0, 1e-45, 3e-45, -1.5e-38]])}
    check_decoders_agree(write(tmp_path / "w.safetensors", (record,), (base["w"],), data), base)


ODD: State = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3), "wide": torch.full((2,), 1j, dtype=torch.complex128),
              "flags": torch.tensor([True, False]), "float8": torch.ones(3).to(torch.float8_e4m3fn),
              "pair": torch.complex(torch.ones(2), torch.ones(2)), "large": torch.tensor([0, 1, 2], dtype=torch.uint64),
              "small": torch.tensor([0, 1, 255], dtype=torch.uint8), "short": torch.tensor([-1, 0, 7], dtype=torch.int16)}


def test_same_tensors_of_all_kinds(tmp_path):
    records = tuple(Record(name, t.dtype, tuple(t.shape), "same") for name, t in ODD.items())
    aliases = (Record("tied", torch.int64, (), "alias", target=1, tied=True), Record("equal", torch.int64, (), "alias", target=1))
    path = write(tmp_path / "c.safetensors", records + aliases, tuple(ODD.values()))
    found = check_decoders_agree(path, ODD)
    assert found == in_bytes(ODD | {"tied": ODD["scalar"], "equal": ODD["scalar"]})


def difference(name: str, numbers: list[int]) -> tuple[Record, bytes]:
    """An exact record with filter 4 whose planes hold these numbers."""
    tensor = ODD[name]
    size = tensor.dtype.itemsize
    planes = np.array(numbers, f"<u{size}").view(np.uint8).reshape(-1, size).T.tobytes()
    data = zlib.compress(planes)
    return Record(name, tensor.dtype, tuple(tensor.shape), "exact", filter="reference", length=len(data)), data


@pytest.mark.parametrize("name, numbers, elements", [
    ("small", [1, 3, 2], [255, 255, 0]), ("small", [255, 254, 128], [128, 128, 63]),
    ("short", [65535, 65534, 1], [32767, 32767, 6]), ("scalar", [2 ** 64 - 1], [3 - 2 ** 63]),
    ("flags", [1, 2], [False, True]), ("flags", [2, 0], None), ("large", [2 ** 64 - 1, 2 ** 64 - 2, 0], None),
    ("float8", [1, 0, 9], None), ("pair", [5, 2 ** 40], None), ("empty", [], None)])
def test_differences_to_the_reference(name, numbers, elements, tmp_path):
    record, data = difference(name, numbers)
    path = tmp_path / "d.safetensors"
    write(path, (record,), (ODD[name],), data)
    if name == "flags" and elements is None:                           # a bool of 2
        return check_refused_with(path, nnc.Corruption, ODD)
    dtype, _, found = check_decoders_agree(path, ODD)[name]
    assert elements is None or np.frombuffer(found, dtype).tolist() == elements


def check_refused_with(path: Path, error: type[nnc.NncError], reference: State) -> None:
    with pytest.raises(error):
        nnc.load(path, threads=1, reference=reference)
    with pytest.raises(ValueError) as caught:
        decoder.decode(path, in_bytes(reference))
    assert isinstance(caught.value, decoder.WrongReference) == (error is nnc.InvalidArgument)


@pytest.mark.parametrize("other", [
    {}, {"w": torch.ones(3, 2)}, {"w": torch.ones(2, 3, 1)}, {"w": torch.ones(2, 3).double()},
    {"w": torch.ones(2, 3).half()}, {"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3, dtype=torch.int32)}])
@pytest.mark.parametrize("kind", ["same", "exact", "coded"])
def test_wrong_references_are_refused(kind, other, tmp_path):
    base = torch.ones(2, 3)
    record, data = Record("w", torch.float32, (2, 3), "same"), b""
    if kind == "exact":
        data = zlib.compress(bytes(24))
        record = replace(record, kind=kind, filter="reference", length=len(data))
    elif kind == "coded":
        record, data = dead((2, 3), 1)
    path = write(tmp_path / "w.safetensors", (record,), (base,), data)
    check_decoders_agree(path, {"w": base})
    check_refused_with(path, nnc.InvalidArgument, {"x": base} | other)


# ---- directories -----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_changed_directories_agree(tmp_path):
    """Single bits of the directory, with its checksum set right again: both decoders read the same tensors or both refuse, and
    agree on whether the file is damaged or the reference is wrong."""
    g = torch.Generator().manual_seed(2)
    base = {"a": torch.randn(12, 9, generator=g), "b": torch.randn(6, 12, 2, generator=g), "c": torch.arange(20),
            "d": torch.randn(5, generator=g).half(), "e": torch.randn(6, generator=g).bfloat16()}
    order = torch.randperm(12, generator=g)
    tensors = {"a": base["a"][order] + 0.1 * torch.randn(12, 9, generator=g), "b": base["b"][:, order] * 1.01,
               "c": base["c"] + torch.arange(20) % 2, "d": base["d"], "e": base["e"] + 0.01}
    tensors["a"][:3] = torch.randn(3, 9, generator=g)
    path = tmp_path / "c.safetensors"
    save_file(base, tmp_path / "base.safetensors")
    nnc.compress(tensors, path, step=0.3, threads=1, reference=tmp_path / "base.safetensors", rules=("e=exact",))
    container = decoder.read_container(path.read_bytes())
    kinds = [record.kind for record in decoder.read_directory(container).records]
    assert kinds == [decoder.PREDICTED, decoder.PREDICTED, decoder.EXACT, decoder.SAME, decoder.EXACT]
    sound, read = container.directory, 0
    for position in range(len(sound)):
        container.directory = sound[:position] + bytes([sound[position] ^ 1 << position % 8]) + sound[position + 1:]
        path.write_bytes(container_bytes(container))
        try:
            expected = decoder.decode(path)
        except ValueError as refused:
            error = nnc.InvalidArgument if isinstance(refused, decoder.WrongReference) else (nnc.Corruption, nnc.Unsupported)
            with pytest.raises(error):
                nnc.load(path, threads=1)
        else:
            read += 1
            assert list(loaded(path, threads=1).items()) == list(expected.items())
    assert 0 < read < len(sound)                                       # the origin changes no tensor, nearly all else does


# ---- where the reference is ------------------------------------------------------------------------------------------

ONES = {"t": torch.ones(3)}


def same_as(path: Path, name: str) -> Path:
    """A file whose only tensor is the one of the reference of this name."""
    return write(path, (Record("t", torch.float32, (3,), "same"),), (ONES["t"],), name=name)


def test_the_hint_is_looked_for_beside_the_checkpoint_only(tmp_path):
    inside, above, sound = tmp_path / "a" / "delta", tmp_path / "a" / "base.safetensors", tmp_path / "base.safetensors"
    (tmp_path / "a").mkdir()
    save_file(ONES, sound)
    nnc.compress({"t": ONES["t"], "u": torch.arange(4)}, inside, threads=1, reference=sound)
    shutil.copy(sound, inside / "base.safetensors")                    # in the folder itself: not looked at
    check_refused(inside, nnc.InvalidArgument)
    shutil.copy(sound, above)
    check_decoders_agree(inside)
    moved = same_as(inside / "one.safetensors", "base.safetensors")    # a file in that folder has its reference beside it
    check_decoders_agree(moved)
    (inside / "base.safetensors").unlink()
    check_refused(moved, nnc.InvalidArgument)


def test_a_reference_that_is_given_is_taken_instead_of_the_hint(tmp_path):
    save_file(ONES, tmp_path / "other.safetensors")
    save_file({"t": torch.zeros(3)}, tmp_path / "base.safetensors")
    path = same_as(tmp_path / "delta.safetensors", "base.safetensors")
    check_refused(path, nnc.InvalidArgument)
    for given in (ONES, tmp_path / "other.safetensors"):
        expected = decoder.decode(path, in_bytes(given) if isinstance(given, dict) else given)
        assert loaded(path, threads=1, reference=given) == expected == in_bytes(ONES)


def test_the_first_shard_that_has_a_hint_speaks_for_all(tmp_path):
    folder = tmp_path / "delta"
    shutil.copytree(GOLDEN / "predicted-shards", folder)
    shutil.copy(GOLDEN / "original.safetensors", tmp_path)
    first, second = sorted(folder.glob("*.safetensors"))
    second.write_bytes(hint("missing.safetensors")(second.read_bytes()))
    check_decoders_agree(folder)
    first.write_bytes(hint("missing.safetensors")(first.read_bytes()))
    check_refused(folder, nnc.InvalidArgument)


def test_what_takes_nothing_from_the_reference_does_not_need_it(tmp_path):
    record = Record("t", torch.float32, (3,), "constant", value=bytes(4))
    check_decoders_agree(write(tmp_path / "t.safetensors", (record,), (), name="missing.safetensors"))


def test_links_are_followed_to_the_file_but_not_to_its_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save_file(ONES, tmp_path / "a" / "base.safetensors")
    there = same_as(tmp_path / "b" / "delta.safetensors", "base.safetensors")
    link = tmp_path / "a" / "link.safetensors"
    link.symlink_to(there)
    check_decoders_agree(link)
    check_refused(there, nnc.InvalidArgument)


def test_names_of_references_may_be_unusual(tmp_path):
    for name in ("größe Ω.safetensors", "..a.safetensors", "~.safetensors", "-x.safetensors", "%2e.safetensors",
                 "n" * 188 + ".safetensors"):
        save_file(ONES, tmp_path / name)
        check_decoders_agree(same_as(tmp_path / "delta.safetensors", name))


def test_a_chain_of_64_references_is_read_and_one_of_65_refused(tmp_path):
    save_file(ONES, tmp_path / "0.safetensors")
    for number in range(1, 66):
        same_as(tmp_path / f"{number}.safetensors", f"{number - 1}.safetensors")
    assert check_decoders_agree(tmp_path / "64.safetensors") == in_bytes(ONES)
    check_refused(tmp_path / "65.safetensors", nnc.Corruption)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_circles_are_refused_from_any_of_their_files(length, tmp_path):
    for number in range(length):
        same_as(tmp_path / f"{number}.safetensors", f"{(number + 1) % length}.safetensors")
    same_as(tmp_path / "into.safetensors", "0.safetensors")
    for name in ("0", "into", str(length - 1)):
        check_refused(tmp_path / f"{name}.safetensors", nnc.Corruption)


def test_a_circle_through_a_link_is_refused(tmp_path):
    path = same_as(tmp_path / "one.safetensors", "two.safetensors")
    (tmp_path / "two.safetensors").symlink_to(path)
    check_refused(path, nnc.Corruption)


def test_a_file_that_is_given_as_its_own_reference_is_refused(tmp_path):
    path = same_as(tmp_path / "one.safetensors", "two.safetensors")
    with pytest.raises(nnc.Corruption):
        nnc.load(path, threads=1, reference=path)
    with pytest.raises(ValueError, match="own reference"):
        decoder.decode(path, path)


def test_paths_that_are_relative(tmp_path, monkeypatch):
    save_file(ONES, tmp_path / "base.safetensors")
    same_as(tmp_path / "delta.safetensors", "base.safetensors")
    monkeypatch.chdir(tmp_path)
    check_decoders_agree(Path("delta.safetensors"))
    assert os.getcwd() == str(tmp_path)
