"""Which statistics belong to which tensors of a checkpoint, and whether they are of that network at all.

The fingerprint of a network is one checksum of everything in it, which a file with a prefix before its names, another order or
another dtype does not have.  So statistics are signed with a checksum of every single tensor: that tells another network's tensor of
the same name, and finds a tensor under another name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from zlib import crc32

import torch
from torch import Tensor, nn

from nnc.calibration.statistics import Statistics
from nnc.checkpoint import Checkpoint
from nnc.errors import InvalidArgument
from nnc.partition.planes import choose_split, plane_shape

WEIGHTS = "weights"  # of Statistics.settings: name -> "dtype:checksum"
PREFIX = "module."  # of DataParallel


@dataclass(frozen=True, eq=False)
class Weight:
    """A float tensor that statistics are looked up for."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def weights_of(source: Checkpoint | nn.Module) -> list[Weight]:
    """The float tensors of a checkpoint or a network, tied ones under each of their names."""
    if isinstance(source, Checkpoint):
        return [
            Weight(spec.name, spec.shape, lambda name=spec.name: source.read(name))
            for spec in source.specs
            if spec.dtype.is_floating_point
        ]
    return [
        Weight(name, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in source.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    ]


def sign_statistics(statistics: Statistics, network: nn.Module) -> Statistics:
    """The same with the checksums of the network's tensors."""
    signs = {weight.name: _sign(weight.read()) for weight in weights_of(network)}
    return replace(statistics, settings={**statistics.settings, WEIGHTS: signs})


def match_statistics(statistics: Statistics, weights: list[Weight], label: str) -> Statistics:
    """The statistics under the names of `weights`, in their order; tensors that have none are `unseen`.

    label: what the weights are, for messages.  Raises InvalidArgument if they are of another network.
    """
    signs = statistics.settings.get(WEIGHTS, {})
    known = {*statistics.tensors, *statistics.unseen}
    found, unseen = {}, []
    for weight in weights:
        theirs = next((name for name in (weight.name, weight.name.removeprefix(PREFIX)) if name in known), None)
        if theirs is None:
            theirs = _find_equal(weight, signs)
        elif theirs in signs and _sign(weight.read(), signs[theirs]) != signs[theirs]:
            raise InvalidArgument(
                f"the statistics are of another network: {weight.name!r} of {label} has other values; calibrate anew"
            )
        entry = statistics.tensors.get(theirs)
        if entry is None:
            unseen.append(weight.name)
            continue
        plane = plane_shape(weight.shape, choose_split(weight.shape))
        if entry.shape != plane:
            raise InvalidArgument(
                f"the statistics are of another network: {weight.name!r} of {label} has a plane of {plane}, theirs is {entry.shape}"
            )
        found[weight.name] = entry
    if not found:
        raise InvalidArgument(f"the statistics are of another network: they know no tensor of {label}")
    return replace(statistics, tensors=found, unseen=tuple(unseen))


def _sign(tensor: Tensor, like: str | None = None) -> str:
    """Checksum of the values, in the dtype of the sign `like`: a network may hold its weights in another one than its file."""
    name = like.partition(":")[0] if like else str(tensor.dtype).removeprefix("torch.")
    dtype = getattr(torch, name, None)
    plain = tensor.detach().cpu().to(dtype if isinstance(dtype, torch.dtype) else tensor.dtype).contiguous()
    return f"{name}:{crc32(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else 0:08x}"


def _find_equal(weight: Weight, signs: Iterable[str]) -> str | None:
    """The name of a signed tensor with the same values; a constant tensor is like too many others."""
    if not signs or prod(weight.shape) < 2:
        return None
    values = weight.read()
    if bool((values == values.reshape(-1)[0]).all()):
        return None
    own = {width: _sign(values, width) for width in {sign.partition(":")[0] for sign in signs.values()}}
    return next((name for name, sign in signs.items() if own[sign.partition(":")[0]] == sign), None)
