"""The layers of a saved look-up network: each is an object of JSON and a few arrays; writer and reader stand side by side.

What a kernel follows as an address (indices of weights, entries of activation tables) is checked here, since kernels check nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import Corruption, InvalidArgument
from .floats import make_float
from .graph import Graph
from .layers import Flatten, Float, Largest, Layer, Quantizer, Remap, Sums
from .tables import SUMS
from .window import Window

KIND, VERSION = "nnc look-up network", 1
MOST_LEVELS = 256
MOST_SIDE = 1 << 12  # of a window, its stride, padding and dilation

Entries = dict[str, np.ndarray]
Known = dict[str, np.ndarray | None]  # values made so far: levels of indices, None for floats and sums


def write_layer(layer: Layer, number: int, arrays: Entries) -> dict[str, Any]:
    """The description of a layer; its arrays are added to `arrays`."""

    def keep(name: str, array: np.ndarray | None) -> None:
        if array is not None:
            arrays[f"exact.{number}.{name}"] = np.ascontiguousarray(array)

    if isinstance(layer, Quantizer):
        keep("levels", layer.levels)
        return {"layer": "quantizer", "name": layer.name, "source": layer.source}
    if isinstance(layer, Float):
        return {"layer": "float", "name": layer.name, "label": layer.label, "title": layer.title}
    head = {"name": layer.name, "source": layer.source, "label": layer.label, "title": layer.title}
    if isinstance(layer, Flatten):
        return {"layer": "flatten", **head}
    if isinstance(layer, Largest):
        return {"layer": "largest", **head, "window": asdict(layer.window)}
    if isinstance(layer, Remap):
        keep("table", layer.table)
        keep("levels", layer.levels)
        return {"layer": "remap", **head}
    arrays[f"indices.{number}"] = layer.indices
    for name in ("codebook", "bias", "low", "fine", "activation", "levels"):
        keep(name, getattr(layer, name))
    more = {
        "fused": layer.fused,
        "groups": layer.groups,
        "shift": layer.shift,
        "dtype": layer.dtype.name,
        "learned": layer.learned,
    }
    return {
        "layer": "sums",
        **head,
        **more,
        "window": asdict(layer.window),
        "step": float(layer.step),
        "saturation": layer.saturation,
    }


def read_layer(entry: dict[str, Any], number: int, arrays: Entries, known: Known, graph: Graph | None) -> Layer:
    """Inverse of `write_layer`; takes its arrays out of `arrays` and adds its value to `known`.  graph: of the float layers.

    Raises Corruption; KeyError, TypeError or ValueError for an object that lacks something; InvalidArgument for a model that does not fit."""

    def take(name: str, *kinds: str) -> np.ndarray:
        array = arrays.pop(f"exact.{number}.{name}", None)
        if array is None or array.dtype.name not in kinds:
            raise Corruption(f"layer {number}: no {name}, or of a wrong dtype")
        return array

    def take_levels() -> np.ndarray:
        levels = take("levels", "float32")
        if levels.ndim != 1 or not 1 <= len(levels) <= MOST_LEVELS or not _rises(levels):
            raise Corruption(f"layer {number}: levels must be 1 to {MOST_LEVELS} rising numbers")
        return levels

    kind, name = entry["layer"], str(entry["name"])
    if name in known:
        raise Corruption(f"layer {number}: {name!r} is made twice")
    if kind == "float":
        layer = _find_float(entry, graph)
        if not set(layer.sources) <= known.keys():
            raise InvalidArgument(f"{layer.label}: the model does not fit: it takes other values there")
        known[name] = None
        return layer
    source = str(entry["source"])
    if source not in known or (known[source] is None) != (kind == "quantizer"):
        raise Corruption(f"layer {number}: its input {source!r} is not there, or of the wrong kind")
    given = known[source]
    if kind == "quantizer":
        known[name] = take_levels()
        return Quantizer(name, source, known[name])
    label, title = str(entry["label"]), str(entry["title"])
    known[name] = given
    if kind == "flatten":
        return Flatten(name, source, label, title)
    if kind == "largest":
        return Largest(name, source, label, title, _read_window(entry["window"], number))
    if kind == "remap":
        known[name] = take_levels()
        table = take("table", "uint8")
        if table.ndim != 2 or table.shape[1] != len(given) or table.max(initial=0) >= len(known[name]):
            raise Corruption(f"layer {number}: its table points outside the levels")
        return Remap(name, source, label, title, table, known[name])
    if kind != "sums":
        raise Corruption(f"layer {number}: its kind {kind!r} is unknown")
    codebook = take("codebook", "float32")
    if codebook.ndim != 1 or not 1 <= len(codebook) <= 1 << 16 or not _rises(codebook):
        raise Corruption(f"layer {number}: a codebook must be 1 to 65536 rising numbers")
    indices = _read_indices(arrays.pop(f"indices.{number}", None), len(codebook), number)
    window, groups = _read_window(entry["window"], number), int(entry["groups"])
    outputs = len(indices)
    bias, low, fine = take("bias", "int64"), take("low", "float64"), take("fine", "int64")
    shift, dtype, step = int(entry["shift"]), np.dtype(entry["dtype"]), np.float32(float(entry["step"]))
    fits = indices.ndim == 4 and indices.size and indices.shape[2:] == window.kernel and groups >= 1 and outputs % groups == 0
    if not fits or bias.shape != (outputs,) or low.shape not in ((1,), (outputs,)) or fine.shape != low.shape:
        raise Corruption(f"layer {number}: the shapes of its tensors do not go together")
    if dtype not in SUMS or not 0 <= shift <= 30 or not ((0 <= fine) & (fine <= shift)).all() or not 0 < step < np.inf:
        raise Corruption(f"layer {number}: its table has dtype {dtype}, k = {shift}, step {step}")
    activation = levels = None
    if f"exact.{number}.activation" in arrays:
        activation, levels = take("activation", "uint8"), take_levels()
        if activation.ndim != 2 or len(activation) not in (1, outputs) or not activation.size or activation.max() >= len(levels):
            raise Corruption(f"layer {number}: its activation table points outside the levels")
    known[name] = levels
    fused, saturation = tuple(str(label) for label in entry["fused"]), entry["saturation"]
    layer = Sums(
        name, source, label, title, fused, window, groups, indices, codebook, given, bias, shift, step, dtype, low, fine,
        activation, levels, None if saturation is None else float(saturation), bool(entry["learned"]),
    )  # fmt: skip
    try:
        bound = layer.bound
    except InvalidArgument as problem:
        raise Corruption(f"layer {number}: {problem}") from None
    if bound > np.iinfo(SUMS[dtype]).max:
        raise Corruption(f"layer {number}: its sums may be {bound}, beyond {SUMS[dtype]}")
    return layer


def _find_float(entry: dict[str, Any], graph: Graph | None) -> Float:
    node = next((node for node in graph.nodes if node.name == entry["name"]), None) if graph else None
    if node is None or (node.label, node.title) != (entry["label"], entry["title"]):
        raise InvalidArgument(f"the model does not fit: it has no {entry['label']!r} ({entry['title']}) where one was")
    return make_float(node, graph)


def _read_window(entry: dict[str, Any], number: int) -> Window:
    pairs = {name: tuple(entry[name]) for name in ("kernel", "strides", "before", "after", "dilations")}
    for name, pair in pairs.items():
        least = 0 if name in ("before", "after") else 1
        if len(pair) != 2 or not all(isinstance(side, int) and least <= side <= MOST_SIDE for side in pair):
            raise Corruption(f"layer {number}: {name} {pair} of its window")
    if entry["axes"] not in (0, 1, 2) or not isinstance(entry["ceil"], bool):
        raise Corruption(f"layer {number}: its window has {entry['axes']} axes")
    window = Window(axes=entry["axes"], ceil=entry["ceil"], **pairs)
    flat = Window(window.axes)
    for axis in range(2 - window.axes):  # axes that the input does not have
        if any(getattr(window, name)[axis] != getattr(flat, name)[axis] for name in pairs):
            raise Corruption(f"layer {number}: its window has {window.axes} axes, but looks along others")
    return window


def _read_indices(array: np.ndarray | None, number: int, layer: int) -> np.ndarray:
    """uint8 or uint16 from whole numbers of any dtype; Corruption for any that is not below `number`."""
    if array is None:
        raise Corruption(f"layer {layer}: no indices")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Corruption(f"layer {layer}: an index that is no number")
    whole = np.rint(array) if array.dtype.kind == "f" else array
    if whole.size and not (whole.min() >= 0 and whole.max() < number):
        raise Corruption(f"layer {layer}: an index is outside 0..{number - 1}")
    return np.ascontiguousarray(whole.astype(np.uint8 if number <= 256 else np.uint16))


def _rises(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (np.diff(values) > 0).all())
