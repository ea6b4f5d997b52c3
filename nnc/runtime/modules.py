"""Modules whose weights are coded: a subclass of the class of each, in which such a weight is a property.

`module.weight` decodes, whoever asks for it: the forward of the module, another one that shares the weight, a hook.  The class stays a
subclass of what it was, so that `isinstance` holds and nothing else of the module changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import InvalidArgument
from .weights import Runtime, Use


@dataclass(eq=False)
class CodedWeight:
    """A weight of a module.  name: of the stored tensor; like: an empty tensor of the dtype and on the device that it should have, which
    takes part in `module.to(...)`."""

    runtime: Runtime
    name: str
    like: torch.Tensor

    @property
    def use(self) -> Use:
        return Use(self.name, self.like.dtype, self.like.device)

    def value(self) -> torch.Tensor:
        return self.runtime.weight(self.use)


class _Coded:
    """What all such classes have in common; `_coded`: the weights by name, `_order`: the names of all parameters."""

    _coded: dict[str, CodedWeight]
    _order: list[str]
    _base: type

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for weight in self._coded.values():
            weight.like = fn(weight.like)
        return self

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        others = {key: destination.pop(key) for key in [prefix + name for name in self._order] if key in destination}
        tail = {key: destination.pop(key) for key in list(destination) if key.startswith(prefix)}
        for name in self._order:
            if name in self._coded:
                destination[prefix + name] = self._coded[name].value()
            elif prefix + name in others:  # not a bias that is None
                destination[prefix + name] = others[prefix + name]
        destination.update(tail)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        own = {prefix + name for name in self._coded}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in own]
        if given := sorted(own & state_dict.keys()):
            error_msgs.append(f"{given[0]!r} is coded: nnc.runtime.detach(model) before other weights are loaded")

    def __reduce_ex__(self, protocol):
        return _make_empty, (self._base, tuple(self._coded)), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _CodedEmbedding(_Coded):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self._coded["weight"]
        found = weight.runtime.rows(weight.use, input)
        return super().forward(input) if found is None else found[0][found[1]]


class _CodedRecurrent(_Coded):
    """torch.nn.RNNBase holds its weights in a list, too, which would keep them decoded."""

    @property
    def _flat_weights(self) -> list[torch.Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list) -> None:
        pass

    def _init_flat_weights(self) -> None:
        pass

    def _weights_have_changed(self) -> bool:
        return False

    def flatten_parameters(self) -> None:
        """For the memory of a GPU library, which decoded weights are not in."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_flat_weight_refs"}  # weak ones cannot be pickled


def _property(name: str) -> property:
    def value(self) -> torch.Tensor:
        return self._coded[name].value()

    def refuse(self, value: object) -> None:
        raise InvalidArgument(f"weight {self._coded[name].name!r} is coded: nnc.runtime.detach(model) before it is replaced")

    return property(value, refuse)


@lru_cache(maxsize=None)
def _coded_class(base: type, names: tuple[str, ...]) -> type:
    kind = _Coded
    if issubclass(base, nn.RNNBase):
        kind = _CodedRecurrent
    elif base.forward is nn.Embedding.forward:
        kind = _CodedEmbedding
    members = {name: _property(name) for name in names} | {"_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(f"Coded{base.__name__}", (kind, base), members)


def _make_empty(base: type, names: tuple[str, ...]) -> nn.Module:
    kind = _coded_class(base, names)
    return kind.__new__(kind)


def is_coded(module: nn.Module) -> bool:
    return isinstance(module, _Coded)


def code_module(module: nn.Module, weights: dict[str, CodedWeight]) -> None:
    """Take parameters of a module away; from now on they are decoded when they are used."""
    order = list(module._parameters)
    for name in weights:
        del module._parameters[name]
    module.__dict__.pop("_flat_weights", None)
    module._coded, module._order = weights, order
    module.__class__ = _coded_class(type(module), tuple(weights))


def restore_module(module: nn.Module, made: dict[Use, nn.Parameter]) -> None:
    """The inverse: parameters that hold the decoded values; made: those that exist already, which are shared."""
    weights, order = module._coded, module._order
    for weight in weights.values():
        if weight.use not in made:
            made[weight.use] = nn.Parameter(weight.value().clone(), requires_grad=False)
    module.__class__ = module._base
    del module._coded, module._order
    for name in order:
        module.register_parameter(name, made[weights[name].use] if name in weights else module._parameters.pop(name))
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
