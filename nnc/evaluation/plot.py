"""The plot of a sweep.  The only file that knows matplotlib, by its object interface: no backend or style is set globally."""
from __future__ import annotations

import importlib
import math
import os
import warnings
from typing import Any, Sequence

from nnc.errors import InvalidArgument
from nnc.evaluation.sweep import Point

BLUE, GRAY = "#1f5fa8", "#777777"
SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def load_matplotlib() -> tuple[Any, Any, Any]:
    """Figure, its canvas and the tick formatters; InvalidArgument if matplotlib is not installed."""
    try:
        canvas = importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
        return importlib.import_module("matplotlib.figure").Figure, canvas, importlib.import_module("matplotlib.ticker")
    except ModuleNotFoundError as error:
        raise InvalidArgument("a plot needs matplotlib; install nnc[plot] or leave the plot out with plot=False") from error


def plot_sweep(points: Sequence[Point], path: str | os.PathLike, title: str) -> None:
    """Metric and fidelity against file size as a PNG; the first point is the original, drawn as a line.

    A panel for the metric is left out where the task has none.  Points that are not finite are left out.
    """
    figure_class, canvas_class, ticker = load_matplotlib()
    original, coded = points[0], sorted(points[1:], key=lambda point: point.file_bytes)
    report = original.report
    panels = 1 + (report.value is not None)
    figure = figure_class(figsize=(5.2 * panels, 4.0), dpi=150, layout="constrained")
    canvas_class(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    unit, scale = next((u, s) for u, s in SIZES if s == 1.0 or max(p.file_bytes for p in coded) >= s)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if report.value is not None:
        axis = axes.pop(0)
        _draw(axis, [(point, point.report.value) for point in coded], scale, report.higher_is_better)
        if math.isfinite(report.value):
            axis.axhline(report.value, color=GRAY, linewidth=1, linestyle="--", zorder=1)
            outside = 4 if report.higher_is_better else -4  # on the side where no point is expected
            axis.annotate(f"original, {original.file_bytes / scale:,.4g} {unit}", (0.01, report.value),
                          xycoords=("axes fraction", "data"), xytext=(0, outside), textcoords="offset points",
                          va="bottom" if report.higher_is_better else "top", fontsize=8, color=GRAY)
        axis.set_ylabel(report.metric + (" (higher is better)" if report.higher_is_better else " (lower is better)"))
    axis = axes.pop(0)
    shown = [(point, point.report.fidelity.value) for point in coded]
    if any(math.isfinite(value) and value > 0 for _, value in shown):
        axis.set_yscale("log", nonpositive="mask")
        shown = [(point, value) for point, value in shown if value > 0]  # 0 has no place on a log scale
    _draw(axis, shown, scale, rising=False)
    axis.set_ylabel(f"{report.fidelity.name} to the original (0 = the same)")
    for axis in figure.axes:
        axis.set_xlabel(f"file size, {unit} (beside the points: bits per weight)")
        if coded[-1].file_bytes > 10 * coded[0].file_bytes:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.margins(x=0.12, y=0.14)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title in a script that the font lacks is drawn as boxes, which is no one's fault
        figure.savefig(path, format="png")


def _draw(axis: Any, pairs: Sequence[tuple[Point, float]], scale: float, rising: bool) -> None:
    """Markers joined by a line, each with the bits per weight of its file on the side that such a curve leaves free."""
    shown = [(point, value) for point, value in pairs if value is not None and math.isfinite(value)]
    axis.plot([point.file_bytes / scale for point, _ in shown], [value for _, value in shown], "o-", color=BLUE, linewidth=1.6,
              markersize=5)
    for point, value in shown:
        axis.annotate(f"{point.bits_per_weight:.2f}", (point.file_bytes / scale, value), xytext=(6, -5 if rising else 5),
                      textcoords="offset points", va="top" if rising else "bottom", fontsize=7.5, color=BLUE, zorder=4,
                      bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75})
