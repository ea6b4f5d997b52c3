"""From a trained network to a look-up network: codebooks from the weights, levels from a run over calibration data.

Layers are taken in order, each on the inputs that those before it, already with few values, make.  What quantization moves the mean of an
output by goes into its bias.  Levels of activations are k-means of what the activation returns, those of the network's input of the
input itself (US20200234126A1; Baluja, Marwood, Covell, Johnston, "No Multiplication? No Floating Point? No Problem!", 2018).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InsufficientData, InvalidArgument, Unsupported
from ..evaluation.models import fit, read_weights
from ..sources import make_inputs
from .floats import float_state, make_float
from .forms import Pointwise
from .graph import Graph, Node, trace_network
from .layers import Flatten, Float, Largest, Layer, Quantizer, Remap, Sums
from .levels import find_indices, place_levels
from .network import LookupNetwork
from .placement import Placed, place, simplify
from .tables import choose_scale, make_activation, make_bias

WEIGHTS, ACTIVATIONS, STEPS = 100, 32, 1024
MOST_WEIGHTS, MOST_ACTIVATIONS, MOST_STEPS = 1 << 16, 256, 1 << 16
LEAST_SAMPLES = 16


def convert(
    model: nn.Module,
    data: object,
    *,
    weights: int | None = None,
    activations: int = ACTIVATIONS,
    source: str | os.PathLike | Mapping[str, Tensor] | None = None,
    steps: int = STEPS,
    samples: int | None = None,
    seed: int = 0,
) -> LookupNetwork:
    """A network that runs on index tables.

    model        a trained module of one input tensor, samples first, and one output tensor; it is not changed
    data         inputs to calibrate with: an array or a tensor, samples first, a file (.npz, .npy), batches, a Task; no labels are needed
    weights      levels of the weights of each layer, 2..65536; default 100.  A layer that has no more distinct values keeps them to the bit
    activations  levels of what flows between layers, 2..256
    source       take the weights from a checkpoint, compressed or not, or a state dict.  Without `weights` all distinct values are
                 kept, for checkpoints of few: compressed with the tool codebook, or at coarse steps
    steps        entries of an activation table, 16..65536: how finely inputs of an activation are told apart
    samples      use at most so many, default 1024: all values of a layer on all samples lie in memory at a time
    seed         of the order in which samples are drawn from an array

    Raises InvalidArgument (out of range, data and model that do not fit, NaN), InsufficientData (fewer than 16 samples), Unsupported (a network of
    several inputs or outputs, or that cannot be followed).
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(
            f"the model is a {type(model).__name__}, must be an nn.Module: build it, and name its weights with source"
        )
    if weights is not None:
        _check_whole("weights", weights, 2, MOST_WEIGHTS)
    _check_whole("activations", activations, 2, MOST_ACTIVATIONS)
    _check_whole("steps", steps, 16, MOST_STEPS)
    network = copy.deepcopy(model).cpu().eval()
    if source is not None:
        fit(network, read_weights(source))
    network = network.float()
    most = weights or (WEIGHTS if source is None else MOST_WEIGHTS)
    x = _read_data(network, data, samples, seed)
    with torch.no_grad():
        as_they_are = weights is None and source is not None
        graph = simplify(trace_network(network, x[:2]), fold=not as_they_are)  # folding would give each output values of its own
        conversion = _Conversion(graph, x, most, activations, steps, as_they_are)
        for placed in place(graph):
            conversion.add(placed)
    layers = tuple(conversion.layers)
    kept = float_state([layer for layer in layers if isinstance(layer, Float)], graph)
    fixed = any(node.title.lower().startswith("adaptive") for node in graph.nodes)
    dtype = str(x.dtype).removeprefix("torch.")
    made = LookupNetwork(tuple(x.shape[1:]), dtype, graph.entry, graph.exit, layers, kept, fixed, not as_they_are)
    made.table_hash  # the tables are made here, not when the network runs first
    return made


