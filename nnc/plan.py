"""What happens to each tensor of a checkpoint, decided from its values and the user's rules.  Every tensor gets exactly one plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite, prod

import torch

from .allocate import SAMPLE, SAMPLES, Sample, take_sample
from .checkpoint import Checkpoint, TensorSpec
from .config import Config
from .container import entry_dtype
from .encoder import make_plane, tensor_bytes
from .errors import InvalidArgument, Unsupported
from .partition.planes import MAX_AXES, choose_split
from .rdo import Powers, measure_powers
from .unit import CODED_DTYPES, DTYPES, MAX_ELEMENTS, MAX_NAME
from .workers import Workers

SMALL = 128  # tensors of at most this many weights are treated like vectors: their bits do not matter


@dataclass(frozen=True, eq=False)
class Plan:
    """treatment: coded (quantized), vector (quantized finely: at most one long axis, or tiny), exact, plain (an entry of its own)
    or alias (of `target`; `tied` if it shares its
    memory, else it merely has the same bytes); factor: of the step by rule; rms, powers, sample: of coded tensors; nonfinite: holds NaN
    or Inf."""

    spec: TensorSpec
    treatment: str
    factor: float = 1.0
    target: str = ""
    tied: bool = False
    rms: float = 0.0
    powers: Powers | None = None
    sample: Sample | None = None
    nonfinite: bool = False

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
    checkpoint: Checkpoint, asked: Config, workers: Workers, progress: Callable[[int, int, str], None] | None = None
) -> list[Plan]:
    """Read every tensor once and plan it, in the order of the checkpoint."""
    for rule in asked.rules:
        if not rule.optional and not any(rule.matches(spec.name) for spec in checkpoint.specs):
            raise InvalidArgument(f"rule {rule.match!r} matches no tensor: names look like {checkpoint.specs[0].name!r}")
    for spec in checkpoint.specs:
        _check_storable(spec)
    codable = sum(spec.dtype in CODED_DTYPES for spec in checkpoint.specs)
    most = max(1 << 12, min(SAMPLE, SAMPLES // max(1, codable)))
    total, done = sum(spec.nbytes for spec in checkpoint.specs if not spec.tied_to), 0
    seen: dict[tuple, str] = {}
    plans = []
    surveys = workers.map(
        lambda spec: _survey(checkpoint, spec, asked, most), checkpoint.specs, [spec.numel for spec in checkpoint.specs]
    )
    for spec, (key, plan) in zip(checkpoint.specs, surveys):
        key = key and (*key, plan.treatment, plan.factor)  # equal tensors that are asked for at different quality stay apart
        if key and _is_equal(checkpoint, spec.name, seen.setdefault(key, spec.name)):
            plan = Plan(spec, "alias", target=seen[key])
        plans.append(plan)
        done += 0 if spec.tied_to else spec.nbytes
        if progress:
            progress(done, total, f"survey {spec.name}")
    return plans


def _check_storable(spec: TensorSpec) -> None:
    if spec.dtype not in DTYPES.values():
        raise Unsupported(f"tensor {spec.name!r} has the dtype {spec.dtype}, which cannot be stored: convert it")
    if prod(size for size in spec.shape if size) > MAX_ELEMENTS:
        raise Unsupported(f"tensor {spec.name!r} has the shape {spec.shape}: more than {MAX_ELEMENTS} elements")
    if len(spec.shape) > MAX_AXES or len(spec.name.encode()) > MAX_NAME:
        raise Unsupported(f"tensor {spec.name[:60]!r}: more than {MAX_AXES} axes or a name of more than {MAX_NAME} bytes")


def _survey(checkpoint: Checkpoint, spec: TensorSpec, asked: Config, most: int) -> tuple[tuple | None, Plan]:
    """The fingerprint of a tensor (None if it must not become an alias) and its plan as if it were the only one."""
    if spec.tied_to:
        return None, Plan(spec, "alias", target=spec.tied_to, tied=True)
    rule = asked.rule_for(spec.name)
    if rule and rule.action == "skip":
        return None, Plan(spec, "plain" if entry_dtype(spec.dtype) else "exact")
    tensor = checkpoint.read(spec.name)
    key = _fingerprint(tensor)
    if rule and rule.action == "exact":
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
    if choose_split(spec.shape) == 0 or spec.numel <= SMALL:
        return key, Plan(spec, "vector", factor, rms=powers.rms, powers=powers)
    sample = take_sample(plane, powers, factor, most, asked.follow)
    return key, Plan(spec, "coded", factor, rms=powers.rms, powers=powers, sample=sample)


def _is_equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors of one fingerprint have the same bytes."""
    if name == other:
        return False
    one, two = (checkpoint.read(key).contiguous().flatten().view(torch.uint8) for key in (name, other))
    return torch.equal(one, two)


def _fingerprint(tensor: torch.Tensor) -> tuple:
    """Equal for equal tensors; a few of the bytes decide, whoever finds an equal one compares the rest."""
    data = tensor_bytes(tensor)
    spread = bytes(data[:: max(1, len(data) // 4099)])
    return tuple(tensor.shape), tensor.dtype, blake2b(spread, digest_size=16).digest()
