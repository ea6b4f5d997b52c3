"""Outliers and codebooks: what METHODS S15 (c) asks for, exactness, damage.  Rates are real bytes of the coded unit."""
from __future__ import annotations

import importlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_decoder as decoder
import torch
from sklearn.cluster import KMeans

import nnc
from nnc.assembly import assemble_files
from nnc.bits import Reader, Writer
from nnc.calibration.statistics import TensorStatistics
from nnc.cluster.choice import FRACTIONS, Request, coding_gain, encode_best
from nnc.cluster.encode import Clusters, encode_codebook
from nnc.cluster.outlying import take_outliers
from nnc.cluster.rules import deviating_weights, distant_weights, largest_weights, relative_weights, straying_weights
from nnc.decoder import decode_unit
from nnc.directory import Directory
from nnc.encoded import EncodedTensor
from nnc.encoder import encode_calibrated, encode_coded, make_plane
from nnc.entropy.explicit import ModelBank
from nnc.entropy.sparse import all_forms, decode_positions, encode_positions
from nnc.errors import Corruption
from nnc.fields import Codes, Lanes, Steps
from nnc.points import MODES, lay_out
from nnc.powers import measure_powers
from nnc.rdo import Search
from nnc.sensitivity import measure_sensitivity
from nnc.tools import Memory
from nnc.unit import Coding, Record

sys.path.insert(0, str(Path(__file__).parent))
from golden_damage import container_bytes  # noqa: E402

pytestmark = pytest.mark.slow  # half a minute in all

DECIBELS = 6.02  # a bit is worth
TRELLIS, SCALAR = Search(8, 0, 0.38, 2), Search(1, 0, 0.14, 2)


@pytest.fixture(scope="module")
def script() -> Iterator[object]:
    """The benchmark, whose sources and ways to count these tests share."""
    folder = str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("clusters")
    sys.path.remove(folder)
    for path in Path(folder).glob("*.py"):
        sys.modules.pop(path.stem, None)


def decoded(encoded: EncodedTensor) -> torch.Tensor:
    """What a decoder makes of the file alone."""
    file = assemble_files([encoded], {}, ModelBank(), '{"kind":"module","metadata":[],"wrapper":"","extras":""}', None, None).files[0]
    directory = Directory.read(file.directory.write())
    return decode_unit(directory.units[0], directory.records, file.units[0], directory.bank)()[0]


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def check_decodes(encoded: EncodedTensor) -> torch.Tensor:
    tensor = decoded(encoded)
    assert zlib.crc32(bits_of(tensor)) == encoded.content
    return tensor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- acceptance of METHODS S15 ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("source", ["student-t", "outliers"])
def test_clusters_beat_k_means_and_the_uniform_quantizer(script, source, bits):
    row = script.compare(source, script.SOURCES[source](), bits)
    assert row.clusters >= row.k_means + 4
    assert row.clusters >= row.uniform + 15


@pytest.mark.parametrize("source", ["student-t", "outliers", "laplace", "gaussian", "digits"])
@pytest.mark.parametrize("bits", [2, 4])
def test_chosen_on_their_own_tools_never_cost_anything(script, source, bits):
    plain, best = script.compare_choice(script.SOURCES[source](), bits)
    assert best >= plain


@pytest.mark.slow
@pytest.mark.parametrize("centroids", [256, 1024])
def test_kernels_as_points(script, centroids):
    assert script.kernel_gain(centroids) >= 6.0


@pytest.mark.slow
def test_vectors_gain_no_more_than_space_filling_on_independent_weights(script):
    rate, gain = script.independent_gain()
    assert rate >= 2 and 0 <= gain <= 1.53


# ---- outliers ---------------------------------------------------------------------------------------------------------


def outlying(dtype: torch.dtype = torch.float32, number: int = 40) -> tuple[torch.Tensor, np.ndarray]:
    tensor = normal(60, 50)
    positions = np.sort(torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:number].numpy())
    tensor.view(-1)[positions] *= 300
    return tensor.to(dtype), positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("search", [SCALAR, TRELLIS])
