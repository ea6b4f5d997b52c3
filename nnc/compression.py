"""Compress a checkpoint: plan every tensor, meet the target, write, verify by decoding.  The output appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .allocate import choose_labelling, fit_bank, short_step, try_step, vector_step
from .assembly import Assembly, assemble_files
from .checkpoint import Checkpoint, atomic_output, check_destination, open_checkpoint
from .coder import checksum
from .config import Config, make_config
from .container import FILE_NAME, INDEX_NAME
from .encoder import (
    EncodedTensor,
    encode_coded,
    encode_exact,
    encode_logarithmic,
    encode_plain,
    tensor_bytes,
)
from .entropy.explicit import ModelBank
from .entropy.parametric import SHAPES
from .errors import Corruption, InvalidArgument
from .plan import Plan, plan_tensors
from .rdo import Search
from .restoration import open_compressed
from .targets import meet_size, meet_snr
from .unit import Record

SHARD_BYTES = 5_000_000_000  # of a file in a folder
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Summary:
    """What was written.  parameters: elements of the untied float tensors; snr: of the coded tensors with more than one long
    axis, in dB; kept: names of tensors stored
    without loss because they hold NaN or Inf; left_out: entries of the source that are not carried along."""

    files: tuple[Path, ...]
    file_bytes: int
    original_bytes: int
    parameters: int
    tensors: int
    snr: float
    factor: float
    kept: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits of all files per parameter."""
        return 8 * self.file_bytes / max(1, self.parameters)


def compress(
    source: str | os.PathLike | nn.Module | Mapping[str, torch.Tensor],
    destination: str | os.PathLike,
    *,
    config: str | os.PathLike | Config | None = None,
    rules: tuple = (),
    weights_key: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options,
) -> Summary:
    """Compress a checkpoint to `destination`: one file if that ends in .safetensors, else a folder with the side files.

    source: Hugging Face folder, .safetensors, torch file, module or mapping.  options: one of bits, size, snr, step; effort,
    states, labelling, lagrangian, shard_bytes (see
    Config).  threads: default all cores; the bytes do not depend on it.  progress: called with (done, total, what).

    Raises InvalidArgument, Unsupported, Corruption or InsufficientData; nothing is left behind then.
    """
    asked = config if isinstance(config, Config) and not options and not rules else make_config(config, tuple(rules), **options)
    threads = check_threads(threads)
    destination = Path(destination)
    folder = destination.suffix != ".safetensors"
    if folder and destination.suffix in (".pt", ".pth", ".bin", ".th", ".nnc"):
        raise InvalidArgument(f"{destination}: a compressed checkpoint is a .safetensors file or a folder: choose such a name")
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    check_destination(path, destination, overwrite)
    if asked.shard_bytes is not None and not folder:
        raise InvalidArgument(f"shard_bytes splits a folder, {destination} is one file: leave it out or name a folder")
    with open_checkpoint(source, weights_key) as checkpoint, _pool(threads) as pool:
        plans = plan_tensors(checkpoint, asked, progress)
        assembly, factor = _meet_target(checkpoint, plans, asked, pool, progress, folder)
        with atomic_output(destination, folder=folder, overwrite=overwrite) as temporary:
            written = _write(assembly, temporary, folder)
            if folder:
                _carry(checkpoint, temporary, written)
            _verify(temporary, assembly.encoded, pool, progress)
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
        )


def check_threads(threads: int | None) -> int:
    if threads is None:
        return min(os.cpu_count() or 1, 16)
    if not isinstance(threads, int) or threads < 1:
        raise InvalidArgument(f"threads = {threads!r}: must be a whole number of at least 1")
    return threads


def _pool(threads: int):
    return ThreadPoolExecutor(threads) if threads > 1 else nullcontext()


def _meet_target(
    checkpoint: Checkpoint, plans: list[Plan], asked: Config, pool: Executor | None, progress: Progress | None, folder: bool
) -> tuple[Assembly, float]:
    """Encode with the common factor of all steps that meets the target; several times if need be."""
    kind, wanted = asked.target
    effort = asked.chosen_effort
    search = Search(effort.states, 0, effort.lagrangian, effort.passes)
    fixed: dict[str, EncodedTensor] = {}

    def encode(factor: float) -> Assembly:
        return _encode_all(checkpoint, plans, asked, search, factor, fixed, pool, progress, folder)

    if kind == "step":
        return encode(wanted), wanted
    if kind == "snr":
        return meet_snr(encode, plans, search, wanted)
    goal = wanted if kind == "size" else wanted * sum(plan.weights for plan in plans) / 8
    return meet_size(encode, plans, search, goal, f"{kind} = {wanted:g}")


