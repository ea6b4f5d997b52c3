"""One forward pass of a batch, what must hold of its output, and the layer to blame if it does not."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from .ops import Capture


def run_batch(call: Callable, args: Any, number: int, seed: int, capture: Capture) -> Tensor:
    """The output of one batch, its uses in `capture`; InvalidArgument if it is no tensor of floats."""
    args = args if isinstance(args, (tuple, list)) else (args,)
    torch.manual_seed(seed + number)  # a network that draws numbers itself draws the same ones for every group
    capture.begin()
    with capture:
        output = call(*(_plain(value) for value in args))
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InvalidArgument(f"the model returns {what}, must be a tensor of floats; pass run= to take it out of the output")
    return output


def _plain(value: Any) -> Any:
    """Tensors made under torch.inference_mode, such as generated text, as ones that gradients may pass by."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def is_finite(output: Tensor, kind: str) -> bool:
    """False for outputs that a distance cannot be taken of."""
    if kind == "logits":  # a class that is ruled out has a logit of -inf
        return not bool((output.isnan() | output.isposinf()).any()) and bool(output.isfinite().any(-1).all())
    return bool(output.isfinite().all())


def find_layer(call: Callable, model: nn.Module, args: Any) -> str:
    """Which module's output is the first that is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Callable:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            values = output if isinstance(output, (tuple, list)) else (output,)
            if not found and any(
                isinstance(v, Tensor) and v.is_floating_point() and not bool(v.isfinite().all()) for v in values
            ):
                found.append(f"the output of {name or 'the network'} ({type(module).__name__}) is not finite")

        return hook

    hooks = [module.register_forward_hook(look(name, module)) for name, module in model.named_modules()]
    try:
        call(*(args if isinstance(args, (tuple, list)) else (args,)))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the output of the network is not finite"
