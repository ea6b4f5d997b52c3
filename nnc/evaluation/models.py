"""Networks to run: weights from a checkpoint, put into the module that the user names or that a Hugging Face folder describes."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from torch import Tensor, nn

from nnc.errors import InsufficientData, InvalidArgument, NncError
from nnc.evaluation.pretrained import build_pretrained, check_keys, first_line, load_pretrained, private_seed, some

Source = str | os.PathLike | Mapping[str, Tensor] | nn.Module
Builder = str | nn.Module | Callable[[], nn.Module]
# what is not the user's own code: this package, and what imports modules
FOREIGN = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).resolve().parents[1], Path(importlib.__file__).parent))
UNKNOWN = "no config.json beside the weights; say what to build with model='path/to/file.py:function'"


def open_network(
    source: Source, model: Builder | None = None, folder: str | os.PathLike | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with the weights of `source`, and notes on what had to be bridged to load them.

    source   an nn.Module, returned as it is; or a state dict, a compressed or an original checkpoint
    model    the module for the weights: "module:function", "file.py:function", a function, or a module that is copied
    folder   where the Hugging Face config is, if neither `model` nor the folder of `source` says what to build

    Built modules are in eval mode, on the CPU, those of Hugging Face in float32.
    Raises InvalidArgument if nothing says what to build, or if the weights do not fit.
    """
    if isinstance(source, nn.Module):
        return source, ()
    home = None if model is not None else pretrained_folder(source) or folder
    if model is None and home is None:
        raise InvalidArgument(f"{_title(source)}: {UNKNOWN}")
    state = read_weights(source)
    if home is not None:
        return load_pretrained(Path(home), state), ()
    module = copy.deepcopy(model) if isinstance(model, nn.Module) else _made(model)
    return module.eval(), fit(module, state)


def build_model(spec: str | None, source: Source | None = None) -> nn.Module:
    """A network with fresh weights.

    spec    "module:function" or "path/to/file.py:function", called without arguments; None: the class that config.json in
            the folder `source` names, from transformers, in float32
    Raises InvalidArgument for what is not there or returns no module, Unsupported for a class that transformers lacks.
    """
    if spec is not None:
        return _made(spec)
    home = pretrained_folder(source)
    if home is None:
        raise InvalidArgument(f"{_title(source)}: {UNKNOWN}")
    return build_pretrained(home)


