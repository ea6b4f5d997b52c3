"""The bytes of one file: of a path, memory-mapped, or of any seekable binary object, so that ranges of a remote file can be read.

A file on disk is mapped when it is opened and looked at again at every read: a map of a file that has become shorter would end the
process.  A file that is replaced (renamed over, as nnc and most programs write) stays readable as it was.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from threading import Lock
from typing import BinaryIO

from .errors import Corruption, InvalidArgument

LEFT = 1 << 16  # bytes of a read from which on it is worth a system call


@dataclass(eq=False)
class Storage:
    """label: path of the file, or name of the object; size: bytes; stamp: device, inode, size and time (ns) of a path, empty for an
    object; count: how many bytes have been read so far."""

    label: str
    size: int
    stamp: tuple[int, ...] = ()
    count: int = 0
    _file: BinaryIO | mmap.mmap | bytes | None = None
    _lock: Lock = field(default_factory=Lock)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at `offset`; fewer if the file ends before.  InvalidArgument if it is closed, Corruption if it changed since it was
        opened."""
        with self._lock:
            if self._file is None:
                raise InvalidArgument(f"{self.label}: is closed: open it again")
            self.count += length
            if self.stamp:
                self._check()
                found = self._file[offset : offset + length]
                self._leave(offset, len(found))
                return found
            try:
                self._file.seek(offset)
                return _read_fully(self._file, length)
            except (OSError, ValueError) as problem:
                raise InvalidArgument(f"{self.label}: {problem}") from None

    def _leave(self, offset: int, length: int) -> None:
        """Take pages that were read out of the memory of the process; the system keeps them as long as it has room.  They would count as its own until the
        file is closed, and when a checkpoint is loaded that is as long as all of its tensors are decoded."""
        if length >= LEFT and hasattr(mmap, "MADV_DONTNEED") and isinstance(self._file, mmap.mmap):
            first = offset - offset % mmap.PAGESIZE
            self._file.madvise(mmap.MADV_DONTNEED, first, offset + length - first)

    def _check(self) -> None:
        try:
            found = os.stat(self.label)
        except OSError:  # removed: the map keeps what was there
            return
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp[:2] == self.stamp[:2] and stamp != self.stamp:
            raise Corruption(
                f"{self.label}: changed since it was opened: open it again, or fetch it again if nobody should have written to it"
            )

    def close(self) -> None:
        """Let go of a path; an object that was passed in stays open."""
        with self._lock:
            if isinstance(self._file, mmap.mmap):
                self._file.close()
            self._file = None


def open_path(path: str | os.PathLike) -> Storage:
    """InvalidArgument if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            # nothing can be mapped of an empty file; the map outlives the file object
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found.st_size else b""
    except OSError as problem:
        raise InvalidArgument(f"{path}: {problem.strerror}") from None
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return Storage(os.fspath(path), found.st_size, stamp, 0, mapped)


def open_object(file: BinaryIO) -> Storage:
    """A binary object with `read` and `seek`; InvalidArgument if it is none."""
    label = str(getattr(file, "name", "the file object"))
    try:
        if not file.seekable():
            raise InvalidArgument(f"{label}: cannot seek: read it into io.BytesIO first")
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not isinstance(file.read(0), bytes):
            raise InvalidArgument(f"{label}: opened as text: open it with mode 'rb'")
    except (AttributeError, TypeError):
        raise InvalidArgument(f"{type(file).__name__} is neither a path nor a seekable binary file") from None
    except (OSError, ValueError) as problem:
        raise InvalidArgument(f"{label}: {problem}") from None
    return Storage(label, size, (), 0, file)


def open_storage(source: str | os.PathLike | BinaryIO) -> Storage:
    return open_path(source) if isinstance(source, (str, os.PathLike)) else open_object(source)


def _read_fully(file: BinaryIO, length: int) -> bytes:
    """As many bytes as there are: raw objects may return fewer than asked for at a time."""
    parts = []
    while length > 0 and (part := file.read(length)):
        parts.append(bytes(part))
        length -= len(part)
    return b"".join(parts)
