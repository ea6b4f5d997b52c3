"""What happens to each tensor of a checkpoint, decided from its values and the user's rules.  Every tensor gets exactly one plan."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import exp, isfinite, log, prod

import numpy as np
import torch

from .alignment import Alignment
from .allocate import (
    SAMPLE,
    SAMPLES,
    Sample,
    relative_step,
    sample_relative,
    take_sample,
)
from .bases import Bases, Survey, choose_bases, survey_plane
from .calibration.statistics import Statistics, TensorStatistics
from .checkpoint import Checkpoint, TensorSpec
from .config import Config
from .container import entry_dtype
from .encoded import PLAIN, Layout, same_bytes, tensor_bytes
from .encoder import make_plane
from .errors import InvalidArgument, Unsupported
from .memories import choose_memory
from .partition.planes import MAX_AXES, choose_split
from .powers import Powers, measure_powers
from .sensitivity import Sensitivity, measure_sensitivity
from .siblings import NO_SIBLINGS, Siblings
from .unit import CODED_DTYPES, DTYPES, MAX_ELEMENTS, MAX_NAME
from .workers import Workers

NO_BASES = Bases()
TABLE_ROWS = 4096
STRIPS = {"tensor": 1 << 15, "rows": 1 << 14}  # weights of a CTU of a table, by how it will be read
SMALL = 128  # tensors of at most this many weights are treated like vectors: their bits do not matter


@dataclass(frozen=True, eq=False)
class Remembered:
    """A layout with a memory, and the sensitivity in it."""

    layout: Layout
    sensitivity: Sensitivity | None


@dataclass(frozen=True, eq=False)
class Plan:
    """treatment: coded (quantized), vector (quantized finely: at most one long axis, or tiny), exact, plain (an entry of its own), same
    (as in the reference) or alias (of `target`; `tied` if it shares its memory, else it merely has the same bytes); factor: of the step
    by rule; rms: of coded tensors, powers, sample: of what their prediction leaves; predicted: whether they have one; sensitivity: where
    calibration saw the tensor; nonfinite: holds NaN or Inf; layout: in which it is coded; remembered: another one with a memory, to which
    the sample belongs then."""

    spec: TensorSpec
    treatment: str
    factor: float = 1.0
    target: str = ""
    tied: bool = False
    rms: float = 0.0
    powers: Powers | None = None
    sample: Sample | None = None
    sensitivity: Sensitivity | None = None
    nonfinite: bool = False
    predicted: bool = False
    layout: Layout = PLAIN
    remembered: Remembered | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def nbytes(self) -> int:
        return 0 if self.treatment == "alias" else self.spec.nbytes

    @property
    def weights(self) -> int:
        """Elements that count as parameters: of float tensors, tied ones once."""
        return self.spec.numel if self.spec.dtype.is_floating_point and not self.tied else 0


def plan_tensors(
    checkpoint: Checkpoint,
    asked: Config,
    workers: Workers,
    progress: Callable[[int, int, str], None] | None = None,
    statistics: Statistics | None = None,
    alignment: Alignment | None = None,
    bases: Bases = NO_BASES,
    siblings: Siblings = NO_SIBLINGS,
) -> list[Plan]:
    """Read every tensor once and plan it, in the order of the checkpoint; statistics: of the same network, from calibration;
    alignment: with the reference; bases: of `survey_bases`; siblings: tensors that foretell others."""
    check_tensors(checkpoint, asked)
    codable = sum(spec.dtype in CODED_DTYPES for spec in checkpoint.specs)
    most = max(1 << 12, min(SAMPLE, SAMPLES // max(1, codable)))
    total, done = sum(spec.nbytes for spec in checkpoint.specs if not spec.tied_to), 0
    elements = sum(spec.numel for spec in checkpoint.specs)

    def surveyed(spec: TensorSpec) -> None:
        nonlocal done
        done += 0 if spec.tied_to else spec.nbytes
        if progress:
            progress(done, total, f"survey {spec.name}")

    surveys = workers.map(
        lambda spec: _survey(
            checkpoint, spec, asked, most, statistics, alignment, bases, siblings, workers.within(spec.numel, elements)
        ),
        checkpoint.specs,
        [spec.numel for spec in checkpoint.specs],
        surveyed,
    )
    seen: dict[tuple, str] = {}
    plans = []
    for spec, (key, plan) in zip(checkpoint.specs, surveys):
        key = key and (*key, plan.treatment, plan.factor)  # equal tensors that are asked for at different quality stay apart
        if key and _is_equal(checkpoint, spec.name, seen.setdefault(key, spec.name)):
            plan = Plan(spec, "alias", target=seen[key])
        plans.append(plan)
    return _join_scales(plans)


def check_tensors(checkpoint: Checkpoint, asked: Config) -> None:
    """What can be refused before any tensor is read: rules for none of them, tensors that cannot be stored."""
    for rule in asked.rules:
        if not rule.optional and not any(rule.matches(spec.name) for spec in checkpoint.specs):
            raise InvalidArgument(f"rule {rule.match!r} matches no tensor: names look like {checkpoint.specs[0].name!r}")
    for spec in checkpoint.specs:
        _check_storable(spec)


def _check_storable(spec: TensorSpec) -> None:
    if spec.dtype not in DTYPES.values():
        raise Unsupported(f"tensor {spec.name!r} has the dtype {spec.dtype}, which cannot be stored: convert it")
    if prod(size for size in spec.shape if size) > MAX_ELEMENTS:
        raise Unsupported(f"tensor {spec.name!r} has the shape {spec.shape}: more than {MAX_ELEMENTS} elements")
    if len(spec.shape) > MAX_AXES or len(spec.name.encode()) > MAX_NAME:
        raise Unsupported(f"tensor {spec.name[:60]!r}: more than {MAX_AXES} axes or a name of more than {MAX_NAME} bytes")


def _survey(
    checkpoint: Checkpoint,
    spec: TensorSpec,
    asked: Config,
    most: int,
    statistics: Statistics | None,
    alignment: Alignment | None,
    bases: Bases,
    siblings: Siblings,
    pool: Executor | None,
) -> tuple[tuple | None, Plan]:
    """The fingerprint of a tensor (None if it must not become an alias) and its plan as if it were the only one."""
    if spec.tied_to:
        return None, Plan(spec, "alias", target=spec.tied_to, tied=True)
    rule = asked.rule_for(spec.name)
    if rule and rule.action == "skip":
        return None, Plan(spec, "plain" if entry_dtype(spec.dtype) else "exact")
    match = alignment.matches.get(spec.name) if alignment else None
    if match and match.same:
        return None, Plan(spec, "same")
    tensor = checkpoint.read(spec.name)
    key = _fingerprint(tensor)
    if asked.lossless or (rule and rule.action == "exact"):
        return key, Plan(spec, "exact")
    if spec.dtype not in CODED_DTYPES or spec.numel < 2:
        return key, Plan(spec, "exact", nonfinite=spec.dtype in CODED_DTYPES and not bool(torch.isfinite(tensor).all()))
    plane = make_plane(tensor)[1]
    powers = measure_powers(plane)
    if not isfinite(powers.rms):
        return key, Plan(spec, "exact", nonfinite=True)
    if (powers.peaks == powers.peaks[0]).all() and (plane == plane[0, 0]).all():
        return key, Plan(spec, "exact")
    factor = rule.step_factor if rule else 1.0
    prediction = alignment.predicted(spec.name) if alignment else None
    if spec.name in siblings.found and not (asked.access == "rows" and is_table(spec.shape)):
        prediction = siblings.predicted(spec.name, checkpoint.read(siblings.found[spec.name].base))
    layout = Layout(bases.chosen.get(spec.name), strips=STRIPS[asked.access] if not prediction and is_table(spec.shape) else 0)
    original = _find_statistics(spec, plane.shape, statistics)
    found = layout.basis.statistics(original) if original and layout.basis else original
    sensitivity = _sensitivity(found, factor)
    plan = Plan(spec, "vector", factor, rms=powers.rms, powers=powers, sensitivity=sensitivity)
    if choose_split(spec.shape) == 0 or (spec.numel <= SMALL and not sensitivity):
        return key, replace(plan, predicted=prediction is not None)
    weights_of, plane = plane, layout.coefficients(plane)
    powers = measure_powers(plane) if layout.basis else powers
    if prediction is None:
        rest, rms, weights, follow = plane, None, None, asked.follow
        remembered = _remember(spec, plane, asked, layout, original, found, factor, sensitivity, pool)
        if remembered:
            plan = replace(plan, treatment="coded", powers=powers, layout=layout, remembered=remembered)
            return key, replace(plan, sample=_sample_remembered(plan, weights_of, most))
    else:  # steps are those of the weights, not of what the prediction leaves of them
        rest, rms, weights, follow = plane - prediction.plane, powers.rms, plane, False
        powers = measure_powers(rest)
    if sensitivity:
        turned = [p if p is None or not sensitivity.transposed else p.T for p in (rest, weights)]
        sample = sample_relative(turned[0], sensitivity, most, turned[1])
    else:
        sample = take_sample(rest, powers, factor, most, follow, rms)
    predicted = prediction is not None
    return key, replace(plan, treatment="coded", powers=powers, sample=sample, predicted=predicted, layout=layout)


def is_table(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one whose rows are looked up, or looks like one: many rows, much shorter than they are many."""
    return len(shape) == 2 and shape[0] >= TABLE_ROWS and shape[0] >= 3 * shape[1]


