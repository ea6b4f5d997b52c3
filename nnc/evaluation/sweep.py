"""Accuracy against size: compress at several rates, evaluate each file, write a table and a plot.

Sizes count every byte of the written files.  Bits per weight are file bits over the number of values in the checkpoint.
"""
from __future__ import annotations

import csv
import importlib
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from nnc.errors import InvalidArgument
from nnc.evaluation.models import Builder, count_weights, open_network, pretrained_folder, read_weights
from nnc.evaluation.report import Progress, Report, check_device, compare
from nnc.evaluation.task import Task

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
COLUMNS = ("bits_asked", "file_bytes", "bits_per_weight", "ratio", "metric", "value", "loss", "fidelity_name", "fidelity",
           "top1_agreement", "finite", "encode_seconds", "decode_seconds", "evaluate_seconds")


@dataclass(frozen=True)
class Point:
    """One row of the table.

    bits_asked       bits per weight asked for; None for the original
    file_bytes       all bytes of the file or of the folder's weight files
    bits_per_weight  8 * file_bytes / values in the checkpoint
    ratio            bytes of the original / file_bytes
    report           metric and fidelity to the original
    encode_seconds, decode_seconds   compressing, and reading back all tensors; for the original 0 and reading
    """

    bits_asked: float | None
    file_bytes: int
    bits_per_weight: float
    ratio: float
    report: Report
    encode_seconds: float
    decode_seconds: float


def sweep(source: str | os.PathLike, task: Task, *, model: Builder | None = None, bits: Sequence[float], effort: str = "default",
          out: str | os.PathLike, plot: bool = True, device: str | torch.device | None = None, progress: Progress | None = None,
          **options: Any) -> list[Point]:
    """Compress a checkpoint at each rate, evaluate it beside the original, and write `sweep.csv`, `sweep.md` and `sweep.png`.

    source    an original checkpoint: a Hugging Face folder, .safetensors or .pt
    model     as for `evaluate`
    bits      bits per weight to ask for, each > 0
    effort, options   for `nnc.compress`
    out       the folder for the three files; made if it is not there.  The tables are written after each rate
    plot      False: no sweep.png, and no need for matplotlib
    progress  called with (rates done, rates in all, text)

    Returns the points in the order of `bits`, the original first.  Compressed files are deleted once they are measured.
    Raises InvalidArgument for rates that make no sense, without matplotlib, and for whatever `evaluate` and `compress` refuse.
    """
    rates = [float(rate) for rate in bits]
    wrong = next((rate for rate in rates if not (math.isfinite(rate) and rate > 0)), None)
    if wrong is not None or not rates:
        raise InvalidArgument(f"bits: {'no rate' if wrong is None else f'{wrong:g}'} given, must be numbers > 0")
    place = check_device(device)
    plotter = importlib.import_module("nnc.evaluation.plot") if plot else None
    if plotter:
        plotter.load_matplotlib()
    compress = importlib.import_module("nnc").compress
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"out: {folder} is no folder and cannot be made one ({error.strerror})") from error

    title = f"{Path(source).resolve().name}, {task.name}"

    def tell(done: int, text: str) -> None:
        if progress is not None:
            progress(done, len(rates) + 1, text)

    tell(0, "original")
    weights = max(1, count_weights(source))
    original, seconds = _read(source)
    home = pretrained_folder(source)
    reference, notes = open_network(original, model, home)
    reference.to(place)
    size = stored_bytes(source)
    points = [Point(None, size, 8 * size / weights, 1.0, compare(reference, reference, task, notes=notes), 0.0, seconds)]
    del original
    for number, rate in enumerate(rates, 1):
        write_tables(points, folder, title)
        tell(number, f"{rate:g} bits")
        with tempfile.TemporaryDirectory(prefix="nnc-sweep-") as scratch:
            target = Path(scratch) / ("model" if Path(source).is_dir() else "model.safetensors")
            start = time.perf_counter()
            summary = compress(source, target, bits=rate, effort=effort, **options)
            encoded = time.perf_counter() - start
            state, decoded = _read(target)
        network, _ = open_network(state, model, home)
        network.to(place)
        written = summary.file_bytes
        points.append(Point(rate, written, 8 * written / weights, size / written, compare(network, reference, task),
                            encoded, decoded))
    write_tables(points, folder, title)
    if plotter:
        plotter.plot_sweep(points, folder / "sweep.png", title)
    tell(len(rates) + 1, "done")
    return points


def stored_bytes(path: str | os.PathLike) -> int:
    """Bytes of a weights file; of a folder's .safetensors files, or, if it has none, of its other weight files."""
    place = Path(path)
    if place.is_file():
        return place.stat().st_size
    files = [file for file in place.iterdir() if file.suffix in WEIGHT_FILES and file.is_file()]
    safe = [file for file in files if file.suffix == ".safetensors"]
    return sum(file.stat().st_size for file in safe or files)


def write_tables(points: Sequence[Point], folder: Path, title: str) -> None:
    """`sweep.csv` with all digits, `sweep.md` for reading."""
    with open(folder / "sweep.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(point) for point in points)
    (folder / "sweep.md").write_text(_markdown(points, title), encoding="utf-8")


def _read(path: str | os.PathLike) -> tuple[dict[str, Tensor], float]:
    """The tensors, and the seconds that reading them took."""
    start = time.perf_counter()
    state = read_weights(path)
    return state, time.perf_counter() - start


def _row(point: Point) -> list[Any]:
    report = point.report
    fidelity = report.fidelity
    return [point.bits_asked, point.file_bytes, point.bits_per_weight, point.ratio, report.metric, report.value, report.loss,
            fidelity.name, fidelity.value, fidelity.top1_agreement, report.finite,
            point.encode_seconds, point.decode_seconds, report.seconds]


def _markdown(points: Sequence[Point], title: str) -> str:
    report = points[0].report
    measured, agreed = report.value is not None, report.fidelity.top1_agreement is not None
    head = ["bits asked", "file bytes", "bits/weight", "ratio"]
    head += [report.metric, "loss"] if measured else []
    head += [report.fidelity.name] + (["same top-1 %"] if agreed else [])
    head += ["encode s", "decode s"]
    rows = []
    for point in points:
        r = point.report
        row = ["original" if point.bits_asked is None else f"{point.bits_asked:g}", f"{point.file_bytes:,}",
               f"{point.bits_per_weight:.3f}", f"{point.ratio:.2f}"]
        row += [f"{r.value:.4f}", f"{r.loss:+.4f}"] if measured else []
        row += [f"{r.fidelity.value:.3g}"] + ([f"{100 * r.fidelity.top1_agreement:.2f}"] if agreed else [])
        row += ["" if point.bits_asked is None else f"{point.encode_seconds:.1f}", f"{point.decode_seconds:.2f}"]
        rows.append(row)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |" for row in [head, *rows]]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    better = "higher" if report.higher_is_better else "lower"
    explained = [f"{report.count:,} outputs. File bytes are all bytes written; ratio is to the original's "
                 f"{points[0].file_bytes:,} bytes."]
    if measured:
        explained.append(f"{report.metric}: {better} is better; loss is what was lost against the original, positive is worse.")
    explained.append(f"{report.fidelity.name} is the distance to the original's outputs, 0 = the same.")
    explained += [f"Note: {note}." for note in report.notes]
    return "\n".join([f"# {title}", "", lines[0], rule, *lines[1:], "", " ".join(explained), ""])
