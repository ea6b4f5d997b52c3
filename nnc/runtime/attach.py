"""Put the weights of a compressed checkpoint into a module without decoding them."""

from __future__ import annotations

import os
from math import inf

import torch
from torch import nn

from ..archive import ReferenceSource
from ..errors import InvalidArgument
from ..restoration import match_state
from .modules import CodedWeight, code_module, is_coded, restore_module
from .weights import Runtime

SMALL = 1 << 12  # weights of fewer elements are decoded once and stay parameters
CACHES = {"all": inf, "none": 0}


def attach(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    cache: str | int = "all",
    strict: bool = True,
    threads: int | None = None,
    reference: ReferenceSource | None = None,
) -> Runtime:
    """Let a module run from a compressed checkpoint: its large weights stay coded, and are decoded whenever they are used.

    model: on the CPU, another device or "meta", so that the dense weights never exist; its dtypes are kept.  cache: "all" decodes each
    weight once; "none" (0) each time, so that besides the file one layer is in memory; a number of bytes is the limit of what is held
    decoded, a thread that reads ahead included.  strict, threads, reference: as for `nnc.load_into`.  Outputs are those of the module with `nnc.load_into` and
    `requires_grad_(False)`, to the bit.

    Works with every module that takes its weights as attributes: Linear, convolutions, recurrent ones, attention; of an Embedding only
    the rows in use are decoded if it is not in the cache.  `state_dict` has the decoded values; `to`, `half`, `deepcopy` work, pickling
    stores the path; weights take no part in training; `torch.compile` breaks the graph where a weight is decoded, so not with
    fullgraph.  Weights with a maximal norm, which torch changes in place, stay dense.

    Returns the Runtime (its `used` counts, `close` ends it).  InvalidArgument if names or shapes do not fit; `detach` makes the module
    dense again.
    """
    limit = CACHES.get(cache, cache) if isinstance(cache, str) else cache
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
        raise InvalidArgument(f"cache = {cache!r}: must be 'all', 'none' or a number of bytes")
    if any(map(is_coded, model.modules())):
        raise InvalidArgument("the module is attached already: nnc.runtime.detach(model) first")
    runtime = Runtime(path, limit, threads, reference)
    try:
        _attach(model, runtime, strict)
    except BaseException:
        runtime.close()
        raise
    return runtime


def _attach(model: nn.Module, runtime: Runtime, strict: bool) -> None:
    archive = runtime.archive
    shapes = {record.name: record.shape for record in archive.records}
    names = match_state(model, shapes, str(archive.path), strict)
    coded: list[tuple[nn.Module, dict[str, CodedWeight]]] = []
    taken: set[str] = set()
    for prefix, module in model.named_modules():
        own = {}
        for name, parameter in module._parameters.items():
            full = f"{prefix}.{name}" if prefix else name
            if parameter is None or full not in names:
                continue
            if parameter.numel() >= SMALL and getattr(module, "max_norm", None) is None:
                device = torch.device("cpu") if parameter.is_meta else parameter.device
                stored = archive.sources[names[full]]
                own[name] = CodedWeight(runtime, stored, torch.empty(0, dtype=parameter.dtype, device=device))
                taken.add(full)
        if own:
            coded.append((module, own))
    dense = {name: stored for name, stored in names.items() if name not in taken}
    _load_dense(model, runtime, dense, taken)
    for module, own in coded:
        code_module(module, own)
    runtime.expect(dict.fromkeys(weight.use for _, own in coded for weight in own.values()))


def _load_dense(model: nn.Module, runtime: Runtime, names: dict[str, str], coded: set[str]) -> None:
    """Decode what stays dense; InvalidArgument if anything would remain without values."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta and name not in names and name not in coded:
            raise InvalidArgument(f"{name!r} is on the meta device and not in {runtime.archive.path}: make the module on the CPU")
    made: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                full = f"{prefix}.{name}" if prefix else name
                if tensor is None or full not in names:
                    continue
                if tensor.is_meta:  # the same tensor for all who share it
                    if id(tensor) not in made:
                        value = runtime.archive.tensor(names[full]).to(tensor.dtype)
                        made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if place is module._parameters else value
                    place[name] = made[id(tensor)]
                else:
                    with torch.no_grad():
                        tensor.copy_(runtime.archive.tensor(names[full]))


def detach(model: nn.Module) -> nn.Module:
    """Decode all coded weights into parameters (without gradients); weights that modules shared are shared again.  Returns the module;
    its Runtime may be closed then."""
    coded = [module for module in model.modules() if is_coded(module)]
    if not coded:
        raise InvalidArgument("the module is not attached to a compressed checkpoint")
    made: dict = {}
    for module in coded:
        restore_module(module, made)
    return model