def read_weights(source: str | os.PathLike | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, a compressed or an original checkpoint, by name; InsufficientData if there are none."""
    if isinstance(source, Mapping):
        state = dict(source)
        odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if odd is not None:
            raise InvalidArgument(f"state dict: {odd!r} is a {type(state[odd]).__name__}, must be a tensor")
    else:
        state = _read_file(Path(source))
    if not state:
        raise InsufficientData(f"{_title(source)}: no tensors in it")
    return state


def count_weights(path: str | os.PathLike) -> int:
    """Values of the float tensors in an original checkpoint; those of tied tensors count once."""
    with importlib.import_module("nnc.checkpoint").open_checkpoint(Path(path)) as checkpoint:
        return sum(math.prod(spec.shape) for spec in checkpoint.specs if spec.tied_to is None and spec.dtype.is_floating_point)


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load the state dict into the module and return notes on the differences that do no harm:

    a prefix `module.` of all names, missing `num_batches_tracked` (unused in eval mode), and missing names of tensors that
    the module shares with a name that is there.  Raises InvalidArgument for any other difference.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    notes = []
    if all(name.startswith("module.") for name in state) and not any(name.startswith("module.") for name in own):
        state = {name.removeprefix("module."): value for name, value in state.items()}
        notes.append("the prefix 'module.' of all tensor names was left out")
    missing = [name for name in own if name not in state]
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    if counters:
        notes.append(f"{len(counters)} num_batches_tracked are not in the weights; they have no effect here")
    present = {(value.data_ptr(), value.shape) for name, value in own.items() if name in state and value.numel()}
    tied = [name for name in missing if (own[name].data_ptr(), own[name].shape) in present]
    if tied:
        notes.append(f"tied to other tensors: {some(tied)}")
    check_keys(
        [name for name in missing if name not in counters and name not in tied],
        [name for name in state if name not in own],
        [(name, value.shape, own[name].shape) for name, value in state.items() if name in own and value.shape != own[name].shape],
    )
    module.load_state_dict(dict(state), strict=False)
    return tuple(notes)


def pretrained_folder(source: Source | None) -> Path | None:
    """The folder of `source`, or the one it lies in, if that has a config.json."""
    if source is None or isinstance(source, (Mapping, nn.Module)):
        return None
    path = Path(source)
    home = path if path.is_dir() else path.parent
    return home if (home / "config.json").is_file() else None


def find_function(spec: str) -> Callable[..., Any]:
    """The function that "module:function" or "path/to/file.py:function" names; InvalidArgument if there is none.

    This runs the code of that file, and what it raises is told as InvalidArgument.  While it is imported, its folder (for a module: the
    current one) is searched too.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InvalidArgument(f"{spec!r}: not of the form module:function or path/to/file.py:function")
    if place.endswith(".py"):
        file = Path(place).resolve()
        if not file.is_file():
            raise InvalidArgument(f"{spec!r}: no file {file}")
        with _searched(file.parent), own_failures(spec):
            description = importlib.util.spec_from_file_location(f"nnc_user_{file.stem}", file)
            module = importlib.util.module_from_spec(description)
            sys.modules[module.__name__] = module  # dataclasses and pickle look their module up there
            description.loader.exec_module(module)
    else:
        with _searched(Path.cwd()), own_failures(spec):
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                if not error.name or not (place + ".").startswith(error.name + "."):
                    raise  # the module is there, and itself misses something: its own message is the better one
                raise InvalidArgument(f"{spec!r}: no module {error.name}; give its file as path/to/file.py:{name}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidArgument(f"{spec!r}: {place} has no function {name}")
    return function


def call(function: Callable[..., Any], title: str, *args: Any, **options: Any) -> Any:
    """function(*args, **options); InvalidArgument if it does not take these, or raises anything."""
    try:
        inspect.signature(function).bind(*args, **options)
    except ValueError:  # no signature to be had
        pass
    except TypeError as error:
        raise InvalidArgument(f"{title}: {error} (called with {len(args)} argument(s) and options {sorted(options)})") from error
    with own_failures(title):
        return function(*args, **options)


@contextmanager
def own_failures(title: str) -> Iterator[None]:
    """What code of the user's own raises, as InvalidArgument: what it was and where in that code.  The error itself is the cause."""
    try:
        yield
    except (NncError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<", *FOREIGN))]
        last = next((frame for frame in reversed(frames) if frame.filename == frames[0].filename), None)
        place = f" ({Path(last.filename).name}, line {last.lineno})" if last else ""
        said = f": {first_line(error)}" if str(error).strip() else ""
        raise InvalidArgument(f"{title}: raised {type(error).__name__}{said}{place}; mend it or name another function") from error


def _made(model: str | Callable[[], nn.Module]) -> nn.Module:
    title = model if isinstance(model, str) else getattr(model, "__name__", "model")
    function = find_function(model) if isinstance(model, str) else model
    with private_seed():
        module = call(function, title)
    if not isinstance(module, nn.Module):
        raise InvalidArgument(f"{title}: returned a {type(module).__name__}, must return a torch.nn.Module")
    return module


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise InvalidArgument(f"{path}: no such file or folder")
    if importlib.import_module("nnc.container").is_compressed(path):
        return dict(importlib.import_module("nnc").load(path))
    with importlib.import_module("nnc.checkpoint").open_checkpoint(path) as checkpoint:
        return {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs}


def _title(source: Source | None) -> str:
    if isinstance(source, Mapping):
        return "state dict"
    return "model" if source is None or isinstance(source, nn.Module) else str(source)


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
