"""`nnc eval` and `nnc sweep`: what compression costs a network at its task."""
from __future__ import annotations

import tempfile
from argparse import Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    Parser,
    add_command,
    add_encoding,
    add_output,
    add_reporting,
    add_threads,
    encoding_of,
    pairs_of,
    parse_pair,
    parse_rates,
)
from .output import Result, lines_of, printable, table_of
from .progress import show_progress

if TYPE_CHECKING:
    from ..evaluation import Point, Report, Task

EVAL = """\
PATH is a compressed or an original checkpoint.  With --original the outputs are also compared with
those of the original: KL divergence in nats per prediction, 1 - cosine of embeddings, or mean squared
error; this needs no labels.

tasks, their data files and options:
  classification   top-1 accuracy in %; .npz with images and labels
                   options batch, limit, mean, std
  perplexity       cross-entropy in nats; .npy or .npz of token ids, or text
                   options batch, limit, window, tokenizer
  similarity       Spearman x 100; .npz, .tsv or .csv of sentence pairs
                   options batch, limit, tokenizer, length
  module:function or path/to/file.py:function of your own, which returns a nnc.evaluation.Task

Functions that --task and --model name are Python code that is run.

examples:
  nnc eval small.safetensors --task classification --data test.npz --model net.py:build \\
      --original net.safetensors --statistics stats.safetensors --per-tensor
  nnc eval small/ --task perplexity --data text.txt --option tokenizer=model/ --option window=256
"""
SWEEP = """\
SOURCE is an original checkpoint.  It is compressed at each rate, evaluated beside the original, and a
Markdown table of accuracy against size is printed; file bytes count everything that is written.
Tasks, models and options are those of nnc eval.

examples:
  nnc sweep net.safetensors --task net.py:task --model net.py:build --bits 2,3,4
  nnc sweep model/ --task perplexity --data text.txt --option tokenizer=model/ --bits 2,2.5,3 -o sweep/
"""


LISTED_TENSORS = 20  # by prediction, where none is measured


def add_parsers(commands: _SubParsersAction) -> None:
    parser = add_command(commands, "eval", "run a task with a compressed or an original checkpoint", EVAL, run_eval)
    parser.add_argument("path", metavar="PATH", help="checkpoint to evaluate: file or folder")
    _add_task(parser)
    parser.add_argument("--original", metavar="ORIGINAL", help="checkpoint to compare the outputs with")
    parser.add_argument("--layers", action="store_true", help="also the relative error of each layer; needs --original")
    parser.add_argument("--statistics", metavar="FILE",
                        help="of the original, from nnc calibrate: also the divergence that they predict, in all and by tensor")
    parser.add_argument("--per-tensor", type=int, nargs="?", const=20, default=0, metavar="N",
                        help="also measure the N tensors with the largest predictions (default 20), each one exchanged alone in the "
                             "original; needs --statistics")
    add_reporting(parser, "no progress bar")

    parser = add_command(commands, "sweep", "compress at several rates and tabulate accuracy against size", SWEEP, run_sweep)
    parser.add_argument("source", metavar="SOURCE", help="original checkpoint: file or folder")
    parser.add_argument("--bits", type=parse_rates, required=True, metavar="B,B,...",
                        help="rates to try, in bits per weight of the whole file, such as 2,3,4")
    _add_task(parser)
    add_encoding(parser)
    add_threads(parser)
    add_output(parser, "folder for sweep.csv, sweep.md and sweep.png (default: only print the table)", "FOLDER", required=False)
    parser.add_argument("--no-plot", action="store_true", help="no sweep.png in FOLDER, and no need for matplotlib")
    add_reporting(parser, "no progress bar")


def _add_task(parser: Parser) -> None:
    group = parser.add_argument_group("task")
    group.add_argument("--task", required=True, metavar="NAME",
                       help="classification, perplexity, similarity, module:function or path/to/file.py:function")
    group.add_argument("--data", metavar="FILE", help="data file of the task; a function of your own may do without")
    group.add_argument("--model", metavar="MODULE:FUNCTION",
                       help="function without arguments that returns the torch module to run; path/to/file.py:function too; "
                            "default: what config.json says")
    group.add_argument("--option", type=parse_pair, action="append", default=[], metavar="KEY=VALUE",
                       help="option of the task, such as batch=64; may be repeated")
    group.add_argument("--device", metavar="NAME", help="where the network runs, such as cpu (the default), cuda or cuda:1")


def make_chosen_task(arguments: Namespace) -> Task:
    """The task that the options name."""
    from ..evaluation import make_task

    return make_task(arguments.task, arguments.data, **pairs_of(arguments, ("spec", "data")))


