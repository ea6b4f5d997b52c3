"""Soft rounding and its trellis, and the substitutes that are found through them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest
import torch

from nnc.calibration.statistics import TensorStatistics
from nnc.entropy.explicit import ModelBank
from nnc.errors import InvalidArgument
from nnc.feedback import find_levels_with_feedback
from nnc.partition.grid import Grid
from nnc.quantize.soft_rounding import apply_with_noise, posterior_mean, soft_round, soft_round_inverse, soft_round_slope
from nnc.quantize.trellis import make_trellis
from nnc.powers import fit_scales, measure_powers
from nnc.rdo import LOW, START_SHAPE, Search, level_bits
from nnc.sensitivity import measure_sensitivity
from nnc.substitution import FrozenCodec, Options, measure_loss, squared_loss, substitute
from nnc.substitution.soft_trellis import soften

SHORT = Options(steps=60, interval=6)
POINTS = torch.linspace(-3, 3, 6007, dtype=torch.float64)


def make_codec(plane, step=0.5, states=8, labelling=0, lagrangian=0.38, height=None, width=None):
    """A codec whose scales are fitted to the plane."""
    rows, columns = plane.shape
    scales = fit_scales(measure_powers(plane), make_trellis(states).spacing * step)
    grid = Grid(rows, columns, height or rows, width or columns)
    return FrozenCodec(grid, scales, step, level_bits(ModelBank(), START_SHAPE), Search(states, labelling, lagrangian, 1))


def make_source(rows=24, columns=32, decay=0.8, seed=0):
    """Gaussian weights and statistics of inputs whose powers fall by `decay` from one direction to the next."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(columns, columns)))[0]
    power = (basis * decay ** np.arange(columns)) @ basis.T * columns
    statistics = TensorStatistics(np.ones(rows, np.float32), power.astype(np.float32), (10**6, 10**6))
    return random.normal(size=(rows, columns)).astype(np.float32), statistics


def check_substitute(found, plane, loss, codec, price, options):
    """What holds of every substitute."""
    assert found.cost_after <= min(found.cost_before, found.cost_start)
    decoded = codec.rebuild(found.levels)
    cost = float(loss(torch.from_numpy(decoded))) + price * codec.count_bits(found.levels)
    assert found.cost_after == pytest.approx(cost, rel=1e-9)
    assert found.steps <= options.steps and found.adjustments <= min(options.adjustments, len(found.log))
    assert [len(levels) for levels in found.levels] == [len(part.codes) for part in codec.places]
    assert found.plane.shape == plane.shape and found.plane.dtype == np.float32 and np.isfinite(found.plane).all()
    assert [entry.steps for entry in found.log] == sorted({entry.steps for entry in found.log})
    return decoded


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 5.0, 12.0])
def test_soft_rounding_has_its_inverse_and_period(alpha):
    soft = soft_round(POINTS, alpha)
    assert (soft_round_inverse(soft, alpha) - POINTS).abs().max() <= 1e-10
    assert (soft_round(POINTS + 1, alpha) - soft - 1).abs().max() <= 4e-15
    assert (soft.diff() > 0).all() and (soft - POINTS).abs().max() <= 0.5


def test_soft_rounding_lies_between_the_identity_and_rounding():
    assert torch.equal(soft_round(POINTS, 0.0), POINTS) and torch.equal(soft_round_inverse(POINTS, 0.0), POINTS)
    assert (soft_round(POINTS, 1e-2) - POINTS).abs().max() < 1e-5
    away = POINTS[(POINTS - POINTS.floor() - 0.5).abs() > 0.02]
    assert torch.allclose(soft_round(away, 1000.0), away.round(), atol=1e-12)
    noise = torch.rand(away.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    inside = noise.abs() < 0.48
    assert torch.allclose(soft_round(soft_round(away, 1000.0) + noise, 1000.0)[inside], away.round()[inside], atol=1e-12)
    with pytest.raises(InvalidArgument, match="sharpness"):
        soft_round(POINTS, -1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 5.0, 12.0])
