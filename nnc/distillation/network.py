"""A network whose tensors are replaced for one call, what it says with its own, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .doubt import Doubt

KEPT_BYTES = 1 << 30  # of the teacher's outputs; the rest is computed again for each use


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


class Comparison:
    """How far the network with other tensors is from itself, part by part: the divergence of the outputs, and for a network that is too
    sure of the inputs the mean squared errors of the layers that it looks at.

    first: number of the first part that counts.
    """

    def __init__(self, network: Network, kind: str, inputs: Sequence[Any]) -> None:
        """inputs: all batches there are; the temperature of logits follows from them."""
        self.network, self.kind = network, kind
        self.teacher = Teacher(network)
        self.temperature = 1.0
        if kind == "logits":
            doubt = Doubt()
            for batch in inputs:
                doubt.add(self.teacher(batch)[0])
            self.temperature = doubt.temperature
        if self.temperature > 1:
            network.watching = True
            self.teacher = Teacher(network)
        self.first = int(len(self.teacher(inputs[0])) > 1)

    def parts(self, tensors: Mapping[str, Tensor], batch: Any) -> list[Tensor]:
        """Of one batch, each ()."""
        replaced = {f"network.{name}": tensor for name, tensor in tensors.items()}
        mine, theirs = functional_call(self.network, replaced, (batch,)), self.teacher(batch)
        layers = [F.mse_loss(y.float(), r.float()) for y, r in zip(mine[1:], theirs[1:])]
        return [divergence(mine[0], theirs[0], self.kind, self.temperature), *layers]

    def mean_parts(self, tensors: Mapping[str, Tensor], batches: Sequence[Any]) -> list[float]:
        """Of several batches, by the sizes of their outputs."""
        with torch.no_grad():
            found = [([float(part) for part in self.parts(tensors, b)], self.teacher(b)[0].numel()) for b in batches]
        total = sum(size for _, size in found)
        return [sum(values[n] * size for values, size in found) / total for n in range(len(found[0][0]))]