@pytest.mark.parametrize("values", ["raw", "half", "quantized"])
def test_outliers_decode_exactly(dtype, search, values):
    tensor, positions = outlying(dtype)
    outliers = take_outliers(tensor, positions, values, 0.01)
    encoded = encode_coded("w", tensor, None, 0.3, search, ModelBank(), outliers=outliers)
    flat, there = check_decodes(encoded).view(-1)[positions], tensor.view(-1)[positions]
    if values == "quantized":
        assert (flat.float() - there.float()).abs().max() <= 0.51 * outliers.record.step + 2**-8 * there.float().abs().max()
    else:
        expected = there if values == "raw" else there.to(torch.float16).to(dtype)
        assert bits_of(flat) == bits_of(expected)
    assert encoded.record.coding.tools.outliers.values == ("raw" if values == "half" and dtype == torch.float16 else values)
    inliers = np.setdiff1d(np.arange(tensor.numel()), positions)
    assert (decoded(encoded).view(-1)[inliers].float() - tensor.view(-1)[inliers].float()).abs().max() < 3


def test_outliers_leave_the_scales_alone():
    tensor, positions = outlying()
    others = tensor.clone()
    others.view(-1)[positions] = 0
    with_outliers = encode_coded("w", tensor, None, 0.3, TRELLIS, ModelBank(), outliers=take_outliers(tensor, positions, "raw"))
    without = encode_coded("w", others, measure_powers(make_plane(others)[1]), 0.3, TRELLIS, ModelBank())
    assert with_outliers.record.coding.streams == without.record.coding.streams


@pytest.mark.parametrize("shape", [(60, 50), (20, 150)])
@pytest.mark.parametrize("search", [SCALAR, TRELLIS])
@pytest.mark.parametrize("substitution", ["feedback", "gradient", "none"])
def test_outliers_go_with_calibration(shape, search, substitution):
    """(20, 150) is coded transposed."""
    tensor, positions = outlying(number=120)  # so many that scale codes cannot help
    tensor, rng = tensor.reshape(shape), np.random.default_rng(1)
    moments = [(x.T @ x / 500).astype(np.float32) for x in (rng.standard_normal((500, n)) @ rng.standard_normal((n, n)) for n in shape)]
    sensitivity = measure_sensitivity(TensorStatistics(*moments, (500, 500)))
    outliers = take_outliers(tensor, positions, "raw")
    factor = 0.3 / np.exp(sensitivity.mean_octave * np.log(2))
    with_outliers, without = (encode_calibrated("w", tensor, sensitivity, factor, search, ModelBank(), None, substitution, outliers=chosen)
                              for chosen in (outliers, None))
    back = check_decodes(with_outliers)
    assert bits_of(back.view(-1)[positions]) == bits_of(tensor.view(-1)[positions])
    wrong = (back - tensor).numpy()
    assert with_outliers.loss == pytest.approx(sensitivity.loss(wrong.T if sensitivity.transposed else wrong), rel=1e-4)
    assert with_outliers.error == pytest.approx(float(np.square(wrong, dtype=np.float64).sum()), rel=1e-4)
    assert len(with_outliers.data) < len(without.data) and with_outliers.record.coding.transposed == (shape == (20, 150))


def test_outliers_go_with_predictions(tmp_path):
    base, tensor = normal(60, 50), outlying()[0]
    tensor = tensor + 0.05 * normal(60, 50, seed=9)
    nnc.compress({"w": base}, tmp_path / "base.safetensors", lossless=True, threads=1)
    nnc.compress({"w": tensor}, tmp_path / "w.safetensors", step=0.05, threads=1, reference=tmp_path / "base.safetensors", tools="outliers,codebook")
    record = decoder.read_directory(decoder.read_container((tmp_path / "w.safetensors").read_bytes())).records[0]
    assert record.coding.prediction and record.coding.tools.outliers
    back = nnc.load(tmp_path / "w.safetensors")["w"]
    assert (back - tensor).abs().max() < 0.3
    assert decoder.decode(tmp_path / "w.safetensors")["w"][2] == bits_of(back)


