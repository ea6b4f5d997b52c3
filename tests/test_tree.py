"""Partitions: planes and CTUs cover every weight once; trees below the CTU (METHODS S14 (c) 1, 2, 3, 6)."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

import nnc
from nnc import encoder
from nnc.bits import Reader, Writer
from nnc.calibration.statistics import TensorStatistics
from nnc.coder import chain_digests, checksum
from nnc.decoder import decode_unit
from nnc.directory import Unit
from nnc.encoded import EncodedTensor
from nnc.encoder import encode_calibrated, encode_coded, make_plane
from nnc.entropy.explicit import ModelBank
from nnc.entropy.parametric import SHAPES
from nnc.entropy.trees import SPREADS, TreeModel, decode_trees, encode_trees, make_trees
from nnc.errors import Corruption
from nnc.fields import Lanes
from nnc.partition.grid import Grid, choose_grid
from nnc.partition.planes import plane_shape
from nnc.partition.tree import FLAGS, LEAST, MOST, SKIP, cell_shape, cell_tiles
from nnc.powers import fit_scales, measure_powers
from nnc.rdo import Search, gather
from nnc.sensitivity import measure_sensitivity
from nnc.splitting import choose_trees
from nnc.tools import Tools, Tree
from nnc.unit import Coding, Record

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import trees as benchmark  # noqa: E402
from reference_decoder.trees import Tree as ReferenceTree  # noqa: E402
from reference_decoder.trees import tree_codes  # noqa: E402

SHAPES_OF_KERNELS = {
    "conv": (37, 19, 3, 3),
    "conv 1-D": (24, 10, 5),
    "conv 3-D": (6, 5, 2, 3, 3),
    "grouped": (16, 4, 3, 3),
    "depthwise": (32, 1, 3, 3),
    "pointwise": (30, 20, 1, 1),
    "linear": (30, 41),
    "one weight": (1, 1),
    "embedding": (100, 16),
    "gates": (48, 12),
    "vector": (17,),
    "scalar": (),
    "no rows": (0, 5),
    "no columns": (5, 0, 3),
}


def decoded(encoded: EncodedTensor, bank: ModelBank = ModelBank()) -> torch.Tensor:
    unit = Unit(1, True, checksum(encoded.data), chain_digests(encoded.digests))
    return decode_unit(unit, (encoded.record,), encoded.data, bank)()[0]


def check_decodes(encoded: EncodedTensor, bank: ModelBank = ModelBank()) -> torch.Tensor:
    tensor = decoded(encoded, bank)
    assert checksum(encoder.tensor_bytes(tensor)) == encoded.content
    return tensor


def encode(weights: np.ndarray, step: float, search: Search = Search(8, 0, 0.38, 1, trees=True), **options) -> EncodedTensor:
    return encode_coded("w", torch.from_numpy(weights), measure_powers(weights), step, search, ModelBank(), **options)


def make_blocks(rows: int, columns: int, side: int = 24, seed: int = 0) -> np.ndarray:
    """Gaussian weights with a scale for every block, float32."""
    rng = np.random.default_rng(seed)
    scales = np.exp(1.5 * rng.normal(size=(-(-rows // side), -(-columns // side))))
    return (np.kron(scales, np.ones((side, side)))[:rows, :columns] * rng.normal(size=(rows, columns))).astype(np.float32)


# ---- planes and CTUs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES_OF_KERNELS.values(), ids=SHAPES_OF_KERNELS)
def test_partition_and_reassembly_are_the_identity(shape):
    """For every plane recipe, transposed or not, and CTUs of many sizes, byte for byte; every weight is covered once."""
    tensor = np.random.default_rng(0).integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    for split in range(len(shape) + 1):
        for transposed in (False, True):
            plane = tensor.reshape(plane_shape(shape, split))
            plane = plane.T if transposed else plane
            assert plane.shape == plane_shape(shape, split, transposed)
            rows, columns = plane.shape
            for height, width in ((rows, columns), (8, 8), (16, 32), (5, 3), (1, columns), (256, 256)):
                grid = Grid(rows, columns, min(max(height, 1), max(rows, 1)), min(max(width, 1), max(columns, 1)))
                back, covered = np.zeros(plane.shape, np.float32), np.zeros(plane.shape, int)
                for top, bottom, left, right in grid.tiles():
                    back[top:bottom, left:right] = plane[top:bottom, left:right]
                    covered[top:bottom, left:right] += 1
                assert (covered == 1).all() and len(grid.tiles()) == grid.count
                back = np.ascontiguousarray(back.T if transposed else back).reshape(shape)
                assert back.tobytes() == tensor.tobytes()


def test_kernel_tensors_come_back_from_a_file(tmp_path):
    """Of no loss: byte for byte, tensors without elements too; coded: within the step."""
    g = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=g) for name, shape in SHAPES_OF_KERNELS.items()}
    nnc.compress(tensors, tmp_path / "exact.safetensors", lossless=True)
    nnc.compress(tensors, tmp_path / "coded.safetensors", step=0.1, states=1, lagrangian=1e-9)
    for name, tensor in nnc.load(tmp_path / "exact.safetensors").items():
        assert torch.equal(tensor, tensors[name])
    for name, tensor in nnc.load(tmp_path / "coded.safetensors").items():
        assert tensor.shape == tensors[name].shape
        assert tensor.numel() == 0 or (tensor - tensors[name]).abs().max() < 0.051


def test_the_scan_gathers_every_weight_once():
    for rows, columns in ((300, 500), (3, 70000), (70000, 3), (513, 129)):
        plane = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
        scales = fit_scales(measure_powers(np.ones((rows, columns), np.float32)), 1.0)
        found = [gather(plane, tile, scales, 1.0).position for tile in choose_grid(rows, columns).tiles()]
        assert np.array_equal(np.sort(np.concatenate(found)), np.arange(rows * columns))


@pytest.mark.parametrize("rows, columns", [(300, 500), (3, 70000), (70000, 3), (513, 1029), (65536, 1), (40000, 4)])
def test_ctus_start_where_cells_do(rows, columns):
    grid = choose_grid(rows, columns)
    covered = np.zeros(cell_shape(rows, columns), int)
    for top, bottom, left, right in cell_tiles(grid):
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


# ---- trees ------------------------------------------------------------------------------------------------------------


def random_trees(rng, grid: Grid, cut: float, skip: float = 0.2, spread: int = 20):
    """Trees with random cuts of all kinds."""
    splits, codes = [], []

    def grow(top: int, bottom: int, left: int, right: int) -> None:
        a, b = (bottom - top - 1).bit_length(), (right - left - 1).bit_length()
        kinds = [kind for kind, fits in ((1, a == b > 0), (2, a > 0), (3, b > 0)) if fits]
        kind = rng.choice(kinds) if kinds and rng.random() < cut else 0
        splits.append(kind)
        if not kind:
            codes.append(SKIP if rng.random() < skip else rng.integers(max(LEAST, -spread), min(MOST, spread) + 1))
            return
        rows = [(top, bottom)] if kind == 3 else [(top, top + (1 << a >> 1)), (top + (1 << a >> 1), bottom)]
        columns = [(left, right)] if kind == 2 else [(left, left + (1 << b >> 1)), (left + (1 << b >> 1), right)]
        for part in rows:
            for other in columns:
                grow(*part, *other)

    for tile in cell_tiles(grid):
        grow(*map(int, tile))
    return make_trees(np.array(splits, np.uint8), np.array(codes, np.int16), grid)


@pytest.mark.parametrize("rows, columns, height, width", [
    (1, 1, 1, 1), (64, 64, 64, 64), (37, 171, 37, 171), (100, 200, 64, 72), (8, 900, 8, 900), (3000, 5, 1000, 5), (264, 264, 128, 256),
])  # fmt: skip
@pytest.mark.parametrize("cut", [0.0, 0.6, 0.97])
def test_trees_come_back(rows, columns, height, width, cut):
    """From this decoder and from that of the page."""
    rng = np.random.default_rng(rows + columns)
    grid = Grid(rows, columns, height, width)
    for spread, skip in ((0, 0.0), (20, 0.3), (64, 0.0)):
        trees = random_trees(rng, grid, cut, skip, spread)
        model, data = encode_trees(trees, grid)
        assert np.array_equal(decode_trees(data, model, grid), trees.field)
        tree = ReferenceTree(model.near, model.shape, model.spread, model.rates, len(data))
        expected = [
            [SKIP if code is None else code for code in row] for row in tree_codes(data, tree, rows, columns, height, width)
        ]
        assert trees.field.tolist() == expected


def test_a_tree_of_one_leaf_costs_one_symbol():
    grid = Grid(64, 64, 64, 64)
    for code in (0, 1, -30, SKIP):
        trees = make_trees(np.zeros(1, np.uint8), np.array([code], np.int16), grid)
        model, data = encode_trees(trees, grid)
        assert len(data) <= 3 and (decode_trees(data, model, grid) == code).all()


def test_fields_of_a_record():
    tree = Tree(TreeModel(True, 5, 23, bytes(range(FLAGS))), 1 << 20)
    out = Lanes.make(Writer)
    Tools(tree=tree).write(out, "learned")
    data = Lanes(*(Reader(lane.data()) for lane in out))
    assert Tools.read_flags(data) == ("learned", 4)
    assert Tools.read(data, 4, True, (9, 9), False, 1, 0, ()) == Tools(tree=tree)
    assert data.tools.left == data.lengths.left == 0
    assert [part.length for part in Tools(tree=tree).codes()] == [1 << 20]


@pytest.mark.parametrize("shape, spread", [(2 * SHAPES, 0), (0, SPREADS)])
def test_tables_that_there_are_not_are_refused(shape, spread):
    lanes = Lanes.make(lambda: Reader(bytes([shape, spread]) + bytes(40)))
    with pytest.raises(Corruption):
        Tools.read(lanes, 4, False, (9, 9), False, 1, 0, ())


def test_ctus_inside_a_cell_are_refused():
    encoded = encode(make_blocks(270, 300), 0.3)
    coding = encoded.record.coding
    assert coding.tools.tree and len(coding.streams) == 2
    for height, width, fits in ((coding.height, coding.width, True), (135, 300, False), (270, 150, False), (136, 304, True)):
        count = Grid(270, 300, height, min(width, 300)).count
        out = Lanes.make(Writer)
        replace(coding, height=height, width=min(width, 300), streams=(5,) * count).write(out)
        lanes = Lanes(*(Reader(lane.data()) for lane in out))
        if fits:
            assert Coding.read(lanes, (270, 300), SHAPES, False, 0, None, ()).tools == coding.tools
        else:
            with pytest.raises(Corruption, match="with a tree"):
                Coding.read(lanes, (270, 300), SHAPES, False, 0, None, ())


# ---- what they gain ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rate_on_blocks_of_uneven_scale():
    """METHODS S14 (c) 2, real bytes.  Fixed CUs of 16 are the smallest blocks of the source, and within 1 % of the oracle itself."""
    _, bounds = benchmark.measure_blocks()
    assert len(bounds) == 6
    for bound in bounds:
        assert bound.kept, bound.text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_tree_where_there_is_nothing_to_find(seed):
    """METHODS S14 (c) 3: the bytes are the same as without the tool."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(300, 400))
    for weights in (
        normal,
        normal * np.exp(rng.normal(size=400)) * np.exp(rng.normal(size=(300, 1))),
        rng.standard_t(3, (300, 400)),
    ):
        for states in (1, 8):
            found = encode(weights.astype(np.float32), 0.3, Search(states, 0, 0.2, 1, trees=True), follow=seed == 1)
            assert found.record.coding.tools.tree is None