def survey_bases(
    checkpoint: Checkpoint, asked: Config, workers: Workers, alignment: Alignment | None = None, siblings: Siblings = NO_SIBLINGS
) -> Bases:
    """Bases for the tensors that will be coded; those that a reference or another tensor foretells keep theirs."""
    if "transform" not in asked.chosen_tools or asked.lossless:
        return NO_BASES

    def wanted(spec: TensorSpec) -> bool:
        rule = asked.rule_for(spec.name)
        kept = spec.tied_to or (rule and rule.action in ("skip", "exact"))
        if kept or spec.dtype not in CODED_DTYPES or choose_split(spec.shape) != 1 or spec.numel <= SMALL:
            return False
        return spec.name not in siblings.found and (alignment is None or spec.name not in alignment.matches)

    def work(spec: TensorSpec) -> Survey:
        return survey_plane(spec.name, tuple(spec.shape), make_plane(checkpoint.read(spec.name))[1])

    specs = [spec for spec in checkpoint.specs if wanted(spec)]
    return choose_bases(workers.map(work, specs, [spec.numel for spec in specs]))


def _remember(
    spec: TensorSpec,
    plane: np.ndarray,
    asked: Config,
    layout: Layout,
    original: TensorStatistics | None,
    found: TensorStatistics | None,
    factor: float,
    sensitivity: Sensitivity | None,
    pool: Executor | None,
) -> Remembered | None:
    """A layout with a memory that should pay.  original, found: statistics of the weights and of the plane, which is in the layout."""
    if "memory" not in asked.chosen_tools or asked.substitution == "gradient":  # whose search knows no columns that depend on others
        return None
    only = layout.strips and asked.access == "rows"
    steps = None
    if sensitivity:
        steps = (sensitivity.columns, sensitivity.rows) if sensitivity.transposed else (sensitivity.rows, sensitivity.columns)
    taps = prod(spec.shape[2:])
    run = pool.map if pool else map
    follow = asked.follow and not sensitivity
    chosen = choose_memory(plane, taps, steps, run, follow, only)
    if layout.basis:  # a memory may serve better without it
        other = choose_memory(layout.basis.plane(plane), taps, run=run, follow=follow, by_rows=only)
        if other and other.saved > layout.basis.saved + (chosen.saved if chosen else 0.0):
            chosen, layout, found = other, replace(layout, basis=None), original
    if chosen is None:
        return None
    turned = sensitivity and _sensitivity(found, factor, chosen.transposed)
    return Remembered(replace(layout, memory=chosen.codes, transposed=chosen.transposed), turned)