def test_slope_in_closed_form_is_that_of_autograd(alpha):
    y = POINTS.clone().requires_grad_()
    soft_round(y, alpha).sum().backward()
    assert torch.allclose(y.grad, soft_round_slope(POINTS, alpha), rtol=1e-9)


@pytest.mark.parametrize("alpha", [2.0, 5.0, 12.0])
def test_posterior_mean_is_the_mean_of_what_may_have_been_sent(alpha):
    y = torch.linspace(-3, 3, 30_001, dtype=torch.float64)
    soft = soft_round(y, alpha)
    for z in np.linspace(-1, 1, 41):
        possible = y[(soft - z).abs() <= 0.5]
        assert float(posterior_mean(torch.tensor(z), alpha)) == pytest.approx(float(possible.mean()), abs=5e-3)


@pytest.mark.parametrize("alpha", [2.0, 5.0, 7.0, 12.0])
def test_gradient_of_the_expectation_is_a_difference_and_has_no_variance(alpha):
    noise = torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    at = torch.tensor(0.3, dtype=torch.float64)
    for function in (lambda y: soft_round(y, alpha), lambda y: posterior_mean(y, alpha), torch.round):
        y = at.expand(1000).clone().requires_grad_()
        apply_with_noise(function, y, noise[:1000]).sum().backward()
        assert torch.allclose(y.grad, torch.ones_like(y))  # straight through, for whatever advances by one in one
    y = at.expand(1000).clone().requires_grad_()
    apply_with_noise(lambda v: soft_round(v, alpha).square(), y, noise[:1000]).sum().backward()
    soft = soft_round(at + noise, alpha)
    along_the_path = 2 * soft * soft_round_slope(at + noise, alpha)
    error = float(along_the_path.std()) / len(noise) ** 0.5
    assert float(y.grad.std()) < 1e-12 and float(y.grad[0]) == pytest.approx(float(along_the_path.mean()), abs=3 * error)
    assert float(soft_round_slope(at + noise, alpha).var()) > 0.04 * alpha / 2  # while the slope itself is ever noisier


@pytest.mark.parametrize("labelling", [0, 1])
@pytest.mark.parametrize("states", [4, 8])
def test_mean_of_the_trellis_is_that_over_all_paths(states, labelling):
    plane = np.array([[0.3, -0.9], [1.1, 0.2]], np.float32)
    codec = make_codec(plane, states=states, labelling=labelling)
    x, codes = (plane / codec.steps).T.reshape(-1), codec.places[0].codes  # down the columns
    following, alpha = make_trellis(states).next_state, 0.4
    paths = []
    for choice in product(range(2), repeat=len(x)):
        s, exponent, bits, values = 0, 0.0, 0.0, []
        for v, c, more in zip(x, codes, choice):
            q = s & 1
            if labelling == 0:
                k = int(np.floor((v - q) / 2)) + more
                value = 2 * k + q
            else:
                size = int(np.floor((abs(v) + q) / 2)) + more
                k = -size if v < 0 else size
                value = 2 * k - q * np.sign(k)
            b = float(codec.bits[2 * c + q, k - LOW])
            exponent -= alpha / 4 * ((v - value) ** 2 + codec.search.lagrangian * b)
            bits += b
            values.append(value)
            s = following[s, k & 1]
        paths.append((np.exp(exponent), values, bits))
    weight = np.array([path[0] for path in paths])
    weight /= weight.sum()
    values, bits = np.array([path[1] for path in paths]), np.array([path[2] for path in paths])
    mean, variance, rate = soften(codec, torch.from_numpy(plane / codec.steps), alpha)
    assert np.allclose(mean.numpy().T.reshape(-1), weight @ values, atol=1e-6)
    assert np.allclose(variance.numpy().T.reshape(-1), weight @ values**2 - (weight @ values) ** 2, atol=1e-6)
    assert float(rate) == pytest.approx(float(weight @ bits), rel=1e-6)


