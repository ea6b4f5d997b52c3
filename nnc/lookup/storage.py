"""Look-up networks as files: an ordinary compressed checkpoint of indices, codebooks and levels, with a description of the layers.

    description     uint8: JSON, the layers in order, the SHA-256 of the product tables
    indices.N       of layer N, float32 whole numbers coded at step 1, which gives them back and takes a few per cent more than their entropy
    exact.N.codebook, .given, .bias, .low, .activation, .levels, .table, state.NAME     as they are

Tables are not stored: `load` makes them from codebooks and levels and compares their hash.  Everything that the kernels use as an address
is checked against what it points into.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import atomic_output, check_destination
from ..compression import compress
from ..errors import Corruption, InvalidArgument, NncError, Unsupported
from ..restoration import load as load_state
from .description import KIND, VERSION, Entries, read_layer, write_layer
from .graph import Graph, trace_network
from .network import LookupNetwork
from .placement import simplify

DTYPES = ("float32", "uint8", "int8", "int16", "int32", "int64")  # of inputs
EXACT, STATE = "exact.", "exact.state."


def save(network: LookupNetwork, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a network to one .safetensors file; InvalidArgument if it is there already, unless `overwrite`."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InvalidArgument(f"{path}: a look-up network is one file, give it a name that ends in .safetensors")
    arrays: Entries = {}
    described = [write_layer(layer, number, arrays) for number, layer in enumerate(network.layers)]
    page = {
        "kind": KIND,
        "version": VERSION,
        "shape": list(network.shape),
        "dtype": network.dtype,
        "entry": network.entry,
        "exit": network.exit,
        "fixed": network.fixed,
        "folded": network.folded,
        "hash": network.table_hash,
        "layers": described,
    }
    whole = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors = {name: tensor.float() if name.startswith("indices.") else tensor for name, tensor in whole.items()}
    tensors.update({f"{STATE}{name}": value for name, value in network.state.items()})
    tensors["description"] = torch.frombuffer(bytearray(json.dumps(page).encode()), dtype=torch.uint8)
    rules = (f"{EXACT}*=exact",) if any(name.startswith(EXACT) for name in tensors) else ()
    check_destination(None, path, overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / path.name
        settings: dict[str, Any] = {
            "step": 1.0,
            "effort": "fast",
            "lagrangian": 1e-9,
            "tools": "none",
            "rules": rules,
            "overwrite": True,
        }
        compress(tensors, file, **settings)
        back = load_state(file)
        lost = [name for name in whole if name.startswith("indices.") and not bool((back[name].round() == tensors[name]).all())]
        if lost:  # what the coder does not give back is kept as it is
            compress({**tensors, **{name: whole[name] for name in lost}}, file, **settings)
        with atomic_output(path, folder=False, overwrite=overwrite) as temporary:
            shutil.copyfile(file, temporary)
    return path


def load(path: str | os.PathLike, *, model: nn.Module | None = None) -> LookupNetwork:
    """Read a network that `save` wrote, with the same outputs to the bit.

    model: a network like the one that was converted, needed where layers stay float; its own weights do not matter.

    Raises InvalidArgument (not a look-up network, a model that is missing or does not fit), Unsupported (of a newer version), Corruption (damaged, or
    tables that are not those that were saved)."""
    tensors = load_state(path)
    page = _read_page(path, tensors)
    try:
        shape = tuple(page["shape"])
        if page["dtype"] not in DTYPES or not all(isinstance(size, int) and 0 < size < 1 << 31 for size in shape):
            raise Corruption(f"inputs of {page['dtype']} {shape}")
        state = {name.removeprefix(STATE): tensor for name, tensor in tensors.items() if name.startswith(STATE)}
        arrays = {
            name: tensor.numpy() for name, tensor in tensors.items() if not name.startswith(STATE) and name != "description"
        }
        graph = _follow(path, page, state, model)
        known: dict[str, Any] = {str(page["entry"]): None}
        layers = tuple(read_layer(entry, number, arrays, known, graph) for number, entry in enumerate(page["layers"]))
        if arrays:
            raise Corruption(f"tensor {min(arrays)!r} belongs to no layer")
        if page["exit"] not in known:
            raise Corruption(f"no layer makes the output {page['exit']!r}")
        network = LookupNetwork(
            shape,
            page["dtype"],
            page["entry"],
            page["exit"],
            layers,
            state,
            bool(page["fixed"]),
            bool(page["folded"]),
        )
        matches = network.table_hash == page["hash"]
    except Corruption as problem:
        raise Corruption(f"{path}: {problem}: the file is damaged") from None
    except NncError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise Corruption(f"{path}: the description of the layers is damaged ({type(problem).__name__}: {problem})") from None
    if not matches:
        raise Corruption(f"{path}: the tables made from codebooks and levels are not those that were saved: the file is damaged")
    return network


def _read_page(path: str | os.PathLike, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The description; errors for a file that has none."""
    data = tensors.pop("description", None)
    page = None
    if data is not None and data.dtype == torch.uint8:
        try:
            page = json.loads(data.numpy().tobytes())
        except (UnicodeDecodeError, json.JSONDecodeError):
            page = None
    if not isinstance(page, dict) or page.get("kind") != KIND:
        raise InvalidArgument(f"{path}: is no look-up network: make one with nnc.lookup.convert and its method save")
    if page.get("version") != VERSION:
        raise Unsupported(f"{path}: version {page.get('version')!r} of look-up networks, this is {VERSION}: update nnc")
    return page


def _follow(path: str | os.PathLike, page: dict[str, Any], state: dict[str, Tensor], model: nn.Module | None) -> Graph | None:
    """The graph of the model, with the parameters of the float layers in it; None if all layers run on tables."""
    if not any(entry["layer"] == "float" for entry in page["layers"]):
        return None
    if model is None:
        raise InvalidArgument(f"{path}: some layers stay float: give a module like the one that was converted with model=")
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"the model is a {type(model).__name__}, must be an nn.Module")
    network = copy.deepcopy(model).cpu().eval().float()
    own = network.state_dict()
    odd = next((name for name, value in state.items() if name not in own or own[name].shape != value.shape), None)
    if odd is not None:
        raise InvalidArgument(f"{path}: the model does not fit: {odd!r} is {'of another shape' if odd in own else 'not'} in it")
    network.load_state_dict(state, strict=False)
    with torch.no_grad():
        return simplify(
            trace_network(network, torch.zeros((2, *page["shape"]), dtype=getattr(torch, page["dtype"]))), fold=page["folded"]
        )
