"""Feedback of errors: the kernel against plain loops, the optimum by enumeration, the identities, and what it gains."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from nnc.calibration.statistics import TensorStatistics
from nnc.encoder import encode_calibrated
from nnc.entropy.explicit import ModelBank
from nnc.entropy.parametric import CLASSES
from nnc.feedback import find_levels_with_feedback
from nnc.kernels.feedback import BLOCK, search_band
from nnc.partition.grid import Grid, choose_grid
from nnc.prediction.memory import MemoryCodes
from nnc.quantize.trellis import make_trellis
from nnc.powers import fit_scales, measure_powers
from nnc.rdo import LOW, Scales, Search, find_levels, gather, level_bits
from nnc.sensitivity import Sensitivity, measure_sensitivity

BITS = level_bits(ModelBank(), 2)
NO_MEMORY = MemoryCodes(0, np.empty(0, np.int16), np.empty(0, np.int16))
MANY = (10**9, 10**9)  # samples: nothing is shrunk


def value(k: int, q: int, labelling: int, states: int) -> int:
    if states == 1:
        return k
    return 2 * k + q if labelling == 0 else 2 * k - q * int(np.sign(k))


def candidates(v: float, q: int, labelling: int, states: int) -> list[int]:
    """Neighbours of a weight on the grid of a quantizer; one of each parity, or with one state zero too."""
    if states == 1:
        return [int(np.floor(v)), int(np.floor(v)) + 1, 0]
    if labelling == 0:
        return [int(np.floor((v - q) / 2)), int(np.floor((v - q) / 2)) + 1]
    low = int(np.floor((abs(v) + q) / 2))
    return [(-1 if v < 0 else 1) * k for k in (low, low + 1)]


def best_path(x, classes, matrix, rate, shift, labelling, states, start, worth=1.0):
    """Levels, errors and last state of a column from its top, every survivor with feedback of its own; all of it in float64."""
    after = make_trellis(states).next_state
    survivors = {start: (0.0, [], [], np.zeros(len(x)))}
    for i, v in enumerate(x):
        new: dict = {}
        for s, (cost, levels, errors, fed) in sorted(survivors.items()):
            left, q = v - fed[i], s & 1
            if classes[i] == 0:
                new[s] = (cost, levels + [0], errors + [left], fed + left * matrix[i])
                continue
            for k in candidates(left, q, labelling, states):
                table = 2 * classes[i] + (q if shift == 0 else 1)
                error = left - value(k, q, labelling, states)
                step = error**2 * worth + rate[table, min(max((k >> shift) - LOW, 0), rate.shape[1] - 1)]
                t = int(after[s, k & 1])
                if t not in new or cost + step < new[t][0]:
                    new[t] = (cost + step, levels + [k], errors + [error], fed + error * matrix[i])
        survivors = new
    state = min(survivors, key=lambda s: survivors[s][0])
    return (*survivors[state][1:3], state, survivors[state][0])


def plain_band(
    plane, upper, matrix, height, width, row_codes, column_codes, row_steps, column_steps, rate, shift, labelling, states,
    memory=NO_MEMORY, worths=None,
):  # fmt: skip
    """Levels (rows, columns) as of `search_band`, column by column, without blocks."""
    rows, columns = plane.shape
    target = plane.astype(np.float64)
    levels, after = np.zeros(plane.shape, np.int64), make_trellis(states).next_state
    below = np.triu(matrix, 1) if matrix.shape[1] else np.zeros((rows, rows))
    state = [0] * -(-rows // height)
    for j in range(columns):
        if j % width == 0:
            state = [0] * len(state)
            memories, seen = {}, {}
        label = memory.labels[j] if len(memory.labels) else 0
        if label:
            foretold = memory.trust[j] * memories.get(label, np.zeros(rows))
            target[:, j] -= foretold
        codes = row_codes.astype(int) + int(column_codes[j])
        classes = np.where(codes > -500, np.clip(codes, 1, CLASSES), 0)
        x = target[:, j] / row_steps / column_steps[j]
        error = target[:, j].copy()
        for band in range(len(state)):
            part = slice(band * height, min((band + 1) * height, rows))
            inner = below[part, part]
            worth = 1.0 if worths is None else float(worths[j])
            found, wrong, end, _ = best_path(x[part], classes[part], inner, rate, shift, labelling, states, state[band], worth)
            x[part.stop :] -= np.array(wrong) @ below[part, part.stop :]
            levels[part, j], s = found, state[band]
            for i in range(part.start, part.stop):
                if classes[i]:
                    k = int(levels[i, j])
                    error[i] = target[i, j] - value(k, s & 1, labelling, states) * row_steps[i] * column_steps[j]
                    s = int(after[s, k & 1])
            assert s == end
            state[band] = end
        if label:
            seen[label] = seen.get(label, 0) + 1
            old, part = memories.get(label, np.zeros(rows)), max(1 / seen[label], memory.floor)
            memories[label] = old + part * (target[:, j] - error + foretold - old)
        if upper.shape[1]:
            target[:, j + 1 :] -= np.outer(error / upper[j, j], upper[j, j + 1 :])
    return levels, target


def search(
    plane, upper, matrix, height, width, row_codes, column_codes, row_steps, column_steps, rate, shift, labelling, states,
    memory=NO_MEMORY, worths=None,
):  # fmt: skip
    trellis, target = make_trellis(states), np.ascontiguousarray(plane.T)
    levels = np.zeros(target.shape, np.int32)
    search_band(
        target, upper, matrix, height, width, row_codes, column_codes, np.zeros((1, 1), np.int16), 62, CLASSES, row_steps, column_steps,
        rate, LOW, shift, labelling,
        trellis.next_state, trellis.predecessors, memory.labels, memory.trust, memory.floor, np.ones(plane.shape[1], np.float32) if worths is None else worths, levels,
    )  # fmt: skip
    return levels.T, target.T


def triangle(rng, size: int, strength: float = 0.4) -> np.ndarray:
    """An upper triangular matrix with a positive diagonal, float32."""
    return np.triu(rng.normal(0, strength, (size, size)) / np.sqrt(size), 1).astype(np.float32) + np.diag(
        rng.uniform(0.5, 2, size).astype(np.float32)
    )


def random_band(seed: int, rows: int, columns: int, coupled: bool, dead: bool = True) -> tuple:
    """Arguments of `search` from the plane to the column steps."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(0, 2, (rows, columns)).astype(np.float32)
    row_codes, column_codes = rng.integers(10, 26, rows).astype(np.int16), rng.integers(-3, 4, columns).astype(np.int16)
    if dead:
        row_codes[rng.random(rows) < 0.2] = -1000
        column_codes[rng.random(columns) < 0.1] = -1000
    matrix = triangle(rng, rows, 1.0) if coupled else np.empty((rows, 0), np.float32)
    steps = [np.exp(rng.normal(0, 0.3, n)).astype(np.float32) for n in (rows, columns)]
    return plane, triangle(rng, columns), matrix, row_codes, column_codes, *steps