def run_eval(arguments: Namespace) -> Result:
    from ..evaluation import evaluate

    with show_progress(arguments, "batch") as progress:
        report = evaluate(arguments.path, make_chosen_task(arguments), arguments.model, arguments.original, arguments.layers,
                          progress, arguments.device, arguments.statistics, arguments.per_tensor)
    data = {"path": arguments.path, "original": arguments.original, **report.to_dict()}
    return Result(_describe_report(arguments, report), data)


def _describe_report(arguments: Namespace, report: Report) -> str:
    pairs = [("path", printable(arguments.path)),
             ("task", f"{printable(report.task)}, {report.count:,} outputs, {report.seconds:.1f} s")]
    if report.value is not None:
        perplexity = "" if report.perplexity is None else f" (perplexity {report.perplexity:.4g})"
        pairs.append((printable(report.metric), f"{report.value:.4f}{perplexity}"))
    if report.loss is not None:
        pairs.append(("lost", f"{report.loss:+.4f} against {report.reference_value:.4f} of {printable(arguments.original)}"))
    if report.fidelity is not None:
        distance = f"{report.fidelity.value:.4g} from the original"
        if report.fidelity.top1_agreement is not None:
            distance += f", same first choice {100 * report.fidelity.top1_agreement:.2f} %"
        if report.fidelity.relative_error is not None:
            distance += f", relative error {report.fidelity.relative_error:.4g}"
        pairs.append((report.fidelity.name, distance))
    if report.predicted is not None:
        pairs.append(("predicted", f"{report.predicted:.4g} {report.fidelity.name}, the sum over {len(report.tensors):,} tensors"))
    parts = [lines_of([*pairs, *(("note", printable(note)) for note in report.notes)])]
    if report.layers:
        rows = [[layer.name, layer.kind, f"{layer.relative_error:.4g}"] for layer in report.layers]
        parts.append(table_of(("layer", "kind", "relative error"), rows))
    if report.tensors:
        parts.append(_describe_tensors(report))
    return "\n\n".join(parts)


def _describe_tensors(report: Report) -> str:
    """The tensors that were measured, or the largest predictions, and the sums."""
    measured = [loss for loss in report.tensors if loss.measured is not None]
    shown = measured or report.tensors[:LISTED_TENSORS]
    head = ("tensor", "shape", f"predicted {report.fidelity.name}", *(["measured", "predicted/measured"] if measured else []))
    rows = []
    for loss in shown:
        row = [loss.name, "x".join(map(str, loss.shape)) or "scalar", "unseen" if loss.predicted is None else f"{loss.predicted:.4g}"]
        if measured:
            ratio = f"{loss.predicted / loss.measured:.3f}" if loss.predicted and loss.measured else "-"
            row += [f"{loss.measured:.4g}", ratio]
        rows.append(row)
    total = [f"sum of {len(shown):,}", "", f"{sum(loss.predicted or 0.0 for loss in shown):.4g}"]
    rows.append(total + ([f"{sum(loss.measured for loss in measured):.4g}", ""] if measured else []))
    return table_of(head, rows)


def run_sweep(arguments: Namespace) -> Result:
    from ..config import Config, make_config

    effort = arguments.effort or (Config() if arguments.config is None else make_config(arguments.config)).effort
    task = make_chosen_task(arguments)
    if arguments.output is None:
        files: list[Path] = []
        with tempfile.TemporaryDirectory(prefix="nnc-sweep-") as scratch:
            points, table = _measure(arguments, task, effort, Path(scratch), plot=False)
    else:
        folder = Path(arguments.output)
        files = [folder / "sweep.csv", folder / "sweep.md"] + ([] if arguments.no_plot else [folder / "sweep.png"])
        points, table = _measure(arguments, task, effort, folder, plot=not arguments.no_plot)
    data = {"source": arguments.source, "task": task.name, "effort": effort, "points": [_point(point) for point in points],
            "files": [str(file) for file in files]}
    return Result("\n".join(printable(line) for line in table.splitlines()), data)


def _measure(arguments: Namespace, task: Task, effort: str, folder: Path, plot: bool) -> tuple[list[Point], str]:
    """The points, and the table in Markdown."""
    from ..evaluation import sweep

    with show_progress(arguments, "rate") as progress:
        points = sweep(arguments.source, task, model=arguments.model, bits=arguments.bits, effort=effort, out=folder, plot=plot,
                       device=arguments.device, progress=progress, threads=arguments.threads, **encoding_of(arguments))
    return points, (folder / "sweep.md").read_text(encoding="utf-8")


def _point(point: Point) -> dict[str, Any]:
    return {"bits_asked": point.bits_asked, "file_bytes": point.file_bytes, "bits_per_weight": point.bits_per_weight,
            "ratio": point.ratio, "encode_seconds": point.encode_seconds, "decode_seconds": point.decode_seconds,
            "report": point.report.to_dict()}
