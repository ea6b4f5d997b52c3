"""Columns that are foretold by centres which are coded beside the plane: against theory, against what a decoder makes of them, and rows that are read alone."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nnc
from nnc.archive import open_compressed
from nnc.centre_choice import choose_finer, choose_grain, find_centres, place, quantize_centres
from nnc.centres import centre_codes, centre_steps, label_bytes, pack_labels, split_streams
from nnc.entropy.scales import OFF
from nnc.errors import Corruption
from nnc.fields import NO_CODES
from nnc.memories import choose_memory
from nnc.prediction.memory import CentreCodes, check_codes
from nnc.quantize.steps import StepCodes
from nnc.rdo import Search
from nnc.tools import Centres, Memory, Tools


def clusters(rows: int, columns: int, number: int, noise: float, seed: int = 0) -> np.ndarray:
    """Rows in clusters, of a spread of one and a noise around."""
    g = np.random.default_rng(seed)
    return (g.standard_normal((number, columns))[g.integers(0, number, rows)] + noise * g.standard_normal((rows, columns))).astype(np.float32)


def tools_of(path, name: str = "w"):
    with open_compressed(path) as archive:
        return next(record for record in archive.records if record.name == name).coding.tools


def test_residuals_and_values_are_inverse():
    g = np.random.default_rng(1)
    plane, centres = g.standard_normal((30, 50)).astype(np.float32), g.standard_normal((5, 30)).astype(np.float32)
    centres[0] = 0
    codes = CentreCodes(g.integers(0, 5, 50).astype(np.int16), g.integers(-16, 1, 50).astype(np.int16), centres)
    rest = codes.residual(plane)
    np.testing.assert_array_equal(rest, plane - (codes.trust[:, None] * centres[codes.labels]).T)
    tiles = [(0, 16, 0, 20), (16, 30, 0, 20), (0, 16, 20, 50), (16, 30, 20, 50)]
    np.testing.assert_allclose(codes.add(rest, tiles).T, plane, atol=1e-5)


def test_the_best_centre_is_found():
    """Against all of them tried out."""
    g = np.random.default_rng(2)
    columns, centres = g.standard_normal((40, 12)).astype(np.float32), g.standard_normal((6, 12)).astype(np.float32)
    columns[:20] += 1.5 * centres[g.integers(1, 6, 20)]
    centres[0] = 0
    for grain in (1, 4):
        found = place(columns, centres, np.full(40, 0.01), grain)
        trust = np.arange(0, 17, grain) / 16
        left = np.square(columns[:, None, None] - trust[:, None] * centres[1:, None]).sum(-1)
        best, power = left.min((1, 2)), np.square(columns).sum(1)
        mine = np.square(found.rest).sum(1)
        np.testing.assert_allclose(mine[found.labels > 0], best[found.labels > 0], rtol=1e-4)
        np.testing.assert_allclose(mine[found.labels == 0], power[found.labels == 0], rtol=1e-5)
        assert (6 * np.log2(power / best) < 4.1)[found.labels == 0].all(), "less than four bits"
        assert not (found.confidence[found.labels > 0] % grain).any()


def test_centres_are_those_of_the_clusters():
    weights = clusters(600, 40, 5, 0.1)
    labels = (np.arange(600) % 5 + 1).astype(np.int16)  # wrong ones, with which it begins
    centres = find_centres(weights, labels, np.full(600, 1e-3), 20)
    found = place(weights, centres, np.full(600, 1e-3))
    assert np.square(found.rest).mean() < 0.4, "Lloyd's algorithm may leave two clusters together, but not all"
    left_out = find_centres(weights, np.where(labels == 3, 1, labels).astype(np.int16), np.full(600, 1e-3))
    assert len(left_out) <= 5 and np.abs(left_out[1:]).sum(1).all() and not left_out[0].any()


def test_fineness_of_steps_and_confidences():
    """The closed forms of the page in centre_choice.py, to the nearest octave."""
    for columns, left, distortion in ((1000, 1.0, 0.1), (100_000, 2.0, 0.01), (50, 1.0, 1e-4)):
        wanted = np.sqrt(left / (columns / 10) / distortion)  # step over that of the columns, for which error and variance agree
        assert choose_finer(columns, 10, left, distortion) == np.clip(round(-np.log2(wanted)), 0, 7)
    g = np.random.default_rng(0)
    for size, power in ((20, 1.0), (400, 1.0), (400, 0.01)):
        columns = g.standard_normal((300, size)).astype(np.float32)
        centres = np.zeros((2, size), np.float32)
        centres[1] = power**0.5
        found = place(columns, centres, np.full(300, 1e-9))
        found.labels[:] = 1
        wanted = 16 * np.sqrt(12 / (size * power))
        assert abs(np.log2(choose_grain(found, centres) / min(8, max(1, wanted)))) < 0.6


@pytest.mark.parametrize("states", [1, 8])
def test_quantized_centres_are_what_steps_allow(states):
    weights = clusters(3000, 60, 8, 0.3).T
    chosen = choose_memory(weights)
    assert isinstance(chosen.codes, CentreCodes) and not chosen.transposed
    steps = np.full(60, 0.2, np.float32)
    found, saved = quantize_centres(chosen.codes, weights, steps, np.ones(3000, np.float32), Search(states, 0, 0.1, 1), lambda *_: 0.0)
    fine = centre_steps(steps, found.finer)
    in_steps = found.codes.centres / fine
    np.testing.assert_allclose(in_steps, np.round(in_steps), atol=1e-3)
    assert len(found.levels) == 60 * (len(found.codes.centres) - 1) and found.finer > 0 and not found.codes.centres[0].any()


def test_dead_rows_count_as_code_zero():
    rows = np.array([3, OFF, -2], np.int16)
    np.testing.assert_array_equal(centre_codes(rows, 10, StepCodes.even(3)), [13, 10, 8])


def test_labels_from_a_file_are_checked():
    labels, codes = np.array([0, 4, 1], np.int16), np.array([0, -16, -3], np.int16)
    check_codes(labels, codes, 4)
    with pytest.raises(Corruption, match="outside 0..3"):
        check_codes(labels, codes, 3)


@pytest.mark.slow
@pytest.mark.parametrize("down", [False, True])
def test_gain_against_knowing_the_centres(tmp_path, down):
    """Clusters of noise 0.25 and spread one: 10 lg(1.0625 / 0.0625) = 12.3 dB are the most there is, less what tables gain from eight points in place of a
    Gaussian, and columns from their own scales."""
    weights = clusters(3000, 128, 8, 0.25)
    sizes, errors = [], []
    for tools in ("memory", "none"):
        path = tmp_path / f"{tools}.safetensors"
        summary = nnc.compress({"w": torch.from_numpy(weights.T.copy() if down else weights)}, path, step=0.05, tools=tools)
        sizes.append(summary.bits_per_weight)
        errors.append(np.square(nnc.load(path)["w"].numpy() - (weights.T if down else weights)).mean())
    assert tools_of(tmp_path / "memory.safetensors").memory.centres.number == 8
    gain = 10 * np.log10(errors[1] / errors[0]) + 6.02 * (sizes[1] - sizes[0])
    print(f"{gain:.2f} dB")
    assert gain > 12.3 - 1.2


def test_rows_that_steps_follow_have_no_centres(tmp_path):
    """Their steps are known after the centres would be: columns of a plane that is not transposed do without them."""
    weights = torch.from_numpy(clusters(3000, 96, 8, 0.25).T.copy())
    nnc.compress({"w": weights}, tmp_path / "follow.safetensors", snr=12)
    memory = tools_of(tmp_path / "follow.safetensors").memory
    assert memory is None or memory.centres is None or not next(iter(open_records(tmp_path / "follow.safetensors"))).coding.follow


def open_records(path):
    with open_compressed(path) as archive:
        return list(archive.records)


def test_rows_of_tables_are_read_alone(tmp_path):
    """A table of clusters is cut into strips of whole rows, and a row takes little of the file."""
    weights = torch.from_numpy(clusters(6000, 64, 30, 0.5))
    path = tmp_path / "t.safetensors"
    nnc.compress({"w": weights}, path, bits=3)
    (record,) = open_records(path)
    memory = record.coding.tools.memory
    assert memory.centres and memory.labels is None and len(record.coding.streams) > 8
    with nnc.open(path) as file:
        whole = file.tensor("w")
        for rows in (slice(0, 1), slice(2999, 3003), slice(5990, 6000)):
            assert torch.equal(file.tensor("w", rows=rows), whole[rows])
    assert torch.equal(whole, nnc.load(path)["w"])


def test_labels_in_front_of_ctus():
    """They come back, whatever their number; what cannot be labels is refused."""
    g = np.random.default_rng(4)
    tiles = [(0, 9, 0, 21), (0, 9, 21, 40), (0, 9, 40, 41)]
    for number in (1, 2, 3, 31, 32, 64):
        labels = g.integers(0, number + 1, 41).astype(np.int16)
        streams = [pack_labels(labels[left:right], number) + b"abc"[: n + 1] for n, (_, _, left, right) in enumerate(tiles)]
        assert [len(s) - n - 1 for n, s in enumerate(streams)] == [label_bytes(number, width) for width in (21, 19, 1)]
        coding = coding_of(number)
        rest, found = split_streams(coding, tiles, streams)
        assert rest == [b"a", b"ab", b"abc"]
        np.testing.assert_array_equal(found, labels)
    with pytest.raises(Corruption, match="within its labels"):
        split_streams(coding, tiles, [*streams[:2], b""])
    with pytest.raises(Corruption, match="not 0"):
        split_streams(coding, tiles[2:], [b"\x01"])
    with pytest.raises(Corruption, match=r"outside 0\.\.64"):
        split_streams(coding, tiles[2:], [b"\xfe"])


def coding_of(number: int):
    """Of a tensor whose labels stand in front of its CTUs: all of it that this depends on."""
    return SimpleNamespace(tools=Tools(memory=Memory(0, None, NO_CODES, Centres(number, 0, 0, 0))))


@pytest.mark.slow
def test_same_bytes_with_any_number_of_threads(tmp_path):
    weights = {"w": torch.from_numpy(clusters(5000, 64, 12, 0.5)), "v": torch.randn(40, 30, generator=torch.Generator().manual_seed(0))}
    for threads in (1, 2, 3):
        nnc.compress(weights, tmp_path / f"{threads}.safetensors", bits=3, threads=threads)
    assert len({(tmp_path / f"{threads}.safetensors").read_bytes() for threads in (1, 2, 3)}) == 1


@pytest.mark.parametrize("step", [1e-5, 1e-6, 1e-7])
def test_steps_that_are_too_fine_for_centres(tmp_path, step):
    """Rows that are the same to the bit ask for centres of any fineness; levels end at 2^22."""
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 64, generator=g)[torch.randint(0, 6, (500,), generator=g)]
    nnc.compress({"w": weights}, tmp_path / "t.safetensors", step=step)
    assert (nnc.load(tmp_path / "t.safetensors")["w"] - weights).abs().max() <= 2 * step + 1e-6