def check_band(arguments, height, width, shift, labelling, states, lagrangian=0.3, memory=NO_MEMORY, worths=None):
    plane, upper, matrix, *others = arguments
    rest = (height, width, *others, BITS * np.float32(lagrangian), shift, labelling, states)
    found, replaced = search(plane, upper, matrix, *rest, memory, worths)
    expected, target = plain_band(plane, upper, matrix, *rest, memory, worths)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(replaced, target, atol=1e-4)
    return found


@pytest.mark.parametrize("coupled", [False, True], ids=["columns", "both"])
@pytest.mark.parametrize("states, labelling", [(1, 0), (4, 0), (4, 1), (8, 0), (8, 1)])
def test_band_equals_plain_loops(states, labelling, coupled):
    for seed, (rows, columns, height, width) in enumerate(
        [(1, 1, 1, 1), (7, 5, 7, 5), (9, 6, 4, 4), (10, 3, 5, 1), (6, 7, 1, 3)]
    ):
        check_band(random_band(seed, rows, columns, coupled), height, width, 0, labelling, states)


@pytest.mark.parametrize("limit", [0, 2, 15])
@pytest.mark.parametrize("states, coupled", [(1, False), (8, False), (8, True)])
def test_columns_that_are_foretold(states, coupled, limit):
    rng = np.random.default_rng(limit)
    memory = MemoryCodes(limit, rng.integers(0, 3, 45).astype(np.int16), rng.integers(-16, 1, 45).astype(np.int16))
    levels = check_band(random_band(limit, 8, 45, coupled), 4, 20, 0, 0, states, memory=memory)
    assert levels.any()


