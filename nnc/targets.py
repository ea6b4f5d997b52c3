"""Meet a target: the common factor of all steps at which the whole output has the size, or the weights the signal to noise ratio,
that was asked for.

Samples of all tensors give a first factor; then everything is encoded and the factor corrected with the slope, a few times at
most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log2, log10

import numpy as np

from .allocate import Trial, try_step
from .assembly import Assembly
from .encoding import Encoding
from .errors import InvalidArgument
from .plan import Plan

ROUNDS = 8  # full encodings at most
CLOSE = 0.993  # aim at this part of a size ...
ENOUGH = 0.985  # ... and be content from this part on
FLATTEST = 0.1  # slope of the size, in parts of one bit per weight and octave
MOST_RELIEF = 64.0  # steps become so much coarser at last, when even those at which tensors start to vanish are too fine
CLOSE_DB = 0.02
CLOSE_LOSS = 0.01


def meet_size(encoding: Encoding, goal: float, asked: str) -> tuple[Assembly, float]:
    """The largest output of at most `goal` bytes that was found, and its factor; 98.5 % of the goal or more, unless nothing is
    left to spend bytes on.

    asked: how the user put it.  InvalidArgument if even the coarsest steps need more.
    """
    coded, plans = encoding.coded, encoding.plans
    weights = sum(plan.weights for plan in coded)
    others = (
        300
        + 20 * len(plans)
        + sum(plan.weights * 1.1 for plan in plans if plan.treatment == "vector")
        + sum(plan.nbytes * 0.9 for plan in plans if plan.treatment in ("exact", "plain"))
    )

    def estimate(factor: float) -> float:
        return others + sum(trial.bits for trial in _trials(encoding, factor)) / 8

    slope = -max(1, weights) / 8
    factor = find_factor(estimate, max(goal * CLOSE, others + 0.08 * weights), _start(coded), slope) if coded else 1.0
    states = encoding.search.states
    most = max((plan.sample.step(float("inf"), states, encoding.relief) / plan.sample.relative for plan in coded), default=1.0)
    factor = min(factor, most)  # beyond, no step becomes coarser
    best: tuple[Assembly, float] | None = None
    fine, coarse = 0.0, float("inf")  # the coarsest factor known to be too fine, the finest known to fit
    last: tuple[float, int] | None = None
    for _ in range(ROUNDS if coded else 1):
        assembly = encoding.encode(factor)
        if last and factor != last[0]:  # flatter where the caps of steps bite
            secant = (assembly.size - last[1]) / log2(factor / last[0])
            slope = max(-max(1, weights) / 8, min(FLATTEST * -max(1, weights) / 8, secant))
        last = factor, assembly.size
        if assembly.size <= goal:
            best = max(best or (assembly, factor), (assembly, factor), key=lambda found: found[0].size)
            coarse = min(coarse, factor)
        else:
            fine = max(fine, factor)
        if ENOUGH * goal <= assembly.size <= goal:
            break
        if assembly.size > goal and factor >= most:
            break
        new = min(most, factor * 2.0 ** max(-4.0, min(4.0, (goal * CLOSE - assembly.size) / slope)))
        factor = new if fine < new < coarse else (fine * coarse) ** 0.5 if 0 < fine and coarse < float("inf") else new
    if best is None and coded and encoding.relief < MOST_RELIEF:
        return meet_size(replace(encoding, relief=4 * encoding.relief), goal, asked)
    if best is None:
        raise InvalidArgument(
            f"{asked} cannot be met: the smallest output has {assembly.size} bytes; ask for more, or let rules make tensors coarser"
        )
    return best


def meet_snr(encoding: Encoding, wanted: float) -> tuple[Assembly, float]:
    """The output whose coded weights have the signal to noise ratio `wanted` in dB, to 0.02 dB where steps allow, and its factor."""
    coded = encoding.coded
    if not coded:
        return encoding.encode(1.0), 1.0
    names = {plan.name for plan in coded}
    energy = sum(plan.rms**2 * plan.weights for plan in coded)

    def estimate(factor: float) -> float:
        error = sum(trial.error for trial in _trials(encoding, factor))
        return 10 * log10(energy / error) if error > 0 else 400.0

    factor = find_factor(estimate, wanted, _start(coded), -6.02)
    for _ in range(ROUNDS):
        assembly = encoding.encode(factor)
        difference = assembly.snr(names) - wanted
        if abs(difference) < CLOSE_DB or not np.isfinite(difference):
            break
        used, factor = factor, factor * 10 ** (difference / 20)
    else:
        factor = used
    return assembly, factor


def meet_loss(encoding: Encoding, wanted: float, start: float | None = None) -> tuple[Assembly, float]:
    """The output whose predicted loss is `wanted`, to 1 % where steps allow, and its factor.  start: a factor that is about right."""
    calibrated = [plan for plan in encoding.coded if plan.sensitivity]
    if not calibrated:
        raise InvalidArgument(f"kl = {wanted:g} needs calibration, which saw no tensor that is quantized: ask for bits or size")

    def estimate(factor: float) -> float:
        return 10 * log10(max(sum(trial.loss for trial in _trials(encoding, factor)), 1e-300))

    goal = 10 * log10(wanted)
    factor = start or find_factor(lambda f: -estimate(f), -goal, _start(encoding.coded), -6.02)
    for _ in range(ROUNDS):
        assembly = encoding.encode(factor)
        if assembly.loss == 0 or abs(assembly.loss / wanted - 1) < CLOSE_LOSS:
            break
        used, factor = factor, factor * max(1 / 8, min(8.0, (wanted / assembly.loss) ** 0.5))
    else:
        factor = used
    return assembly, factor


def _trials(encoding: Encoding, factor: float) -> list[Trial]:
    """Samples of all coded tensors, with at most eight states: they tell the rate of more states well enough."""
    search = encoding.search
    fast = replace(search, states=min(search.states, 8), passes=1)
    steps = {plan.name: plan.sample.step(factor, search.states, encoding.relief) for plan in encoding.coded}
    coded = encoding.coded
    return encoding.workers.map(lambda plan: try_step(plan.sample, steps[plan.name], fast), coded, [0] * len(coded))


def _start(coded: list[Plan]) -> float:
    """Factor for steps of about a quarter of the rms: three bits."""
    weights = sum(plan.weights for plan in coded)
    return 2.0 ** (sum(plan.weights * log2(plan.rms / plan.sample.relative) for plan in coded) / weights - 2)


def find_factor(measure: Callable[[float], float], goal: float, start: float, slope: float, rounds: int = 12) -> float:
    """The factor of all steps at which `measure` (falling) equals `goal`, by secants on its logarithm.

    slope: expected change per octave of the factor, negative.  Gives the nearest within 2^-24..2^24 of `start` if the goal is out
    of reach.
    """
    at = np.log2(start)
    low, high = at - 24.0, at + 24.0
    value = measure(2.0**at)
    for _ in range(rounds):
        if abs(value - goal) <= 0.002 * goal:
            break
        if value > goal:
            low = at
        else:
            high = at
        new = at + (goal - value) / slope
        if not low < new < high:
            new = (low + high) / 2
        new_value = measure(2.0**new)
        if new != at and (new_value - value) / (new - at) < 0:
            slope = (new_value - value) / (new - at)
        at, value = new, new_value
    return float(2.0**at)