def test_a_tree_joins_codes_of_rows_where_both_help():
    rng = np.random.default_rng(0)
    plane = (make_blocks(256, 512, 64, 1) * np.exp(rng.normal(size=(256, 1)))).astype(np.float32)
    found = encode(plane, 0.05, benchmark.ROUNDED)
    assert found.record.coding.tools.tree and found.record.coding.rows.length
    check_decodes(found)


def test_what_is_zero_is_skipped():
    weights = make_blocks(200, 200, 40)
    weights[40:160, 80:120] = 0
    for states in (1, 8):
        found = encode(weights, 0.2, Search(states, 0, 0.3, 1, trees=True))
        coding = found.record.coding
        field = decode_trees(found.data[: coding.tools.tree.length] if coding.side == coding.tools.tree.length else
                             found.data[coding.side - coding.tools.tree.length : coding.side], coding.tools.tree.model,
                             coding.grid((200, 200)))  # fmt: skip
        assert (field[5:20, 10:15] == SKIP).all()
        back = check_decodes(found).numpy()
        assert not back[40:160, 80:120].any() and not np.signbit(back[40:160, 80:120]).any()


# ---- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("states, labelling", [(1, 0), (8, 0), (8, 1), (64, 0)])
def test_round_trip(states, labelling, follow):
    for rows, columns, dtype in (
        (97, 203, torch.float32),
        (270, 300, torch.float16),
        (520, 90, torch.bfloat16),
        (4000, 20, torch.float32),
    ):
        tensor = torch.from_numpy(make_blocks(rows, columns, 8 if columns < 24 else 24, rows)).to(dtype)
        powers = measure_powers(make_plane(tensor)[1])
        found = encode_coded("w", tensor, powers, 0.2, Search(states, labelling, 0.2, 2, trees=True), ModelBank(), follow=follow)
        assert found.record.coding.tools.tree
        error = (check_decodes(found).float() - tensor.float()).square().sum()
        assert float(error) == pytest.approx(found.error, rel=0.05)  # of the plane, before it is rounded to its dtype