@pytest.mark.parametrize("positions", [[0], [2999], [5, 6, 7, 8, 2000], list(range(0, 3000, 50)), list(range(3000)),
                                       sorted(np.random.default_rng(0).choice(3000, 99, replace=False).tolist())])
def test_positions_come_back_in_every_mode(positions):
    found = np.array(positions)
    assert encode_positions(found, 3000) in all_forms(found, 3000)
    for mode, parameters, data in all_forms(found, 3000):
        assert np.array_equal(decode_positions(mode, parameters, data, len(found), 3000), found)


def test_rules_find_what_is_planted():
    plane = normal(80, 60).numpy().copy()
    planted = np.array([7, 333, 1500, 4000])
    plane.reshape(-1)[planted] = [50, -60, 70, -80]
    relative = relative_weights(plane, measure_powers(plane))
    assert np.array_equal(largest_weights(relative, 4 / 4800), planted)
    assert np.array_equal(deviating_weights(plane, 10), planted)
    assert np.array_equal(distant_weights(plane, np.linspace(-3, 3, 8), 4 / 4800), planted)
    assert set(planted) <= set(straying_weights(plane)) and len(straying_weights(plane)) < 20
    assert largest_weights(relative, 0).size == 0


def test_the_fraction_of_none_is_legal_and_chosen_for_gaussian_weights():
    tensor = normal(300, 200)
    encoded = check_choice(tensor, 0.4)
    assert encoded.record.coding.tools.outliers is None and encoded.record.coding.tools.codebook is None
    assert 0 not in FRACTIONS


def check_choice(tensor: torch.Tensor, step: float, search: Search = TRELLIS) -> EncodedTensor:
    powers = measure_powers(make_plane(tensor)[1])

    def plain(outliers):
        return encode_coded("w", tensor, powers, step, search, ModelBank(), outliers=outliers)

    encoded = encode_best(Request("w", tensor, plain, powers, step, search))
    check_decodes(encoded)
    return encoded


def test_planted_outliers_and_few_values_are_found():
    tensor = normal(300, 200)
    tensor.view(-1)[::199] = 1000.0 * normal(302, seed=3)  # in every row: scale codes cannot help
    assert check_choice(tensor, 0.4).record.coding.tools.outliers.number >= 200
    values = normal(16, seed=2)[torch.randint(0, 16, (300, 200), generator=torch.Generator().manual_seed(4))]
    encoded = check_choice(values, 0.1)
    assert encoded.record.coding.tools.codebook.centroids == 16 and encoded.error < 1e-6 * encoded.energy


# ---- points and codebooks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, size, parts", [("scalar", 1, (1, 1)), ("sub-vector", 3, (2, 4)), ("kernel", 1, (7, 2)), ("filter", 1, (1, 1)),
                                               ("filter", 1, (5, 4)), ("channel", 1, (1, 1)), ("channel", 1, (3, 7)),
                                               ("column sub-vector", 7, (2, 9))])
def test_rearrangement_and_its_inverse(mode, size, parts):
    plane = np.arange(14 * 4 * 9, dtype=np.int64).reshape(14, 36)
    layout = lay_out(mode, plane.shape, 9, size, *parts)
    points = layout.gather(plane)
    assert points.shape == (*layout.grid, layout.size) and np.array_equal(layout.scatter(points), plane)
    assert sorted(np.unique(layout.books())) == list(range(parts[0] * parts[1]))