class _Conversion:
    """The layers so far, and the values of all samples: in the original network, and in the one of few values."""

    def __init__(self, graph: Graph, x: Tensor, weights: int, activations: int, steps: int, as_they_are: bool) -> None:
        self.graph, self.weights, self.activations, self.steps, self.as_they_are = graph, weights, activations, steps, as_they_are
        self.layers: list[Layer] = []
        self.original: dict[str, Any] = {graph.entry: x}
        self.values: dict[str, Any] = {graph.entry: x}
        self.levels: dict[str, np.ndarray] = {}  # of the values that are indices
        self.quantizers: dict[str, str] = {}
        self.last: dict[str, str] = {}  # who takes a value last
        for placed in place(graph):
            self.last.update(dict.fromkeys(placed.node.sources, placed.name))

    def add(self, placed: Placed) -> None:
        """The layers of one node, and its values."""
        node = placed.node
        if node.kind == "weighted":
            self._add_sums(placed)
        elif node.kind == "largest" and placed.wanted:
            source = self._indices(node.sources[0], node.label)
            self._add_moved(Largest(node.name, source, node.label, node.title, node.content), node, source)
        elif node.kind == "flatten" and placed.wanted:
            source = self._indices(node.sources[0], node.label)
            self._add_moved(Flatten(node.name, source, node.label, node.title), node, source)
        elif node.kind == "pointwise" and placed.wanted and node.sources[0] in self.levels:
            self._add_remap(node)
        else:
            self._add_float(node)
        for source in node.sources:
            if self.last.get(source) == placed.name:
                for kept in (source, self.quantizers.get(source)):
                    self.original.pop(kept, None)
                    self.values.pop(kept, None)

    def _indices(self, source: str, label: str) -> str:
        """The name of a value as indices, quantized here if it is floats."""
        if source in self.levels:
            return source
        if source not in self.quantizers:
            name = self.quantizers[source] = f"{source}:indices"
            values = self.values[source]
            if not isinstance(values, Tensor) or not values.is_floating_point():
                raise Unsupported(f"{label}: its input is no tensor of floats")
            self._set_levels(name, values, label)
            self.layers.append(Quantizer(name, source, self.levels[name]))
            self.original[name] = self.original[source]
        return self.quantizers[source]

    def _set_levels(self, name: str, values: Tensor, label: str) -> None:
        """Levels for values, and the values that they make of them."""
        array = values.numpy()
        if not np.isfinite(array).all():
            raise InvalidArgument(f"{label}: NaN or Inf on the calibration data")
        levels = self.levels[name] = place_levels(array, self.activations)
        self.values[name] = torch.from_numpy(levels[find_indices(array, levels)])

    def _add_sums(self, placed: Placed) -> None:
        node, content = placed.node, placed.node.content
        source = self._indices(node.sources[0], node.label)
        given = self.levels[source]
        codebook, indices = self._codebook(node)
        wanted = content.apply(self.original[source], content.weight) + content.along(content.bias)
        sums = content.apply(self.values[source], torch.from_numpy(codebook[indices]))
        axes = [axis for axis in range(sums.ndim) if axis != (sums.ndim - 1 if content.window.axes == 0 else 1)]
        bias = (wanted.double() - sums.double()).mean(axes)
        sums += content.along(bias.float())
        functions: list[Pointwise] = [other.content for other in placed.fused]

        def call(x: Tensor) -> Tensor:
            for function in functions:
                x = function.call(x)
            return x

        activation, low, fine, saturation = None, np.zeros(1), np.zeros(1, np.int64), None
        if placed.wanted:
            self._set_levels(placed.name, call(sums), node.label)
            channels = max([0, *(function.channels for function in functions)])
            activation = make_activation(call, sums, self.levels[placed.name], self.steps, channels)
            low, step, fine = activation.low, activation.step, activation.fine
            start, width = torch.from_numpy(low), torch.from_numpy(np.float64(step) / 2.0**fine)
            at = (sums.double() - content.along(start)) / content.along(width) if channels else (sums.double() - start) / width
            saturation = float(((at < 0) | (at >= self.steps)).double().mean())
        else:
            self.values[placed.name] = sums
            step = np.float32(max(float(sums.max() - sums.min()), 1e-30) / self.steps)
        self.original[placed.name] = call(wanted) if placed.wanted else wanted
        flat = indices.reshape(len(indices), -1)
        scale = choose_scale(given, codebook, flat, bias.numpy(), low, step, int(fine.max()), node.label)
        self.layers.append(Sums(
            placed.name, source, node.label, node.title, tuple(other.label for other in placed.fused), content.window, content.groups,
            indices, codebook, given, make_bias(bias.numpy(), low, scale.shift, step), scale.shift, step, scale.dtype, low, fine,
            None if activation is None else activation.entries, self.levels.get(placed.name), saturation, content.learned,
        ))  # fmt: skip

    def _codebook(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """Distinct weights of a layer, and their indices in its shape."""
        weight = node.content.weight.numpy()
        if not np.isfinite(weight).all() or not bool(node.content.bias.isfinite().all()):
            raise InvalidArgument(f"{node.label}: the weights hold NaN or Inf")
        if self.as_they_are and node.content.learned and (count := len(np.unique(weight))) > self.weights:
            raise InvalidArgument(
                f"{node.label}: {count} distinct weights, at most {self.weights} can be kept as they are: give weights=N for codebooks of N"
            )
        codebook = place_levels(weight, self.weights)
        return codebook, find_indices(weight, codebook)

    def _add_moved(self, layer: Largest | Flatten, node: Node, source: str) -> None:
        """A layer that only picks or moves indices: the same on values."""
        call = make_float(node, self.graph).call
        self.levels[node.name] = self.levels[source]
        self.values[node.name] = call({node.sources[0]: self.values[source]})
        self.original[node.name] = call({node.sources[0]: self.original[source]})
        self.layers.append(layer)

    def _add_remap(self, node: Node) -> None:
        source, function = node.sources[0], node.content
        before = self.levels[source]
        self._set_levels(node.name, function.call(self.values[source]), node.label)
        self.original[node.name] = function.call(self.original[source])
        made = function.call(torch.from_numpy(before)[:, None].expand(-1, max(1, function.channels)).contiguous())
        table = np.ascontiguousarray(find_indices(made.numpy(), self.levels[node.name]).T)
        self.layers.append(Remap(node.name, source, node.label, node.title, table, self.levels[node.name]))

    def _add_float(self, node: Node) -> None:
        layer = make_float(node, self.graph)
        self.values[node.name] = layer.call(self.values)
        self.original[node.name] = layer.call(self.original)
        self.layers.append(layer)


def _read_data(network: nn.Module, data: object, samples: int | None, seed: int) -> Tensor:
    """All calibration inputs as one tensor, samples first, float32 or integers."""
    inputs = make_inputs(network, data, samples=samples, seed=seed)
    batches = [*inputs.calibration.batches(), *(inputs.held_back.batches() if inputs.held_back else ())]
    if any(len(batch) != 1 or not isinstance(batch[0], Tensor) for batch in batches):
        raise Unsupported(f"{inputs.name}: a look-up network takes one tensor: wrap the network in a module of one input")
    shapes = {tuple(batch[0].shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise InvalidArgument(
            f"{inputs.name}: samples have the shapes {' and '.join(map(str, sorted(shapes)[:2]))}: make them equal"
        )
    x = torch.cat([batch[0] for batch in batches])
    x = x.float() if x.is_floating_point() else x
    if len(x) < LEAST_SAMPLES:
        raise InsufficientData(f"{inputs.name}: {len(x)} samples, {LEAST_SAMPLES} at least are needed to place levels")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise InvalidArgument(f"{inputs.name}: the inputs hold NaN or Inf: remove these samples")
    return x


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(f"{name} = {value!r}: must be a whole number from {least} to {most}")
