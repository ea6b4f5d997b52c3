"""Data files of tasks: arrays from .npy/.npz, sentence pairs from .tsv/.csv, text.  Every defect is a one-line error."""

from __future__ import annotations

import csv
import io
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Sequence

import numpy as np

from nnc.errors import InsufficientData, InvalidArgument

# what numpy raises for a file that is none of its own, or damaged
UNREADABLE = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
REMEDY = "write plain numbers with numpy.save or numpy.savez"


def existing_file(path: str | os.PathLike) -> Path:
    """The path; InvalidArgument if it is no file."""
    file = Path(path)
    if not file.is_file():
        raise InvalidArgument(f"data file {file}: {'is a folder, name a file' if file.is_dir() else 'not found, check the name'}")
    return file


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the one array of an .npy file under the name "".  Never unpickles."""
    file = existing_file(path)
    try:
        with open(file, "rb") as stream:  # np.load leaves a damaged file open when it opens it itself
            if not stream.read(6).startswith((b"PK", b"\x93NUMPY")):  # numpy would take it for a pickle
                raise InvalidArgument(f"data file {file}: not a plain .npy or .npz file; {REMEDY}")
            stream.seek(0)
            content = np.load(stream, allow_pickle=False)
            return {"": content} if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except InvalidArgument:
        raise
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise InvalidArgument(f"data file {file}: {error.strerror}") from error
        reason = str(error).splitlines()[0] if str(error) else "it is cut off"
        raise InvalidArgument(f"data file {file}: not a plain .npy or .npz file ({reason}); {REMEDY}") from error


def pick(arrays: dict[str, np.ndarray], names: Sequence[str], file: str | os.PathLike) -> np.ndarray:
    """The array under the first of `names` that is there; InvalidArgument if none is."""
    for name in names:
        if name in arrays:
            return arrays[name]
    raise InvalidArgument(f"data file {file}: no array {' or '.join(names)}; it has {', '.join(sorted(arrays)) or 'nothing'}")


def check_whole(array: np.ndarray, what: str, ndim: int | tuple[int, ...]) -> np.ndarray:
    """The array as int64; InvalidArgument unless it has integers >= 0 and one of the dimensions, InsufficientData if empty."""
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if array.dtype.kind not in "iu":
        raise InvalidArgument(f"{what}: dtype is {array.dtype}, must be an integer type")
    if array.ndim not in allowed:
        raise InvalidArgument(f"{what}: shape is {array.shape}, must have {' or '.join(map(str, allowed))} dimension(s)")
    if not array.size:
        raise InsufficientData(f"{what}: empty, shape is {array.shape}")
    if int(array.min()) < 0 or int(array.max()) >= 2**63:
        raise InvalidArgument(f"{what}: values are {array.min()}..{array.max()}, must be in 0..2^63-1")
    return array.astype(np.int64, copy=False)


def read_text(path: str | os.PathLike) -> str:
    """UTF-8 text; InsufficientData if there is none."""
    file = existing_file(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"data file {file}: byte {error.start} is not UTF-8 text; token ids need the ending .npy or .npz"
        ) from error
    if not text.strip():
        raise InsufficientData(f"data file {file}: no text in it")
    return text


def read_pairs(path: str | os.PathLike) -> tuple[list[str], list[str], np.ndarray]:
    """Sentences, sentences and float64 scores of a file with three columns: .csv with commas and quotes, else tabs.

    One header line is skipped: a first line whose third column is no number.
    """
    file = existing_file(path)
    commas = file.suffix.lower() == ".csv"
    lines = io.StringIO(read_text(file), newline="")
    reader = csv.reader(lines, delimiter=",") if commas else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise InvalidArgument(f"data file {file}: line {reader.line_num} is no table row ({error})") from error
    scores: list[float] = []
    kept: list[list[str]] = []
    for number, row in enumerate(rows):
        if len(row) != 3:
            raise InvalidArgument(
                f"data file {file}: row {number + 1} has {len(row)} columns, must have 3: sentence, sentence, score"
            )
        try:
            score = float(row[2])
        except ValueError as error:
            if number == 0:
                continue
            raise InvalidArgument(f"data file {file}: score of row {number + 1} is {row[2]!r}, must be a number") from error
        scores.append(score)
        kept.append(row)
    if not kept:
        raise InsufficientData(f"data file {file}: no sentence pairs in it")
    return [row[0] for row in kept], [row[1] for row in kept], np.array(scores)


def whole_option(name: str, value: int | str, low: int = 1) -> int:
    """An option that is a whole number, also as text from a command line."""
    try:
        number = int(value) if isinstance(value, str) or float(value).is_integer() else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number < low:
        raise InvalidArgument(f"option {name}: {value!r} given, must be a whole number >= {low}")
    return number


def numbers_option(name: str, value: float | str | Sequence[float]) -> np.ndarray:
    """An option that is one number or one per channel, also as text "0.49,0.48,0.45"; float32 (n,)."""
    try:
        parts = value.split(",") if isinstance(value, str) else value
        array = np.atleast_1d(np.asarray(parts, dtype=np.float64)).astype(np.float32)
    except (TypeError, ValueError):
        array = np.empty(0, np.float32)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InvalidArgument(f"option {name}: {value!r} given, must be one number or one per channel")
    return array
