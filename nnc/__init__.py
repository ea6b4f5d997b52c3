"""nnc: neural network weight compression.

    nnc.compress("model/", "small/", bits=3)      # Hugging Face folder, .safetensors, torch file, module, state dict
    state = nnc.load("small/")                    # original names, shapes and dtypes
    nnc.load_into(model, "small/")
"""
from .compression import Summary, compress
from .config import Config, Rule
from .errors import Corruption, InsufficientData, InvalidArgument, NncError, Unsupported
from .evaluation import evaluate, sweep
from .inspection import FileInfo, TensorInfo, inspect
from .restoration import decompress, load, load_into, verify

__version__ = "0.1.0.dev0"

__all__ = ["Config", "Corruption", "FileInfo", "InsufficientData", "InvalidArgument", "NncError", "Rule", "Summary", "TensorInfo", "Unsupported",
           "compress", "decompress", "evaluate", "inspect", "load", "load_into", "sweep", "verify"]
