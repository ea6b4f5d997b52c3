"""Section 5 of the page: the records of all tensors."""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from .clusters import Codebook, Outliers, read_codebook, read_outliers
from .notation import DTYPES, Bytes, must
from .tiled import Tiling, read_tiling
from .trees import Tree, read_tree

PLAIN, EXACT, CONSTANT, ALIAS, CODED, SAME, PREDICTED, TILED = range(8)
STATIC, LEARNED, JOINED = range(3)
REFERENCE, EARLIER = 4, 5                                              # filters
STATES = (1, 4, 8, 16, 32, 64, 128, 256)
UNITS = (64, 32, 16, 8, 4)


@dataclass
class Codes:
    """Scale codes, step codes or confidence codes; unit: of a step code, in 1/128 octave."""
    mode: int
    spread: int
    length: int
    unit: int = 0


@dataclass
class Prediction:
    """What a predicted record says beyond a coded one; row_order, column_order: 0 or 1 + number of a permutation."""
    row_order: int
    column_order: int
    confidence: Codes
    back: int                                                          # records to the one that foretells it, 0: the reference does


@dataclass
class Centres:
    number: int
    finer: int
    scale: int                                                         # added to the scale index of a row
    length: int


@dataclass
class Memory:
    limit: int
    labels: Codes
    confidence: Codes
    centres: Centres | None = None


@dataclass
class Tools:
    transform: list[tuple[int, int]]                                   # number of a matrix, stride
    memory: Memory | None
    tree: Tree | None
    outliers: Outliers | None
    codebook: Codebook | None


@dataclass
class Coding:
    """What a coded record says beyond name and shape; rows and columns: of the plane, after it was transposed."""
    transposed: int
    follow: int
    labelling: int
    split: int
    states: int
    shift: int
    step: np.float32
    model: int
    base: int
    row_codes: Codes
    column_codes: Codes
    row_steps: Codes
    column_steps: Codes
    prediction: Prediction | None
    tools: Tools
    rows: int
    columns: int
    height: int
    width: int
    lengths: list[int]                                                 # of the streams, zeros if they are joined
    latents: int                                                       # STATIC, LEARNED, JOINED
    latent_bytes: int
    side: int = 0                                                      # bytes before the streams


@dataclass
class Record:
    name: str
    kind: int
    dtype: str
    size: int                                                          # bytes of an element
    shape: tuple[int, ...]
    filter: int = 0
    value: bytes = b""
    target: int = 0
    tied: bool = False
    stored: int = 0
    coding: Coding | None = None
    tiling: Tiling | None = None
    distance: int = 0                                                  # records to the one that filter 5 takes a difference to
    source: str = ""                                                   # name of the record that foretells it

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def joined(self) -> bool:
        return self.coding is not None and self.coding.latents == JOINED

    @property
    def back(self) -> int:
        """How many records before is the one that foretells this one, 0 if none does."""
        return self.coding.prediction.back if self.kind == PREDICTED else self.distance

    @property
    def referenced(self) -> bool:
        return self.kind == SAME or (self.kind == PREDICTED and not self.back) or (self.kind == EXACT and self.filter == REFERENCE)


def read_record(lanes: dict[str, Bytes], index: int, sets: int, permutations: list[list[int]] | None,
                matrices: list[int], networks: int) -> Record:
    """index: its number; permutations: of the reference, None if there is none; matrices: sizes of those of the directory."""
    name = lanes["names"].block(4096).decode("utf-8")
    byte = lanes["kinds"].byte()
    kind, dtype = byte >> 5, byte & 31
    must(dtype < len(DTYPES), "an unknown dtype")
    axes = lanes["shapes"].byte()
    must(axes <= 15, "too many axes")
    shape = tuple(lanes["shapes"].varint(1 << 40) for _ in range(axes))
    must(math.prod(axis for axis in shape if axis) <= 1 << 40, "too many elements")
    record = Record(name, kind, DTYPES[dtype].name, DTYPES[dtype].size, shape)
    if kind == PLAIN:
        must(DTYPES[dtype].container != "", "a plain tensor of a dtype that a container does not have")
        record.stored = record.elements * record.size
    elif kind == EXACT:
        record.filter = lanes["values"].byte()
        must(record.filter <= 5, "an unknown filter")
        if record.filter == EARLIER:
            record.distance = lanes["predictions"].varint(index)
            must(record.distance > 0, "a difference to itself")
        must(record.filter < 3 or record.size <= 8, "differences of wide elements")
        record.stored = lanes["lengths"].varint(1 << 43)
    elif kind == CONSTANT:
        record.value = lanes["values"].take(record.size)
    elif kind == ALIAS:
        value = lanes["values"].varint(1 << 25)
        record.target, record.tied = value >> 1, value & 1 == 1
    elif kind in (CODED, PREDICTED):
        must(dtype <= 2 and record.elements >= 1, "a coded tensor without elements or of another dtype")
        record.coding = coding = read_coding(lanes, shape, sets, kind == PREDICTED, index, permutations, matrices, networks)
        codes = [coding.row_codes, coding.column_codes, coding.row_steps, coding.column_steps]
        codes += [coding.prediction.confidence] if coding.prediction else []
        codes += [coding.tools.memory.labels, coding.tools.memory.confidence] if coding.tools.memory else []
        codes += [coding.tools.memory.centres] if coding.tools.memory and coding.tools.memory.centres else []
        codes += [coding.tools.tree] if coding.tools.tree else []
        codes += [tool for tool in (coding.tools.outliers, coding.tools.codebook) if tool]
        record.stored = coding.latent_bytes + sum(c.length for c in codes) + sum(coding.lengths)
        coding.side = record.stored - sum(coding.lengths)
        record.stored += 4 * (len(coding.lengths) + 1) if len(coding.lengths) > 1 and coding.latents != JOINED else 0
    elif kind == TILED:
        must(dtype <= 2 and record.elements >= 1, "a tiled tensor without elements or of another dtype")
        record.tiling = read_tiling(lanes, shape, read_codes)
        record.stored = record.tiling.stored
    must(not record.referenced or permutations is not None, "a referenced tensor in a file without a reference")
    return record


