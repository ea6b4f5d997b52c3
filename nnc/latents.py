"""The latents of a coded tensor: codes of its rows and columns, from which the steps and the tables of its levels follow.

    static     each array in a mode of its own (entropy/scales.py), one after the other
    learned    all arrays in one stream, with the coder that learns (entropy/latents.py)
    joined     the same, in the stream that the tensor shares with others of its unit
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from .coder import unpack_words
from .entropy.latents import ARRAYS, Axis, LatentCoder, LatentModel
from .entropy.scales import decode_codes
from .errors import Corruption
from .fields import Codes
from .kernels.streams import start_stream
from .partition.planes import plane_shape
from .quantize.steps import UNITS, StepCodes
from .quantize.trellis import LABELLINGS
from .unit import Coding, Record

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, eq=False)
class Latents:
    """rows, columns: int16 scale codes; confidence: of the rows of a prediction, labels and trust: of the columns of a memory, int16; None without."""

    row_steps: StepCodes
    column_steps: StepCodes
    rows: np.ndarray
    columns: np.ndarray
    confidence: np.ndarray | None = None
    labels: np.ndarray | None = None
    trust: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those that there are, by their names in ARRAYS."""
        found = {"row steps": self.row_steps.codes, "column steps": self.column_steps.codes, "rows": self.rows, "columns": self.columns}
        found |= {"confidence": self.confidence, "labels": self.labels, "trust": self.trust}
        return {name: codes for name, codes in found.items() if codes is not None}


@dataclass(frozen=True)
class Place:
    """An array of latents of a tensor.  side: ROWS or COLUMNS of the plane as it is coded; known: the array that is coded with this one in sight, a
    name in ARRAYS, or the first one of its side that is not zero."""

    name: str
    side: int
    axis: Axis
    known: str = ""


def places(coding: Coding, shape: tuple[int, ...]) -> list[Place]:
    """The arrays that the latents of a tensor consist of, in their order."""
    grid = coding.grid(shape)
    numbers = grid.rows, grid.columns
    inner = prod(shape[coding.split + 1 :])
    inputs = ROWS if coding.transposed else COLUMNS

    def place(name: str, side: int, known: str = "") -> Place:
        taps = inner if side == inputs and numbers[side] % inner == 0 else 1
        return Place(name, side, Axis(ARRAYS.id(name), numbers[side], taps, len(shape) < 2), known)

    found = [place("row steps", ROWS), place("column steps", COLUMNS), place("rows", ROWS), place("columns", COLUMNS)]
    if coding.prediction:
        axis = Axis(ARRAYS.id("confidence"), plane_shape(shape, coding.split)[0], 1, len(shape) < 2)
        found.append(Place("confidence", COLUMNS if coding.transposed else ROWS, axis))
    if coding.tools.memory:
        labels = bool(coding.tools.memory.labels)
        found += [place("labels", COLUMNS)] if labels else []
        found.append(place("trust", COLUMNS, "labels" if labels else ""))
    return found


def read_latents(coding: Coding, shape: tuple[int, ...], coder: LatentCoder) -> Latents:
    """The latents of a tensor that come next; Corruption if they cannot be any."""
    arrays: dict[str, np.ndarray] = {}
    units: list[int] = []
    seen: dict[int, np.ndarray] = {}
    for place in places(coding, shape):
        arrays[place.name], unit = coder.read(place.axis, arrays[place.known] if place.known else seen.get(place.side))
        units.append(unit)
        _remember(seen, place, arrays[place.name])
    return _gather(coding, arrays, [UNITS.value(unit) for unit in units[:2]])


def write_latents(coding: Coding, shape: tuple[int, ...], latents: Latents, coder: LatentCoder) -> None:
    """Inverse of `read_latents`."""
    arrays: dict[str, np.ndarray] = {}
    seen: dict[int, np.ndarray] = {}
    units = {"row steps": latents.row_steps.unit, "column steps": latents.column_steps.unit}
    for place in places(coding, shape):
        codes = latents.arrays[place.name]
        unit = UNITS.id(units[place.name]) if place.name in units else 0
        coder.write(place.axis, codes, unit, arrays[place.known] if place.known else seen.get(place.side))
        arrays[place.name] = codes
        _remember(seen, place, codes)


def _remember(seen: dict[int, np.ndarray], place: Place, codes: np.ndarray) -> None:
    if place.side not in seen and codes.any():
        seen[place.side] = codes


def decode_latents(record: Record, data: bytes) -> Latents:
    """From the bytes of a tensor whose latents have a stream of their own, or modes; `data`: these bytes only, or more."""
    coding = record.coding
    if coding.latents == "learned":
        coder = LatentCoder(LatentModel.shipped(), *start_coder(data[: coding.latent_bytes]))
        latents = read_latents(coding, record.shape, coder)
        if coder.state.any():
            raise Corruption(f"tensor {record.name!r}: the stream of its latents does not end where it should: the file is damaged")
        return latents
    numbers = {place.name: place.axis.number for place in places(coding, record.shape)}
    arrays, at = {}, 0
    for name, codes in static_codes(coding).items():
        arrays[name] = decode_codes(codes.mode, codes.spread, data[at : at + codes.length], numbers[name])
        at += codes.length
    return _gather(coding, arrays, [coding.row_steps.unit, coding.column_steps.unit])


def static_codes(coding: Coding) -> dict[str, Codes]:
    """Of the arrays of latents that have modes of their own, in the order of their bytes."""
    found = {"rows": coding.rows, "columns": coding.columns}
    found |= {"row steps": coding.row_steps.codes, "column steps": coding.column_steps.codes}
    if coding.prediction:
        found["confidence"] = coding.prediction.confidence
    if coding.tools.memory:
        found |= {"labels": coding.tools.memory.labels} if coding.tools.memory.labels else {}
        found["trust"] = coding.tools.memory.confidence
    return found


def start_coder(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Words of a stream, with room behind them, and the state of its coder at its start: the fields of a LatentCoder."""
    words = np.append(unpack_words(data), np.zeros(2, np.uint32))
    x, left = start_stream(words, len(words) - 2)
    return words, np.array([x, left], np.uint64)


def _gather(coding: Coding, arrays: dict[str, np.ndarray], units: list[int]) -> Latents:
    steps = [StepCodes(arrays[name], unit) for name, unit in zip(("row steps", "column steps"), units)]
    uneven = steps[1].codes.any()
    if uneven and (coding.tools.codebook or LABELLINGS.value(coding.labelling) == "logarithmic"):
        raise Corruption("column steps where there are none: the file is damaged")
    return Latents(*steps, *(arrays.get(name) for name in ("rows", "columns", "confidence", "labels", "trust")))