@pytest.mark.parametrize("states", [1, 4, 8])
def test_gradients_of_the_soft_codec_are_differences(states):
    plane, _ = make_source(6, 5)
    codec = make_codec(plane, states=states)
    random = torch.Generator().manual_seed(2)
    of_mean, of_variance, direction = (torch.randn(6, 5, dtype=torch.float64, generator=random) for _ in range(3))

    def measure(x):
        mean, variance, rate = soften(codec, x, 2.0)
        return (of_mean * mean).sum() + 0.3 * (of_variance * variance).sum() + 0.1 * rate

    x = (torch.from_numpy(plane) / torch.from_numpy(codec.steps)).requires_grad_()
    measure(x).backward()
    small = 1e-6
    with torch.no_grad():
        slope = (measure(x + small * direction) - measure(x - small * direction)) / (2 * small)
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=2e-3)


@pytest.mark.parametrize("states", [4, 8, 32])
def test_sharp_trellis_is_the_search(states):
    plane, _ = make_source(20, 20)
    codec = make_codec(plane, states=states, height=10, width=20)
    mean = soften(codec, torch.from_numpy(plane / codec.steps), 400.0)[0].numpy()
    assert np.mean(np.abs(mean - codec.rebuild(codec.find_levels(plane)) / codec.steps) < 0.01) > 0.99


def test_soft_codec_of_one_state_is_soft_rounding():
    plane, _ = make_source()
    codec = make_codec(plane, states=1)
    x = torch.from_numpy(plane / codec.steps)
    assert torch.equal(soften(codec, x, 3.0)[0], soft_round(x, 3.0))


@pytest.mark.parametrize(
    "shape, options",
    [
        ((24, 32), {}),
        ((24, 32), {"states": 1, "lagrangian": 0.14}),
        ((24, 32), {"labelling": 1, "step": 1.0}),
        ((24, 32), {"height": 7, "width": 9}),
        ((24, 32), {"step": 0.004}),  # with bypass bits
        ((1, 40), {}),
        ((40, 1), {}),
        ((1, 1), {}),
    ],
)
def test_cost_never_rises(shape, options):
    plane, statistics = make_source(*shape)
    codec = make_codec(plane, **options)
    loss = measure_loss(plane, statistics)
    price = float(0.5 * codec.step**2 * codec.search.lagrangian * statistics.columns.mean())
    found = substitute(plane, loss, codec, price, options=SHORT)
    check_substitute(found, plane, loss, codec, price, SHORT)
    levels = codec.find_levels(plane + np.float32(0.1))
    begun = substitute(plane, loss, codec, price, (levels, plane + np.float32(0.1)), SHORT)
    check_substitute(begun, plane, loss, codec, price, SHORT)
    assert begun.cost_before == found.cost_before and (plane.size == 1 or begun.cost_start != begun.cost_before)


@pytest.mark.parametrize("states, gain", [(1, 2.5), (8, 2.5)])
def test_correlated_inputs_are_used_at_no_more_bits(states, gain):
    plane, statistics = make_source(32, 32)
    codec, loss = make_codec(plane, states=states, step=0.4), measure_loss(plane, statistics)
    price = 0.5 * codec.step**2 * codec.search.lagrangian
    plain = codec.find_levels(plane)
    found = substitute(plane, loss, codec, price)
    decoded = check_substitute(found, plane, loss, codec, price, Options())
    before, after = (float(loss(torch.from_numpy(values))) for values in (codec.rebuild(plain), decoded))
    assert 10 * np.log10(before / after) > gain and codec.count_bits(found.levels) < 1.02 * codec.count_bits(plain)
    assert np.square(decoded - plane).mean() > np.square(codec.rebuild(plain) - plane).mean()  # no better quantizer did it