@pytest.mark.parametrize("columns", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1])
@pytest.mark.parametrize("states, coupled", [(1, False), (8, False), (4, True)])
def test_blocks_of_columns(columns, states, coupled):
    levels = check_band(random_band(columns, 4, columns, coupled), 4, 20, 0, 0, states)
    assert levels.any()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("states", [1, 8])
def test_bypass_bits(states, coupled):
    plane, *others = random_band(3, 6, 5, coupled)
    check_band((50 * plane, *others), 6, 5, 4, 0, states)


@pytest.mark.parametrize("coupled", [False, True], ids=["columns", "both"])
@pytest.mark.parametrize("states, labelling", [(1, 0), (4, 1), (8, 0)])
def test_errors_of_columns_may_count_more_or_less(states, labelling, coupled):
    worths = np.exp2(np.random.default_rng(0).uniform(-4, 4, 6)).astype(np.float32)
    arguments = random_band(4, 9, 6, coupled)
    changed = check_band(arguments, 5, 4, 0, labelling, states, worths=worths)
    assert (changed != check_band(arguments, 5, 4, 0, labelling, states)).any()


def test_nothing_is_coded_in_dead_planes():
    for coupled in (False, True):
        plane, upper, matrix, row_codes, *others = random_band(1, 5, 6, coupled)
        dead = (plane, upper, matrix, np.full(5, -1000, np.int16), *others)
        assert not check_band(dead, 5, 6, 0, 0, 8).any()


def test_without_feedback_errors_stay_where_they_are():
    plane, upper, matrix, *others = random_band(2, 8, 9, False)
    rest = (8, 9, *others, BITS * np.float32(0.3), 0, 0, 8)
    none = np.empty((9, 0), np.float32)
    found, replaced = search(plane, none, matrix, *rest)
    np.testing.assert_array_equal(replaced, plane)
    again, replaced = search(plane, np.eye(9, dtype=np.float32), matrix, *rest)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(replaced, plane)


@pytest.mark.parametrize("labelling", [0, 1])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_survivors_find_the_optimum_of_a_column(rows, labelling):
    """With a matrix of zeros they are those of a plain trellis, which no other path beats."""
    rng = np.random.default_rng(rows)
    rate, after = BITS * np.float32(0.1), make_trellis(4).next_state
    for seed in range(5):
        x, codes = rng.normal(0, 3, (rows, 1)).astype(np.float32), rng.integers(14, 20, rows).astype(np.int16)
        ones = np.ones(rows, np.float32), np.ones(1, np.float32)
        none, zero = np.empty((1, 0), np.float32), np.zeros(1, np.int16)

        def cost(path) -> float:
            s, total = 0, 0.0
            for v, k, c in zip(x[:, 0].astype(float), path, codes):
                total += (v - value(k, s & 1, labelling, 4)) ** 2 + float(rate[2 * c + (s & 1), k - LOW])
                s = after[s, k & 1]
            return total

        best = min(map(cost, product(*(range(int(np.floor(v / 2)) - 1, int(np.floor(v / 2)) + 3) for v in x[:, 0]))))
        for matrix in (np.zeros((rows, rows), np.float32), np.empty((rows, 0), np.float32)):
            found, _ = search(x, none, matrix, rows, 1, codes, zero, *ones, rate, 0, labelling, 4)
            assert cost(found[:, 0].tolist()) <= best + 1e-4


