"""How far the outputs of a network are from those of a reference, without labels.

    kl                  sum_c p_c (log p_c - log q_c), p = softmax(reference), q = softmax(model): nats per prediction
    one_minus_cosine    |y - r|^2 / 2 of unit vectors: the same number as 1 - <y, r>, without its cancellation near zero
    relative_error      sqrt(sum |y - r|^2 / sum |r|^2)

Sums are float64, and run over all batches before anything is divided.
"""
from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument

CHUNK = 1 << 22  # values that are widened to float64 at a time
NORM = 1e-3  # how far the norm of a "unit" output may be from 1


@dataclass(frozen=True)
class Fidelity:
    """Distance of a model's outputs to the reference's; what does not apply to the kind of output is None.

    count             predictions (logits), vectors (unit) or single values
    kl                logits: mean KL(reference || model) in nats per prediction; 0 = the same
    top1_agreement    logits: share of predictions with the same first choice, 0..1
    one_minus_cosine  unit: mean of 1 - cosine; 0 = the same
    mse               values: mean squared error
    relative_error    values: root of squared error over squared reference
    """

    count: int
    kl: float | None = None
    top1_agreement: float | None = None
    one_minus_cosine: float | None = None
    mse: float | None = None
    relative_error: float | None = None

    @property
    def name(self) -> str:
        """The leading figure: "KL nats", "1 - cosine" or "MSE"; all of them are 0 for the same outputs."""
        return "KL nats" if self.kl is not None else "1 - cosine" if self.one_minus_cosine is not None else "MSE"

    @property
    def value(self) -> float:
        """The leading figure's value."""
        return next(v for v in (self.kl, self.one_minus_cosine, self.mse) if v is not None)


@dataclass(frozen=True)
class LayerError:
    """Error of one layer's outputs, that of its inputs included.

    name, kind      of the module, such as "layer1.0.conv1", "Conv2d"
    relative_error  root of squared error over squared reference, over all batches
    count           values compared
    """

    name: str
    kind: str
    relative_error: float
    count: int


class FidelityMeter:
    """Adds up batches of outputs of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.count = 0
        self.total = self.power = 0.0
        self.agreed = 0

    def add(self, output: Tensor, reference: Tensor) -> None:
        """Two outputs of the same shape; InvalidArgument for different shapes."""
        if output.shape != reference.shape:
            raise InvalidArgument(f"the model returned shape {tuple(output.shape)}, the reference {tuple(reference.shape)}")
        if not output.numel():
            return
        last = 1 if self.kind == "values" else output.shape[-1]
        pairs = _rows(output, reference.to(output.device), last)
        for y, r in pairs:
            self.count += len(r)
            if self.kind == "logits":
                self.agreed += int(((y.argmax(-1) == r.argmax(-1)) & ~(y.isnan() | r.isnan()).any(-1)).sum())
                y, r = y.log_softmax(-1), r.log_softmax(-1)
                p = r.exp()
                # a class the reference rules out (logit -inf) costs nothing; 0 * inf would be nan
                self.total += float(torch.where(p == 0, 0.0, p * (r - y)).sum())
            else:
                self.total += float((y - r).square().sum())
                self.power += float(r.square().sum())

    def result(self) -> Fidelity | None:
        """None if nothing was added."""
        if not self.count:
            return None
        if self.kind == "logits":
            kl = self.total / self.count
            # rounding can leave a few 1e-17 below zero, which KL never is; nan stays nan
            return Fidelity(self.count, kl=kl if not kl < 0 else 0.0, top1_agreement=self.agreed / self.count)
        if self.kind == "unit":
            return Fidelity(self.count, one_minus_cosine=self.total / 2 / self.count)
        return Fidelity(self.count, mse=self.total / self.count, relative_error=ratio(self.total, self.power))


def ratio(error: float, power: float) -> float:
    """Root of error / power; 0 without an error, infinite if only the power is 0."""
    return 0.0 if error == 0 else math.sqrt(error / power) if power != 0 else math.inf


def check_unit(output: Tensor, name: str) -> None:
    """InvalidArgument unless the vectors have norm 1; those that are not finite pass."""
    norms = torch.linalg.vector_norm(output.double(), dim=-1)
    off = norms[(norms - 1).abs() > NORM]
    if off.numel() and bool(off.isfinite().any()):
        raise InvalidArgument(f"{name}: the model returned a vector of norm {float(off[off.isfinite()][0]):.6g}, "
                              "outputs of kind unit must have norm 1")


class LayerMeter:
    """Relative error of each layer: runs of the reference are kept for one batch and compared while the model runs.

    A layer is a module that holds parameters itself, in the reference; the model's is the module of the same name.  Layers
    whose outputs cannot be compared (another shape, another number of calls, as with routed experts) are left out.
    """

    def __init__(self, model: nn.Module, reference: nn.Module) -> None:
        """Raises InvalidArgument if the two have no layer in common."""
        mine = dict(model.named_modules())
        self.kinds = {name: type(module).__name__ for name, module in reference.named_modules()
                      if name in mine and next(module.parameters(recurse=False), None) is not None}
        if not self.kinds:
            raise InvalidArgument("the model and the reference have no layer with parameters in common; leave layers out")
        self.kept: dict[str, deque[Tensor]] = {}
        self.sums: dict[str, list[float]] = {name: [0.0, 0.0, 0] for name in self.kinds}
        self.recording = False
        theirs = dict(reference.named_modules())
        self.hooks = [theirs[name].register_forward_hook(self._keeper(name)) for name in self.kinds]
        self.hooks += [mine[name].register_forward_hook(self._comparer(name)) for name in self.kinds]

    def start(self, reference: bool) -> None:
        """Say whose run comes next: the reference's, or the model's on the same batch."""
        self.recording = reference
        if reference:
            self.kept = {name: deque() for name in self.kinds}

    def close(self) -> None:
        """Take the hooks off and drop what was kept."""
        for hook in self.hooks:
            hook.remove()
        self.kept = {}

    def result(self) -> tuple[LayerError, ...]:
        """In the order of the reference's modules; layers that were never compared are left out."""
        return tuple(LayerError(name, self.kinds[name], ratio(error, power), count)
                     for name, (error, power, count) in self.sums.items() if count)

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple, Any], None]:
        def keep(module: nn.Module, inputs: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            if self.recording and tensor is not None:
                self.kept[name].append(tensor.detach().clone())  # an in-place activation may write over it
        return keep

    def _comparer(self, name: str) -> Callable[[nn.Module, tuple, Any], None]:
        def compare(module: nn.Module, inputs: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            if self.recording or tensor is None or not self.kept.get(name):
                return
            reference = self.kept[name].popleft()
            if reference.shape != tensor.shape:
                return
            sums = self.sums[name]
            for y, r in _rows(tensor.detach(), reference.to(tensor.device), 1):
                sums[0] += float((y - r).square().sum())
                sums[1] += float(r.square().sum())
            sums[2] += tensor.numel()
        return compare


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of an output: itself, `.logits` or `.last_hidden_state` of a Hugging Face output, the first of a sequence."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output:
        return first_tensor(output[0])
    return None


def _rows(output: Tensor, reference: Tensor, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both as float64 (rows, last), a bounded number of rows at a time."""
    step = max(1, CHUNK // last)
    pairs = zip(output.reshape(-1, last).split(step), reference.reshape(-1, last).split(step))
    return ((y.double(), r.double()) for y, r in pairs)
