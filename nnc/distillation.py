"""Tune what stays float after all levels are chosen, by a few steps of distillation from the original network.

    minimise  D(teacher(x), student(x))    over vectors and over factors of the outputs of the coded matrices

The teacher is the network with its own weights, the student the same one with the decoded weights.  Biases, weights of normalisation
layers and their running statistics take up the mean error that quantization left in every channel, the step of an output its gain.
Levels are never touched, so the change costs next to no bytes.

D is the divergence of the outputs (KL, half the squared distance of vectors, mean squared error), in parts of what it was.  A network
that is too sure of its calibration inputs says too little by its outputs, and what is learnt from them is wrong elsewhere (ResNet-20
on 100 training images: 0.5 times the KL on held-back ones, 1.1 times on others).  Then D is the squared error at the outputs of all
layers that are tuned, each in parts of what it was: many positions, none of them saturated.

Adam (Kingma & Ba, ICLR 2015); every few steps D on held-back inputs is looked at: where it has not fallen, it goes on from the best point
so far in smaller steps.
Sources: Hinton et al., "Distilling the knowledge in a neural network", 2015; Romero et al., "FitNets", ICLR 2015; Finkelstein et al.,
"Fighting quantization bias with bias", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .calibration.gather import _frozen as frozen
from .calibration.labels import Doubt
from .calibration.places import Place, Places
from .evaluation.matching import PREFIX
from .partition.planes import plane_shape
from .tuning import Tuned

HELD_BACK = 8  # one sample in so many
KEPT_BYTES = 1 << 30  # of the teacher's outputs; the rest is computed again for each use


@dataclass(frozen=True)
class Budget:
    """steps: of Adam, at most; together: batches in a step; look: steps from one look at what was held back to the next; patience: looks
    without a gain, one after the other, before it ends; vector_rate, row_rate, scale_rate: how far a vector, the factor of an output
    and the common one of a tensor move in a step at first, in parts of their size; gain: the least part of D that must be won."""

    steps: int = 50
    together: int = 4
    look: int = 5
    patience: int = 4
    vector_rate: float = 0.003
    row_rate: float = 0.002
    scale_rate: float = 0.001
    gain: float = 0.005


def distill(
    model: nn.Module,
    batches: Sequence[tuple],
    held_back: Sequence[tuple],
    kind: str,
    run: Callable[[nn.Module], Callable[..., Any]] | None = None,
    budget: Budget = Budget(),
) -> Distillation:
    """What tunes towards the outputs of `model`; see `Distillation`.  Without inputs held back, an eighth of the batches is."""
    learn, held = (list(batches), list(held_back)) if len(held_back) else hold_back(batches)
    return Distillation(model, tuple(learn), tuple(held or learn), kind, run, budget)


@dataclass(frozen=True, eq=False)
class Distillation:
    """batches, held_back: argument tuples for the network, to learn from and to judge by; kind, run: as in `calibration.gather`."""

    model: nn.Module
    batches: tuple
    held_back: tuple
    kind: str
    run: Callable[[nn.Module], Callable[..., Any]] | None
    budget: Budget

    def __call__(self, state: Mapping[str, Tensor], vectors: Iterable[str], rows: Mapping[str, int]) -> Tuned:
        """New values of `vectors` and factors of the outputs of `rows` (name -> plane recipe); all else of the decoded `state` as it is.

        Names that the network does not have are left out.  Both dicts are empty where the divergence on what is held back does not
        fall by `budget.gain` of it.  The model is left as it was, and no random numbers are drawn.
        """
        places = Places(self.model)
        names = _match(self.model, places, state, {*vectors, *rows})
        student = Student(
            {place.name: state[name].detach().to(place.tensor.device, place.tensor.dtype) for name, place in names.items()},
            [names[name].name for name in vectors if name in names],
            {names[name].name: split for name, split in rows.items() if name in names},
        )
        with frozen(self.model, places):
            network = Network(self.model, self.run, student.layers)
            try:
                tuned = _learn(network, student, self.batches, self.held_back, self.kind, self.budget)
            finally:
                network.close()
        theirs = {place.name: name for name, place in names.items()}
        return Tuned(
            {theirs[name]: tensor.to(state[theirs[name]].dtype) for name, tensor in tuned.vectors.items()},
            {theirs[name]: factors for name, factors in tuned.factors.items()},
            tuned.before,
            tuned.after,
            tuned.left,
        )


def _match(model: nn.Module, places: Places, state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Place]:
    """For every float tensor of the network one of its names in the state, a wanted one if there is one."""
    plain = {name.removeprefix(PREFIX): name for name in state}
    # a network may call its tensors otherwise in its state dict
    known = {name for kind in (model.named_parameters, model.named_buffers) for name, _ in kind(remove_duplicate=False)}
    found = {}
    for place in places.all:
        there = [plain[name] for name in place.names if name in plain and state[plain[name]].shape == place.tensor.shape]
        if there and place.name in known:
            found[min(there, key=lambda name: name not in wanted)] = place
    return found


def hold_back(batches: Sequence[Any], part: int = HELD_BACK) -> tuple[list, list]:
    """(batches to learn from, batches held back): every `part`-th sample of batches of that many, else every `part`-th batch; nothing
    of a single sample."""
    batches = list(batches)
    sizes = [_samples(batch) for batch in batches]
    if all(size >= part for size in sizes):
        away = [torch.arange(size) % part == part - 1 for size in sizes]
        return [_pick(b, ~a) for b, a in zip(batches, away)], [_pick(b, a) for b, a in zip(batches, away)]
    part = min(part, len(batches))
    if part > 1:
        return [b for n, b in enumerate(batches) if n % part < part - 1], batches[part - 1 :: part]
    if batches and sizes[0] > 1:
        last = torch.arange(sizes[0]) == sizes[0] - 1
        return [_pick(batches[0], ~last)], [_pick(batches[0], last)]
    return batches, []


def _samples(batch: Any) -> int:
    """Length of the first axis, if all tensors of a batch share it, else 1."""
    found: set[int] = set()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.add(len(value) if value.ndim else 1)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            look(item)

    look(batch)
    return found.pop() if len(found) == 1 else 1


def _pick(value: Any, which: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[which.to(value.device)]
    if isinstance(value, (list, tuple)):
        return type(value)(_pick(item, which) for item in value)
    return {key: _pick(item, which) for key, item in value.items()} if isinstance(value, dict) else value


class Network(nn.Module):
    """The callable for batches around the network, so that its tensors can be replaced for one call, and a look at some layers."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Callable[..., Any]] | None, layers: Iterable[str]) -> None:
        super().__init__()
        self.network = model
        self.call = [model if run is None else run(model)]  # in a list: it is no submodule once more
        self.watching = False
        self.seen: list[Tensor] = []
        self.hooks = [m.register_forward_hook(self._see) for name, m in model.named_modules() if name and name in layers]

    def forward(self, args: Any) -> list[Tensor]:
        """The output, and while `watching` those of the layers."""
        self.seen = []
        with _RunningStatistics():
            output = self.call[0](*(args if isinstance(args, (tuple, list)) else (args,)))
        seen, self.seen = self.seen, []
        return [output, *seen]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if self.watching and isinstance(first, Tensor) and first.is_floating_point():
            self.seen.append(first)


