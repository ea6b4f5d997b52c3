"""Write the golden files of tests/golden: `python tests/make_golden.py [--force]`.

A golden file is written only when it is absent: it shows that a later release still reads what an earlier one wrote.  With
--force all are made afresh, which is right only while the version of the format may still change.  Beside each stands a
.json with its origin (release, options, seed) and the dtype, shape and SHA-256 of every tensor, or for the damaged files of
golden/bad the class of the error.  Nothing is written on which the reference decoder disagrees with the package.

`golden_cases.py` says what is compressed, `golden_damage.py` how files are damaged.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import reference_decoder as decoder
import torch
from golden_cases import CASES, FORCED, GOLDEN, Case, Source
from golden_damage import BAD, BAD_FOLDER, write_bad
from network_cases import NETWORKS_OF, forcing
from torch import Tensor

import nnc
from nnc.calibration.statistics import Statistics, TensorStatistics
from nnc.cluster.choice import Request, encode_best
from nnc.cluster.encode import Clusters, encode_codebook
from nnc.cluster.outlying import take_outliers
from nnc.encoded import EncodedTensor
from nnc.encoder import make_plane
from nnc.entropy.scales import MOST
from nnc.memories import Kind, find_kinds
from nnc.prediction.memory import NO_FLOOR
from nnc.quantize.steps import StepCodes
from nnc.sensitivity import choose_codes
from nnc.tiling.choice import encode_alternative
from nnc.tiling.encode import Asked, encode_tiled


def bytes_of(tensor: Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def in_bytes(state: Mapping[str, Tensor]) -> dict[str, decoder.Tensor]:
    """A state dict in the form of the reference decoder."""
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape), bytes_of(t)) for name, t in state.items()}


def loaded(path: Path, threads: int | None = None,
           reference: Path | Mapping[str, Tensor] | None = None) -> dict[str, decoder.Tensor]:
    """What the package makes of a file, in the form of the reference decoder."""
    return in_bytes(nnc.load(path, threads=threads, reference=reference))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_statistics(source: Source, seed: int) -> Statistics:
    """Second moments of small integers that have a part in common; of vectors a diagonal, the first one
    very large, each a tenth of that before."""
    rng, found, vectors = np.random.default_rng(seed), {}, 0

    def moment(size: int) -> np.ndarray:
        x = rng.integers(-4, 5, (256, size)) * rng.integers(1, 5, size) + 3 * rng.integers(-3, 4, (256, 1))
        return (x.T @ x / 4096).astype(np.float32)

    for name, tensor in source.items():
        if not tensor.is_floating_point():
            continue
        m, n = make_plane(tensor)[1].shape
        if m > 1:
            found[name] = TensorStatistics(moment(m), moment(n), (4096, 4096))
        else:
            diagonal = np.diagonal(moment(n)) * np.float32(1e10 * 0.1**vectors)
            found[name] = TensorStatistics(np.ones(1, np.float32), diagonal, (4096, 4096))
            vectors += 1
    return Statistics(found, "logits", 4096)


def choose_unit(unit: int) -> Callable[[np.ndarray, int], tuple[StepCodes, float]]:
    """As `choose_codes`, but for the unit."""
    def choose(octaves: np.ndarray, weights: int) -> tuple[StepCodes, float]:
        middle = choose_codes(octaves, weights)[1]
        return StepCodes(np.clip(np.round((octaves - middle) * (128 / unit)), -MOST, MOST).astype(np.int16), unit), middle
    return choose


def choose_tiles(fields: dict) -> Callable:
    """As `encode_alternative`, but always these tiles."""
    def choose(name: str, tensor: Tensor, coded: object, step: float, lagrangian: float) -> object:
        return encode_tiled(name, tensor, step, Asked(**fields))
    return choose


def force_tools(request: Request) -> EncodedTensor:
    """What FORCED says for the name of a tensor, instead of what costs least."""
    force = FORCED[request.name]
    outliers = take_outliers(request.tensor, np.array(force.where, np.int64), force.values, 0.01)
    if force.clusters is None:
        return request.encode(outliers)
    return encode_codebook(request.name, request.tensor, Clusters(**force.clusters), 0.01, outliers)


@contextmanager
def coded_as(latents: str | None) -> Iterator[None]:
    """Latents of all tensors are coded in this way; None: as the encoder chooses."""
    with ExitStack() as stack:
        if latents:
            stack.enter_context(patch("nnc.encoder.may_join", lambda coding, data: False))
            stack.enter_context(patch("nnc.packing.pays", lambda saved, total: latents == "learned"))
            stack.enter_context(patch("nnc.packing.OWN_ENTRY", 0))
        yield


def write_golden(case: Case) -> None:
    remove(case.path)
    source = case.source(torch.Generator().manual_seed(case.seed))
    statistics = make_statistics(source, case.seed) if case.calibrated else None
    with (coded_as(case.latents), patch("nnc.sensitivity.choose_codes", choose_unit(case.unit) if case.unit else choose_codes),
          patch("nnc.encoding.encode_alternative", choose_tiles(case.tiles) if case.tiles else encode_alternative),
          patch("nnc.encoding.encode_best", force_tools if case.forced else encode_best),
          patch("nnc.memories.find_kinds", coded_kinds(case.centres) if case.centres else find_kinds),
          forcing(NETWORKS_OF[case.networks]()) if case.networks else nullcontext()):
        nnc.compress(source, case.path, threads=1, statistics=statistics, reference=case.reference_path, **case.options)
    tensors = loaded(case.path)
    if list(tensors.items()) != list(decoder.decode(case.path).items()):
        remove(case.path)
        raise SystemExit(f"{case.name}: the reference decoder disagrees")
    origin = {"made by": "tests/make_golden.py", "nnc": nnc.__version__, "torch": torch.__version__, "options": case.options,
              "seed": case.seed, "calibrated": case.calibrated, "unit": case.unit, "reference": case.reference,
              "tiles": case.tiles, "forced": case.forced, "latents": case.latents, "networks": case.networks, "centres": case.centres}
    listing = {name: {"dtype": dtype, "shape": shape, "sha256": hashlib.sha256(data).hexdigest()} for name,
               (dtype, shape, data) in tensors.items()}
    case.note.write_text(json.dumps({"origin": origin, "tensors": listing}, indent=1) + "\n")


def coded_kinds(number: int) -> Callable:
    """In place of `find_kinds`: so many centres and nothing else."""
    return lambda columns, lag, coded: [Kind(number, NO_FLOOR, True)] if coded else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--force", action="store_true", help="make all files afresh")
    torch.set_num_threads(1)
    if parser.parse_args().force and GOLDEN.exists():
        shutil.rmtree(GOLDEN)
    BAD_FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not (case.path.exists() and case.note.exists()):
            write_golden(case)
            print("wrote", case.path.relative_to(GOLDEN.parent.parent))
    missing = [case for case in BAD if not (case.path.exists() and case.path.with_suffix(".json").exists())]
    if missing:
        write_bad(missing)
        print("wrote", *(case.path.relative_to(GOLDEN.parent.parent) for case in missing))


if __name__ == "__main__":
    main()