# ---- laws of whole planes --------------------------------------------------------------------------------------------


def correlated(rng, size: int, samples: int = 0) -> np.ndarray:
    """A second moment of correlated inputs of uneven power, float64."""
    scale = np.exp(rng.normal(0, 0.5, size))
    mixed = rng.normal(size=(samples or 4 * size, size)) @ (np.eye(size) + rng.normal(0, 1.5 / np.sqrt(size), (size, size)))
    return (mixed * scale).T @ (mixed * scale) / len(mixed)


def plane_of(sensitivity: Sensitivity, weights: np.ndarray, step: float, states: int, grid: Grid | None = None):
    """Levels by CTU, what was quantized, and the decoded values; all steps are the same."""
    grid = grid or choose_grid(*weights.shape)
    scales = fit_scales(measure_powers(weights), make_trellis(states).spacing * step)
    levels, replaced = find_levels_with_feedback(
        weights, grid, scales, step, BITS, Search(states, 0, 0.2, 1), sensitivity, lambda f, *rest: list(map(f, *rest))
    )
    return levels, replaced, decode(levels, grid, scales, weights, step, states)


def decode(levels, grid: Grid, scales: Scales, weights, step: float, states: int) -> np.ndarray:
    values, after = np.zeros(weights.size), make_trellis(states).next_state
    for found, tile in zip(levels, grid.tiles()):
        s = 0
        for k, place in zip(found.tolist(), gather(weights, tile, scales, step).position):
            values[place] = value(k, s & 1, 0, states) * step
            s = after[s, k & 1]
    return values.reshape(weights.shape)


def sensitivity_of(rows, columns) -> Sensitivity:
    """Feedback of all of R and C, steps all the same."""

    def factor(side):
        inverse = np.linalg.inv(side)
        return np.linalg.cholesky(inverse).T.astype(np.float32) if side.ndim == 2 else None

    m, n = len(rows), len(columns)
    down = factor(rows) if rows.ndim == 2 else np.empty((m, 0), np.float32)
    statistics = TensorStatistics(rows.astype(np.float32), columns.astype(np.float32), MANY)
    return Sensitivity(np.ones(m), np.ones(n), down, factor(columns), False, statistics)