@pytest.mark.parametrize("step", [1e-3, 3e-5])
def test_round_trip_with_bypass_bits(step):
    found = encode(make_blocks(90, 90), step)
    assert found.record.coding.shift and found.record.coding.tools.tree
    assert check_decodes(found).numpy() == pytest.approx(make_blocks(90, 90), abs=3 * step)


def moment(rng, size: int) -> np.ndarray:
    x = (rng.normal(size=(3 * size + 5, size)) + rng.normal(size=(3 * size + 5, 1))) * np.exp(0.5 * rng.normal(size=size))
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rows, columns", [(96, 200), (270, 260), (24, 900)])
@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("substitution", ["feedback", "none"])
def test_round_trip_with_feedback(rows, columns, states, substitution):
    rng = np.random.default_rng(rows)
    tensor = torch.from_numpy(make_blocks(rows, columns, 8 if rows == 24 else 24))
    tensor[:24, 24:48] = 0
    sensitivity = measure_sensitivity(TensorStatistics(1e-3 * moment(rng, rows), moment(rng, columns), (2000, 1000)))
    assert sensitivity.transposed == (rows == 24)
    for factor in (0.003, 0.03):
        search = Search(states, 0, 0.3, 2, trees=True)
        found = encode_calibrated("w", tensor, sensitivity, factor, search, ModelBank(), substitution=substitution)
        assert found.record.coding.tools.tree
        error = float((check_decodes(found) - tensor).square().sum())
        assert error == pytest.approx(found.error, rel=0.01)


