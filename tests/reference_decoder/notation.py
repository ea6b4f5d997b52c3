"""Sections 1 and 16 of the page: fields of a string of bytes, ids, and what is refused."""
from __future__ import annotations

import zlib
from dataclasses import dataclass

Tensor = tuple[str, tuple[int, ...], bytes]  # name of the dtype, shape, little endian bytes in row-major order


class OtherVersion(ValueError):
    """Not damage: a version that this page does not describe."""


class WrongReference(ValueError):
    """Not damage: the reference is missing, or another one than that of the file."""


def must(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# ---- 1. Notation -----------------------------------------------------------------------------------------------------

class Bytes:
    """A read position in a string of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, length: int) -> bytes:
        must(length <= len(self.data) - self.position, "fewer bytes than a field needs")
        self.position += length
        return self.data[self.position - length:self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def varint(self, most: int) -> int:
        value = 0
        for group in range(10):
            byte = self.byte()
            value |= (byte & 127) << 7 * group
            if byte < 128:
                must(value <= most, f"{value} is beyond {most}")
                return value
        raise ValueError("a varint of more than ten groups")

    def signed(self, most: int) -> int:
        z = self.varint(2 * most)
        return z // 2 if z % 2 == 0 else -(z + 1) // 2

    def block(self, most: int) -> bytes:
        return self.take(self.varint(most))

    def end(self) -> None:
        must(self.position == len(self.data), "bytes are left over")


def inflate(data: bytes, length: int) -> bytes:
    """One complete zlib stream that ends where its bytes end and holds exactly `length` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise ValueError(f"not a deflated stream: {error}") from error
    must(stream.eof and not stream.unused_data and len(out) == length, "a deflated stream of another length")
    return out


# ---- 16. Ids ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Dtype:
    name: str
    size: int
    container: str                                                     # "": none, so it cannot be plain


DTYPES = [Dtype(*row) for row in (
    ("float32", 4, "F32"), ("float16", 2, "F16"), ("bfloat16", 2, "BF16"), ("float64", 8, "F64"), ("int64", 8, "I64"),
                                  ("int32", 4, "I32"), ("int16", 2, "I16"),
    ("int8", 1, "I8"), ("uint8", 1, "U8"), ("bool", 1, "BOOL"), ("float8_e4m3fn", 1, "F8_E4M3"), ("float8_e5m2", 1, "F8_E5M2"),
                                  ("complex64", 8, "C64"),
    ("complex128", 16, ""), ("uint16", 2, "U16"), ("uint32", 4, "U32"), ("uint64", 8, "U64"), ("float8_e4m3fnuz", 1, ""),
                                  ("float8_e5m2fnuz", 1, ""))]
