"""nnc: neural network weight compression.

    nnc.compress("model/", "small/", bits=3)      # Hugging Face folder, .safetensors, torch file, module, state dict
    nnc.compress("model/", "small/", bits=2, data="text.txt")  # calibrated: bits go to where the output needs them
    nnc.compress("tuned/", "delta/", reference="base/")        # only the difference to another checkpoint
    state = nnc.load("small/")                    # original names, shapes and dtypes
    nnc.load_into(model, "small/")
    rows = nnc.open("small/").tensor("embed.weight", rows=[17, 5])  # nothing else is decoded
    nnc.runtime.attach(model, "small/", cache=10**8)                # run from the compressed weights

Names are imported when they are used first (PEP 562), so that `nnc --version` does not wait for torch.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import Corruption, InsufficientData, InvalidArgument, NncError, Unsupported
from .huggingface.hook import install as _install

if TYPE_CHECKING:
    from . import lookup, runtime
    from .archive import Archive
    from .calibrated import CalibratedSummary, calibrate, compress
    from .calibration.statistics import Statistics
    from .compression import Summary
    from .config import Config, Rule
    from .evaluation import evaluate, sweep
    from .inspection import FileInfo, TensorInfo, inspect
    from .restoration import decompress, load, load_into, open, verify
    from .runs import RunSummary, compress_run

__version__ = "0.1.0.dev0"

_MODULES = {"archive": ("Archive",), "calibrated": ("CalibratedSummary", "calibrate", "compress"), "calibration.statistics": ("Statistics",),
            "compression": ("Summary",), "config": ("Config", "Rule"), "evaluation": ("evaluate", "sweep"),
            "inspection": ("FileInfo", "TensorInfo", "inspect"), "restoration": ("decompress", "load", "load_into", "open", "verify"),
            "runs": ("RunSummary", "compress_run")}
_PACKAGES = ("lookup", "runtime")  # public packages of their own
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["Archive", "CalibratedSummary", "Config", "Corruption", "FileInfo", "InsufficientData", "InvalidArgument", "NncError", "Rule",
           "RunSummary", "Statistics", "Summary", "TensorInfo", "Unsupported", "calibrate", "compress", "compress_run", "decompress",
           "evaluate", "inspect", "load", "load_into", "lookup", "open",
           "runtime", "sweep", "verify"]


def __getattr__(name: str):
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})


_install()