@pytest.mark.slow
def test_a_tree_saves_bytes_with_feedback(monkeypatch):
    rng = np.random.default_rng(0)
    tensor = torch.from_numpy(make_blocks(256, 256))
    sensitivity = measure_sensitivity(TensorStatistics(1e-3 * moment(rng, 256), moment(rng, 256), (2000, 1000)))
    points = []
    for choose in (choose_trees, benchmark.without_tree):
        monkeypatch.setattr(encoder, "choose_trees", choose)
        found = encode_calibrated("w", tensor, sensitivity, 0.01, Search(8, 0, 0.3, 1, trees=True), ModelBank())
        points.append((8 * len(found.data) / tensor.numel(), 0.5 * np.log2(found.loss)))
    (bits, loss), (bits_without, loss_without) = points
    assert bits + loss < 0.9 * bits_without + loss_without  # a bit is 6.02 dB


@pytest.mark.slow
def test_every_model_decodes(monkeypatch):
    """METHODS S14 (c) 6: another model changes the bytes and nothing else."""
    weights = make_blocks(150, 170)
    sizes, tensors = [], []
    for model in range(SHAPES):
        with monkeypatch.context() as patch:
            patch.setattr(encoder, "choose_model", lambda counts, bank, offsets: (model, 0, 0.0))
            found = encode(weights, 0.2, benchmark.ROUNDED)
        assert found.record.coding.model == model and found.record.coding.tools.tree
        tensors.append(check_decodes(found))
        sizes.append(len(found.data))
    assert all(torch.equal(tensor, tensors[0]) for tensor in tensors) and len(set(sizes)) == SHAPES


