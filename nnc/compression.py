"""Compress a checkpoint: plan every tensor, meet the target, write, verify by decoding.  The output appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from .alignment import Alignment, align
from .archive import AHEAD, ReferenceSource, open_compressed, open_reference
from .assembly import Assembly
from .buffers import reused
from .calibration.statistics import Statistics
from .checkpoint import Checkpoint, atomic_output, check_destination, open_checkpoint
from .coder import checksum
from .config import Config, make_config
from .container import FILE_NAME, INDEX_NAME, is_compressed
from .decoder import ReferenceReader
from .decoding import decode_units
from .directory import MAX_HINT
from .encoded import EncodedTensor, tensor_bytes
from .encoding import Encoding, Progress
from .errors import Corruption, InvalidArgument
from .plan import plan_tensors, survey_bases
from .pretrained_config import NAME as CONFIG_NAME
from .pretrained_config import mark_config
from .siblings import NO_SIBLINGS, find_siblings
from .targets import meet_loss, meet_size, meet_snr
from .tuning import Tuner, apply_tuning, decode_all
from .workers import Workers, check_threads, open_workers

SHARD_BYTES = 5_000_000_000  # of a file in a folder
MOST_CORRECTION = 30.0  # of a predicted divergence by a measured one ...
CORRECTIONS = 3  # ... so often at most ...
NEAR = 0.1  # ... until it is met to this part

Measure = Callable[[dict[str, torch.Tensor]], float]


@dataclass(frozen=True)
class Summary:
    """What was written.  parameters: elements of the untied float tensors; snr: of the coded tensors with more than one long
    axis, in dB; kept: names of tensors stored without loss because they hold NaN or Inf; left_out: entries of the source that are
    not carried along; same, predicted: names of tensors that are those of the reference, or differences to them.  With calibration also loss: predicted divergence from the original network, measured: that on held-back
    inputs, unseen: names of quantized tensors that calibration said nothing of."""

    files: tuple[Path, ...]
    file_bytes: int
    original_bytes: int
    parameters: int
    tensors: int
    snr: float
    factor: float
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    loss: float | None = None
    measured: float | None = None
    unseen: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of all files per parameter."""
        return 8 * self.file_bytes / max(1, self.parameters)


def compress(
    source: str | os.PathLike | nn.Module | Mapping[str, torch.Tensor],
    destination: str | os.PathLike,
    *,
    config: str | os.PathLike | Config | None = None,
    statistics: str | os.PathLike | Statistics | None = None,
    measure: Measure | None = None,
    tune: Tuner | None = None,
    rules: tuple = (),
    reference: ReferenceSource | None = None,
    weights_key: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options,
) -> Summary:
    """Compress a checkpoint to `destination`: one file if that ends in .safetensors, else a folder with the side files.

    source: Hugging Face folder, .safetensors, torch file, module or mapping.  statistics: of the same network, from calibration;
    measure: divergence of a state dict from the original on held-back inputs; tune: finds better values for what is not quantized.  options: one of bits, size, snr, step, kl; effort,
    states, labelling, lagrangian, shard_bytes (see Config).  threads: default all cores; the bytes do not depend on it.
    progress: called with (done, total, what).

    Raises InvalidArgument, Unsupported, Corruption or InsufficientData; nothing is left behind then.
    """
    asked = make_config(config, tuple(rules), **options)
    statistics = Statistics.load(statistics) if isinstance(statistics, (str, os.PathLike)) else statistics
    destination = Path(destination)
    check_request(source, destination, asked, threads, overwrite, statistics is not None)
    threads, folder = check_threads(threads), destination.suffix != ".safetensors"
    with reused(), open_checkpoint(source, weights_key) as checkpoint, open_workers(threads) as workers:
        alignment = _align(checkpoint, reference, destination, progress)
        siblings = NO_SIBLINGS if alignment else find_siblings(checkpoint, asked, workers, progress)  # a reference foretells more
        bases = survey_bases(checkpoint, asked, workers, alignment, siblings)
        plans = plan_tensors(checkpoint, asked, workers, progress, statistics, alignment, bases, siblings)
        limit = (asked.shard_bytes or SHARD_BYTES) if folder else None
        encoding = Encoding(checkpoint, plans, asked, workers, progress, limit, alignment, tuple(bases.matrices), siblings)
        assembly, factor, measured = _meet_target(encoding, measure, tune)
        with atomic_output(destination, folder=folder, overwrite=overwrite) as temporary:
            written = _write(assembly, temporary, folder)
            if folder:
                _carry(checkpoint, temporary, written)
            needed = any(file.directory.reference for file in assembly.files)
            _verify(temporary, assembly.encoded, workers, progress, alignment.reader if needed else None)
        left_out = checkpoint.left_out if folder else checkpoint.left_out + tuple(name for name, _ in checkpoint.side_files)
        return Summary(
            tuple(destination / file.name for file in written) if folder else (destination,),
            assembly.size,
            checkpoint.nbytes,
            sum(plan.weights for plan in plans),
            len(plans),
            assembly.snr({plan.name for plan in plans if plan.treatment == "coded"}),
            factor,
            tuple(plan.name for plan in plans if plan.nonfinite),
            left_out,
            assembly.loss if statistics else None,
            measured,
            tuple(p.name for p in plans if p.treatment in ("coded", "vector") and not p.sensitivity) if statistics else (),
            tuple(e.record.name for e in assembly.encoded if e.record.kind == "same"),
            tuple(e.record.name for e in assembly.encoded if e.record.referenced and e.record.kind != "same"),
        )


