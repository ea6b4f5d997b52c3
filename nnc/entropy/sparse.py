"""Positions of a few elements among many, rising, in whichever form is shortest (outliers, US20220261616A1).

mask     one symbol per element, coded with the frequency of the ones (asymmetric numeral systems)
gaps     distances of neighbours in a Golomb-Rice code: the quotients by 2^b in unary, then the b lower bits of each
runs     lengths of the runs of zeros and of ones, in turn, either in a Golomb-Rice code of its own
planes   the gaps as byte planes, deflated: for patterns that repeat, such as a whole column
"""

from __future__ import annotations

from zlib import compress, decompressobj, error

import numpy as np

from ..coder import TOTAL, decode_symbols, encode_symbols
from ..errors import Corruption
from ..registry import Table

MODES = Table("mode of positions", {0: "mask", 1: "gaps", 2: "runs", 3: "planes"})
PARAMETERS = {"mask": 0, "gaps": 1, "runs": 3, "planes": 0}
MAX_RICE = 40
MAX_MASK = 1 << 22  # elements beyond which writers leave the mask out: gaps are as short, and faster


def encode_positions(positions: np.ndarray, elements: int) -> tuple[str, tuple[int, ...], bytes]:
    """The shortest of the modes for rising positions below `elements`, at least one: (mode, parameters, bytes).

    Parameters: b for gaps; for runs the number of runs of ones, b of the zeros, b of the ones."""
    return min(all_forms(positions, elements), key=lambda form: len(form[2]))


def all_forms(positions: np.ndarray, elements: int) -> list[tuple[str, tuple[int, ...], bytes]]:
    """The positions in every mode, the mask only of up to MAX_MASK elements."""
    positions = np.asarray(positions, np.int64)
    gaps = np.diff(positions, prepend=-1) - 1
    planes = np.ascontiguousarray(gaps.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : _width(elements)].T)
    lower = _choose_rice(gaps)
    zeros, ones = _split_runs(positions)
    of_zeros, of_ones = _choose_rice(zeros), _choose_rice(ones - 1)
    runs = np.concatenate([_rice_bits(zeros, of_zeros), _rice_bits(ones - 1, of_ones)])
    forms = [
        ("planes", (), compress(planes.tobytes(), 9)),
        ("gaps", (lower,), np.packbits(_rice_bits(gaps, lower)).tobytes()),
        ("runs", (len(ones), of_zeros, of_ones), np.packbits(runs).tobytes()),
    ]
    if elements <= MAX_MASK:
        mask = np.zeros(elements, np.int32)
        mask[positions] = 1
        forms.append(("mask", (), encode_symbols(mask, _mask_counts(len(positions), elements))))
    return forms


def decode_positions(mode: str, parameters: tuple[int, ...], data: bytes, number: int, elements: int) -> np.ndarray:
    """Inverse of `encode_positions`: int64 (number,), rising, below `elements`.  Corruption where the bytes are not such positions."""
    if mode == "mask":
        symbols, ended = decode_symbols(data, _mask_counts(number, elements), elements)
        positions = np.flatnonzero(symbols)
        if not ended or len(positions) != number:
            raise Corruption(f"mask of {number} outliers: the stream does not end where it should: the file is damaged")
        return positions
    if mode == "planes":
        gaps = _inflate_planes(data, number, _width(elements))
    else:
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        if mode == "gaps":
            gaps, at = _read_rice(bits, 0, number, parameters[0], elements)
        else:
            runs, of_zeros, of_ones = parameters
            zeros, at = _read_rice(bits, 0, runs, of_zeros, elements)
            ones, at = _read_rice(bits, at, runs, of_ones, elements)
            ones = ones + 1
            if int(ones.max()) > number or ones.sum(dtype=np.float64) != number:
                raise Corruption(f"runs of outliers do not add up to {number}: the file is damaged")
            gaps = np.zeros(number, np.int64)
            gaps[np.cumsum(ones) - ones] = zeros
        if len(bits) - at >= 8 or bits[at:].any():
            raise Corruption("positions of outliers: bits are left over: the file is damaged")
    if int(gaps.min()) < 0 or int(gaps.max()) >= elements or gaps.sum(dtype=np.float64) + number > elements:
        raise Corruption(f"an outlier beyond the {elements} elements of its tensor: the file is damaged")
    return np.cumsum(gaps + 1) - 1


def _mask_counts(number: int, elements: int) -> np.ndarray:
    ones = min(max((number << 24) // elements, 1), TOTAL - 1)
    return np.array([TOTAL - ones, ones], np.int64)


def _split_runs(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the zeros before each run of ones, and of these."""
    first = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    ones = np.diff(first, append=len(positions))
    starts = positions[first]
    return np.diff(np.append(0, starts)) - np.append(0, ones[:-1]), ones


def _choose_rice(values: np.ndarray) -> int:
    costs = [int((values >> b).sum()) + len(values) * b for b in range(MAX_RICE + 1)]
    return int(np.argmin(costs))


def _rice_bits(values: np.ndarray, lower: int) -> np.ndarray:
    """uint8 bits: the quotients as so many zeros and a one, then the lower bits, most significant first."""
    quotients = values >> lower
    unary = np.zeros(int(quotients.sum()) + len(values), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    rest = (values[:, None] >> np.arange(lower - 1, -1, -1)) & 1
    return np.concatenate([unary, rest.astype(np.uint8).reshape(-1)])


def _read_rice(bits: np.ndarray, at: int, number: int, lower: int, most: int) -> tuple[np.ndarray, int]:
    """int64 (number,) and the place after them."""
    ends = np.flatnonzero(bits[at:])[:number]
    if len(ends) < number or len(bits) - at - int(ends[-1]) - 1 < number * lower:
        raise Corruption(f"positions of outliers: {len(bits)} bits are too few: the file is damaged")
    values = np.diff(ends, prepend=-1) - 1
    if int(values.max()) > most >> lower:
        raise Corruption(f"a distance of outliers beyond the {most} elements of their tensor: the file is damaged")
    at += int(ends[-1]) + 1
    rest = bits[at : at + number * lower].reshape(number, lower)
    for column in range(lower):
        values = (values << 1) | rest[:, column]
    return values, at + number * lower


def _inflate_planes(data: bytes, number: int, width: int) -> np.ndarray:
    inflater = decompressobj()
    try:
        raw = inflater.decompress(data, number * width + 1)
    except error as problem:
        raise Corruption(f"positions of outliers: {problem}: the file is damaged") from None
    if len(raw) != number * width or not inflater.eof or inflater.unused_data:
        raise Corruption("positions of outliers: the deflated bytes do not end where they should: the file is damaged")
    planes = np.frombuffer(raw, np.uint8).reshape(width, number).astype(np.int64)
    return sum(planes[k] << (8 * k) for k in range(width))


def _width(elements: int) -> int:
    """Bytes that positions below `elements` take."""
    return max(1, ((elements - 1).bit_length() + 7) // 8)