def test_feedback_is_a_start_that_is_kept_or_bettered():
    plane, statistics = make_source(48, 32)
    codec, loss, sensitivity = make_codec(plane), measure_loss(plane, statistics), measure_sensitivity(statistics)
    search = codec.search
    start = find_levels_with_feedback(plane, codec.grid, codec.scales, codec.step, codec.bits, search, sensitivity, map)
    price = 0.5 * codec.step**2 * search.lagrangian
    found = substitute(plane, loss, codec, price, start, SHORT)
    check_substitute(found, plane, loss, codec, price, SHORT)
    assert found.cost_start < found.cost_before
    if found.cost_after == found.cost_start:
        assert found.plane is start[1]


def test_squared_error_alone_and_any_other_loss_may_be_asked_for():
    plane, _ = make_source()
    codec = make_codec(plane, step=1.0)
    loss, price = squared_loss(plane), 0.5 * codec.search.lagrangian
    check_substitute(substitute(plane, loss, codec, price, options=SHORT), plane, loss, codec, price, SHORT)
    inputs = torch.randn(32, 200, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.05, 2, 32)[:, None]
    labels = (torch.from_numpy(plane) @ inputs).argmax(0)

    def cross_entropy(decoded):
        return torch.nn.functional.cross_entropy((decoded @ inputs).T, labels)

    found = substitute(plane, cross_entropy, codec, 1e-4, options=SHORT)
    check_substitute(found, plane, cross_entropy, codec, 1e-4, SHORT)
    assert found.cost_after < 0.9 * found.cost_before


def test_every_stopping_rule_is_reached_and_named():
    plane, statistics = make_source()
    codec, loss = make_codec(plane), measure_loss(plane, statistics)

    def run(function=loss, price=0.1, **changes):
        options = replace(SHORT, **changes)
        found = substitute(plane, function, codec, price, options=options)
        check_substitute(found, plane, function, codec, price, options)
        return found

    assert run().stopped_by == "steps" and run().steps == 60
    by_step = run(threshold=0.02)
    assert by_step.stopped_by == "step size" and by_step.steps < 60
    by_loss = run(lambda decoded: 0 * decoded.sum() + 3, price=0.0, constant=2)
    assert by_loss.stopped_by == "constant loss" and by_loss.steps == 12 and by_loss.adjustments == 1
    by_adjustments = run(adjustments=3)
    assert by_adjustments.stopped_by == "adjustments" and by_adjustments.adjustments == len(by_adjustments.log) == 3
    sizes = [entry.step_size for entry in run().log]
    assert min(sizes) < sizes[0] and len(set(sizes)) > 3
    assert run(steps=0).stopped_by == "steps" and run(steps=0).cost_after == run(steps=0).cost_before
    assert run(steps=7).steps == 7


def test_step_size_grows_while_the_loss_hardly_falls_and_shrinks_when_it_rises():
    plane, statistics = make_source()
    codec, loss = make_codec(plane), measure_loss(plane, statistics)
    small = substitute(plane, loss, codec, 0.1, options=replace(SHORT, step_size=1e-4, sharpness=(4.0, 4.0)))
    sizes = [entry.step_size for entry in small.log]
    assert sizes == sorted(sizes) and sizes[-1] > 4 * sizes[0]
    large = substitute(plane, loss, codec, 0.1, options=replace(SHORT, step_size=2.0, sharpness=(4.0, 4.0)))
    assert min(entry.step_size for entry in large.log) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 8])
def test_sharpness_that_rises_beats_one_that_stays_low(states):
    plane, statistics = make_source()
    codec, loss = make_codec(plane, states=states), measure_loss(plane, statistics)
    flat, annealed = (
        substitute(plane, loss, codec, 0.02, options=Options(sharpness=sharpness, spread=0.0))
        for sharpness in ((0.01, 0.01), (1.2, 60.0))
    )
    assert annealed.log[-1].cost < flat.log[-1].cost and annealed.cost_after < 0.9 * flat.cost_after
    assert [entry.sharpness for entry in annealed.log] == sorted(entry.sharpness for entry in annealed.log)
    assert annealed.log[-1].sharpness == pytest.approx(60)