def check_request(
    source: str | os.PathLike | nn.Module | Mapping[str, torch.Tensor],
    destination: Path,
    asked: Config,
    threads: int | None,
    overwrite: bool,
    calibrated: bool,
) -> None:
    """What can be refused before the source is read; calibrated: there are statistics, or will be."""
    check_threads(threads)
    if asked.target[0] == "kl" and not calibrated:
        raise InvalidArgument(f"kl = {asked.kl:g} is predicted from calibration: give data or statistics, or ask for bits or snr")
    if asked.substitution != "feedback" and not calibrated:
        raise InvalidArgument(f"substitution {asked.substitution} needs calibration: give data or statistics, or leave it out")
    if asked.target[0] == "step" and calibrated:
        raise InvalidArgument("one step for all tensors leaves nothing to calibration: leave out step, or data and statistics")
    if calibrated and asked.named_tools & {"codebook", "tiles"}:
        tool = min(asked.named_tools & {"codebook", "tiles"})
        raise InvalidArgument(f"tools {tool} knows no calibration: leave it out, or data and statistics")
    folder = destination.suffix != ".safetensors"
    if folder and destination.suffix in (".pt", ".pth", ".bin", ".th", ".nnc"):
        raise InvalidArgument(f"{destination}: a compressed checkpoint is a .safetensors file or a folder: choose such a name")
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    check_destination(path, destination, overwrite)
    if path is not None and path.exists() and is_compressed(path):
        raise InvalidArgument(f"{path} is compressed already: give the original, or what nnc decompress makes of it")
    if asked.shard_bytes is not None and not folder:
        raise InvalidArgument(f"shard_bytes splits a folder, {destination} is one file: leave it out or name a folder")


def _meet_target(encoding: Encoding, measure: Measure | None, tune: Tuner | None) -> tuple[Assembly, float, float | None]:
    """Encode with the common factor of all steps that meets the target; several times if need be."""
    kind, wanted = encoding.asked.target
    if kind == "step":
        assembly, factor = encoding.encode(wanted), wanted
    elif kind == "snr":
        assembly, factor = meet_snr(encoding, wanted)
    elif kind == "kl":
        assembly, factor = meet_loss(encoding, wanted)
        for _ in range(CORRECTIONS if measure else 0):
            measured = measure(decode_all(assembly, encoding))
            if not measured > 0 or abs(measured / wanted - 1) < NEAR:
                break
            change = min(MOST_CORRECTION, max(1 / MOST_CORRECTION, wanted / measured))
            assembly, factor = meet_loss(encoding, assembly.loss * change, factor * change**0.5)
    goal = inf
    if kind in ("size", "bits"):
        goal = wanted if kind == "size" else wanted * sum(plan.weights for plan in encoding.plans) / 8
        assembly, factor = meet_size(encoding, goal, f"{kind} = {wanted:g}")
    if tune:
        assembly = apply_tuning(encoding, assembly, factor, tune, tune.compare, goal)
    return assembly, factor, measure(decode_all(assembly, encoding)) if measure else None


def _write(assembly: Assembly, temporary: Path, folder: bool) -> list[Path]:
    if folder:
        temporary.mkdir(exist_ok=True)
    names = assembly.names() if folder else [temporary.name]
    paths = [temporary / name if folder else temporary for name in names]
    for path, file in zip(paths, assembly.files):
        with open(path, "wb") as out:
            out.writelines(file.chunks())
    if len(paths) > 1:
        paths.append(temporary / INDEX_NAME)
        paths[-1].write_bytes(assembly.index())
    return paths


def _carry(checkpoint: Checkpoint, temporary: Path, written: list[Path]) -> None:
    for name, path in checkpoint.side_files:
        if any(Path(name) == Path(file.name) for file in written) or name in (FILE_NAME, INDEX_NAME):
            continue
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        if name == CONFIG_NAME:
            (temporary / name).write_bytes(mark_config(path.read_bytes()))
        else:
            shutil.copyfile(path, temporary / name)


def _align(checkpoint: Checkpoint, reference: ReferenceSource | None, destination: Path, progress: Progress | None) -> Alignment | None:
    """Compare with the reference, whose name is remembered if it has one that can stand in a file."""
    if reference is None:
        return None
    path = Path(os.path.abspath(reference)) if isinstance(reference, (str, os.PathLike)) else None  # a link by its own name
    if path and path.resolve() == destination.resolve():
        raise InvalidArgument(f"{reference} is the reference and the output: name another output")
    reader = open_reference(reference, (destination.resolve(),))
    name = path.name if path else ""
    fits = name.isprintable() and not set(name) & set("/\\:") and len(name.encode()) <= MAX_HINT
    return align(checkpoint, reader, name if fits else "", progress)


def _verify(
    path: Path,
    encoded: tuple[EncodedTensor, ...],
    workers: Workers,
    progress: Progress | None,
    reference: ReferenceReader | None,
) -> None:
    """Decode what was written and compare every tensor with what the encoder meant to write."""
    expected = {e.record.name: e.content for e in encoded if e.record.kind != "alias"}

    def check(name: str, tensor: torch.Tensor) -> None:
        if checksum(tensor_bytes(tensor)) != expected.get(name):
            raise Corruption(f"tensor {name!r} does not decode to what was encoded: not written; please report this")

    with open_compressed(path, workers.pool, reference) as archive:
        found = decode_units(archive, workers, check, None, AHEAD, progress)
    if missing := expected.keys() - found.keys():
        raise Corruption(f"tensor {min(missing)!r} is missing from what was written: please report this")