class _RunningStatistics(TorchFunctionMode):
    """Batch normalization spelled out where its statistics are learnt: torch has no gradient for them."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = _normalise(*args, **(kwargs or {})) if function is F.batch_norm else None
        return function(*args, **(kwargs or {})) if result is None else result


def _normalise(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight=None,
    bias=None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or mean is None or var is None or not (mean.requires_grad or var.requires_grad):
        return None
    shape = (1, -1, *[1] * (input.dim() - 2))
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return (input * scale.reshape(shape) + shift.reshape(shape)).to(input.dtype)


class Student:
    """The decoded tensors as a function of parameters, in units of about one, that are zero at the start.

    A vector of positive values moves by a factor, as they are coded; a running mean in parts of the deviation beside it; others in parts
    of their root mean square.
    """

    def __init__(self, state: Mapping[str, Tensor], vectors: Iterable[str], rows: Mapping[str, int]) -> None:
        self.state, self.rows = dict(state), dict(rows)
        self.units: dict[str, Tensor | None] = {}
        self.groups: dict[str, dict[str, Tensor]] = {"vector": {}, "row": {}, "scale": {}}
        for name in vectors:
            start = self.state[name].float()
            self.units[name] = None if bool((start > 0).all()) else self._unit(name, start)
            self._add("vector", name, start.shape)
        for name, split in self.rows.items():
            self._add("scale", name, ())
            self._add("row", name, plane_shape(tuple(self.state[name].shape), split)[:1])

    def _add(self, group: str, name: str, shape: tuple[int, ...]) -> None:
        self.groups[group][name] = torch.zeros(shape, device=self.state[name].device, requires_grad=True)

    def _unit(self, name: str, start: Tensor) -> Tensor:
        beside = self.state.get(name.removesuffix("running_mean") + "running_var")
        if name.endswith("running_mean") and beside is not None and beside.shape == start.shape:
            return beside.float().clamp(min=0).sqrt()
        return start.square().mean().sqrt()

    @property
    def layers(self) -> set[str]:
        """Names of the modules that hold what is tuned."""
        return {name.rpartition(".")[0] for name in (*self.units, *self.rows)}

    @property
    def parameters(self) -> list[Tensor]:
        return [move for group in self.groups.values() for move in group.values()]

    def vector(self, name: str) -> Tensor:
        start, unit, move = self.state[name].float(), self.units[name], self.groups["vector"][name]
        return start * move.exp() if unit is None else start + unit * move

    def factors(self, name: str) -> Tensor:
        """Of the outputs: (rows of the plane,)."""
        return (self.groups["row"][name] + self.groups["scale"][name]).exp()

    def tensors(self) -> dict[str, Tensor]:
        """All of them, in their own dtypes."""
        result = dict(self.state)
        for name in self.units:
            result[name] = self.vector(name).to(self.state[name].dtype)
        for name, split in self.rows.items():
            tensor = self.state[name]
            plane = tensor.reshape(plane_shape(tuple(tensor.shape), split))
            result[name] = (plane * self.factors(name)[:, None]).reshape(tensor.shape).to(tensor.dtype)
        return result


class Teacher:
    """What the original network says of batches, as far as that fits in memory."""

    def __init__(self, network: Network) -> None:
        self.network, self.left = network, KEPT_BYTES
        self.kept: dict[int, list[Tensor]] = {}

    def __call__(self, batch: Any) -> list[Tensor]:
        """For a batch that stays alive."""
        if id(batch) in self.kept:
            return self.kept[id(batch)]
        with torch.no_grad():
            said = [tensor.detach() for tensor in self.network(batch)]
        size = sum(tensor.nbytes for tensor in said)
        if size <= self.left:
            self.left -= size
            self.kept[id(batch)] = said
        return said


def divergence(output: Tensor, reference: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Mean divergence of an output from the reference, float32 ()."""
    output, reference = output.float(), reference.float()
    if kind == "values":
        return F.mse_loss(output, reference)
    if kind == "unit":
        return (output - reference).square().sum(-1).mean() / 2
    p, q = ((y / temperature).log_softmax(-1) for y in (reference, output))
    # a class that is ruled out has a logit of -inf
    return torch.where(p.isfinite(), p.exp() * (p - q), 0).sum(-1).mean()


