"""A few steps of Adam towards the outputs of the original network, and back where they led astray.

Adam (Kingma & Ba, ICLR 2015) on a few batches at a time.  Every few steps D (see the package) on held-back inputs is looked at: where
it has not fallen, it goes on from the best point so far in smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.gather import frozen
from ..calibration.places import Place, Places
from ..evaluation.matching import PREFIX
from ..tuning import Tuned
from .batches import hold_back
from .network import Comparison, Network
from .student import Student


@dataclass(frozen=True)
class Budget:
    """steps: of Adam, at most; together: batches in a step; look: steps from one look at what was held back to the next; patience: looks
    without a gain, one after the other, before it ends; rate: how far a vector moves in a step at first, in parts of its size; gain: the
    least part of D that must be won."""

    steps: int = 50
    together: int = 4
    look: int = 5
    patience: int = 4
    rate: float = 0.003
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

    def __call__(self, state: Mapping[str, Tensor], vectors: Iterable[str]) -> Tuned:
        """New values of `vectors`; all else of the decoded `state` as it is.

        Names that the network does not have are left out, and all of them where the divergence on what is held back does not fall by
        `budget.gain` of it.  The model is left as it was, and no random numbers are drawn.
        """
        vectors, places = list(vectors), Places(self.model)
        names = _match(self.model, places, state, set(vectors))
        student = Student(_own(state, names), [names[name].name for name in vectors if name in names])
        with self._compared(places, student.layers) as compared:
            tuned = _learn(compared, student, self.batches, self.held_back, self.budget)
        theirs = {place.name: name for name, place in names.items()}
        found = {theirs[name]: tensor.to(state[theirs[name]].dtype) for name, tensor in tuned.vectors.items()}
        return replace(tuned, vectors=found)

    def compare(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
        """What is minimised, on what is held back: of the state `after`, in parts of that of `before`; 1 if there is none."""
        places = Places(self.model)
        names = _match(self.model, places, before, set())
        changed = [place.name for name, place in names.items() if not torch.equal(before[name], after[name])]
        with self._compared(places, Student(_own(before, names), changed).layers) as compared:
            old, new = (compared.mean_parts(_own(state, names), self.held_back) for state in (before, after))
        used = _used(compared, old)
        return sum(new[n] / old[n] for n in used) / len(used) if used else 1.0

    @contextmanager
    def _compared(self, places: Places, layers: set[str]) -> Iterator[Comparison]:
        with frozen(self.model, places):
            network = Network(self.model, self.run, layers)
            try:
                yield Comparison(network, self.kind, (*self.batches, *self.held_back))
            finally:
                network.close()


def _own(state: Mapping[str, Tensor], names: Mapping[str, Place]) -> dict[str, Tensor]:
    """Tensors under the names, and on the device and in the dtype, that the network has them."""
    return {p.name: state[name].detach().to(p.tensor.device, p.tensor.dtype) for name, p in names.items()}


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


def _learn(compared: Comparison, student: Student, batches: Sequence, held_back: Sequence, budget: Budget) -> Tuned:
    start = compared.mean_parts(student.tensors(), held_back)
    before = after = start[0]
    used = _used(compared, start)
    best = float(len(used))
    moves = list(student.moves.values())
    if not moves or not used:
        return Tuned({}, before, before)
    together = min(len(batches), budget.together)
    kept = [move.detach().clone() for move in moves]
    rate, misses, number = 1.0, 0, 0
    while number < budget.steps and misses < budget.patience:
        adam = torch.optim.Adam(moves, lr=rate * budget.rate, betas=(0.9, 0.99))
        while number < budget.steps:
            adam.zero_grad()
            for at in range(number * together, (number + 1) * together):
                parts = compared.parts(student.tensors(), batches[at % len(batches)])
                sum(parts[n] / start[n] for n in used).backward()
            adam.step()
            number += 1
            if number % budget.look and number < budget.steps:
                continue
            values = compared.mean_parts(student.tensors(), held_back)
            score = sum(values[n] / start[n] for n in used)
            if not score < best:
                break
            misses, best, after, kept = 0, score, values[0], [move.detach().clone() for move in moves]
        with torch.no_grad():  # back to the best point, in smaller steps
            for move, value in zip(moves, kept):
                move.copy_(value)
        rate, misses = rate / 3, misses + 1
    if not best < (1 - budget.gain) * len(used):
        return Tuned({}, before, before)
    with torch.no_grad():
        vectors = {name: student.vector(name).cpu() for name in student.units}
    return Tuned(vectors, before, after, best / len(used))


def _used(compared: Comparison, start: list[float]) -> list[int]:
    """Numbers of the parts that count."""
    return [n for n in range(compared.first, len(start)) if start[n] > 0]