@pytest.mark.slow
def test_one_thread_or_many_make_the_same_file(tmp_path):
    tensors = {"w": torch.from_numpy(make_blocks(600, 600))}
    files = []
    for threads in (1, 4):
        nnc.compress(tensors, tmp_path / "w.safetensors", step=0.3, tools="tree", threads=threads, overwrite=True)
        files.append((tmp_path / "w.safetensors").read_bytes())
        assert torch.equal(
            nnc.load(tmp_path / "w.safetensors", threads=5 - threads)["w"], nnc.load(tmp_path / "w.safetensors")["w"]
        )
    assert files[0] == files[1]


# ---- damage ------------------------------------------------------------------------------------------------------------


def refused_or_decoded(record: Record, data: bytes, digests: tuple[int, ...]) -> bool:
    """Whether it is refused, with a sound checksum."""
    try:
        unit = Unit(1, True, checksum(data), chain_digests(digests))
        decode_unit(unit, (record,), data, ModelBank())()
    except Corruption as error:
        assert "\n" not in str(error)
        return True
    return False


@pytest.mark.slow
def test_damaged_trees_are_refused_or_decoded():
    """Never another error, and the digest tells whatever still decodes to other levels."""
    found = encode(make_blocks(270, 270), 0.3)
    coding, rng = found.record.coding, np.random.default_rng(0)
    start = coding.side - coding.tools.tree.length
    refused = 0
    for _ in range(200):
        data = bytearray(found.data)
        for _ in range(rng.integers(1, 4)):
            data[start + rng.integers(coding.tools.tree.length)] ^= 1 << rng.integers(8)
        refused += refused_or_decoded(found.record, bytes(data), found.digests)
    assert refused >= 199
    for _ in range(200):
        tree = coding.tools.tree
        rates = bytearray(tree.model.rates)
        rates[rng.integers(FLAGS)] = rng.integers(256)
        model = TreeModel(bool(rng.integers(2)), int(rng.integers(SHAPES)), int(rng.integers(SPREADS)), bytes(rates))
        record = replace(found.record, coding=replace(coding, tools=Tools(tree=replace(tree, model=model))))
        refused_or_decoded(record, found.data, found.digests)


@pytest.mark.parametrize("fill", [0, 0x55, 0xFF])
@pytest.mark.parametrize("rate", [0, 1, 255])
def test_hostile_trees_end(fill, rate):
    """As many nodes as cells allow, whatever the bytes say."""
    grid = Grid(4096, 4096, 256, 256)
    for length in (0, 1, 7, 4000):
        model = TreeModel(True, 7, 23, bytes([rate]) * FLAGS)
        data = bytes([fill]) * length + b"\1"
        try:
            field = decode_trees(data, model, grid)
        except Corruption:
            continue
        assert prod(field.shape) == 512 * 512
