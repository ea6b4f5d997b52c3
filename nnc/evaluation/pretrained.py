"""Models and tokenizers of Hugging Face folders.

The only file of `evaluation` that knows transformers.  It is imported when such a folder is met; what it would write to the
terminal is held back, and nothing is ever fetched.
"""
from __future__ import annotations

import importlib
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument, Unsupported
from nnc.huggingface.quiet import quiet

SHOWN = 3  # keys that an error message names


def is_pretrained(module: nn.Module) -> bool:
    """Whether it is a model of transformers."""
    return "transformers" in sys.modules and isinstance(module, sys.modules["transformers"].PreTrainedModel)


def build_pretrained(home: Path) -> nn.Module:
    """The model that config.json of the folder describes, with fresh float32 weights.

    Raises Unsupported for a class that transformers lacks, InvalidArgument without transformers.
    """
    kind, config = _model_class(home)
    with quiet(), private_seed():
        return kind(config).float()


def load_pretrained(home: Path, state: dict[str, Tensor]) -> nn.Module:
    """The same with these weights, in eval mode: by transformers' own loader, which knows renamed, fused and tied tensors.

    Raises InvalidArgument, too, for missing or unexpected tensors and wrong shapes.
    """
    kind, config = _model_class(home)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain again here
    width = "dtype" if hasattr(config, "dtype") else "torch_dtype"  # renamed in transformers 4.56
    with quiet(), private_seed():
        try:
            module, found = kind.from_pretrained(None, config=config, state_dict=dict(state), output_loading_info=True,
                                                 ignore_mismatched_sizes=True, **{width: torch.float32})
        except (RuntimeError, ValueError, OSError) as error:
            raise InvalidArgument(f"the weights do not fit {kind.__name__} of {home}: {first_line(error)}") from error
    check_keys(sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), sorted(found["mismatched_keys"]))
    return module.eval()


def read_tokenizer(folder: str | os.PathLike) -> Any:
    """The tokenizer of a Hugging Face folder; InvalidArgument if there is none."""
    if not Path(folder).is_dir():
        raise InvalidArgument(f"option tokenizer: {folder} is no folder")
    auto = _transformers("a tokenizer").AutoTokenizer
    try:
        with quiet():
            return auto.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InvalidArgument(f"option tokenizer: no usable tokenizer in {folder} ({first_line(error)})") from error


def tokenize(tokenizer: Any, text: str, longest: int | None = None) -> list[int]:
    """Token ids of one text with the special tokens, cut after `longest`."""
    with quiet():
        coded = tokenizer(text) if longest is None else tokenizer(text, truncation=True, max_length=longest)
    return list(coded["input_ids"])


def check_keys(missing: list[str], unexpected: list[str], shapes: list[tuple[str, torch.Size, torch.Size]]) -> None:
    """InvalidArgument that names the first few, unless all three lists are empty; `shapes` are (name, given, needed)."""
    parts = []
    if missing:
        parts.append(f"missing {some(missing)}")
    if unexpected:
        parts.append(f"unexpected {some(unexpected)}")
    if shapes:
        name, given, needed = shapes[0]
        more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
        parts.append(f"{name} is {tuple(given)}, must be {tuple(needed)}{more}")
    if parts:
        raise InvalidArgument(f"the weights do not fit the model: {'; '.join(parts)}; check the option model")


def some(names: list[str]) -> str:
    """The first few names and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def first_line(error: BaseException) -> str:
    """The first line of a foreign message, for a message of ours."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def private_seed() -> Iterator[None]:
    """Fresh weights drawn inside are always the same, and the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _model_class(home: Path) -> tuple[Any, Any]:
    library = _transformers(f"the model in {home}")
    try:
        with quiet():
            config = library.AutoConfig.from_pretrained(str(home), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise Unsupported(f"{home / 'config.json'}: transformers cannot read it ({first_line(error)}); "
                          "say what to build with model='file.py:function'") from error
    names = getattr(config, "architectures", None)
    if not names:
        with quiet(), private_seed(), torch.device("meta"):  # the base class of that type of model, found without making weights
            return type(library.AutoModel.from_config(config)), config
    name = names[0]
    kind = getattr(library, name, None)
    if kind is None:
        raise Unsupported(f"{home / 'config.json'}: transformers {library.__version__} has no class {name}; "
                          "say what to build with model='file.py:function'")
    return kind, config


def _transformers(what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise InvalidArgument(f"{what} needs transformers; install nnc[hf]") from error
