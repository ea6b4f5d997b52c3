"""The state dict inside a tree of dictionaries: where it is, what lies beside it, which of its tensors share memory.

A torch file is either the state dict itself or a dictionary that holds it under some key. No list of known keys is needed:
the state dict is the one mapping from strings to tensors. Where tensors stand in several places (an optimizer, an averaged
copy), the user must say which place is meant.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from nnc.checkpoint.spec import TensorSpec
from nnc.errors import InsufficientData, InvalidArgument, Unsupported

MAX_DEPTH = 64              # nesting of dictionaries and lists that is looked into by name or carried as an extra
MAX_EXTRA_ENTRIES = 1 << 20  # values carried as one extra; a shared list may stand for far more than it takes in the file
_CONTAINERS = (Mapping, list, tuple, set, frozenset)


@dataclass(frozen=True)
class Weights:
    """A state dict found in a tree: its tensors, its dotted key, the plain entries around it as JSON text, and the names of
    the entries that are not carried."""
    tensors: dict[str, Tensor]
    wrapper: str
    extras: str
    left_out: tuple[str, ...]


def find_weights(tree: object, weights_key: str | None, label: str) -> Weights:
    """Find the state dict in `tree`, at the dotted `weights_key` ("" is the top level) or where the only tensors are.

    `label` names the file in messages. Errors: InvalidArgument when the tensors are in several places or not at the key,
    InsufficientData when there are none, Unsupported for names that are not strings.
    """
    if not isinstance(tree, Mapping):
        raise Unsupported(f"{label}: holds a {type(tree).__name__}, not a state dict; save model.state_dict()")
    places, others = _tensor_places(tree, label)
    listing = ", ".join([*(_quoted(".".join(path)) for path in places), *(_quoted(name) for name in others)])
    if weights_key is not None:
        path = {".".join(path): path for path in places}.get(weights_key)
        if path is None:
            raise InvalidArgument(f"{label}: no named tensors at weights_key {weights_key!r}; tensors are at: "
                                  f"{listing or 'none'}")
    elif not places and not others:
        raise InsufficientData(f"{label}: holds no tensors")
    elif not places:
        raise Unsupported(f"{label}: holds tensors only without names, at {listing}; save model.state_dict()")
    elif len(places) + len(others) > 1:
        example = next(name for name in map(".".join, places) if name or len(places) == 1)
        raise InvalidArgument(f"{label}: holds tensors in several places: {listing}; say which one is meant, for example "
                              f"weights_key={example!r} / --weights-key {example!r}")
    else:
        path = places[0]
    if any("." in key or not key for key in path):
        raise Unsupported(f"{label}: the state dict stands under a key with a dot or without letters, {path!r}; rename it")
    place = tree
    for key in path:
        place = place[key]
    tensors = {name: value for name, value in place.items() if isinstance(value, Tensor)}
    kept, left_out = _plain_rest(tree, path, "")
    return Weights(tensors, ".".join(path), json.dumps(kept) if kept else "", tuple(left_out))


def _quoted(name: str) -> str:
    return name if name else "the top level ''"


def _tensor_places(tree: Mapping, label: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Paths of the mappings from strings that hold tensors, and the names of other places with tensors in them."""
    places, others = [], []
    # By identity: a pickle may hold a dictionary twice, or inside itself.
    seen: set[int] = set()
    searched: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and len(path) < MAX_DEPTH
        if named:
            seen.add(id(value))
            if any(isinstance(entry, Tensor) for entry in value.values()):
                places.append(path)
            inner = [((*path, key), entry) for key, entry in value.items() if isinstance(entry, _CONTAINERS)]
            waiting.extend(reversed(inner))
        elif _holds_tensor(value, searched):
            if not path:
                wrong = next(key for key in value if not isinstance(key, str))
                raise Unsupported(f"{label}: tensor names must be strings, found {wrong!r}; save model.state_dict()")
            others.append(".".join(path))
    return places, others


def _holds_tensor(value: object, searched: set[int]) -> bool:
    waiting = [value]
    found = False
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Tensor):
            found = True
        elif isinstance(entry, _CONTAINERS) and id(entry) not in searched:
            searched.add(id(entry))
            waiting.extend(entry.values() if isinstance(entry, Mapping) else entry)
    return found


def _plain_rest(tree: Mapping, path: tuple[str, ...], prefix: str) -> tuple[dict[str, object], list[str]]:
    """The tree without the tensors at `path`: what JSON can hold, and the names of what it cannot."""
    kept: dict[str, object] = {}
    left_out: list[str] = []
    for key, value in tree.items():
        if path and key == path[0]:
            inner, left = _plain_rest(value, path[1:], f"{prefix}{key}.")
            if inner:
                kept[key] = inner
            left_out += left
        elif isinstance(value, Tensor) and not path:
            continue
        elif _room_left(value, MAX_EXTRA_ENTRIES, 0) >= 0:
            kept[key] = value
        else:
            left_out.append(prefix + key)
    return kept, left_out


def _room_left(value: object, room: int, depth: int) -> int:
    """`room` less the number of plain values in `value`; negative when there are too many or one is not plain."""
    if value is None or type(value) in (bool, float, str) or (type(value) is int and value.bit_length() <= 4096):
        return room - 1
    if isinstance(value, (list, tuple)):
        entries = value
    elif isinstance(value, Mapping) and all(type(key) is str for key in value):
        entries = value.values()
    else:
        return -1
    room = room - 1 if depth < MAX_DEPTH else -1
    for entry in entries:
        if room < 0:
            return room
        room = _room_left(entry, room, depth + 1)
    return room


class LoadedTensors:
    """A state dict whose tensors exist already, in memory or mapped from a file."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self._tensors: Mapping[str, Tensor] = tensors
        for name, tensor in tensors.items():
            _check_dense(name, tensor, label)
        self.specs = _specs(tensors)

    def read(self, name: str) -> Tensor:
        """A copy of one tensor: CPU, contiguous."""
        tensor = self._tensors[name].detach().resolve_conj().resolve_neg()
        if tensor.device.type == "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor.cpu().contiguous()


def _check_dense(name: str, tensor: Tensor, label: str) -> None:
    if is_lazy(tensor):
        raise InvalidArgument(f"{label}: tensor {name!r} is not initialized yet; run the module once on an example")
    kind = ("nested" if tensor.is_nested else "quantized" if tensor.is_quantized
            else str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided
            else type(tensor).__name__ if hasattr(type(tensor), "__tensor_flatten__") else "")
    if kind:
        raise Unsupported(f"{label}: tensor {name!r} is {kind}; store it as a dense tensor")
    if tensor.device.type == "meta":
        raise InvalidArgument(f"{label}: tensor {name!r} is on the meta device and has no values; load the weights first")


def _specs(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    specs = []
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        tied_to = None
        if tensor.numel():
            memory = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape),
                      tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
            tied_to = first.setdefault(memory, name)
        specs.append(TensorSpec(name, tensor.dtype, tuple(tensor.shape), None if tied_to == name else tied_to))
    return tuple(specs)
