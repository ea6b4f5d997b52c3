"""Bytes, varints and floats of the format, written and read side by side; every number read is checked against a bound.

varint: little-endian groups of 7 bits, the upper bit says that another follows.  signed: zigzag (0, -1, 1, -2, ...) as varint.
"""

from __future__ import annotations

import struct

from .errors import Corruption


class Writer:
    """Appends fields to a byte string."""

    def __init__(self) -> None:
        self._data = bytearray()

    def byte(self, value: int) -> None:
        self._data.append(value)

    def varint(self, value: int) -> None:
        while value > 127:
            self._data.append(value & 127 | 128)
            value >>= 7
        self._data.append(value)

    def signed(self, value: int) -> None:
        self.varint(2 * value if value >= 0 else -2 * value - 1)

    def fixed32(self, value: int) -> None:
        self._data += struct.pack("<I", value)

    def float32(self, value: float) -> None:
        self._data += struct.pack("<f", value)

    def block(self, data: bytes) -> None:
        """Length and bytes."""
        self.varint(len(data))
        self._data += data

    def raw(self, data: bytes) -> None:
        self._data += data

    def data(self) -> bytes:
        return bytes(self._data)


class Reader:
    """Takes fields off a byte string; Corruption names the field that does not fit."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def raw(self, count: int, field: str) -> bytes:
        at = self._at
        found = self._data[at : at + count]
        if len(found) < count:
            raise Corruption(f"{field}: needs {count} bytes, {self.left} are left: the file is truncated or damaged")
        self._at = at + count
        return found

    def byte(self, field: str, most: int = 255) -> int:
        if self._at >= len(self._data):
            self.raw(1, field)  # says so
        value = self._data[self._at]
        self._at += 1
        return value if value <= most else self._bounded(value, field, most)

    def varint(self, field: str, most: int) -> int:
        at = self._at
        if at < len(self._data) and (value := self._data[at]) < 128:  # most are so small
            self._at = at + 1
            return value if value <= most else self._bounded(value, field, most)
        value = shift = 0
        while True:
            group = self.byte(field)
            value |= (group & 127) << shift
            shift += 7
            if group < 128:
                return value if value <= most else self._bounded(value, field, most)
            if shift > 63:
                raise Corruption(f"{field}: more than ten groups in a varint: the file is damaged")

    def signed(self, field: str, most: int) -> int:
        z = self.varint(field, 2 * most)
        return -(z + 1 >> 1) if z & 1 else z >> 1

    def fixed32(self, field: str) -> int:
        return struct.unpack("<I", self.raw(4, field))[0]

    def float32(self, field: str) -> float:
        return struct.unpack("<f", self.raw(4, field))[0]

    def block(self, field: str, most: int) -> bytes:
        return self.raw(self.varint(f"length of {field}", most), field)

    def finish(self, what: str) -> None:
        if self.left:
            raise Corruption(f"{what}: {self.left} bytes too many: the file is damaged")

    @staticmethod
    def _bounded(value: int, field: str, most: int) -> int:
        if value > most:
            raise Corruption(f"{field} = {value} is above its limit {most}: the file is damaged")
        return value
