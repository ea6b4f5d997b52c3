"""The decoded tensors as a function of what is learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..partition.planes import plane_shape


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
