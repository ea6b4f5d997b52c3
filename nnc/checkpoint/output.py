"""An output appears complete or not at all: write beside the destination, flush to the disk, then rename into place."""
from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nnc.checkpoint.paths import check_destination, check_replaceable
from nnc.errors import InvalidArgument


@contextmanager
def atomic_output(destination: str | os.PathLike[str], *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside `destination` (an empty folder, or the name of a file to create).

    When the body ends, the result replaces the destination in one rename; when it raises, KeyboardInterrupt included, the
    temporary is removed and an existing destination is untouched. `overwrite` replaces a file, or a whole folder if it is
    empty or holds weights. Errors: InvalidArgument for an existing destination, a missing parent, and for every OSError of
    the body (no space left, ...), with the file and the reason.
    """
    destination = Path(destination)
    check_destination(None, destination, overwrite)
    check_replaceable(destination, folder)
    target = destination.absolute()
    temporary = _sibling(target, "tmp")
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        _flush(temporary)
        _place(temporary, target, folder, overwrite)
    except OSError as error:
        _remove(temporary)
        named = str(error.filename or destination)
        named = str(destination) if named.startswith(str(temporary)) else named
        raise InvalidArgument(f"{named}: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


def _sibling(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def _flush(path: Path) -> None:
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    for parent, _, names in os.walk(path):
        for name in names:
            _flush(Path(parent, name))
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    # Not every file system can flush a folder entry; the files themselves have been flushed.
    with suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def _place(temporary: Path, target: Path, folder: bool, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise InvalidArgument(f"{target} was made by someone else meanwhile; pass overwrite=True / --overwrite")
    if not folder or not os.path.lexists(target):
        os.replace(temporary, target)
    else:
        aside = _sibling(target, "old")
        try:
            os.rename(target, aside)
            os.rename(temporary, target)
        except BaseException:
            if os.path.lexists(aside) and not os.path.lexists(target):
                os.rename(aside, target)
            raise
        _remove(aside)
        if os.path.lexists(aside):
            raise InvalidArgument(f"{target} is written, but its former content stays in {aside}; remove it yourself")
    _flush_folder(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)
