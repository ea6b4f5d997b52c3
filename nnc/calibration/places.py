"""Which tensor of a network a weight argument is: found by its place in memory, since layers pass views of their parameters.

`in_proj_weight.chunk(3)` are three slices of rows, `weight.t()` is the whole matrix with its axes exchanged, and a tied weight
is one place with two names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..partition.planes import choose_split, plane_shape


@dataclass(frozen=True, eq=False)
class Place:
    """One float tensor of the state dict: all its names, the live tensor, and the (rows, columns) of its plane."""

    names: tuple[str, ...]
    tensor: Tensor
    plane: tuple[int, int]

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Slot:
    """A matrix (outputs, inputs) inside a place: its first row there, or `swapped` if the plane is (inputs, outputs)."""

    place: Place
    row: int
    swapped: bool


class Places:
    """All float tensors of a network by their storage."""

    def __init__(self, model: nn.Module) -> None:
        grouped: dict[tuple, tuple[list[str], Tensor]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                # an empty tensor has no storage to be told by
                where = (_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
                grouped.setdefault(where, ([], tensor))[0].append(name)
        self.all = [
            Place(tuple(names), t, plane_shape(tuple(t.shape), choose_split(tuple(t.shape)))) for names, t in grouped.values()
        ]
        self.by_name = {place.name: place for place in self.all}
        self.by_storage: dict[tuple, list[Place]] = {}
        for place in self.all:
            if place.tensor.numel():
                self.by_storage.setdefault(_storage(place.tensor), []).append(place)

    def find(self, tensor: object) -> Place | None:
        """The place whose memory a tensor lies in, None for anything else."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.is_sparse:
            return None
        offset = tensor.storage_offset()
        for place in self.by_storage.get(_storage(tensor), ()):
            start = place.tensor.storage_offset()
            if start <= offset < start + sum((n - 1) * s for n, s in zip(place.tensor.shape, place.tensor.stride())) + 1:
                return place
        return None

    def whole(self, tensor: object) -> Place | None:
        """The place of which a tensor is all, in its own shape."""
        place = self.find(tensor)
        return place if place and _same(tensor, place.tensor) else None

    def matrix(self, view: Tensor) -> Slot | None:
        """The slot of a matrix (outputs, inputs), None if it is no parameter or another kind of view."""
        place = self.find(view)
        if place is None or view.dim() != 2:
            return None
        tensor, (_, columns) = place.tensor, place.plane
        if _same(view, tensor):
            return Slot(place, 0, False)
        if tensor.dim() == 2 and _same(view.t(), tensor):
            return Slot(place, 0, True)
        offset = view.storage_offset() - tensor.storage_offset()
        rows = view.shape[1] == columns and view.stride() == (columns, 1) and offset % columns == 0
        return Slot(place, offset // columns, False) if rows and tensor.is_contiguous() else None


def _storage(tensor: Tensor) -> tuple:
    return (tensor.device, tensor.untyped_storage().data_ptr())


def _same(view: Tensor, tensor: Tensor) -> bool:
    return view.shape == tensor.shape and view.stride() == tensor.stride() and view.storage_offset() == tensor.storage_offset()
