"""`nnc compress`: from a checkpoint to a compressed one."""

from __future__ import annotations

import time
from argparse import Namespace, _SubParsersAction
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgument
from .options import (
    add_command,
    add_data,
    add_encoding,
    add_output,
    add_overwrite,
    add_reference,
    add_reporting,
    add_threads,
    data_of,
    encoding_of,
    parse_path,
    parse_size,
)
from .output import DIVERGENCES, Result, finite, lines_of, listed, place, printable, reduction, table_of
from .progress import show_progress

if TYPE_CHECKING:
    from ..compression import Summary
    from ..runs import RunSummary

ABOUT = """\
SOURCE is a Hugging Face folder, a .safetensors file or a torch file (.pt, .pth, .bin, .th, .ckpt,
.tar); no code of a file is ever run.  OUT is one file if its name ends in .safetensors, else a folder
with the side files of SOURCE.  It appears whole or not at all, and only after all of it has been
decoded and compared.

With --data the network runs on inputs, without labels, and bits go to where its output needs them: much
smaller files at the same quality.  An eighth of the data is held back, to measure what came out.
Functions that --data, --task and --model name are Python code that is run.

examples:
  nnc compress model/ -o small/ --bits 2.5              2.5 bits per weight over all bytes written
  nnc compress net.pt -o net.safetensors --size 500kB   at most 500,000 bytes
  nnc compress net.pt -o net.safetensors --snr 40       error power of the weights 40 dB below their power
  nnc compress model/ -o small/ --bits 3 --effort high --rule '*embed*=finer:2' --rule '*norm*=exact'
  nnc compress model/ -o small/ --bits 2.5 --data text.txt           calibrated on text
  nnc compress model/ -o small/ --bits 2.5 --data self               ... that the model writes itself
  nnc compress tuned/ -o delta/ --reference base/                    only the difference to another checkpoint
  nnc compress epoch-*/ -o run/ --snr 40                             a training run: run/epoch-1/, ...
  nnc compress net.pt -o net.safetensors --kl 0.01 --data images.npz --model net.py:build
"""


def add_parsers(commands: _SubParsersAction) -> None:
    parser = add_command(commands, "compress", "compress a checkpoint", ABOUT, run_compress)
    parser.add_argument("source", type=parse_path, metavar="SOURCE", nargs="+",
                        help="checkpoint to compress: folder or file; several: a training run, each stored as the difference to the one "
                             "before")
    add_output(parser, "where to write: a name that ends in .safetensors, or a folder")
    targets = parser.add_argument_group("target (one of them; default: --snr 25, about 4 bits per weight)")
    group = targets.add_mutually_exclusive_group()
    group.add_argument("--bits", type=float, metavar="B", help="bits per weight: bits of all files / number of weights")
    group.add_argument(
        "--size",
        type=parse_size,
        metavar="BYTES",
        help="bytes of all files at most: 50000, 500kB, 2MB (powers of 1000), 1.5MiB (of 1024)",
    )
    group.add_argument(
        "--snr",
        type=float,
        metavar="DB",
        help="signal to noise ratio over all quantized weights, in dB; 6.02 dB more take about 1 bit per weight",
    )
    group.add_argument("--step", type=float, metavar="S", help="one quantization step for all tensors, in units of the weights")
    group.add_argument("--kl", type=float, metavar="X",
                       help="divergence from the original's output: KL in nats per prediction, 1 - cosine or mean squared error; needs "
                            "--data or --statistics")
    targets.add_argument("--lossless", action="store_true", help="keep every value to the last bit")
    add_encoding(parser)
    group = parser.add_argument_group("prediction")
    add_reference(group, "another checkpoint, compressed or not, such as the one that SOURCE was trained from: only the difference is "
                         "stored, and reading needs it again: beside OUT, under its name, or wherever --reference says")
    group.add_argument("--key-every", type=int, metavar="N",
                       help="with several SOURCEs: every N-th is stored without reference (default 8), so that reading one takes at most "
                            "N - 1 others")
    group = parser.add_argument_group("calibration")
    add_data(group)
    group.add_argument(
        "--statistics",
        type=parse_path,
        metavar="FILE",
        help="from nnc calibrate, of the same network; with --data a file that is written if it is not there",
    )
    group.add_argument(
        "--tune",
        action="store_true",
        help="also tune, on the data, what is not quantized: biases, norms, running statistics; kept if it helps",
    )
    group.add_argument(
        "--substitution",
        metavar="NAME",
        help="what is coded in place of the weights: feedback of errors (the default), gradient (a search by gradients "
        "after that: slow, for a few tenths of a percent) or none",
    )
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--weights-key",
        metavar="KEY",
        help="dotted key of the state dict in a torch file, such as model.ema; '' is the top level "
        "(needed only if tensors stand in several places)",
    )
    group.add_argument("--shard-size", type=parse_size, metavar="BYTES", help="bytes per file at most in a folder (default 5GB)")
    add_threads(group)
    add_overwrite(group)
    add_reporting(parser, "no progress bar and no summary; errors are still told")


