"""Tune what stays float after all levels are chosen, by a few steps of distillation from the original network.

    minimise  mean D(teacher(x), student(x)) + decay to the start    over vectors and over factors of rows of the coded matrices

The teacher is the network with its own weights, the student the same one with the decoded weights; D is KL(teacher || student) for
logits, half the squared distance for vectors of norm 1, the squared distance for values.  Biases, weights of normalisation layers and
their running statistics take up the mean error that quantization left in every channel; a factor of a row is taken up by its step.
Levels are never touched, so the change costs next to no bytes.  Adam (Kingma & Ba, ICLR 2015) with a cosine schedule; what counts is the
divergence on inputs that were held back, of which the best point on the way is kept.

Sources: Hinton et al., "Distilling the knowledge in a neural network", 2015; Finkelstein et al., "Fighting quantization bias with
bias", 2019; Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .calibration.gather import _frozen as frozen
from .calibration.labels import Doubt
from .calibration.places import Places
from .partition.planes import plane_shape

HELD_BACK = 8  # one sample in so many
KEPT_BYTES = 1 << 30  # of the teacher's outputs; the rest is computed again for each use
FLOOR = 1e-3  # a unit of change is at least this part of the largest of its tensor


@dataclass(frozen=True)
class Budget:
    """steps: of Adam; look: steps between two looks at what was held back; patience: looks without a gain before it ends;
    vector_rate, row_rate, scale_rate: how far a vector, the factor of a row and the common one of a tensor move per step at first, in
    parts of their size; decay: pull to the start, per unit of movement; gain: the least part of the divergence that must be won."""

    steps: int = 100
    look: int = 10
    patience: int = 4
    vector_rate: float = 0.01
    row_rate: float = 0.003
    scale_rate: float = 0.003
    decay: float = 1.0
    gain: float = 0.005


@dataclass(frozen=True)
class Axis:
    """Which weights of a coded tensor share one factor: those of one row (`dim` 0) or one column (1) of the plane (`split`) of the
    tensor as it stands, not transposed.  `dim` None: one factor for the tensor."""

    split: int
    dim: int | None


@dataclass(frozen=True, eq=False)
class Tuned:
    """vectors: new values, in the dtypes they had; factors: of the steps, float64 (rows of the axis,) or (); before, after: divergence on
    the inputs that were held back; temperature: at which that of logits was taken."""

    vectors: dict[str, Tensor]
    factors: dict[str, np.ndarray]
    before: float
    after: float
    temperature: float
    history: tuple[tuple[int, float, float], ...] = ()


def hold_back(batches: Sequence[tuple], part: int = HELD_BACK) -> tuple[list[tuple], list[tuple]]:
    """(batches to learn from, batches held back): every `part`-th sample, or every `part`-th batch where batches hold too few; at least
    one.  Batches whose tensors do not have the same first axis, one per sample, are taken whole."""
    batches = [batch if isinstance(batch, (tuple, list)) else (batch,) for batch in batches]
    sizes = [_samples(batch) for batch in batches]
    if all(size is not None and size >= part for size in sizes):
        learn, held = [], []
        for batch, size in zip(batches, sizes):
            away = torch.arange(size) % part == part - 1
            learn.append(_pick(batch, ~away))
            held.append(_pick(batch, away))
        return learn, held
    part = min(part, len(batches))
    if part < 2:
        size = sizes[0] or 1
        if size < 2:
            return list(batches), []
        away = torch.arange(size) == size - 1
        return [_pick(batches[0], ~away)], [_pick(batches[0], away)]
    numbered = list(enumerate(batches))
    return [b for n, b in numbered if n % part != part - 1], [b for n, b in numbered if n % part == part - 1]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _samples(batch: Any) -> int | None:
    """Length of the first axis, if all tensors share it."""
    found = {len(t) if t.ndim else None for t in _tensors(batch)}
    return found.pop() if len(found) == 1 else None


def _pick(value: Any, which: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[which.to(value.device)]
    if isinstance(value, (list, tuple)):
        return type(value)(_pick(item, which) for item in value)
    return {key: _pick(item, which) for key, item in value.items()} if isinstance(value, dict) else value


class Network(nn.Module):
    """The callable for batches around the network, so that all its tensors can be replaced for one call."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Callable[..., Any]] | None) -> None:
        super().__init__()
        self.network = model
        self.call = [model if run is None else run(model)]  # in a list: not a submodule once more

    def forward(self, args: tuple) -> Tensor:
        return self.call[0](*args)