def test_points_are_the_weights_they_should_be():
    plane = np.arange(4 * 6 * 9).reshape(4, 54)
    conv = plane.reshape(4, 6, 9)
    assert np.array_equal(lay_out("kernel", plane.shape, 9).gather(plane), conv)
    assert np.array_equal(lay_out("filter", plane.shape, 9).gather(plane)[:, 0], plane)
    assert np.array_equal(lay_out("channel", plane.shape, 9).gather(plane)[2, 0], conv[:, 2].reshape(-1))
    assert np.array_equal(lay_out("column sub-vector", plane.shape, 9, 2).gather(plane)[1, 5], plane[2:4, 5])


@pytest.mark.parametrize("mode", MODES.values())
@pytest.mark.parametrize("shape", [(7, 5), (1, 11), (13, 1)])
def test_ragged_shapes_fit_or_are_refused(mode, shape):
    plane = np.arange(shape[0] * shape[1]).reshape(shape)
    for size in (2, 3, 5, 7, 11, 13):
        for parts in ((1, 1), (2, 1), (1, 5), (100, 1)):
            try:
                layout = lay_out(mode, shape, 1, size, *parts)
            except Corruption:
                continue
            assert np.array_equal(layout.scatter(layout.gather(plane)), plane)
            assert layout.grid[0] * layout.grid[1] * layout.size == plane.size


