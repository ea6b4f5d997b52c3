"""The decoded tensors as a function of what is learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Student:
    """The decoded tensors as a function of parameters, in units of about one, that are zero at the start.

    A vector of positive values moves by a factor, as they are coded; a running mean in parts of the deviation beside it; others in parts
    of their root mean square.
    """

    def __init__(self, state: Mapping[str, Tensor], vectors: Iterable[str]) -> None:
        self.state = dict(state)
        self.units: dict[str, Tensor | None] = {}
        self.moves: dict[str, Tensor] = {}
        for name in vectors:
            start = self.state[name].float()
            self.units[name] = None if bool((start > 0).all()) else self._unit(name, start)
            self.moves[name] = torch.zeros_like(start, requires_grad=True)

    def _unit(self, name: str, start: Tensor) -> Tensor:
        beside = self.state.get(name.removesuffix("running_mean") + "running_var")
        if name.endswith("running_mean") and beside is not None and beside.shape == start.shape:
            return beside.float().clamp(min=0).sqrt()
        return start.square().mean().sqrt()

    @property
    def layers(self) -> set[str]:
        """Names of the modules that hold what is tuned."""
        return {name.rpartition(".")[0] for name in self.units}

    def vector(self, name: str) -> Tensor:
        start, unit, move = self.state[name].float(), self.units[name], self.moves[name]
        return start * move.exp() if unit is None else start + unit * move

    def tensors(self) -> dict[str, Tensor]:
        """All of them, in their own dtypes."""
        result = dict(self.state)
        for name in self.units:
            result[name] = self.vector(name).to(self.state[name].dtype)
        return result
