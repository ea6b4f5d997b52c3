"""A network as a list of nodes: what each computes, and whether a look-up table can do it.

torch.fx follows the network; modules of torch.nn are nodes, and so is any other module that it cannot follow.  Dropout and Identity go.

| kind | what | in a look-up network |
|---|---|---|
| weighted | Linear, Conv1d, Conv2d, average pooling | sums of table entries |
| pointwise | activations, BatchNorm | in the activation table of the layer before, or a table from index to index |
| largest | max pooling | largest index |
| flatten | flatten, view, reshape to (n, -1) | the same indices |
| float | anything else | torch, on the values of the levels |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import InvalidArgument, Unsupported
from .forms import LARGEST, Pointwise, Weighted, make_pointwise, make_weighted, make_window
from .window import Window

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
FLATTENS = (torch.flatten, "flatten", "view", "reshape", torch.reshape)
FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, F.relu6: nn.ReLU6, F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish,
    F.hardswish: nn.Hardswish, F.hardsigmoid: nn.Hardsigmoid, F.hardtanh: nn.Hardtanh, F.leaky_relu: nn.LeakyReLU, F.elu: nn.ELU,
    F.selu: nn.SELU, F.softplus: nn.Softplus, F.softsign: nn.Softsign, F.logsigmoid: nn.LogSigmoid,
    F.max_pool1d: nn.MaxPool1d, F.max_pool2d: nn.MaxPool2d, F.avg_pool1d: nn.AvgPool1d, torch.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d, F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d, torch.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Node:
    """name: of its value; label: path of the module, or name of the function; title: its class; sources: names of the values that it
    takes; shape: of its value, samples first, () if it is no tensor; content: for a float node its torch.fx node."""

    name: str
    label: str
    title: str
    kind: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    content: Weighted | Pointwise | Window | fx.Node | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """module: where float nodes find their modules and parameters; entry, exit: names of values; shape: of the input; nodes: in order
    of running; names: of values that are others, passed on."""

    module: fx.GraphModule
    entry: str
    exit: str
    shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    names: dict[str, str]


class _Tracer(fx.Tracer):
    """Modules that torch.fx cannot follow stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if super().is_leaf_module(module, name):
            return True
        try:
            _Tracer().trace(module)
        except Exception:  # any code of the user may run here
            return True
        return False


class _Recorder(fx.Interpreter):
    """Shapes of all values, None for those that are no tensors."""

    def record(self, x: Tensor) -> dict[str, tuple[int, ...] | None]:
        self.shapes: dict[str, Any] = {}
        with torch.no_grad():
            self.run(x)
        return self.shapes

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        self.shapes[node.name] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def trace_network(network: nn.Module, x: Tensor) -> Graph:
    """The graph of a network of one tensor in eval mode.  x: a few inputs, for the shapes.

    Raises Unsupported for a network of several inputs or outputs, InvalidArgument if it does not run on x."""
    root = (
        network
        if isinstance(network, nn.Sequential) or not type(network).__module__.startswith("torch.nn")
        else nn.Sequential(network)
    )
    try:
        traced = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:
        raise Unsupported(f"the network cannot be followed ({_line(error)}): pass its layers as an nn.Sequential") from None
    places = [node for node in traced.graph.nodes if node.op == "placeholder"]
    used = [node for node in places if node.users] or places[:1]
    if len(used) != 1 or used != places[:1]:
        raise Unsupported(
            f"the network takes {len(places)} inputs, a look-up network takes one tensor: wrap it in a module of one"
        )
    try:
        shapes = _Recorder(traced).record(x)
    except Exception as error:
        raise InvalidArgument(f"the network does not run on the data ({_line(error)}): check that they belong together") from None
    ending = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(ending, fx.Node) or shapes[ending.name] is None:
        raise Unsupported("the network returns something else than one tensor: wrap it in a module that returns one")
    names: dict[str, str] = {}
    nodes = []
    for node in traced.graph.nodes:
        if node.op not in ("placeholder", "output"):
            found = _classify(node, traced, shapes, names)
            if isinstance(found, str):
                names[node.name] = found
            else:
                nodes.append(found)
    end = names.get(ending.name, ending.name)
    return Graph(traced, places[0].name, end, tuple(x.shape), without_unused(nodes, end), names)


def without_unused(nodes: list[Node], end: str) -> tuple[Node, ...]:
    """Those that the value `end` comes from."""
    needed, kept = {end}, []
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.sources)
            kept.append(node)
    return tuple(reversed(kept))


def _classify(node: fx.Node, traced: fx.GraphModule, shapes: dict[str, Any], names: dict[str, str]) -> Node | str:
    """The node of a network, or the name of the value that it passes on."""
    module = traced.get_submodule(node.target) if node.op == "call_module" else None
    label = str(node.target) if module is not None else node.name
    title = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target)).strip("_")
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    before = shapes[first.name] if first is not None else None
    shape = shapes[node.name] or ()

    def make(kind: str, content: Any) -> Node:
        return Node(node.name, label, title, kind, (names.get(first.name, first.name),), shape, content)

    simple = module is not None and len(node.args) == 1 and not node.kwargs
    called = module if simple else _module_of(node)
    if called is not None and before is not None:
        if type(called) in NOTHING:
            return names.get(first.name, first.name)
        if (pointwise := make_pointwise(called)) is not None:
            return make("pointwise", pointwise)
        if type(called) in LARGEST and not called.return_indices and (window := make_window(called, before)) is not None:
            return make("largest", window)
        if (weighted := make_weighted(called, before)) is not None:
            return make("weighted", weighted)
    if before is not None and len(before) > 1 and shape == (before[0], math.prod(before[1:])):
        if type(module) is nn.Flatten or node.op != "call_module" and node.target in FLATTENS:
            return make("flatten", None)
    sources = tuple(dict.fromkeys(names.get(n.name, n.name) for n in node.all_input_nodes))
    return Node(node.name, label, title, "float", sources, shape, node, _float_reason(title, module, len(sources)))


def _module_of(node: fx.Node) -> nn.Module | None:
    """The module that does what a function of torch does, made from the function's arguments."""
    if node.op not in ("call_function", "call_method"):
        return None
    keywords = {key: value for key, value in node.kwargs.items() if key != "input"}
    if any(isinstance(value, fx.Node) for value in (*node.args[1:], *keywords.values())):
        return None
    if node.target is F.dropout:
        training = keywords.get("training", node.args[2] if len(node.args) > 2 else True)
        return None if training else nn.Identity()
    if (kind := FUNCTIONS.get(node.target)) is None:
        return None
    try:
        return kind(*node.args[1:], **keywords).eval()
    except TypeError:
        return None


def _float_reason(title: str, module: nn.Module | None, sources: int) -> str:
    if title in ("LayerNorm", "layer_norm", "GroupNorm", "RMSNorm") or "InstanceNorm" in title:
        return "divides by a norm of its input"
    if "softmax" in title.lower() or title == "Softmin":
        return "divides by a sum over its input"
    if title in ("MultiheadAttention", "scaled_dot_product_attention", "matmul", "bmm") or "Transformer" in title:
        return "multiplies activations with each other"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    if "Embedding" in title:
        return "picks rows, adds nothing"
    return "takes several values, of different levels" if sources > 1 else "no table for this layer"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