@pytest.mark.parametrize("clusters", [
    Clusters("scalar", 20), Clusters("scalar", 600, halves=True), Clusters("sub-vector", 30, 4), Clusters("kernel", 40, rows=True),
    Clusters("filter", 5), Clusters("filter", 4, across=2, along=4), Clusters("channel", 6), Clusters("channel", 4, along=5),
    Clusters("column sub-vector", 24, 5, across=2, along=3, halves=True), Clusters("sub-vector", 3, 2, across=4, along=5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_codebooks_come_back(clusters, dtype):
    tensor = (normal(20, 40, 3, 3) * torch.linspace(0.1, 3, 20)[:, None, None, None]).to(dtype)
    outliers = take_outliers(tensor, np.array([0, 77, 7199]), "raw")
    for chosen in (None, outliers):
        encoded = encode_codebook("w", tensor, clusters, 0.01, chosen)
        back = check_decodes(encoded)
        assert (back.float() - tensor.float()).square().sum() == pytest.approx(encoded.error, rel=2e-2)
        if chosen:
            assert bits_of(back.view(-1)[chosen.positions]) == bits_of(tensor.view(-1)[chosen.positions])
        assert encoded.record.coding.length == len(encoded.data)


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("centroids, shift", [(257, 0), (258, 1), (600, 2), (1400, 3)])
def test_many_centroids_take_bypass_bits(centroids, shift, halves, tmp_path):
    numbers = torch.arange(2400)[torch.randperm(2400, generator=torch.Generator().manual_seed(0))] % centroids
    tensor = (numbers - 700.0).reshape(40, 60)
    encoded = encode_codebook("w", tensor, Clusters("scalar", centroids, halves=halves), 0.0)
    codebook = encoded.record.coding.tools.codebook
    assert encoded.record.coding.shift == shift and codebook.centroids == centroids
    path = write(encoded, tmp_path)
    assert decoder.decode(path)["w"][2] == bits_of(nnc.load(path)["w"]) == bits_of(check_decodes(encoded))
    assert not halves or encoded.error == 0


def write(encoded: EncodedTensor, folder: Path) -> Path:
    """A file of one tensor."""
    origin = '{"kind":"module","metadata":[],"wrapper":"","extras":""}'
    (folder / "w.safetensors").write_bytes(b"".join(assemble_files([encoded], {}, ModelBank(), origin, None, None).files[0].chunks()))
    return folder / "w.safetensors"


def test_one_sub_space_is_the_unsplit_codebook():
    tensor = normal(64, 48)
    unsplit = encode_codebook("w", tensor, Clusters("filter", 16), 0.05)
    as_vectors = encode_codebook("w", tensor, Clusters("sub-vector", 16, 48, 1, 1), 0.05)
    assert unsplit.data == as_vectors.data and torch.equal(decoded(unsplit), decoded(as_vectors))
    halves = [encode_codebook("w", part, Clusters("filter", 8), 0.05) for part in (tensor[:, :24], tensor[:, 24:])]
    split = encode_codebook("w", tensor, Clusters("filter", 8, along=2), 0.05)
    assert split.error == pytest.approx(sum(half.error for half in halves), rel=0.05)  # components share one step


def test_distances_may_be_weighted():
    tensor = normal(100, 80)
    power = np.geomspace(0.01, 10, 80).astype(np.float32)
    sensitivity = measure_sensitivity(TensorStatistics(np.ones(100, np.float32), power, (1000, 1000)))
    wide, even = (encode_codebook("w", tensor, Clusters("sub-vector", 64, 4), 0.0, None, sensitivity, weighted) for weighted in (True, False))
    check_decodes(wide)
    assert wide.loss < 0.9 * even.loss


def test_k_means_of_scikit_learn_is_no_better():
    points = normal(4000, 4, seed=5)
    peer = KMeans(32, n_init=1, random_state=0).fit(points.numpy()).inertia_
    assert encode_codebook("w", points, Clusters("filter", 32, halves=True, rounds=40), 0.0).error <= 1.03 * peer


def test_correlation_is_seen():
    smooth = normal(500, 1) + 0.3 * normal(500, 8, seed=1)
    assert coding_gain(smooth.numpy()[:, None]) > 5 > 0.5 > coding_gain(normal(500, 8).numpy()[:, None])


# ---- files --------------------------------------------------------------------------------------------------------------


def sample(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A tensor with outliers, and one of few values: both tools in a file as the package writes it."""
    heavy = normal(64, 50)
    heavy.view(-1)[::97] = 1000.0 * normal(33, seed=3)
    values = normal(9, seed=2)[torch.randint(0, 9, (256, 130), generator=torch.Generator().manual_seed(4))]
    return {"heavy": heavy.to(dtype), "few": values.to(dtype)}


@pytest.fixture(scope="module", params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clusters") / "w.safetensors"
    nnc.compress(sample(request.param), path, step=0.4, threads=1, rules=("few=finer:4",), tools="outliers,codebook")
    return path


def tools_of(path: Path) -> dict:
    container = decoder.read_container(path.read_bytes())
    return {record.name: record.coding and record.coding.tools for record in decoder.read_directory(container).records}


def test_the_reference_decoder_agrees(file):
    found = tools_of(file)
    assert found["heavy"].outliers and found["few"].codebook
    ours = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape), bits_of(t)) for name, t in nnc.load(file).items()}
    assert ours == decoder.decode(file)


@pytest.mark.parametrize("clusters", [Clusters("kernel", 12, rows=True), Clusters("channel", 3, along=2), Clusters("column sub-vector", 9, 2),
                                      Clusters("scalar", 300, across=3, along=2, halves=True), Clusters("sub-vector", 300, 2)])
@pytest.mark.parametrize("values", ["raw", "half", "quantized"])
def test_the_reference_decoder_agrees_on_every_form(clusters, values, tmp_path):
    tensor = normal(20, 10, 3, 3).bfloat16() if values == "raw" else normal(20, 10, 3, 3)
    outliers = take_outliers(tensor, np.arange(0, 1800, 97), values, 0.01)
    encoded = encode_codebook("w", tensor, clusters, 0.01, outliers)
    path = write(encoded, tmp_path)
    assert decoder.decode(path)["w"][2] == bits_of(nnc.load(path)["w"]) == bits_of(decoded(encoded))


@pytest.mark.slow
def test_mutated_tools_are_refused_or_decode(file):
    """Every byte of the lanes of tools and lengths, and of the unit, with the checksums set right again."""
    rng = np.random.default_rng(0)
    container = decoder.read_container(file.read_bytes())
    directory = container.directory
    lane = directory.index(lane_of(file))
    outcomes = set()
    for place in [*range(lane, lane + len(lane_of(file)))] * 6:
        changed = bytearray(directory)
        changed[place] = rng.integers(256)
        outcomes.add(outcome(file.with_name("bad.safetensors"), container, bytes(changed), container.small))
    for _ in range(150):
        small = bytearray(container.small)
        small[rng.integers(min(len(small), 400))] ^= 1 << rng.integers(8)
        head = directory.replace(zlib.crc32(container.small).to_bytes(4, "little"), zlib.crc32(small).to_bytes(4, "little"))
        outcomes.add(outcome(file.with_name("bad.safetensors"), container, head, bytes(small)))
    assert outcomes <= {"refused", "decoded"} and "refused" in outcomes


@pytest.mark.parametrize("change", [
    {"number": 1 << 39}, {"mode": "runs", "parameters": (0, 1, 1)}, {"mode": "gaps", "parameters": (41,)}, {"number": 0},
    {"values": "quantized", "step": float("nan")}, {"values": "quantized", "step": 0.0}])
def test_impossible_outliers_are_refused_in_the_record(change):
    tensor, positions = outlying()
    encoded = encode_coded("w", tensor, None, 0.3, SCALAR, ModelBank(), outliers=take_outliers(tensor, positions))
    coding = encoded.record.coding
    check_refused(encoded, replace(coding, tools=replace(coding.tools, outliers=replace(coding.tools.outliers, **change))))


@pytest.mark.parametrize("change", [
    {"centroids": 0}, {"centroids": 1 << 17}, {"centroids": 6001}, {"zero": 20},
    {"layout": {"size": 7}}, {"layout": {"across": 1 << 38}}, {"layout": {"along": 0}}, {"layout": {"mode": "kernel"}},
    {"layout": {"mode": "channel", "along": 61}}, {"layout": {"mode": "column sub-vector", "size": 1}},
    {"table": 3, "centroids": 600}, {"table": 3, "zero": 1}])
def test_impossible_codebooks_are_refused_in_the_record(change):
    encoded = encode_codebook("w", normal(60, 100), Clusters("sub-vector", 20, 4), 0.01)
    coding = encoded.record.coding
    layout = replace(coding.tools.codebook.layout, **change.get("layout", {}))
    check_refused(encoded, replace(coding, tools=replace(coding.tools, codebook=replace(coding.tools.codebook, **(change | {"layout": layout})))))


@pytest.mark.parametrize("change", [{"states": 4}, {"follow": True}, {"transposed": True}, {"column_steps": Steps(Codes("direct", 3, 9), 64)},
                                    {"tools": "memory"}])
def test_what_a_codebook_does_not_go_with_is_refused(change):
    encoded = encode_codebook("w", normal(60, 100), Clusters("sub-vector", 20, 4), 0.01)
    coding, none = encoded.record.coding, Codes("none", 0, 0)
    if "tools" in change:
        change = {"tools": replace(coding.tools, memory=Memory(0, none, none))}
    check_refused(encoded, replace(coding, **change))


def check_refused(encoded: EncodedTensor, coding: Coding) -> None:
    lanes = Lanes.make(Writer)
    replace(encoded.record, coding=coding).write(lanes)
    with pytest.raises(Corruption):
        Record.read(Lanes(*(Reader(lane.data()) for lane in lanes)), 0, 8, None, ())


def lane_of(path: Path) -> bytes:
    """The bytes of the lane of tools."""
    directory = Directory.read(decoder.read_container(path.read_bytes()).directory)
    lanes = Lanes.make(Writer)
    for record in directory.records:
        record.write(lanes)
    return lanes.tools.data()


def outcome(path: Path, container: decoder.Container, directory: bytes, small: bytes) -> str:
    path.write_bytes(container_bytes(decoder.Container(0, directory, small, container.entries)))
    try:
        nnc.load(path, threads=1)
    except nnc.Corruption as problem:
        assert "\n" not in str(problem)
        with pytest.raises(ValueError):
            decoder.decode(path)
        return "refused"
    return "decoded"