def _learn(network: Network, student: Student, batches: Sequence, held_back: Sequence, kind: str, budget: Budget) -> Tuned:
    teacher = Teacher(network)
    temperature = _temperature(teacher, (*batches, *held_back)) if kind == "logits" else 1.0
    network.watching = temperature > 1
    if network.watching:
        teacher = Teacher(network)
    layered = len(teacher(held_back[0])) > 1

    def compare(batch: Any) -> list[Tensor]:
        replaced = {f"network.{name}": tensor for name, tensor in student.tensors().items()}
        mine, theirs = functional_call(network, replaced, (batch,)), teacher(batch)
        layers = [F.mse_loss(y.float(), r.float()) for y, r in zip(mine[1:], theirs[1:])]
        return [divergence(mine[0], theirs[0], kind, temperature), *layers]

    def judge() -> tuple[list[float], float]:
        """Every part on what is held back, and what counts."""
        with torch.no_grad():
            found = [([float(part) for part in compare(batch)], teacher(batch)[0].numel()) for batch in held_back]
        total = sum(size for _, size in found)
        parts = [sum(values[n] * size for values, size in found) / total for n in range(len(found[0][0]))]
        return parts, parts[0]

    start, before = judge()
    used = [n for n in range(layered, len(start)) if start[n] > 0]
    best, after = float(len(used)), before
    groups = [
        {"params": list(moves.values()), "rate": rate}
        for moves, rate in zip(student.groups.values(), (budget.vector_rate, budget.row_rate, budget.scale_rate))
        if moves
    ]
    if not groups or not used:
        return Tuned({}, {}, before, before)
    together = min(len(batches), budget.together)
    kept = [move.detach().clone() for move in student.parameters]
    rate, misses, number = 1.0, 0, 0
    while number < budget.steps and misses < budget.patience:
        adam = torch.optim.Adam([{**group, "lr": rate * group["rate"]} for group in groups], betas=(0.9, 0.99))
        while number < budget.steps:
            adam.zero_grad()
            for at in range(number * together, (number + 1) * together):
                parts = compare(batches[at % len(batches)])
                sum(parts[n] / start[n] for n in used).backward()
            adam.step()
            number += 1
            if number % budget.look and number < budget.steps:
                continue
            values, outcome = judge()
            score = sum(values[n] / start[n] for n in used)
            if not score < best:
                break
            misses, best, after, kept = 0, score, outcome, [move.detach().clone() for move in student.parameters]
        with torch.no_grad():  # back to the best point, in smaller steps
            for move, value in zip(student.parameters, kept):
                move.copy_(value)
        rate, misses = rate / 3, misses + 1
    if not best < (1 - budget.gain) * len(used):
        return Tuned({}, {}, before, before)
    with torch.no_grad():
        vectors = {name: student.vector(name).cpu() for name in student.units}
        factors = {name: student.factors(name).double().cpu().numpy() for name in student.rows}
    return Tuned(vectors, factors, before, after, best / len(used))


def _temperature(teacher: Teacher, batches: Iterable) -> float:
    doubt = Doubt()
    for batch in batches:
        doubt.add(teacher(batch)[0])
    return doubt.temperature
