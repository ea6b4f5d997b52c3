"""From statistics of the loss to steps and feedback: factors, caps, codes, and planes that are transposed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nnc.calibration.statistics import TensorStatistics
from nnc.entropy.scales import MOST, encode_codes
from nnc.quantize.steps import UNITS, rebuild_steps
from nnc.quantize.trellis import make_trellis
from nnc.sensitivity import (
    FEW_ROWS,
    LEAST,
    MOST_SPACING,
    _invert,
    _shrinkage,
    choose_codes,
    choose_steps,
    measure_sensitivity,
    short_step,
    shrink,
)

MANY = (10**9, 10**9)  # samples: nothing is shrunk


def moment(rng, size: int, samples: int) -> np.ndarray:
    x = rng.normal(size=(samples, size)) * np.exp(0.5 * rng.normal(size=size)) + rng.normal(size=(samples, 1))
    return x.T @ x / samples


def statistics_of(rows, columns, samples=MANY) -> TensorStatistics:
    return TensorStatistics(np.asarray(rows, np.float32), np.asarray(columns, np.float32), samples)


def check_factor(upper, damped):
    """U^T U = (damped)^-1, U upper triangular with a positive diagonal."""
    assert np.array_equal(upper, np.triu(upper)) and (np.diagonal(upper) > 0).all()
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(len(damped)), atol=1e-6)


@pytest.mark.parametrize("size, samples", [(2, 9), (30, 200), (30, 3), (50, 1)])
@pytest.mark.parametrize("damping", [0.5, 0.01])
def test_inverse(size, samples, damping):
    """With fewer samples than inputs C is singular; the damping makes up for it."""
    c = moment(np.random.default_rng(size), size, samples)
    check_factor(_invert(c, np.diagonal(c), damping), (c + damping * np.diag(np.diagonal(c))) / (1 + damping))


def test_more_damping_where_it_is_not_positive_definite():
    c = np.ones((20, 20))
    c[0, 1] = c[1, 0] = 1.04  # not even semidefinite
    upper = _invert(c, np.diagonal(c), 0.0)
    inverse = np.linalg.inv(upper.T @ upper)
    used = c[0, 2] / inverse[0, 2] - 1
    assert any(used == pytest.approx(10.0**-n, rel=1e-3) for n in (1, 2, 3))
    check_factor(upper, (c + used * np.eye(20)) / (1 + used))


def test_both_sides_have_their_factors():
    rng = np.random.default_rng(0)
    r, c = moment(rng, 60, 500), moment(rng, 70, 500)
    found = measure_sensitivity(statistics_of(r, c), (0.1, 0.01))
    assert not found.transposed and found.down.dtype == found.upper.dtype == np.float32
    for steps, factor, side, damping in ((found.rows, found.down, r, 0.1), (found.columns, found.upper, c, 0.01)):
        np.testing.assert_allclose(steps, np.diagonal(factor), rtol=1e-6)
        damped = (side + damping * np.diag(np.diagonal(side))) / (1 + damping)
        np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(len(side)), atol=1e-3)
    error = rng.normal(size=(60, 70)).astype(np.float32)
    assert found.loss(error) == pytest.approx(0.5 * np.trace(r @ error @ c @ error.T), rel=1e-4)


def test_a_diagonal_side_has_steps_but_no_feedback():
    found = measure_sensitivity(statistics_of([1.0, 4.0, 0.25], [16.0, 1.0]))
    np.testing.assert_allclose(found.rows, [1, 0.5, 2])
    np.testing.assert_allclose(found.columns, [0.25, 1])
    assert found.down.shape == (3, 0) and found.upper.shape == (2, 0)
    assert found.mean_octave == pytest.approx(0 + -1)
    np.testing.assert_allclose(found.relative_plane(np.ones((3, 2), np.float32)), [[4, 1], [8, 2], [2, 0.5]])


@pytest.mark.parametrize("rows, columns", list(product((np.zeros(3), np.zeros((3, 3)), np.ones(3)), repeat=2)))
def test_a_side_of_zeros_says_nothing(rows, columns):
    found = measure_sensitivity(statistics_of(rows, columns))
    assert (found is None) == (not rows.any() or not columns.any())


def test_dead_inputs_are_taken_for_nearly_insensitive_ones():
    rng = np.random.default_rng(1)
    c = moment(rng, 40, 300)
    c[[3, 17]] = 0
    c[:, [3, 17]] = 0
    for samples in (MANY, (1, 1), (0, 0)):
        found = measure_sensitivity(statistics_of(np.where(np.arange(50) % 7, 1.0, 0.0), c, samples))
        for part in (found.rows, found.columns, found.upper):
            assert np.isfinite(part).all()
        assert (found.rows > 0).all() and (found.columns > 0).all()
        assert found.rows[0] == pytest.approx((LEAST * 42 / 50) ** -0.5)
        assert found.columns[3] == found.columns.max() and found.upper[3, 4:].any() == found.upper[:3, 3].any() == False  # noqa: E712


def test_few_samples_are_shrunk():
    """In a second moment of few samples, correlations are noise: the fewer, the more damping; none is missed with many."""
    rng = np.random.default_rng(2)
    moments = [(moment(rng, 30, samples), samples) for samples in (10, 100, 1000, 10_000)]
    shares = [_shrinkage(c, np.diagonal(c), samples) for c, samples in moments]
    assert all(a >= b for a, b in zip(shares, shares[1:])) and shares[0] > 0.5 and shares[-1] < 0.01
    assert _shrinkage(np.eye(5), np.ones(5), 100) == 10 and _shrinkage(np.eye(5), np.ones(5), 0) == 10


# ---- transposed planes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "m, n, full, expected",
    [
        (FEW_ROWS - 1, FEW_ROWS, True, True),
        (FEW_ROWS, 100, True, False),
        (20, 20, True, False),
        (20, 10, True, False),
        (10, 100, True, True),
        (10, 100, False, False),
    ],
)
def test_planes_of_few_rows_are_transposed(m, n, full, expected):
    rng = np.random.default_rng(3)
    c, r = moment(rng, n, 400), np.exp(rng.normal(size=m))
    found = measure_sensitivity(statistics_of(r, c if full else np.diagonal(c)), (0.1, 0.01))
    assert found.transposed == expected
    error = rng.normal(size=(m, n)).astype(np.float32)
    loss = 0.5 * np.trace(np.diag(r) @ error @ (c if full else np.diag(np.diagonal(c))) @ error.T)
    assert found.loss(error.T if expected else error) == pytest.approx(loss, rel=1e-4)
    assert (len(found.rows), len(found.columns)) == ((n, m) if expected else (m, n))
    if expected:
        assert found.down.shape == (n, n) and found.upper.shape == (m, 0)
        # the damping belongs to the side, not to the direction
        np.testing.assert_allclose(
            found.rows, np.diagonal(_invert(c.astype(np.float32).astype(float), np.diagonal(c), 0.01)), rtol=1e-3
        )


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e6])
def test_no_step_is_much_wider_than_the_weights_of_its_row_or_column(states, factor):
    rng = np.random.default_rng(4)
    plane = (rng.normal(size=(150, 200)) * np.exp(rng.normal(size=(150, 1))) * np.exp(0.7 * rng.normal(size=200))).astype(
        np.float32
    )
    plane[7], plane[:, 11] = 0, 0
    r, c = np.exp(2 * rng.normal(size=150)), np.exp(2 * rng.normal(size=200))
    sensitivity = measure_sensitivity(statistics_of(r, c))
    steps = choose_steps(sensitivity, plane, factor, states)
    rows, columns = rebuild_steps(steps.rows, steps.step), rebuild_steps(steps.columns, 1.0)
    most = MOST_SPACING / make_trellis(states).spacing
    in_steps = plane.astype(np.float64) / rows[:, None] / columns
    # codes are rounded to half a unit each
    slack = 2 ** ((steps.rows.unit + steps.columns.unit) / 256) * 1.01
    for axis in (0, 1):
        rms = np.sqrt(np.square(in_steps).mean(axis))
        assert rms[rms > 0].min() * slack >= 1 / most
    if factor == 1e-4:  # far from the caps, every step is what the sensitivity asks for
        wanted = factor * sensitivity.rows[:, None] * sensitivity.columns
        np.testing.assert_allclose(np.log2(rows[:, None] * columns / wanted), 0, atol=np.log2(slack) + 0.01)


def test_equal_steps_take_no_codes():
    for octaves in (np.zeros(100), np.full(7, -13.7), np.full(1, 2.5)):
        codes, middle = choose_codes(octaves, 1000)
        assert not codes.codes.any() and middle == octaves[0]
        assert codes.codes.dtype == np.int16 and len(codes.codes) == len(octaves)


@pytest.mark.parametrize("spread", [1e-3, 0.1, 0.5, 2.0])
def test_more_weights_behind_a_code_pay_for_finer_units(spread):
    octaves = spread * np.random.default_rng(5).normal(size=300)
    chosen = []
    for weights in (1, 10, 100, 1000, 100_000):
        codes, middle = choose_codes(octaves, weights)
        chosen.append(codes.unit if codes.codes.any() else 1000)
        assert np.abs(codes.codes).max() <= MOST
        if codes.codes.any():
            limit = MOST * codes.unit / 128
            wanted = np.clip(octaves - middle, -limit, limit)
            np.testing.assert_allclose(codes.exponents / 128, wanted, atol=codes.unit / 256 + 1e-9)
    assert chosen == sorted(chosen, reverse=True)
    assert spread == 1e-3 or chosen[-1] in (4, 8, 16)
    assert spread != 1e-3 or chosen == [1000] * 5


def test_codes_stay_in_their_range_and_cost_what_they_say():
    rng = np.random.default_rng(6)
    octaves = np.concatenate([0.2 * rng.normal(size=200), [60.0, -60.0, 33.0]])
    codes, middle = choose_codes(octaves, 10_000)
    assert codes.unit == UNITS.value(0) and codes.codes.min() == -MOST and codes.codes.max() == MOST
    mode, _, data = encode_codes(codes.codes)
    assert mode != "none" and 0 < len(data) < 250


def test_short_steps_have_eight_bits():
    for step in np.exp(np.random.default_rng(7).uniform(-60, 60, 200)):
        short = short_step(step)
        assert short == pytest.approx(step, rel=2**-8) and short_step(short) == short
        assert np.float32(short) == short and np.float32(short).view(np.uint32) & 0xFFFF == 0


def test_what_is_quantized_lowers_loss_and_bits_together():
    rng = np.random.default_rng(3)
    moment = 0.9 ** np.abs(np.arange(24)[:, None] - np.arange(24)) * np.outer(*[np.exp(rng.normal(0, 0.7, 24))] * 2)
    known = measure_sensitivity(TensorStatistics(np.ones(60, np.float32), moment.astype(np.float32), (10**9, 10**9)), (1e-3, 1e-3))
    plane = rng.standard_normal((60, 24)).astype(np.float32)
    none, same, lagrangian = shrink(known, plane, 1e-6, 0.38)
    assert np.allclose(same, plane, atol=1e-5) and np.allclose(none.columns, known.columns, rtol=1e-5) and lagrangian < 0.38
    factor = 0.4 / 2.0**known.mean_octave
    found, target, _ = shrink(known, plane, factor, 0.38)
    assert np.square(target).sum() < np.square(plane).sum() and (found.columns <= known.columns * (1 + 1e-6)).all()
    assert known.loss(target - plane) < known.loss(plane) / 20  # what is left out hardly matters
    table = TensorStatistics(np.arange(1, 61, dtype=np.float32), moment.astype(np.float32), (5, 5))
    assert shrink(measure_sensitivity(table), plane, factor, 0.38)[1] is plane  # its columns are no inputs
