"""The entropy coder: integer tables, and constriction's ANS as its reference and as the coder of side information.

A table is `Frequencies`: integers >= 1 which sum to 2^24, for the levels `low, low + 1, ...` and, last, the escape symbol.
constriction's `Categorical(frequencies - 1, perfect=False)` has exactly these probabilities (tested word for word), so the format
is
stated in integers.  `TableSet` is the form that the kernels read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import constriction
import numpy as np

from .buffers import empty
from .errors import Corruption
from .kernels.streams import ESCAPE

TOTAL = 1 << 24
_PRIME = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class Frequencies:
    """low: level of symbol 0; counts: int64 (symbols,), the last one is the escape."""

    low: int
    counts: np.ndarray

    @property
    def high(self) -> int:
        """Largest level with a symbol of its own."""
        return self.low + len(self.counts) - 2


@dataclass(frozen=True, eq=False)
class TableSet:
    """cumulative: uint32 (tables, symbols + 1); entries: uint64 (tables, 256), of the first symbol that may hold a quantile whose upper 8
    bits are the column: from the top its level in 16 bits, two's complement and -2^15 for the escape, its frequency and its start in 24
    bits each; low, escape: int32 (tables,).  Unused tables hold one symbol.
    """

    cumulative: np.ndarray
    entries: np.ndarray
    low: np.ndarray
    escape: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.cumulative, self.entries, self.low, self.escape


def make_table_set(tables: dict[int, Frequencies], count: int) -> TableSet:
    """Lay out `tables` (by number) for the kernels; numbers below `count` without a table are never used by a valid stream."""
    width = max((len(f.counts) for f in tables.values()), default=1) + 1
    cumulative = np.full((count, width), TOTAL, np.uint32)
    cumulative[:, 0] = 0
    entries = np.zeros((count, 256), np.uint64)
    low = np.zeros(count, np.int32)
    escape = np.full(count, -1, np.int32)
    for number, table in tables.items():
        edges = np.cumsum(table.counts)
        cumulative[number, 1 : len(edges) + 1] = edges
        entries[number] = entries_of(table.low, table.counts)
        low[number] = table.low
        escape[number] = len(table.counts) - 1
    return TableSet(cumulative, entries, low, escape)


def entries_of(low: int, counts: np.ndarray) -> np.ndarray:
    """Row of `TableSet.entries` of a table: uint64 (256,).  counts: int64, the last one of the escape."""
    edges = np.cumsum(counts)
    levels = np.append(np.arange(low, low + len(counts) - 1), ESCAPE)
    symbols = levels << 48 | counts << 24 | (edges - counts)
    return symbols[np.searchsorted(edges, np.arange(256, dtype=np.int64) << 16, side="right")].view(np.uint64)


def pack_words(words: np.ndarray) -> bytes:
    """uint32 words as little-endian bytes; zero bytes at the end are dropped, since their number follows from nothing else."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def unpack_words(data: bytes | memoryview) -> np.ndarray:
    """Inverse of `pack_words`; Corruption if the last byte is zero, which no stream ends in."""
    if len(data) and data[-1] == 0:
        raise Corruption("a stream ends in a zero byte: the file is damaged")
    return np.frombuffer(bytes(data) + bytes(-len(data) % 4), "<u4").astype(np.uint32)


def lay_state(words: np.ndarray, state: np.ndarray) -> int:
    """Make a stream of the words that are left and of the state of their coder, which lies in the first two words of a stream that is read: its end.

    words: uint32, with room for two behind those that are left; state: uint64 (2,), state of the coder and number of the words left."""
    x, left = int(state[0]), int(state[1])
    words[left : left + 2] = x & 0xFFFFFFFF, x >> 32
    return left + 2


def gather_words(streams: Sequence[bytes | memoryview]) -> tuple[np.ndarray, np.ndarray]:
    """The words of several streams in one array, and int64 (streams + 1,) where each begins; Corruption as of `unpack_words`."""
    bounds = np.cumsum([0, *(-(-len(stream) // 4) for stream in streams)])
    words = empty(int(bounds[-1]), "<u4")
    places = memoryview(words.view(np.uint8))  # numpy would let go of the interpreter for each stream, and wait for it
    for begin, end, stream in zip(bounds.tolist(), bounds[1:].tolist(), streams):
        if not len(stream):
            continue
        if stream[-1] == 0:
            raise Corruption("a stream ends in a zero byte: the file is damaged")
        words[end - 1] = 0  # behind the bytes that are there
        places[4 * begin : 4 * begin + len(stream)] = stream
    return words.astype(np.uint32, copy=False), bounds


@lru_cache(maxsize=64)
def _model(counts: bytes):
    return constriction.stream.model.Categorical(np.frombuffer(counts, np.int64).astype(np.float64) - 1, perfect=False)


def encode_symbols(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """Code int symbols with one table (`counts` sum to 2^24) through constriction."""
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(np.asarray(symbols, np.int32), _model(counts.astype(np.int64).tobytes()))
    return pack_words(coder.get_compressed())


def decode_symbols(data: bytes, counts: np.ndarray, number: int) -> tuple[np.ndarray, bool]:
    """Inverse of `encode_symbols`: (int32 symbols, whether the stream ended exactly)."""
    coder = constriction.stream.stack.AnsCoder(unpack_words(data))
    symbols = coder.decode(_model(counts.astype(np.int64).tobytes()), number)
    return symbols, coder.is_empty()


def checksum(data: bytes | memoryview, start: int = 0) -> int:
    """CRC-32 (ISO 3309)."""
    return crc32(data, start)


def chain_digests(digests: Iterable[int]) -> int:
    """The digest of a unit from those of its streams, in order; 0 if there are none."""
    total = 0
    for digest in digests:
        total = (total ^ int(digest)) * _PRIME & 0xFFFFFFFFFFFFFFFF
    return (total ^ total >> 32) & 0xFFFFFFFF
