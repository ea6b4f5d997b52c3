"""Sections 8 and 11 of the page: coded tensors and their values."""
from __future__ import annotations

import math
import struct
import zlib
from itertools import accumulate, pairwise

import numpy as np

from .checks import chained
from .clusters import codebook_plane, place_outliers, read_centroids
from .entropy import Coder, next_state
from .latents import (
    COLUMN_STEPS,
    COLUMNS,
    CONFIDENCE,
    LABELS,
    ROW_STEPS,
    ROWS,
    TRUST,
    Latents,
    read_latents,
)
from .networks import Chooser, Network
from .notation import Bytes, Tensor, inflate, must
from .records import JOINED, LEARNED, STATIC, Codes, Coding, Prediction, Record
from .tables import ExplicitSet, Table, root, scale_table, table_of
from .tools import add_centres, add_memory, transformed
from .trees import tree_codes

# ---- 8. Coded tensors ------------------------------------------------------------------------------------------------

def parts_hold(record: Record, stored: bytes) -> bool:
    """Whether the checks of the parts do, which serve readers of some CTUs; whoever reads all has the checksum of the unit."""
    ends = list(accumulate(record.coding.lengths, initial=record.coding.side))
    parts = [stored[:record.coding.side], *(stored[a:b] for a, b in pairwise(ends))]
    return stored[ends[-1]:] == b"".join(zlib.crc32(part).to_bytes(4, "little") for part in parts)