def run_compress(arguments: Namespace) -> Result:
    from ..calibrated import compress

    if arguments.shard_size is not None and Path(arguments.output).suffix == ".safetensors":
        raise InvalidArgument(f"--shard-size splits a folder, {arguments.output} is one file: leave it out or name a folder")
    options = dict(bits=arguments.bits, size=arguments.size, snr=arguments.snr, step=arguments.step, kl=arguments.kl,
                   lossless=arguments.lossless or None, **data_of(arguments), statistics=arguments.statistics, tune=arguments.tune,
                   reference=arguments.reference, substitution=arguments.substitution, effort=arguments.effort,
                   **encoding_of(arguments), shard_bytes=arguments.shard_size, weights_key=arguments.weights_key,
                   threads=arguments.threads, overwrite=arguments.overwrite)
    start = time.perf_counter()
    with show_progress(arguments, "B" if arguments.data is None and arguments.task is None else "") as progress:
        if len(arguments.source) > 1:
            from ..runs import KEY_EVERY, compress_run

            key_every = KEY_EVERY if arguments.key_every is None else arguments.key_every
            run = compress_run(arguments.source, arguments.output, key_every=key_every, progress=progress, **options)
            return _describe_run(arguments, run, time.perf_counter() - start)
        if arguments.key_every is not None:
            raise InvalidArgument("--key-every is for several checkpoints, this is one: leave it out")
        summary = compress(arguments.source[0], arguments.output, progress=progress, **options)
    return _describe(arguments, summary, time.perf_counter() - start)


def _describe_run(arguments: Namespace, run: RunSummary, seconds: float) -> Result:
    keys = set(run.keys)
    members = [{"name": name, "key": name in keys, "original_bytes": member.original_bytes, "file_bytes": member.file_bytes,
                "snr_db": finite(member.snr), "same": list(member.same), "predicted": list(member.predicted)}
               for name, member in zip(run.names, run.members)]
    data = {"sources": arguments.source, "output": arguments.output, "original_bytes": run.original_bytes,
            "file_bytes": run.file_bytes, "members": members, "seconds": seconds}
    rows = [[m["name"], "key" if m["key"] else "difference", f"{m['file_bytes']:,}", f"{100 * m['file_bytes'] / max(1, m['original_bytes']):.2f}%",
             "no error" if m["snr_db"] is None else f"{m['snr_db']:.2f}", str(len(m["same"]))] for m in members]
    pairs = [("output", printable(arguments.output)), ("bytes", reduction(run.original_bytes, run.file_bytes)),
             ("seconds", f"{seconds:.1f}")]
    head = ("member", "stored as", "bytes", "of original", "SNR dB", "same tensors")
    return Result(f"{lines_of(pairs)}\n\n{table_of(head, rows, None)}", data, secondary=True)


def _describe(arguments: Namespace, summary: Summary, seconds: float) -> Result:
    before, after = summary.original_bytes, summary.file_bytes
    data = {"source": arguments.source[0], "output": arguments.output, "files": [str(path) for path in summary.files],
            "original_bytes": before, "file_bytes": after, "ratio": before / max(1, after), "parameters": summary.parameters,
            "tensors": summary.tensors, "bits_per_weight": summary.bits_per_weight, "snr_db": finite(summary.snr),
            "factor": summary.factor, "kept_exact": list(summary.kept), "left_out": list(summary.left_out),
            "kind": getattr(summary, "kind", None), "calibrated_on": getattr(summary, "data", None),
            "predicted_divergence": finite(summary.loss), "measured_divergence": finite(summary.measured),
            "reference": arguments.reference, "same": list(summary.same), "predicted": list(summary.predicted),
            "unseen": list(summary.unseen), "notes": list(getattr(summary, "notes", ())), "seconds": seconds}
    pairs = [("source", printable(arguments.source[0])), ("output", place(arguments.output, len(summary.files))),
             ("bytes", reduction(before, after)),
             ("bits/weight", f"{summary.bits_per_weight:.3f} ({summary.parameters:,} weights, {summary.tensors:,} tensors)"),
             ("weights SNR", f"{summary.snr:.2f} dB" if isfinite(summary.snr) else "no error")]
    if arguments.reference:
        pairs.append(("reference", f"{printable(arguments.reference)}: {len(summary.same):,} tensors are the same there, "
                                   f"{len(summary.predicted):,} stored as differences"))
    pairs += _describe_calibration(summary)
    if summary.kept:
        pairs.append(("kept exact", f"{len(summary.kept)} for NaN or Inf: {listed(summary.kept)}"))
    if summary.left_out:
        pairs.append(("left out", f"{len(summary.left_out)} of the source: {listed(summary.left_out)}"))
    return Result(lines_of([*pairs, ("seconds", f"{seconds:.1f}")]), data, secondary=True)


def _describe_calibration(summary: Summary) -> list[tuple[str, str]]:
    """Lines on what calibration said; none without it."""
    if summary.loss is None:
        return []
    unit = DIVERGENCES[summary.kind]
    samples = f", {summary.samples:,} samples" if summary.samples else ""
    pairs = [
        ("calibrated", f"{printable(summary.data)}{samples}, outputs of kind {summary.kind}"),
        ("predicted", f"{summary.loss:.4g} {unit}"),
    ]
    if summary.measured is not None:
        pairs.append(("measured", f"{summary.measured:.4g} {unit}, on {summary.held_back:,} batches held back"))
    if summary.unseen:
        pairs.append(("never seen", f"{len(summary.unseen)} tensors, by the rule without data: {listed(summary.unseen)}"))
    return pairs + [("note", printable(note)) for note in summary.notes]