def read_coding(lanes: dict[str, Bytes], shape: tuple[int, ...], sets: int, predicted: bool, index: int,
                permutations: list[list[int]] | None, matrices: list[int], networks: int) -> Coding:
    """index: of the record; permutations: of the reference, None if there is none."""
    recipe = lanes["recipes"].byte()
    transposed, follow, labelling, split = recipe >> 7, recipe >> 6 & 1, recipe >> 4 & 3, recipe & 15
    must(labelling <= 2 and split <= len(shape), "an illegal recipe")
    quantizer = lanes["quantizers"].byte()
    states, shift = STATES[quantizer >> 5], quantizer & 31
    must(shift <= 16, "too many bypass bits")
    must(labelling != 1 or states > 1, "the sign-symmetric labelling needs states")
    must(labelling != 2 or (states == 1 and follow == 0 and transposed == 0 and math.prod(shape) <= 1 << 20),
         "what the logarithmic labelling does not go with")
    lower, upper = lanes["fine"].take(2), lanes["steps"].take(2)
    step = np.float32(struct.unpack("<f", lower + upper)[0])
    must(bool(np.isfinite(step)) and step > 0, "a step that is not positive and finite")
    model, base = lanes["models"].byte(), lanes["bases"].byte()
    must(model < 8 + sets or 72 <= model < 72 + networks, "an entropy model that does not exist")
    must(base <= 36, "a base that is too large")
    lanes["noises"].byte()
    latents, used = divmod(lanes["tools"].byte(), 32)
    must(latents <= JOINED, "an unknown coding of latents")
    latent_bytes = lanes["lengths"].varint(1 << 43) if latents == LEARNED else 0
    row_codes, column_codes = read_codes(lanes, latents), read_codes(lanes, latents)
    row_steps, column_steps = read_steps(lanes, latents), read_steps(lanes, latents)
    must(labelling != 2 or column_steps.mode == 0, "column steps on the logarithmic grid")
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    prediction = read_prediction(lanes, rows, columns, index, permutations, latents) if predicted else None
    must(labelling != 2 or prediction is None, "a prediction on the logarithmic grid")
    tools = read_tools(lanes, used, latents, columns, matrices, rows, math.prod(shape[split + 1:]), shift, transposed)
    must(labelling != 2 or tools == Tools([], None, None, None, None), "tools on the logarithmic grid")
    centres = tools.memory.centres if tools.memory else None
    must(model < 72 or not (labelling == 2 or tools.tree or tools.codebook or centres), "what a network does not go with")
    must(not (centres and follow), "centres and steps that follow scales")
    if tools.codebook:
        must(states == 1 and not transposed and not follow and column_steps.mode == 0, "what a codebook does not go with")
        rows, columns = tools.codebook.rows, tools.codebook.columns
    if transposed:
        rows, columns = columns, rows
    height = lanes["grids"].varint(rows)
    width = lanes["grids"].varint(columns) if height else columns
    must(width >= 1, "a CTU without columns")
    height = height or rows
    ctus = -(-rows // height) * -(-columns // width)
    must(ctus == 1 or height * width >= 1 << 12, "several CTUs that are too small")
    must(latents != JOINED or ctus <= 1 << 12, "too many joined CTUs")
    must(latents != JOINED or prediction is None or not prediction.back, "a joined tensor that another one foretells")
    if tools.memory and tools.memory.limit == 17:
        must(latents != JOINED and height == rows, "labels in front of CTUs that are joined or not as high as the plane")
    lengths = [0 if latents == JOINED else lanes["lengths"].varint(1 << 43) for _ in range(ctus)]
    return Coding(transposed, follow, labelling, split, states, shift, step, model, base, row_codes, column_codes, row_steps,
                  column_steps, prediction, tools, rows, columns, height, width, lengths, latents, latent_bytes)


def read_codes(lanes: dict[str, Bytes], latents: int = STATIC) -> Codes:
    if latents != STATIC:
        return Codes(0, 0, 0)
    mode, spread = divmod(lanes["codes"].byte(), 24)
    must(mode <= 3, "an unknown mode of scale codes")
    return Codes(mode, spread, lanes["lengths"].varint(1 << 43) if mode else 0)


def read_steps(lanes: dict[str, Bytes], latents: int) -> Codes:
    codes = read_codes(lanes, latents)
    if codes.mode:
        unit = lanes["codes"].byte()
        must(unit < len(UNITS), "an unknown unit of step codes")
        codes.unit = UNITS[unit]
    return codes


def read_prediction(lanes: dict[str, Bytes], rows: int, columns: int, index: int, permutations: list[list[int]] | None,
                    latents: int) -> Prediction:
    """rows, columns: of the plane that is not transposed."""
    numbers = []
    back = lanes["predictions"].varint(index)
    must(back > 0 or permutations is not None, "a predicted tensor in a file without a reference")
    permutations = permutations or []
    for size in (rows, columns):
        numbers.append(lanes["predictions"].varint(len(permutations)))
        must(numbers[-1] == 0 or size % len(permutations[numbers[-1] - 1]) == 0, "a permutation that does not divide its axis")
    return Prediction(*numbers, read_codes(lanes, latents), back)


def read_tools(lanes: dict[str, Bytes], used: int, latents: int, columns: int, matrices: list[int], rows: int, taps: int,
               shift: int, transposed: int) -> Tools:
    """used: bits of the tools; rows, columns: of the plane that is not transposed; taps: columns of an input."""
    must(used & 16 == 0 or used & 6 == 0, "tools that do not go together")
    tools = Tools([], None, None, None, None)
    if used & 1:
        count = lanes["tools"].byte()
        must(1 <= count <= 3, "steps of a transform")
        for _ in range(count):
            must(len(matrices) > 0, "a transform without matrices")
            number, stride = lanes["tools"].varint(len(matrices) - 1), lanes["tools"].varint(columns)
            must(stride >= 1 and columns % (stride * matrices[number]) == 0, "a matrix that does not fit the columns")
            tools.transform.append((number, stride))
    if used & 2:
        limit = lanes["tools"].byte()
        must(limit <= 17, "the limit of a memory")
        centres = None
        if limit >= 16:
            fields = [lanes["tools"].byte() for _ in range(3)]
            must(1 <= fields[0] <= min(64, rows if transposed else columns), "a number of centres")
            must(fields[1] <= 7 and fields[2] <= 128, "steps or scale of centres")
            centres = Centres(fields[0], fields[1], fields[2] - 64, lanes["lengths"].varint(1 << 43))
        labels = Codes(0, 0, 0) if limit == 17 else read_codes(lanes, latents)
        tools.memory = Memory(limit, labels, read_codes(lanes, latents), centres)
    if used & 4:
        tools.tree = read_tree(lanes)
    if used & 8:
        tools.outliers = read_outliers(lanes, rows * columns)
    if used & 16:
        tools.codebook = read_codebook(lanes, rows, columns, taps, shift, read_codes)
    return tools


def check_source(records: list[Record], index: int, record: Record) -> None:
    """Of a record that an earlier one foretells."""
    if record.back:
        source = records[index - record.back]
        record.source = source.name
        fits = source.dtype == record.dtype if record.kind == EXACT else source.dtype in ("float32", "float16", "bfloat16")
        must(source.shape == record.shape and fits, "a source that does not match")
        derived = source.referenced or (source.kind == EXACT and source.filter == EARLIER)
        must(source.kind in (PLAIN, EXACT, CONSTANT, CODED, TILED) and not derived, "a source that is predicted itself, or an alias")


def check_alias(records: list[Record], index: int, record: Record) -> None:
    if record.kind == ALIAS:
        must(record.target < len(records) and record.target != index, "an alias to nothing or itself")
        target = records[record.target]
        must(target.kind != ALIAS and (target.dtype, target.shape) == (record.dtype, record.shape),
             "an alias to an alias or to another dtype or shape")
