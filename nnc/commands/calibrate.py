"""`nnc calibrate`: what errors in the weights of a network cost at its output, as a file for `nnc compress`."""

from __future__ import annotations

import time
from argparse import Namespace, _SubParsersAction
from typing import TYPE_CHECKING, Any

from .options import add_command, add_data, add_output, add_reporting, data_of, parse_path
from .output import DIVERGENCES, Result, lines_of, listed, printable, table_of
from .progress import show_progress

if TYPE_CHECKING:
    from ..calibration.statistics import Statistics
    from ..sources import Inputs

ABOUT = """\
SOURCE is an original checkpoint: Hugging Face folder, .safetensors or torch file.  Its network runs on the
data, without labels; an eighth of the data is left for nnc compress to measure with.  Work that is
finished is kept in OUT: repeat a command that was cut off, and it goes on from there.  The same inputs
give the same file.

  tensor       largest share of the sensitivity first
  sensitivity  divergence of the network's output if every weight of the tensor were off by 1 % of the
               tensor's own root mean square
  inputs       positions at which the matrix was used

Functions that --data, --task and --model name are Python code that is run.

examples:
  nnc calibrate model/ -d text.txt -o stats.safetensors           text, with the tokenizer in model/
  nnc calibrate model/ -d self -o stats.safetensors               text that the model writes itself
  nnc calibrate net.safetensors -d images.npz --model net.py:build -o stats.safetensors
"""
HEAD = ("tensor", "plane", "sensitivity", "inputs")
LISTED = 20  # tensors in the table


def add_parsers(commands: _SubParsersAction) -> None:
    parser = add_command(commands, "calibrate", "run a network on data to learn what its weights matter", ABOUT, run_calibrate)
    parser.add_argument("source", type=parse_path, metavar="SOURCE", help="original checkpoint: folder or file")
    add_output(parser, "file for the statistics, .safetensors")
    add_data(parser)
    parser.add_argument(
        "--draws", type=int, metavar="N", help="labels drawn per batch (default: 1 to 8, by the number of predictions)"
    )
    parser.add_argument("--weights-key", metavar="KEY", help="dotted key of the state dict in a torch file, as for nnc compress")
    add_reporting(parser, "no progress bar and no summary; errors are still told")


def run_calibrate(arguments: Namespace) -> Result:
    from ..calibrated import Request, open_inputs

    start = time.perf_counter()
    with show_progress(arguments, "") as progress:
        request = Request(**data_of(arguments), draws=arguments.draws, weights_key=arguments.weights_key, progress=progress)
        opened = open_inputs(arguments.source, request)
        statistics = opened.gather(arguments.output)
        sensitivities = opened.sensitivities(statistics)
    seconds = time.perf_counter() - start
    return _describe(arguments, statistics, sensitivities, opened.inputs, seconds)


def _describe(
    arguments: Namespace,
    statistics: Statistics,
    sensitivities: dict[str, float],
    inputs: Inputs,
    seconds: float,
) -> Result:
    silent = [name for name, value in sensitivities.items() if value == 0]
    order = sorted(sensitivities, key=lambda name: (-sensitivities[name], name))
    rows = []
    for name in order[:LISTED]:
        entry = statistics.tensors[name]
        rows.append(
            [
                name,
                "x".join(map(str, entry.shape)),
                f"{sensitivities[name]:.4g}",
                f"{min(entry.samples):,}" if min(entry.samples) else "-",
            ]
        )
    pairs = [
        ("source", printable(arguments.source)),
        ("output", printable(arguments.output)),
        ("data", f"{printable(inputs.name)}, {inputs.samples:,} samples, {statistics.predictions:,} predictions"),
        ("kind", f"{statistics.kind}: {DIVERGENCES[statistics.kind]}"),
        ("seen", f"{len(sensitivities) - len(silent):,} tensors"),
    ]
    if statistics.unseen:
        pairs.append(("never seen", f"{len(statistics.unseen)}, by the rule without data: {listed(statistics.unseen)}"))
    if silent:
        pairs.append(("all zero", f"{len(silent)} with inputs of zero, by the rule without data: {listed(silent)}"))
    pairs += [("note", printable(note)) for note in inputs.notes]
    pairs.append(("seconds", f"{seconds:.1f}"))
    more = f"\nand {len(order) - LISTED} more" if len(order) > LISTED else ""
    tensors: list[dict[str, Any]] = [
        {
            "name": name,
            "plane": list(statistics.tensors[name].shape),
            "sensitivity": sensitivities[name],
            "samples": list(statistics.tensors[name].samples),
        }
        for name in sensitivities
    ]
    content = {
        "source": arguments.source,
        "output": arguments.output,
        "data": inputs.name,
        "kind": statistics.kind,
        "samples": inputs.samples,
        "predictions": statistics.predictions,
        "tensors": tensors,
        "unseen": list(statistics.unseen),
        "all_zero": silent,
        "notes": list(inputs.notes),
        "seconds": seconds,
    }
    return Result(f"{lines_of(pairs)}\n\n{table_of(HEAD, rows)}{more}", content, secondary=True)
