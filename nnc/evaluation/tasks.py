"""Tasks by name: the built-in ones, or a function of the user's own."""
from __future__ import annotations

import inspect
import os
from dataclasses import fields
from typing import Any, Callable

from nnc.errors import InvalidArgument
from nnc.evaluation.images import read_classification
from nnc.evaluation.language import read_perplexity
from nnc.evaluation.models import call, find_function
from nnc.evaluation.sentences import read_similarity
from nnc.evaluation.task import Task

TASKS: dict[str, Callable[..., Task]] = {
    "classification": read_classification,
    "perplexity": read_perplexity,
    "similarity": read_similarity,
}


def make_task(spec: str, data: str | os.PathLike | None = None, **options: Any) -> Task:
    """The task of a data file.

    spec     "classification", "perplexity", "similarity", or "module:function" / "path/to/file.py:function" for a function
             that returns a Task, or an object with a Task's attributes (those that have a default may be missing)
    data     the data file; a function of one's own gets it as its first argument, unless it is None
    options  of the task, see read_classification, read_perplexity, read_similarity; numbers may be given as text

    Raises InvalidArgument for an unknown task or option and for defects of the data, InsufficientData if it is empty.
    """
    if ":" in spec:
        return _as_task(call(find_function(spec), spec, *(() if data is None else (data,)), **options), spec)
    if spec not in TASKS:
        raise InvalidArgument(f"task is {spec!r}, must be {', '.join(TASKS)}, module:function or path/to/file.py:function")
    if data is None:
        raise InvalidArgument(f"task {spec} needs a data file")
    known = [name for name in inspect.signature(TASKS[spec]).parameters if name != "data"]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise InvalidArgument(f"task {spec}: unknown option {unknown}, must be one of {', '.join(known)}")
    return TASKS[spec](data, **options)


def _as_task(value: Any, spec: str) -> Task:
    if isinstance(value, Task):
        return value
    found = {field.name: getattr(value, field.name) for field in fields(Task) if hasattr(value, field.name)}
    missing = [name for name in ("name", "kind", "metric", "higher_is_better", "batches") if name not in found]
    if missing:
        raise InvalidArgument(f"{spec}: returned a {type(value).__name__} without {', '.join(missing)}; "
                              "return a nnc.evaluation.Task")
    return Task(**found)
