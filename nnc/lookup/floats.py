"""Layers that stay float: what torch runs between the integer parts of a look-up network, and the parameters that it needs for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from .graph import Graph, Node
from .layers import Float
from .window import Window

REASONS = {
    "pointwise": "on values that are floats already",
    "largest": "on values that are floats already",
    "flatten": "on values that are floats already",
}


def make_float(node: Node, graph: Graph) -> Float:
    """The layer for a node that is not done with tables."""
    reason = node.reason or REASONS[node.kind]
    return Float(node.name, node.sources, node.label, node.title, reason, _call(node, graph))


def _call(node: Node, graph: Graph) -> Callable[[Mapping[str, Any]], Any]:
    """What computes the value of a node from those by name."""
    if node.kind == "float":
        return _follow(node.content, graph)
    source = node.sources[0]
    call = {"pointwise": lambda: node.content.call, "largest": lambda: _pool(node.content), "flatten": lambda: _flatten}[
        node.kind
    ]()
    return lambda values: call(values[source])


def float_state(layers: list[Float], graph: Graph) -> dict[str, Tensor]:
    """Parameters and buffers of these layers, by their names in the state dict of the network."""
    state = graph.module.state_dict()
    prefixes = tuple(f"{layer.label}." for layer in layers)
    attributes = {node.content.target for node in graph.nodes if node.kind == "float" and node.content.op == "get_attr"}
    return {
        name: value.detach().cpu().contiguous()
        for name, value in state.items()
        if name.startswith(prefixes) or name in attributes
    }


def _follow(node: fx.Node, graph: Graph) -> Callable[[Mapping[str, Any]], Any]:
    names, module = graph.names, graph.module

    def call(values: Mapping[str, Any]) -> Any:
        if node.op == "get_attr":
            found: Any = module
            for part in node.target.split("."):
                found = getattr(found, part)
            return found
        arguments = fx.map_arg(node.args, lambda other: values[names.get(other.name, other.name)])
        keywords = fx.map_arg(dict(node.kwargs), lambda other: values[names.get(other.name, other.name)])
        if node.op == "call_module":
            return module.get_submodule(node.target)(*arguments, **keywords)
        if node.op == "call_method":
            return getattr(arguments[0], node.target)(*arguments[1:], **keywords)
        return node.target(*arguments, **keywords)

    return call


def _pool(window: Window) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        wide = x[:, :, None] if window.axes == 1 else x
        out = F.max_pool2d(wide, window.kernel, window.strides, window.before, window.dilations, window.ceil)
        return out[:, :, 0] if window.axes == 1 else out

    return call


def _flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)
