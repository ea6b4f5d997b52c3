"""How a network is called on a batch, and which kind of output it has.

A batch holds positional arguments; one that is a single mapping holds keyword arguments, as tokenizers make them.  Outputs at
positions that the attention mask leaves out are dropped: they are padding.

| output | kind |
|---|---|
| `.logits` of a Hugging Face model (n, c) or (n, t, c), c > 1 | logits |
| `.last_hidden_state` and all others of Hugging Face | values |
| (n, c) or (n, t, c), c > 1 of any other network | unit if all rows have norm 1, else logits |
| the shape of the floating-point input (a denoiser, an autoencoder), rows of probabilities, (n,), (n, 1), four axes and more | values |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument
from nnc.evaluation.fidelity import NORM, first_tensor
from nnc.evaluation.pretrained import is_pretrained


def prepare(network: nn.Module) -> Callable[..., Any]:
    """A callable for batches that returns one tensor, as Task.prepare."""

    def call(*arguments: Any) -> Any:
        output, mask = _call(network, arguments)
        return _unpadded(first_tensor(output), mask)

    return call


def find_kind(network: nn.Module, arguments: tuple) -> tuple[str, str]:
    """The kind of a network's output, and what it was told by; InvalidArgument for an output that is no tensor of floats."""
    output, _ = _call(network, arguments)
    tensor = first_tensor(output)
    if tensor is None or not tensor.is_floating_point() or not tensor.ndim:
        raise InvalidArgument(f"the model returned {type(output).__name__}, must be a floating-point tensor; wrap it in a module")
    shape = tuple(tensor.shape)
    scores = tensor.ndim in (2, 3) and shape[-1] > 1
    if isinstance(output, Mapping) or hasattr(output, "last_hidden_state") or hasattr(output, "logits"):
        logits = getattr(output, "logits", None) is tensor
        what = f"{'.logits' if logits else '.last_hidden_state'} of shape {shape}"
        return ("logits" if logits and scores else "values"), what
    what = f"outputs of shape {shape}"
    inputs = next((a for a in arguments if isinstance(a, Tensor)), None)
    if not scores:
        return "values", what
    if inputs is not None and inputs.is_floating_point() and inputs.shape == tensor.shape:
        return "values", f"{what}, that of the inputs"
    norms = torch.linalg.vector_norm(tensor.double(), dim=-1)
    if bool(((norms - 1).abs() <= NORM).all()):
        return "unit", f"{what} and norm 1"
    if bool((tensor >= 0).all()) and bool(((tensor.double().sum(-1) - 1).abs() <= NORM).all()):
        return "values", f"{what}, which are probabilities"
    return "logits", what


def takes(network: nn.Module, arguments: tuple) -> bool:
    """Whether forward takes these positional arguments."""
    try:
        inspect.signature(network.forward).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        return True
    return True


def device_of(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _call(network: nn.Module, arguments: tuple) -> tuple[Any, Tensor | None]:
    """The raw output and the attention mask."""
    place = device_of(network)
    keywords = (
        {"use_cache": False} if is_pretrained(network) and "use_cache" in inspect.signature(network.forward).parameters else {}
    )
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        moved = {key: value.to(place) if isinstance(value, Tensor) else value for key, value in arguments[0].items()}
        return network(**{**keywords, **moved}), moved.get("attention_mask")
    return network(*(a.to(place) if isinstance(a, Tensor) else a for a in arguments), **keywords), None


def _unpadded(output: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if output is None or mask is None or output.ndim < 3 or output.shape[:2] != mask.shape:
        return output
    return output[mask.bool()]
