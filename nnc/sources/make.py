"""Inputs from whatever names them: a file, a task, a function, a Python object, or nothing but the network ("self")."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.models import call, find_function, own_failures
from nnc.evaluation.runner import evaluating, make_runner
from nnc.evaluation.task import KINDS, Task
from nnc.evaluation.tasks import TASKS, make_task
from nnc.sources import calls, generation, noise
from nnc.sources.files import read_file
from nnc.sources.inputs import Draft, Inputs, divide_inputs
from nnc.sources.language import find_vocabulary
from nnc.sources.objects import object_draft, task_draft

SELF = "self"
Progress = Callable[[int, int, str], None]


def make_inputs(
    network: nn.Module,
    data: object = None,
    *,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    kind: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Inputs:
    """Inputs to calibrate a network with.

    data     a file; a Task; an array or a tensor, samples first; an iterable of batches; "module:function" or
             "path/to/file.py:function" that returns one of these; "self": what the network makes itself
    task     read the data as that task does: classification, perplexity, similarity or a function that returns a Task
    options  of the file, the task or the function, such as batch=64; numbers may be given as text
    kind     of the output: "logits", "unit" or "values"; None: by the task, else by the output
    samples  use at most so many images, windows, sentences or pairs; default about 1000 images, 65536 tokens, 512 sentences or pairs
    seed     of what is drawn: the order of samples, text, noise
    folder   of the tokenizer, where no option names one

    Raises InvalidArgument for data that is not there, is none of these, or does not fit the network; InsufficientData for no data.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidArgument(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if samples is not None and samples < 1:
        raise InvalidArgument(f"samples = {samples}: must be 1 or more")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InvalidArgument(f"seed = {seed!r}: must be a whole number from 0 to 2^31 - 1")
    with evaluating(network):
        draft = _draft(network, data, task, dict(options or {}), samples, seed, folder, progress)
    if not len(draft.batches):
        raise InsufficientData(f"{draft.name}: there is no batch of data to calibrate with")
    return _settle(draft, network, kind)


def _draft(
    network: nn.Module,
    data: object,
    task: str | None,
    options: dict[str, Any],
    samples: int | None,
    seed: int,
    folder: str | os.PathLike | None,
    progress: Progress | None,
) -> Draft:
    if task is not None:
        if not (data is None or isinstance(data, (str, os.PathLike))) or data == SELF:
            raise InvalidArgument(f"task {task} reads a data file; leave the task out, or name a file")
        if task in TASKS and folder is not None and "tokenizer" not in options and _is_text(data):
            options["tokenizer"] = folder
        return task_draft(make_task(task, data, **options), samples)
    if isinstance(data, Task):
        return task_draft(data, samples)
    if data is None:
        raise InvalidArgument("there is nothing to calibrate with: give data, a task, or data = 'self'")
    if isinstance(data, str) and data == SELF:
        return _own_draft(network, samples, seed, options, progress)
    if isinstance(data, str) and ":" in data and not Path(data).exists():
        made = call(find_function(data), data, **options)
        with own_failures(data):  # a generator only runs now
            return task_draft(made, samples) if isinstance(made, Task) else object_draft(made, network, samples, seed, {}, data)
    if isinstance(data, (str, os.PathLike)):
        return read_file(data, network, folder, samples, seed, options)
    return object_draft(data, network, samples, seed, options)


def _is_text(data: object) -> bool:
    return isinstance(data, (str, os.PathLike)) and Path(data).suffix.lower() not in (".npy", ".npz")


def _own_draft(network: nn.Module, samples: int | None, seed: int, options: dict[str, Any], progress: Progress | None) -> Draft:
    vocabulary = None if "shape" in options else find_vocabulary(network)
    known = noise.OPTIONS if vocabulary is None else generation.OPTIONS
    unknown = next((key for key in options if key not in known), None)
    if unknown is not None:
        raise InvalidArgument(f"data {SELF}: unknown option {unknown}, must be one of {', '.join(known)}")
    if vocabulary is None:
        return noise.draw_noise(network, samples, seed, options, progress)
    return generation.write_text(network, vocabulary, samples, seed, options, progress)


def _settle(draft: Draft, network: nn.Module, kind: str | None) -> Inputs:
    """Run the network on the first batch: that tells the kind, and that the two belong together."""
    prepare = draft.prepare or calls.prepare
    trial = Task(draft.name, kind or draft.kind or "values", "", False, lambda: draft.batches, None, prepare)
    first = next(iter(draft.batches))
    with evaluating(network), torch.inference_mode():
        output = make_runner(network, trial)(0, first)
        notes = draft.notes
        if kind is None and draft.kind is None:
            kind, reason = calls.find_kind(network, first)
            notes += (f"kind {kind} is taken, by {reason}",)
    kind = kind or draft.kind
    if kind == "logits" and output.shape[-1] < 2:
        raise InvalidArgument(
            f"{draft.name}: kind logits needs two classes, the model returned {tuple(output.shape)}; give another kind"
        )
    return divide_inputs(draft, kind, prepare, notes)