def _sample_remembered(plan: Plan, weights: np.ndarray, most: int) -> Sample:
    """Of what the memory of a plan leaves of the weights."""
    layout = plan.remembered.layout
    plane = layout.coefficients(weights)
    plane = plane.T if layout.transposed else plane
    rest = layout.memory.residual(plane)
    if plan.sensitivity:
        return sample_relative(rest, plan.remembered.sensitivity, most, plane)
    return take_sample(rest, measure_powers(rest), plan.factor, most, False, plan.rms)


def _find_statistics(spec: TensorSpec, shape: tuple[int, int], statistics: Statistics | None) -> TensorStatistics | None:
    """What calibration says of a tensor, None where it saw nothing of it."""
    found = statistics.tensors.get(spec.name) if statistics else None
    if found is not None and found.shape != shape:
        raise InvalidArgument(
            f"tensor {spec.name!r} has a plane of {shape}, the calibration is of one of {found.shape}: it is of another network"
        )
    return found


def _sensitivity(found: TensorStatistics | None, factor: float, transposed: bool | None = None) -> Sensitivity | None:
    """From the statistics, steps times the factor of a rule; None where they say nothing."""
    sensitivity = found and measure_sensitivity(found, transposed=transposed)
    return sensitivity and replace(sensitivity, rows=sensitivity.rows * factor)


def _join_scales(plans: list[Plan]) -> list[Plan]:
    """Bring the steps by rule of tensors that calibration did not see to the scale of those that it saw: the same on average."""
    seen = [plan for plan in plans if plan.sample and plan.sensitivity]
    weights = sum(plan.weights for plan in seen)
    if not weights:
        return plans
    difference = [plan.sensitivity.mean_octave * log(2) - log(relative_step(plan.rms, plan.spec.numel)) for plan in seen]
    anchor = exp(sum(plan.weights * d for plan, d in zip(seen, difference)) / weights)

    def joined(plan: Plan) -> Plan:
        if not plan.sample or plan.sensitivity:
            return plan
        return replace(plan, sample=replace(plan.sample, relative=plan.sample.relative * anchor))

    return [joined(plan) for plan in plans]


def _is_equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors of one fingerprint have the same bytes."""
    if name == other:
        return False
    return same_bytes(checkpoint.read(name), checkpoint.read(other))


def _fingerprint(tensor: torch.Tensor) -> tuple:
    """Equal for equal tensors; a few of the bytes decide, whoever finds an equal one compares the rest."""
    data = tensor_bytes(tensor)
    spread = bytes(data[:: max(1, len(data) // 4099)])
    return tuple(tensor.shape), tensor.dtype, blake2b(spread, digest_size=16).digest()