def test_the_same_call_gives_the_same_result():
    plane, statistics = make_source()
    codec, loss = make_codec(plane), measure_loss(plane, statistics)
    one, two = (substitute(plane, loss, codec, 0.1, options=SHORT) for _ in range(2))
    assert one.log == two.log and np.array_equal(one.plane, two.plane)
    assert all(np.array_equal(a, b) for a, b in zip(one.levels, two.levels))


def test_statistics_that_know_nothing_change_nothing():
    plane, statistics = make_source()
    codec = make_codec(plane)
    for empty in (replace(statistics, rows=0 * statistics.rows), replace(statistics, columns=0 * statistics.columns)):
        found = substitute(plane, measure_loss(plane, empty), codec, 0.1)
        assert found.stopped_by == "nothing known" and found.steps == 0 and found.cost_after == found.cost_before
        assert all(np.array_equal(a, b) for a, b in zip(found.levels, codec.find_levels(plane)))
        assert np.array_equal(found.plane, plane)


def test_dead_rows_and_columns_stay_dead():
    plane, statistics = make_source()
    plane[3], plane[:, 5] = 0, 0
    codec, loss = make_codec(plane), measure_loss(plane, statistics)
    found = substitute(plane, loss, codec, 0.1, options=SHORT)
    decoded = check_substitute(found, plane, loss, codec, 0.1, SHORT)
    assert not decoded[3].any() and not decoded[:, 5].any() and found.cost_after < found.cost_before
    nothing = np.zeros_like(plane)
    codec, loss = make_codec(nothing), measure_loss(nothing, statistics)
    check_substitute(substitute(nothing, loss, codec, 0.1, options=SHORT), nothing, loss, codec, 0.1, SHORT)


def test_loss_is_that_of_the_statistics_and_damping_adds_to_it():
    plane, statistics = make_source()
    error = np.random.default_rng(4).normal(size=plane.shape).astype(np.float32)
    loss = measure_loss(plane, statistics)
    assert float(loss(torch.from_numpy(plane + error))) == pytest.approx(statistics.loss(error), rel=1e-4)
    curve = 0.5 * np.square(error[2, 3]) * loss.curvature[2, 3]
    single = np.zeros_like(plane)
    single[2, 3] = error[2, 3]
    assert float(loss(torch.from_numpy(plane + single))) == pytest.approx(curve, rel=1e-4)
    damped = measure_loss(plane, statistics, (0.0, 0.5))
    assert float(damped(torch.from_numpy(plane + single))) == pytest.approx(1.5 * curve, rel=1e-4)
    assert np.array_equal(statistics.columns, make_source()[1].columns)
    decoded = torch.from_numpy(plane + error).requires_grad_()
    loss(decoded).backward()
    assert np.allclose(decoded.grad.numpy(), error @ statistics.columns, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_searched_is_refused():
    plane, statistics = make_source()
    codec, loss = make_codec(plane), measure_loss(plane, statistics)
    with pytest.raises(InvalidArgument, match="shape"):
        substitute(plane.T, loss, codec, 0.1)
    with pytest.raises(InvalidArgument, match="shape"):
        measure_loss(plane.T, statistics)
    for price in (-1.0, inf):
        with pytest.raises(InvalidArgument, match="price"):
            substitute(plane, loss, codec, price)
    with pytest.raises(InvalidArgument, match="finite"):
        substitute(plane, lambda decoded: decoded.sum() * np.nan, codec, 0.1)
    with pytest.raises(InvalidArgument, match="logarithmic"):
        replace(codec, search=replace(codec.search, labelling=2))
    for changes in ({"step_size": 0}, {"steps": -1}, {"constant": 0}, {"slow": inf}, {"sharpness": (2.0, 1.0)}):
        with pytest.raises(InvalidArgument, match=next(iter(changes))):
            Options(**changes)
