"""What a command hands back, and numbers, names and tables as text for a terminal or a pipe."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

LISTED = 8  # names written out in a summary


@dataclass(frozen=True)
class Result:
    """text: for people, without a final newline; data: the same for --json, plain values without NaN and Inf; secondary: the text
    is a summary of work done elsewhere, which --quiet leaves out."""

    text: str
    data: dict[str, Any]
    secondary: bool = False


def printable(text: str) -> str:
    """The text with line breaks, terminal escapes and lone surrogates spelled out: names come from files that others wrote."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def finite(value: float | None) -> float | None:
    """The number, None if it is NaN or Inf, which JSON lacks."""
    return value if value is not None and isfinite(value) else None


def place(path: str, files: int) -> str:
    """A path, and the number of files if it is a folder of several."""
    return printable(path) + (f", {files} files" if files > 1 else "")


def reduction(before: int, after: int) -> str:
    """Bytes before and after, and their ratio."""
    return f"{before:,} -> {after:,}, ratio {before / max(1, after):.2f}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"


DIVERGENCES = {"logits": "KL nats per prediction", "unit": "1 - cosine", "values": "mean squared error"}


def lines_of(pairs: Sequence[tuple[str, str]]) -> str:
    """`label  value` lines with the values in one column."""
    width = max(len(label) for label, _ in pairs)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in pairs)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns padded with spaces: the first to the left, the others to the right.  width: characters of the terminal, into which
    the first column is shortened in its middle; None: never."""
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    if width is not None:
        widths[0] = min(widths[0], max(16, width - sum(widths[1:]) - 2 * (len(head) - 1)))
    first = widths[0]
    return "\n".join("  ".join([_shortened(row[0], first).ljust(first), *map(str.rjust, row[1:], widths[1:])]) for row in cells)


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    kept = width - 3
    return f"{text[:kept // 3]}...{text[len(text) - (kept - kept // 3):]}"