class _RunningStatistics(TorchFunctionMode):
    """Batch normalization spelled out where its statistics are to be learnt: torch has no gradient for them."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.batch_norm:
            result = _normalise(*args, **(kwargs or {}))
            if result is not None:
                return result
        return function(*args, **(kwargs or {}))


def _normalise(
    input: Tensor, mean: Tensor, var: Tensor, weight=None, bias=None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5
) -> Tensor | None:
    if training or mean is None or var is None or not (mean.requires_grad or var.requires_grad):
        return None
    shape = (1, -1, *[1] * (input.dim() - 2))
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return (input * scale.reshape(shape) + shift.reshape(shape)).to(input.dtype)


class Teacher:
    """Outputs of the original network; those that fit are kept."""

    def __init__(self, network: Network) -> None:
        self.network, self.kept, self.left = network, {}, KEPT_BYTES

    def __call__(self, batch: tuple) -> Tensor:
        """The output for a batch that stays alive."""
        if id(batch) in self.kept:
            return self.kept[id(batch)]
        with torch.no_grad():
            output = self.network(batch).detach()
        if output.nbytes <= self.left:
            self.left -= output.nbytes
            self.kept[id(batch)] = output
        return output


def divergence(output: Tensor, reference: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Mean divergence of an output from the reference, float32 ()."""
    output, reference = output.float(), reference.float()
    if kind == "values":
        return F.mse_loss(output, reference)
    if kind == "unit":
        return (output - reference).square().sum(-1).mean() / 2
    # classes that are ruled out on both sides have a logit of -inf
    p = (reference / temperature).log_softmax(-1)
    q = (output / temperature).log_softmax(-1)
    return (p.exp() * torch.where(p.isfinite(), p - q, 0)).sum(-1).mean()


class Student:
    """The decoded weights with what can be learnt: the parameters, in units of about one, all zero at the start."""

    def __init__(self, state: Mapping[str, Tensor], vectors: Iterable[str], rows: Mapping[str, Axis], budget: Budget) -> None:
        self.state = dict(state)
        self.moves: dict[str, Tensor] = {}
        self.groups: dict[str, list[Tensor]] = {"vector": [], "row": [], "scale": []}
        self.positive: set[str] = set()
        self.units: dict[str, Tensor] = {}
        self.axes = dict(rows)
        for name in vectors:
            start = self.state[name].detach().float()
            if bool((start > 0).all()):
                self.positive.add(name)
            self.units[name] = self._unit(name, start)
            self._add(name, "vector", start.shape, start.device)
        for name, axis in self.axes.items():
            tensor = self.state[name]
            self._add(f"{name}|scale", "scale", (), tensor.device)
            if axis.dim is not None:
                self._add(f"{name}|row", "row", (plane_shape(tuple(tensor.shape), axis.split)[axis.dim],), tensor.device)

    def _add(self, key: str, group: str, shape: Any, device: Any) -> None:
        self.moves[key] = torch.zeros(shape, device=device, requires_grad=True)
        self.groups[group].append(self.moves[key])

    def _unit(self, name: str, start: Tensor) -> Tensor:
        """What one unit of a parameter is; a running mean moves in parts of the standard deviation beside it."""
        beside = self.state.get(name.removesuffix("running_mean") + "running_var")
        if name.endswith("running_mean") and beside is not None and beside.shape == start.shape:
            return beside.detach().float().sqrt()
        return torch.full_like(start, float(start.square().mean().sqrt()))

    def factor(self, name: str) -> Tensor:
        """Of the steps: (rows of the axis,) or ()."""
        row = self.moves.get(f"{name}|row")
        scale = self.moves[f"{name}|scale"]
        return (scale if row is None else row + scale).exp()

    def tensors(self) -> dict[str, Tensor]:
        """The state as a function of the parameters."""
        result = dict(self.state)
        for name, unit in self.units.items():
            start = self.state[name].float()
            new = start * self.moves[name].exp() if name in self.positive else start + unit * self.moves[name]
            result[name] = new.to(self.state[name].dtype)
        for name, axis in self.axes.items():
            tensor, factor = self.state[name], self.factor(name)
            if axis.dim is not None:
                plane = tensor.reshape(plane_shape(tuple(tensor.shape), axis.split))
                factor = factor[:, None] if axis.dim == 0 else factor
                tensor = (plane * factor).reshape(tensor.shape)
            else:
                tensor = tensor * factor
            result[name] = tensor.to(self.state[name].dtype)
        return result


