"""Scale codes of rows and columns: the side information that picks the table of a weight.

The scale index of weight (i, j) is `base + row[i] + column[j]` in quarter octaves, clipped to 1..36; the code -64 means "not
coded, the value is zero"
(hyperprior, US11257254B2, with the hyper-decoder reduced to a sum of integers).  The codes of one axis are absent (all zero), coded
with a parametric table through ANS, directly or as differences, or deflated.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from zlib import compress, decompressobj

import numpy as np

from ..coder import decode_symbols, encode_symbols
from ..errors import Corruption
from ..registry import Table
from .parametric import level_weights, normalise

MOST = 64  # codes lie in -64..64
OFF = -64  # the code of a dead row or column: its weights are not coded, they are zero
DEAD_CODE = -1000  # the same for the kernels, far below any sum of live ones
SPREADS = 24
END, TABLES = 2.5, 30  # bytes that a stream takes to end; that deflate takes besides the codes
MODES = Table("scale code mode", {0: "none", 1: "direct", 2: "differences", 3: "deflated"})
LEARNED = "learned"  # with the other latents of the tensor (entropy/latents.py): no mode of its own in the file


def kernel_codes(codes: np.ndarray, base: int | np.ndarray = 0) -> np.ndarray:
    """Codes as the kernels take them: int16, the base added, dead ones far below any sum of live ones."""
    return np.where(codes == OFF, DEAD_CODE, codes + base).astype(np.int16)


@lru_cache(maxsize=None)
def _counts(spread: int) -> np.ndarray:
    return normalise(level_weights(2, spread + 8, 0, -2 * MOST, 2 * MOST))


def encode_codes(codes: np.ndarray) -> tuple[str, int, bytes]:
    """The shortest of the modes for int codes in -64..64: (mode, spread, bytes)."""
    codes = np.asarray(codes, np.int64)
    if not codes.any():
        return "none", 0, b""
    best = ("deflated", 0, compress(codes.astype(np.int8).tobytes(), 9 if (codes == OFF).any() else 1))  # patterns of dead rows
    for mode, values in (("direct", codes), ("differences", np.diff(codes, prepend=0))):
        bits = (_code_lengths() * np.bincount(values + 2 * MOST, minlength=4 * MOST + 1)).sum(1)
        spread = int(np.argmin(bits))
        if bits[spread] < 8 * len(best[2]):
            data = encode_symbols(values + 2 * MOST, _counts(spread))
            if len(data) < len(best[2]):
                best = (mode, spread, data)
    return best


def code_bits(codes: np.ndarray) -> float:
    """What `encode_codes` makes of them, nearly: bits, reckoned without coding but where rows are dead."""
    codes = np.asarray(codes, np.int64)
    if not codes.any():
        return 0.0
    if (codes == OFF).any():
        return 8.0 * len(encode_codes(codes)[2])
    counts = [np.bincount(values + 2 * MOST, minlength=4 * MOST + 1) for values in (codes, np.diff(codes, prepend=0))]
    found = counts[0][counts[0] > 0]
    deflated = float((found * np.log2(len(codes) / found)).sum()) + 8 * len(found) + 8 * TABLES  # if there are no patterns
    return 8.0 * ceil(min(deflated, *(float((_code_lengths() * of_values).sum(1).min()) for of_values in counts)) / 8 + END)


@lru_cache(maxsize=1)
def _code_lengths() -> np.ndarray:
    """Bits of every symbol under every spread."""
    return np.stack([24 - np.log2(_counts(spread)) for spread in range(SPREADS)])


def decode_codes(mode: str, spread: int, data: bytes, number: int) -> np.ndarray:
    """Inverse of `encode_codes`: int16 (number,)."""
    if mode == "none":
        return np.zeros(number, np.int16)
    if mode == "deflated":
        inflater = decompressobj()
        raw = _inflate(inflater, data, number)
        if len(raw) != number or not inflater.eof or inflater.unused_data:
            raise Corruption(f"scale codes: {len(raw)} of {number} codes in the stream: the file is damaged")
        codes = np.frombuffer(raw, np.int8).astype(np.int16)
    else:
        symbols, ended = decode_symbols(data, _counts(spread), number)
        if not ended:
            raise Corruption("scale codes: the stream does not end where it should: the file is damaged")
        codes = symbols.astype(np.int64) - 2 * MOST
        codes = np.cumsum(codes) if mode == "differences" else codes
    if codes.size and (codes.min() < -MOST or codes.max() > MOST):
        raise Corruption(f"scale codes outside -{MOST}..{MOST}: the file is damaged")
    return codes.astype(np.int16)


def _inflate(inflater, data: bytes, most: int) -> bytes:
    from zlib import error

    try:
        return inflater.decompress(data, most + 1)
    except error as problem:
        raise Corruption(f"scale codes: {problem}: the file is damaged") from None
