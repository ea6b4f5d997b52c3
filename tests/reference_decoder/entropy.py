"""Sections 10 and 11 of the page: entropy decoding and state machines."""
from __future__ import annotations

import struct
from bisect import bisect_right

from .notation import must
from .tables import Table

# ---- 10. Entropy decoding --------------------------------------------------------------------------------------------

class Coder:
    """Asymmetric numeral system: state x, words from the last to the first."""

    def __init__(self, stream: bytes) -> None:
        must(not stream.endswith(b"\0"), "a stream that ends with a zero byte")
        stream += bytes(-len(stream) % 4)
        self.words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
        self.x = self.words.pop() if self.words else 0
        if self.words:
            self.x = self.x << 32 | self.words.pop()

    def refill(self) -> None:
        if self.x < 1 << 32 and self.words:
            self.x = self.x << 32 | self.words.pop()

    def symbol(self, table: Table) -> int:
        v = self.x & 0xFFFFFF
        a = bisect_right(table.starts, v) - 1
        self.x = table.frequencies[a] * (self.x >> 24) + v - table.starts[a]
        self.refill()
        return a

    def bits(self, count: int) -> int:
        value = 0
        while count:
            n = min(count, 16)
            v = self.x & 0xFFFFFF
            value = value << n | v >> (24 - n)
            self.x = (self.x >> 24 << (24 - n)) + v % (1 << (24 - n))
            self.refill()
            count -= n
        return value

    def level(self, table: Table) -> int:
        a, symbols = self.symbol(table), len(table.frequencies)
        if a < symbols - 1:
            return table.low + a
        side, length = self.bits(1), min(self.bits(5), 22)
        excess = (1 << length) + self.bits(length) - 1
        return table.low - 1 - excess if side else table.low + symbols - 1 + excess

    def end(self) -> None:
        must(self.x == 0 and not self.words, "a stream that does not end exactly")


# ---- 11. State machines -----------------------------------------------------------------------------------------------

CODES = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126),
         256: (0o515, 0o362)}


def next_state(states: int, s: int, parity: int) -> int:
    if states == 1:
        return 0
    h0, h1 = CODES[states]
    return (s >> 1) ^ (h0 >> 1 if s & 1 else 0) ^ (h1 >> 1 if parity else 0)