def coded_bytes(record: Record, stored: bytes, sets: list[ExplicitSet], digests: list[int], permutations: list[list[int]],
                base: Tensor | None, matrices: list[list[list[int]]], networks: list[Network], joined: Latents | None) -> bytes:
    """base: the tensor of the reference, of predicted records; joined: what reads the joined stream, of joined records."""
    coding, source = record.coding, Bytes(stored)
    if coding.latents == STATIC:
        arrays = static_latents(source, record)
    elif coding.latents == LEARNED:
        own = Latents(Coder(source.take(coding.latent_bytes)))
        arrays = read_latents(own, record)
        own.coder.end()
    else:
        arrays = read_latents(joined, record)
    row_step, column_step, row, column = (arrays[kind] for kind in (ROW_STEPS, COLUMN_STEPS, ROWS, COLUMNS))
    row_exponent = [coding.row_steps.unit * code for code in row_step]
    column_exponent = [coding.column_steps.unit * code for code in column_step]
    row_index = [None if code == -64 else code - drop(e) for code, e in zip(row, row_exponent)]
    if coding.tools.codebook:
        row_index = [None if code == -64 else code for code in row]
    column_index = [None if code == -64 else code - drop(e) for code, e in zip(column, column_exponent)]
    confidence, memory = arrays.get(CONFIDENCE, []), None
    must(all(-8 <= code <= 0 for code in confidence), "a confidence code out of range")
    if coding.tools.memory:
        memory = arrays.get(LABELS, []), arrays[TRUST]
        most = coding.tools.memory.centres.number if coding.tools.memory.centres else 64
        must(all(0 <= label <= most for label in memory[0]), "a label out of range")
        must(all(-16 <= code <= 0 for code in memory[1]), "a confidence code out of range")
    centres = None
    if memory and coding.tools.memory.centres:
        centres = read_centres(source.take(coding.tools.memory.centres.length), coding, sets, row, row_exponent)
    cells = None
    if coding.tools.tree:
        tree = coding.tools.tree
        cells = tree_codes(source.take(tree.length), tree, coding.rows, coding.columns, coding.height, coding.width)
    outliers, codebook = coding.tools.outliers, coding.tools.codebook
    of_outliers = source.take(outliers.length) if outliers else b""
    centroids = table = None
    if codebook:
        centroids, table = read_centroids(codebook, source.take(codebook.length), coding.shift, all_codes)
    number = np.zeros((coding.rows, coding.columns), np.int64)  # what is multiplied by the step of the row
    coded = np.zeros((coding.rows, coding.columns), bool)
    lengths = iter(coding.lengths)
    for top in range(0, coding.rows, coding.height):
        for left in range(0, coding.columns, coding.width):
            place = slice(top, top + coding.height), slice(left, left + coding.width)
            stream = b"" if coding.latents == JOINED else source.take(next(lengths))
            if memory and coding.tools.memory.limit == 17:
                stream = take_labels(stream, memory[0], min(coding.width, coding.columns - left), most)
            coder = joined.coder if coding.latents == JOINED else Coder(stream)
            own, taps = (row_index[place[0]], column_index[place[1]]), math.prod(record.shape[coding.split + 1:])
            chooser = Chooser(networks[coding.model - 72], coding, taps, *own, top, left) if coding.model >= 72 else None
            digests.append(decode_ctu(coder, coding, sets, *own, number[place], coded[place],
                                      cells and [row[left // 8:] for row in cells[top // 8:]], table, chooser))
            if coding.latents != JOINED:
                coder.end()
    if coding.follow:
        row_exponent = [e + 16 * code for e, code in zip(row_exponent, row)]
    if codebook:
        row_step = power(np.array(row_exponent, np.int64)) * coding.step
        must(bool(np.isfinite(row_step).all()), "the step of a row is infinite")
        plane = codebook_plane(codebook, number, centroids, row_step, *plane_sides(record))
    else:
        plane = values(coding, row_exponent, column_exponent, number, coded)
    if centres is not None:
        plane = add_centres(plane, centres, *memory)
    elif memory:
        plane = add_memory(plane, coding, *memory)
    plane = plane.T if coding.transposed else plane
    for number, stride in coding.tools.transform:
        plane = transformed(plane, matrices[number], stride)
    must(bool(np.isfinite(plane).all()), "an infinite value")
    if coding.prediction:
        plane = add_prediction(plane, coding.prediction, confidence, permutations, base)
    data = rounded(plane, record.dtype)
    return place_outliers(outliers, of_outliers, record.dtype, data, rounded) if outliers else data


def take_labels(stream: bytes, labels: list[int], columns: int, most: int) -> bytes:
    """The rest of the stream of a CTU behind the labels of its columns, which are added to those before."""
    size = most.bit_length()
    length = -(-size * columns // 8)
    must(len(stream) >= length, "a CTU that ends within its labels")
    value = int.from_bytes(stream[:length], "big")
    value, rest = divmod(value, 1 << 8 * length - size * columns)
    must(rest == 0, "bits behind labels")
    found = [value >> size * (columns - 1 - j) & (1 << size) - 1 for j in range(columns)]
    must(all(label <= most for label in found), "a label out of range")
    labels += found
    return stream[length:]


def read_centres(data: bytes, coding: Coding, sets: list[ExplicitSet], row: list[int], row_exponent: list[int]) -> np.ndarray:
    """float32 (rows, number)."""
    said, coder = coding.tools.memory.centres, Coder(data)
    index = [(0 if code == -64 else code) - drop(e) for code, e in zip(row, row_exponent)]
    number, coded = np.zeros((coding.rows, said.number), np.int64), np.zeros((coding.rows, said.number), bool)
    decode_ctu(coder, coding, sets, index, [said.scale] * said.number, number, coded, None, None, None)
    coder.end()
    with np.errstate(all="ignore"):
        row_step = power(np.array(row_exponent, np.int64)) * coding.step * np.float32(2.0**-said.finer)
        centres = number.astype(np.float32) * row_step[:, None]
    must(bool(np.isfinite(centres).all()), "a centre that is infinite")
    return centres


def plane_sides(record: Record) -> tuple[int, int]:
    """Rows and columns of the plane that is not transposed."""
    split = record.coding.split
    return math.prod(record.shape[:split]), math.prod(record.shape[split:])


def drop(exponent: int) -> int:
    return (exponent + 16) // 32


def all_codes(data: bytes, codes: Codes, count: int) -> list[int]:
    if codes.mode == 0:
        return [0] * count
    if codes.mode == 3:
        out = list(struct.unpack(f"{count}b", inflate(data, count)))
    else:
        coder, table = Coder(data), scale_table(codes.spread)
        out = [coder.symbol(table) - 128 for _ in range(count)]
        coder.end()
        if codes.mode == 2:
            out = list(accumulate(out))
    must(all(-64 <= code <= 64 for code in out), "a scale or step code out of range")
    return out


def static_latents(source: Bytes, record: Record) -> dict[int, list[int]]:
    """Every array in a mode of its own."""
    coding = record.coding
    fields = [(ROWS, coding.row_codes, coding.rows), (COLUMNS, coding.column_codes, coding.columns),
              (ROW_STEPS, coding.row_steps, coding.rows), (COLUMN_STEPS, coding.column_steps, coding.columns)]
    if coding.prediction:
        fields.append((CONFIDENCE, coding.prediction.confidence, plane_sides(record)[0]))
    if coding.tools.memory:
        fields += [(LABELS, coding.tools.memory.labels, coding.columns)] if coding.tools.memory.limit < 17 else []
        fields.append((TRUST, coding.tools.memory.confidence, coding.columns))
    return {kind: all_codes(source.take(codes.length), codes, count) for kind, codes, count in fields}


def decode_ctu(coder: Coder, coding: Coding, sets: list[ExplicitSet], row: list[int | None], column: list[int | None],
               number: np.ndarray, coded: np.ndarray, cells: list[list[int | None]] | None, own: Table | None, chooser: Chooser | None) -> int:
    """row, column: what each adds to the scale index, None if its weights are not coded; cells: codes of a tree, from
    the corner of the CTU on; own: table of a codebook; chooser: of a network."""
    s, digest = 0, 0
    for j in range(len(column)):
        for i in range(len(row)):
            cell = cells[i // 8][j // 8] if cells else 0
            if row[i] is None or column[j] is None or cell is None:
                continue
            c = min(max(row[i] + coding.base + column[j] + cell, 1), 36)
            q = s & 1
            of_table = 1 if coding.shift else q
            if chooser:
                k = coder.level(chooser.table(i, j, c, of_table))
                chooser.learn(i, j, c, of_table, k)
            else:
                k = coder.level(own or table_of(coding.model, sets, 2 * c + of_table))
            if coding.shift:
                k = (k << coding.shift) + coder.bits(coding.shift)
            number[i, j], coded[i, j] = numerator(coding, k, q), True
            s = next_state(coding.states, s, k & 1)
            digest = chained(digest, k)
    return digest


# ---- 11. Values ------------------------------------------------------------------------------------------------------

MANTISSAS = [root(1 << (2944 + j), 7) for j in range(128)]


def numerator(coding: Coding, k: int, q: int) -> int:
    if coding.labelling == 1:
        return 2 * k - q * ((k > 0) - (k < 0))
    return k if coding.states == 1 else 2 * k + q


def power(k: np.ndarray) -> np.ndarray:
    """2^(k / 128) cut to 24 bits, as float32."""
    return np.ldexp(np.array(MANTISSAS, np.float32)[k % 128], (k // 128 - 23).astype(np.int32))


def values(coding: Coding, row_exponent: list[int], column_exponent: list[int], number: np.ndarray,
           coded: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):                                    # overflow to infinity is the rule
        if coding.labelling == 2:                                      # weights that are not coded have level 0
            exponent = number.astype(np.float32) * power(np.array(row_exponent, np.int64))[:, None]
            must(bool(((-12801 < exponent) & (exponent < 12928)).all()), "a logarithmic exponent out of range")
            plane = power(exponent.astype(np.int64)) * coding.step     # cut towards zero
        else:
            row_step = power(np.array(row_exponent, np.int64)) * coding.step
            must(bool(np.isfinite(row_step).all()), "the step of a row is infinite")
            column_step = power(np.array(column_exponent, np.int64))
            plane = np.where(coded, number.astype(np.float32) * row_step[:, None] * column_step, np.float32(0))
    must(bool(np.isfinite(plane).all()), "an infinite value")
    return plane


def order_of(number: int, permutations: list[list[int]], size: int) -> list[int]:
    """Of an axis of `size` entries; a permutation of fewer numbers moves groups of neighbours."""
    if number == 0:
        return list(range(size))
    order = permutations[number - 1]
    group = size // len(order)
    return [group * order[i // group] + i % group for i in range(size)]


def float_plane(tensor: Tensor, rows: int, columns: int) -> np.ndarray:
    dtype, _, data = tensor
    if dtype == "bfloat16":
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(data, {"float32": "<f4", "float16": "<f2"}[dtype]).astype(np.float32)
    return flat.reshape(rows, columns)


def add_prediction(plane: np.ndarray, prediction: Prediction, codes: list[int], permutations: list[list[int]],
                   base: Tensor) -> np.ndarray:
    rows, columns = plane.shape
    moved = float_plane(base, rows, columns)[order_of(prediction.row_order, permutations, rows)]
    moved = moved[:, order_of(prediction.column_order, permutations, columns)]
    confidence = np.array([8 + code for code in codes], np.float32) / np.float32(8)
    with np.errstate(all="ignore"):                                    # what the reference holds that is not finite stays so
        plane = plane + confidence[:, None] * moved
    must(bool(np.isfinite(plane).all()), "an infinite value")
    return plane


def rounded(plane: np.ndarray, dtype: str) -> bytes:
    if dtype == "float32":
        return plane.astype("<f4").tobytes()
    if dtype == "float16":
        return np.clip(plane, np.float32(-65504), np.float32(65504)).astype("<f2").tobytes()
    most = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]
    bits = np.clip(plane, -most, most).astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()  # the upper half, ties to the even one
