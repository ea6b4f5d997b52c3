"""What the benchmark scripts print: tables (also as CSV), and bounds that a figure must keep."""
from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Column:
    """name: with the unit; format: of a number, as in `format(value, ...)`."""

    name: str
    format: str = ""

    def show(self, value: object) -> str:
        return "" if value is None else format(value, "" if isinstance(value, str) else self.format)


@dataclass(frozen=True)
class Table:
    """name: of the CSV file, too; rows: one value per column, None where there is none; printed: else only written."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple, ...]
    printed: bool = True

    def text(self) -> str:
        """Aligned columns: text to the left, numbers to the right."""
        lines = [[column.name for column in self.columns]]
        lines += [[column.show(value) for column, value in zip(self.columns, row)] for row in self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        aligns = [str.ljust if all(isinstance(row[n], str) for row in self.rows) else str.rjust for n in range(len(self.columns))]
        return "\n".join("  ".join(align(*cell) for align, cell in zip(aligns, zip(line, widths))).rstrip() for line in lines)

    def write(self, folder: Path) -> Path:
        """The unrounded values as `folder/name.csv`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.csv"
        with open(path, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(column.name for column in self.columns)
            out.writerows(self.rows)
        return path


@dataclass(frozen=True)
class Bound:
    """A figure and the limit that it must not pass; at_least: the limit is the smallest good value, not the largest."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def kept(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def text(self) -> str:
        side = "at least" if self.at_least else "at most"
        return f"{'ok' if self.kept else 'MISSED':6}  {self.name}: {self.value:.4g}, {side} {self.limit:g}"


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the tables to this folder as CSV files")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a bound is missed")
    return parser


def note(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def finish(tables: Sequence[Table], bounds: Sequence[Bound], out: Path | None, check: bool) -> int:
    """Print tables and bounds, write the CSV files; returns the exit status."""
    for table in tables:
        if table.printed:
            print(f"{table.name}\n{table.text()}\n")
        if out is not None:
            table.write(out)
    for bound in bounds:
        print(bound.text())
    return int(check and not all(bound.kept for bound in bounds))