def tune(
    model: nn.Module,
    state: Mapping[str, Tensor],
    vectors: Iterable[str],
    rows: Mapping[str, Axis],
    batches: Sequence[tuple],
    held_back: Sequence[tuple],
    kind: str,
    run: Callable[[nn.Module], Callable[..., Any]] | None = None,
    budget: Budget = Budget(),
    temperature: float | None = None,
) -> Tuned:
    """Learn new values of `vectors` and factors of the steps of `rows`, with everything else of `state` (decoded) as it is.

    batches, held_back   argument tuples for the network: to learn from, and to judge by
    kind, run            as in `calibration.gather`
    temperature          of the distributions of logits; default 1, more for a network that is too sure of these inputs

    Names that the network does not have are left out; of tied tensors one name is enough.  The model is left as it was, and no random
    numbers are drawn.  No change (both dicts empty) where the divergence on `held_back` does not fall by `budget.gain` of it.
    """
    places = Places(model)
    network = Network(model, run)
    names = _distinct(places, state, {*vectors, *rows})
    student = Student(
        {name: state[name].to(places.by_name[first].tensor.device) for name, first in names.items()},
        [name for name in vectors if name in names and state[name].is_floating_point()],
        {name: axis for name, axis in rows.items() if name in names},
        budget,
    )
    with frozen(model, places):
        teacher = Teacher(network)
        doubt = Doubt()
        if kind == "logits" and temperature is None:
            for batch in (*batches, *held_back):
                doubt.add(teacher(batch))
        heat = temperature or (doubt.temperature if kind == "logits" else 1.0)
        return _learn(network, teacher, student, batches, held_back, kind, heat, budget)


def _distinct(places: Places, state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, str]:
    """One name of every float tensor that both sides have, wanted ones first; with the name of its place."""
    found = {}
    for place in places.all:
        there = [name for name in place.names if name in state and state[name].shape == place.tensor.shape]
        if there:
            found[min(there, key=lambda name: name not in wanted)] = place.name
    return found


def _learn(
    network: Network,
    teacher: Teacher,
    student: Student,
    batches: Sequence[tuple],
    held_back: Sequence[tuple],
    kind: str,
    temperature: float,
    budget: Budget,
) -> Tuned:
    def apply(batch: tuple) -> Tensor:
        replaced = {f"network.{name}": tensor for name, tensor in student.tensors().items()}
        with _RunningStatistics():
            output = functional_call(network, replaced, (batch,))
        return divergence(output, teacher(batch), kind, temperature)

    def judge(inputs: Sequence[tuple]) -> float:
        with torch.no_grad():
            parts = [(float(apply(batch)), teacher(batch).numel()) for batch in inputs]
        return sum(part * size for part, size in parts) / max(1, sum(size for _, size in parts))

    before = best = judge(held_back)
    kept: dict[str, Tensor] = {}
    rates = {"vector": budget.vector_rate, "row": budget.row_rate, "scale": budget.scale_rate}
    groups = [{"params": params, "lr": rates[key], "rate": rates[key]} for key, params in student.groups.items() if params]
    history = [(0, judge(batches), before)]
    if not groups or not before > 0:
        return Tuned({}, {}, before, before, temperature)
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    misses = 0
    for step in range(budget.steps):
        for group in adam.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + cos(pi * step / budget.steps))
        adam.zero_grad()
        loss = apply(batches[step % len(batches)])
        loss.backward()
        adam.step()
        with torch.no_grad():
            for group in adam.param_groups:
                for move in group["params"]:
                    move.mul_(1 - budget.decay * group["lr"])
        if (step + 1) % budget.look == 0 or step + 1 == budget.steps:
            now = judge(held_back)
            history.append((step + 1, float(loss.detach()), now))
            misses = 0 if now < best else misses + 1
            if now < best:
                best, kept = now, {key: move.detach().clone() for key, move in student.moves.items()}
            if misses >= budget.patience:
                break
    if not best < (1 - budget.gain) * before:
        return Tuned({}, {}, before, before, temperature, tuple(history))
    with torch.no_grad():
        for key, move in student.moves.items():
            move.copy_(kept[key])
        tensors = student.tensors()
        vectors = {name: tensors[name].detach().cpu() for name in student.units}
        factors = {name: student.factor(name).detach().cpu().double().numpy() for name in student.axes}
    return Tuned(vectors, factors, before, best, temperature, tuple(history))
