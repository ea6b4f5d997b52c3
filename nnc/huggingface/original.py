"""The files that the weights of a loaded model came from, and how to know them again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from zlib import crc32


@dataclass(frozen=True)
class Original:
    """A compressed file that weights came from.  size in bytes; head: CRC-32 of all before the directory, which holds the checksum of
    that, which holds those of all units: so a file of this size and head has these weights, whatever its name and date."""

    path: Path
    size: int
    head: int


def remember(path: str | os.PathLike) -> Original:
    """What to know a compressed file by."""
    path = Path(path).absolute()
    with open(path, "rb") as file:
        return Original(path, *measure(file))


def measure(file: BufferedReader) -> tuple[int, int]:
    """Size in bytes and CRC-32 of the beginning of an open file."""
    length = file.read(8)
    return os.fstat(file.fileno()).st_size, crc32(length + file.read(int.from_bytes(length, "little") + 12))
