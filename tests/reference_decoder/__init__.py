"""A slow second decoder of the nnc bitstream, written from nnc/FORMAT.md alone and divided as that page is.

It shares no code with the package: Python integers up to the levels, NumPy only for the float32 operations at the end.
`decode(path)` gives all tensors of a file or folder.  Everything that the page refuses is a ValueError; another version is
an `OtherVersion`, a reference that is missing or not the right one a `WrongReference`, which are ValueErrors too.
"""
from .checkpoint import decode
from .container import Container, read_container
from .directory import read_directory
from .entropy import Coder, next_state
from .notation import DTYPES, OtherVersion, Tensor, WrongReference
from .records import (
    ALIAS,
    CODED,
    CONSTANT,
    EXACT,
    PLAIN,
    PREDICTED,
    EARLIER,
    REFERENCE,
    SAME,
    STATES,
    TILED,
    UNITS,
)
from .tables import POWERS, level_weights, parametric_table, scale_table

__all__ = ["ALIAS", "CODED", "CONSTANT", "Coder", "Container", "DTYPES", "EXACT", "OtherVersion", "PLAIN", "POWERS", "PREDICTED",
           "EARLIER", "REFERENCE", "SAME", "STATES", "TILED", "Tensor", "UNITS", "WrongReference", "decode", "level_weights", "next_state",
           "parametric_table", "read_container", "read_directory", "scale_table"]