def _encode_all(
    checkpoint: Checkpoint,
    plans: list[Plan],
    asked: Config,
    search: Search,
    factor: float,
    fixed: dict[str, EncodedTensor],
    pool: Executor | None,
    progress: Progress | None,
    folder: bool,
) -> Assembly:
    """Encode every tensor with steps `factor` times the relative ones (all equal for the target "step"); `fixed` keeps what does
    not depend on it.
    """
    coded = [plan for plan in plans if plan.treatment == "coded"]
    equal = asked.target[0] == "step"
    steps = {plan.name: factor * plan.factor if equal else short_step(plan.sample.step(factor, search.states)) for plan in coded}
    labels = {"plain": 0, "sign-symmetric": 1}
    chosen = {
        plan.name: Search(
            search.states,
            choose_labelling(plan.sample, steps[plan.name], search)
            if asked.labelling == "auto" or search.states == 1
            else labels[asked.labelling],
            search.lagrangian,
            search.passes,
        )
        for plan in coded
    }
    bank = fit_bank(
        [
            (try_step(plan.sample, steps[plan.name], chosen[plan.name]), plan.sample)
            for plan in coded
            if search.states == 1 or chosen[plan.name].labelling == 0
        ]
    )
    weights = sum(plan.weights for plan in coded) or 1
    typical = sum(plan.weights * steps[plan.name] / plan.sample.rms for plan in coded) / weights or 1.0
    total = sum(plan.nbytes for plan in plans)
    done = 0
    encoded = []
    for plan in plans:
        if progress:
            progress(done, total, f"compress {plan.name}")
        if plan.treatment == "coded":
            encoded.append(
                encode_coded(plan.name, checkpoint.read(plan.name), steps[plan.name], chosen[plan.name], bank, pool, asked.follow)
            )
        elif plan.treatment == "vector":
            encoded.append(_encode_vector(checkpoint, plan, typical, search))
        elif plan.treatment == "alias":
            spec = plan.spec
            encoded.append(EncodedTensor(Record(plan.name, spec.dtype, spec.shape, "alias", tied=plan.tied), b"", (), 0))
        else:
            if plan.name not in fixed:
                fixed[plan.name] = (encode_plain if plan.treatment == "plain" else encode_exact)(
                    plan.name, checkpoint.read(plan.name)
                )
            encoded.append(fixed[plan.name])
        done += plan.nbytes
    if progress:
        progress(total, total, "compress")
    if not any(e.record.kind == "coded" and e.record.coding.model >= SHAPES for e in encoded):
        bank = ModelBank()  # no tensor took to the explicit tables
    return assemble_files(
        encoded,
        {plan.name: plan.target for plan in plans if plan.treatment == "alias"},
        bank,
        checkpoint.origin.to_json(),
        (asked.shard_bytes or SHARD_BYTES) if folder else None,
    )


def _encode_vector(checkpoint: Checkpoint, plan: Plan, typical: float, search: Search) -> EncodedTensor:
    tensor = checkpoint.read(plan.name)
    if plan.factor == 1 and (result := encode_logarithmic(plan.name, tensor, ModelBank())):
        return result
    return encode_coded(
        plan.name,
        tensor,
        short_step(plan.factor * vector_step(plan.rms, typical)),
        Search(search.states, 0, search.lagrangian, search.passes),
        ModelBank(),
    )


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
        shutil.copyfile(path, temporary / name)


def _verify(path: Path, encoded: tuple[EncodedTensor, ...], pool: Executor | None, progress: Progress | None) -> None:
    """Decode what was written and compare every tensor with what the encoder meant to write."""
    expected = {e.record.name: e.content for e in encoded if e.record.kind != "alias"}
    total, done = sum(e.record.nbytes for e in encoded if e.record.kind != "alias"), 0
    with open_compressed(path, pool) as archive:
        for name, tensor in archive.tensors():
            done += tensor.nbytes
            if progress:
                progress(done, total, f"verify {name}")
            if checksum(tensor_bytes(tensor)) != expected.pop(name, None):
                raise Corruption(f"tensor {name!r} does not decode to what was encoded: not written; please report this")
    if expected:
        raise Corruption(f"tensor {next(iter(expected))!r} is missing from what was written: please report this")
