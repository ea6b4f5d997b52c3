"""Calibration and calibrated compression as a user asks for them: a network and data go in.

    statistics = nnc.calibrate("model/", "text.txt")
    nnc.compress("model/", "small/", bits=2.5, data="text.txt")
    nnc.compress("net.safetensors", "small.safetensors", kl=0.01, data="images.npz", model="net.py:build")

The data are divided: most of them calibrate, the part held back (sources/inputs.py) only measures what came out.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from . import compression
from .archive import ReferenceSource
from .calibration.gather import gather
from .calibration.statistics import Statistics
from .checkpoint import check_parent, open_checkpoint
from .compression import Summary
from .config import Config, make_config
from .distillation import distill
from .errors import InvalidArgument, NncError
from .evaluation.matching import WEIGHTS, match_statistics, sign_statistics, weights_of
from .evaluation.models import Builder, Source, fit, open_network, pretrained_folder
from .evaluation.pretrained import first_line
from .evaluation.reference import Reference
from .evaluation.runner import FAILURES
from .plan import check_tensors
from .sources import Inputs, make_inputs

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CalibratedSummary(Summary):
    """A Summary of a compression with data or statistics.  kind: of the network's outputs, "logits" (divergence in KL nats per
    prediction), "unit" (1 - cosine) or "values" (mean squared error); data: what the network was calibrated on; samples: for
    calibration; held_back: batches that measured; notes: how data and kind were understood."""

    kind: str = ""
    data: str = ""
    samples: int = 0
    held_back: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Request:
    """What a user says of the data and of the network that runs on them; see `calibrate`."""

    data: object
    model: Builder | None
    task: str | None
    data_options: Mapping[str, Any] | None
    kind: str | None
    samples: int | None
    seed: int
    memory: float
    draws: int | None = None
    weights_key: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """A network and its inputs.  source: whose weights it has."""

    network: nn.Module
    inputs: Inputs
    source: Source
    request: Request

    def gather(self, file: str | os.PathLike | None) -> Statistics:
        """The statistics of the network, signed; kept in the file."""
        if file is not None and not Path(file).exists():
            check_parent(file)
        statistics = gather(
            self.network,
            self.inputs.calibration.batches(),
            self.inputs.kind,
            run=self.run,
            draws=self.request.draws,
            memory=self.request.memory,
            seed=self.request.seed,
            file=file,
            progress=self.request.progress,
        )
        if WEIGHTS not in statistics.settings:
            statistics = sign_statistics(statistics, self.network)
            if file is not None:
                statistics.save(file)
        return statistics

    def run(self, network: nn.Module) -> Callable[..., Any]:
        """As Task.prepare, with errors that name the data."""
        call = self.inputs.calibration.prepare(network)

        def checked(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except NncError:
                raise
            except FAILURES as error:
                raise InvalidArgument(
                    f"{self.inputs.name}: the model does not run on all of it ({first_line(error)}); check that data and model belong together"
                ) from error

        return checked

    def measure(self) -> Callable[[dict[str, Tensor]], float] | None:
        """Divergence of a state dict with the names of the checkpoint, on the part held back; None if there is none."""
        if self.inputs.held_back is None:
            return None
        reference = Reference(self.network, self.inputs.held_back)

        def divergence(state: dict[str, Tensor]) -> float:
            return reference.compare(self._with_weights(state)).value

        return divergence

    def sensitivities(self, statistics: Statistics) -> dict[str, float]:
        """By tensor, tied ones once: the divergence if all its weights were off by 1 % of their root mean square, at random."""
        state = self.network.state_dict()
        seen: set[int] = set()
        found = {}
        for name, entry in statistics.tensors.items():
            if id(entry) in seen:
                continue
            seen.add(id(entry))
            power = float(state[name].detach().double().square().mean())
            traces = [
                float(np.sum(side if side.ndim == 1 else np.diagonal(side), dtype=np.float64))
                for side in (entry.rows, entry.columns)
            ]
            found[name] = 0.5 * 1e-4 * power * traces[0] * traces[1]
        return found

    def _with_weights(self, state: dict[str, Tensor]) -> nn.Module:
        if isinstance(self.source, nn.Module):
            network = copy.deepcopy(self.network)
            fit(network, state)
            return network
        return open_network(state, self.request.model, pretrained_folder(self.source))[0]


def calibrate(
    source: Source,
    data: object = None,
    *,
    model: Builder | None = None,
    task: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    kind: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    memory: float = 2e9,
    draws: int | None = None,
    weights_key: str | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """What errors in the weights of a network cost at its output, from inputs without labels.

    source   an nn.Module that is ready to run; or a checkpoint (Hugging Face folder, .safetensors, torch file, state dict), whose
             network `model` builds: "module:function", "path/to/file.py:function", a function or a module that is copied;
             default: what config.json beside the weights says
    data     a file: .npz or .npy of images, other numbers or token ids, .tsv or .csv of sentence pairs, text (for the tokenizer
             in the model's folder); an array or a tensor, samples first; an iterable of batches (tuples of arguments, tensors,
             mappings); a Task; "module:function"; or "self": what the network makes itself.  An eighth of it is held back
    task, data_options, kind, samples, seed   how the data are read, see sources.make.make_inputs
    output   .safetensors file for the statistics; finished work in it is not done again by a call with the same network, data and
             settings, so that a call that was cut off can be repeated
    memory   bytes for matrices and kept inputs at a time: less takes more runs over the data
    draws    labels drawn per batch; default 1 to 8, by the number of predictions
    progress called with (done, total, what)

    The same inputs give the same statistics.  Raises InvalidArgument (data or network that do not belong together, outputs or
    inputs that are not finite, a file of another calibration), InsufficientData (no data).
    """
    request = Request(data, model, task, data_options, kind, samples, seed, memory, draws, weights_key, progress)
    return open_inputs(source, request).gather(output)


def compress(
    source: Source,
    destination: str | os.PathLike,
    *,
    data: object = None,
    model: Builder | None = None,
    task: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    kind: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    memory: float = 2e9,
    draws: int | None = None,
    statistics: str | os.PathLike | Statistics | None = None,
    tune: bool = False,
    reference: ReferenceSource | None = None,
    config: str | os.PathLike | Config | None = None,
    rules: tuple = (),
    weights_key: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options,
) -> Summary:
    """Compress a checkpoint to `destination`: one file if that ends in .safetensors, else a folder with the side files.

    source      Hugging Face folder, .safetensors, torch file, module or mapping
    data, model, task, data_options, kind, samples, seed, memory, draws   to calibrate with, see `calibrate`: bits go to where the
                network's output needs them.  Without data and statistics the weights alone are looked at
    statistics  from `calibrate`, of the same network; with data also the name of a file that is written, or resumed
    tune        also distil biases, weights of norms and running statistics from the original, on the calibration data; kept if it helps
    reference   another checkpoint (also a compressed one, a module, a mapping): only the difference to it is stored, and reading takes
                it again, from beside the output by its name or by `reference`
    config, rules, options   one of bits, size, snr, step and, with data or statistics, kl: the predicted divergence from the
                original, corrected by measurements on held-back data, or lossless; effort, states, labelling, substitution,
                lagrangian, shard_bytes (see Config)
    threads     default all cores; the bytes do not depend on it
    progress    called with (done, total, what)

    Returns a Summary, with data or statistics a CalibratedSummary.  Raises InvalidArgument, Unsupported, Corruption or
    InsufficientData; nothing is left behind then, but for the file of statistics.
    """
    plain = dict(
        config=config,
        rules=rules,
        reference=reference,
        weights_key=weights_key,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
        **options,
    )
    _check_apart(statistics, destination)
    if data is None and task is None:
        _refuse_leftovers(tune=tune or None, model=model, data_options=data_options or None, kind=kind, samples=samples)
        if statistics is None:
            return compression.compress(source, destination, **plain)
        known = statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
        summary = compression.compress(source, destination, statistics=_matched(known, source, weights_key), **plain)
        return _extended(summary, known, "statistics" if isinstance(statistics, Statistics) else str(statistics))
    asked = make_config(config, tuple(rules), **options)
    compression.check_request(source, Path(destination), asked, threads, overwrite, True)
    with open_checkpoint(source, weights_key) as checkpoint:
        check_tensors(checkpoint, asked)
    request = Request(data, model, task, data_options, kind, samples, seed, memory, draws, weights_key, progress)
    opened = open_inputs(source, request)
    inputs = opened.inputs
    known = statistics if isinstance(statistics, Statistics) else opened.gather(statistics)
    if known.kind != inputs.kind:
        raise InvalidArgument(
            f"the statistics are for outputs of kind {known.kind}, the data for {inputs.kind}; say kind={known.kind!r}"
        )
    if tune:
        batches = list(inputs.calibration.batches())  # what was held back only measures
        plain["tune"] = distill(opened.network, batches, [], inputs.kind, inputs.calibration.prepare)
    summary = compression.compress(
        source, destination, statistics=_matched(known, source, weights_key), measure=opened.measure(), **plain
    )
    held_back = 0 if inputs.held_back is None else len(inputs.held_back.batches())
    return _extended(summary, known, inputs.name, inputs.samples, held_back, inputs.notes)


def open_inputs(source: Source, request: Request) -> Opened:
    """The network and its inputs, before anything is gathered."""
    if isinstance(source, nn.Module) and request.model is not None:
        raise InvalidArgument("model is given, but the source is a module that is ready to run; leave it out")
    folder = pretrained_folder(source)
    state = source if request.weights_key is None else _read_at(source, request.weights_key)
    network, notes = open_network(state, request.model, folder)
    inputs = make_inputs(
        network,
        request.data,
        task=request.task,
        options=request.data_options,
        kind=request.kind,
        samples=request.samples,
        seed=request.seed,
        folder=folder,
        progress=request.progress,
    )
    return Opened(network, replace(inputs, notes=notes + inputs.notes), source, request)


def _read_at(source: Source, weights_key: str) -> dict[str, Tensor]:
    with open_checkpoint(source, weights_key) as checkpoint:
        return {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs}


def _matched(statistics: Statistics, source: Source, weights_key: str | None) -> Statistics:
    """Under the names of the checkpoint; InvalidArgument if they are of another one."""
    label = str(source) if isinstance(source, (str, os.PathLike)) else "the source"
    with open_checkpoint(source, weights_key) as checkpoint:
        return match_statistics(statistics, weights_of(checkpoint), label)


def _check_apart(statistics: object, destination: str | os.PathLike) -> None:
    """Refuse a file of statistics that the output would replace."""
    if isinstance(statistics, (str, os.PathLike)) and Path(statistics).resolve().is_relative_to(Path(destination).resolve()):
        raise InvalidArgument(f"the output {destination} would replace the statistics {statistics}; name another file")


def _refuse_leftovers(**given: object) -> None:
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise InvalidArgument(f"{name} is given, but no data to use it with; give data or leave it out")


def _extended(
    summary: Summary, statistics: Statistics, data: str, samples: int = 0, held_back: int = 0, notes: tuple[str, ...] = ()
) -> CalibratedSummary:
    values = {field.name: getattr(summary, field.name) for field in fields(Summary)}
    return CalibratedSummary(**values, kind=statistics.kind, data=data, samples=samples, held_back=held_back, notes=notes)