@pytest.mark.slow
@pytest.mark.parametrize("states, shape", [(1, (40, 30)), (1, (256, 7)), (8, (120, 1)), (64, (128, 1))])
def test_identity_gives_the_levels_of_the_plain_search(states, shape):
    """A trellis is decided at the end of each column, hence one column for it."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape).astype(np.float32)
    plain = sensitivity_of(np.ones(shape[0]), np.eye(shape[1]))
    levels, replaced, _ = plane_of(plain, weights, 0.3, states)
    scales = fit_scales(measure_powers(weights), make_trellis(states).spacing * 0.3)
    expected = find_levels(
        gather(weights, (0, shape[0], 0, shape[1]), scales, 0.3), BITS, scales.shift, Search(states, 0, 0.2, 1)
    )
    np.testing.assert_array_equal(levels[0], expected)
    np.testing.assert_array_equal(replaced, weights)


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 8])
def test_the_loss_is_the_sum_of_the_errors_that_were_made(states):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(70, 50)).astype(np.float32)
    c, r = correlated(rng, 50), correlated(rng, 70)
    for rows, grid in ((np.ones(70), Grid(70, 50, 30, 20)), (r, Grid(70, 50, 70, 50)), (r, Grid(70, 50, 30, 20))):
        sensitivity = sensitivity_of(rows, c)
        _, replaced, values = plane_of(sensitivity, weights, 0.3, states, grid)
        e = (replaced - values) / np.diagonal(sensitivity.upper)
        full = np.diag(rows) if rows.ndim == 1 else rows
        error = (weights - values).astype(np.float64)
        assert np.trace(e.T @ full @ e) == pytest.approx(np.trace(full @ error @ c @ error.T), rel=1e-3)
        assert sensitivity.loss(values - weights) == pytest.approx(0.5 * np.trace(e.T @ full @ e), rel=1e-3)


@pytest.mark.parametrize("states", [1, 8])
def test_every_side_that_is_fed_back_lowers_the_loss(states):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(60, 60)).astype(np.float32)
        c, r = correlated(rng, 60), correlated(rng, 60)
        both = sensitivity_of(r, c)
        none = Sensitivity(both.rows, both.columns, both.down[:, :0], both.upper[:, :0], False, both.statistics)
        one = Sensitivity(both.rows, both.columns, both.down[:, :0], both.upper, False, both.statistics)
        losses = [both.loss(plane_of(s, weights, 0.3, states)[2] - weights) for s in (none, one, both)]
        assert losses[0] > 1.3 * losses[1] > 1.3 * 1.3 * losses[2]


# ---- what it gains ---------------------------------------------------------------------------------------------------


def test_distance_to_the_limit_of_a_correlated_source():
    """S_ij = 0.9^|i - j| s_i s_j, no code has an error below |S|^(1/n) 2^(-2R).  In dB over it, streams only."""
    n, rng = 384, np.random.default_rng(0)
    s = np.exp(0.7 * rng.normal(size=n))
    matrix = 0.9 ** np.abs(np.arange(n)[:, None] - np.arange(n)) * s[:, None] * s
    limit = 10 / np.log(10) * np.linalg.slogdet(matrix)[1] / n
    for rows, bound in ((256, 0.85), (32, 1.15)):
        weights = np.random.default_rng(1).normal(size=(rows, n)).astype(np.float32)
        statistics = TensorStatistics(np.ones(rows, np.float32), matrix.astype(np.float32), MANY)
        sensitivity = measure_sensitivity(statistics, (1e-3, 1e-3))
        assert sensitivity.transposed == (rows == 32)
        found = encode_calibrated("w", torch.from_numpy(weights), sensitivity, 0.15, Search(8, 0, 0.38, 1), ModelBank())
        bits = 8 * sum(found.record.coding.streams) / weights.size
        assert 2.45 < bits < 2.7
        assert 10 * np.log10(2 * found.loss / weights.size) - limit + 20 * np.log10(2) * bits <= bound


@pytest.mark.parametrize("decay, gain", [(0.97, 4.0), (0.93, 7.0)])
def test_gain_of_feedback_at_the_same_rate(decay, gain):
    """METHODS S8 (c): the error that counts falls by far while that of the weights rises, so it is not a better quantizer."""
    n, rng = 256, np.random.default_rng(0)
    weights = rng.normal(size=(n, n)).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    moment = (basis * (decay ** np.arange(n) + 1e-3)) @ basis.T
    moment *= n / np.trace(moment)
    full = measure_sensitivity(TensorStatistics(np.ones(n, np.float32), moment.astype(np.float32), MANY), (0.0, 1e-3))
    ones, none = np.ones(n), np.empty((n, 0), np.float32)
    plain = Sensitivity(ones, ones, full.down, none, False, full.statistics)
    fed = Sensitivity(ones, ones, full.down, full.upper, False, full.statistics)
    results = []
    for sensitivity in (plain, fed, full):
        # steps of 0.35 on average; uneven ones without feedback would be worse than equal ones, and no measure of it
        factor = 0.35 / float(np.exp(np.log(sensitivity.columns).mean()))
        found = encode_calibrated("w", torch.from_numpy(weights), sensitivity, factor, Search(8, 0, 0.38, 1), ModelBank())
        results.append((8 * sum(found.record.coding.streams) / n**2, 10 * np.log10(found.loss), found.error))
    bits, loss, error = results[0]
    gains = [loss - l - 20 * np.log10(2) * (b - bits) for b, l, _ in results[1:]]
    assert gains[0] >= gain and gains[1] >= gains[0] + 1
    assert error * 1.3 < results[1][2] < results[2][2]
