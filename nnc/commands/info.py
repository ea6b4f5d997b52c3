"""`nnc info`: what a compressed checkpoint holds and where its bytes go; no tensor is decoded, but for --tree."""
from __future__ import annotations

import shutil
import sys
from argparse import Namespace, _SubParsersAction
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .options import add_command, parse_path
from .output import Result, finite, lines_of, place, printable, reduction, table_of

if TYPE_CHECKING:
    from ..inspection import FileInfo, TensorInfo

ABOUT = """\
First the whole: bytes of all files and what they are spent on: payload (entropy coded weights), side
information (scales of rows and columns), exact (tensors kept without loss), overhead (headers, tables,
names).  Then a line per tensor:

  kind         coded, logarithmic (all values positive, relative steps), exact, plain (an
               uncompressed entry of its own), constant, alias (same bytes as another tensor),
               tied (shares its memory with another tensor), predicted (coded as the difference to
               the reference), same (the tensor of the reference), tiled (in small tiles, each predicted
               from those around it); coded+transform+memory: with these tools
  step         distance of neighbouring reconstruction points, in units of the weights
  states       of the trellis; 1: scalar quantizer
  bits/weight  of this tensor, without overhead
  SNR dB       signal to noise ratio of this tensor, to half a dB; "exact": without loss
  share        part of all bytes
  predicted    with --statistics and --original: divergence of the network's output by this tensor's
               error; "unseen": calibration did not see it.  This decodes all tensors

With --tree one tensor is shown instead: how it is cut into CTUs and, if its scales change from block to
block, into coding units (CU), each with a scale code of its own or skipped; the bits of every size, by
decoding its levels.

A terminal shows long names shortened, a pipe or file gets them whole.

examples:
  nnc info small/ --sort size | head -40
  nnc info small.safetensors --json
  nnc info small/ --tree encoder.layer.0.weight -o tree.png
  nnc info small.safetensors --statistics stats.safetensors --original net.safetensors --sort loss
"""
HEAD = ("name", "shape", "dtype", "kind", "step", "states", "bytes", "bits/weight", "SNR dB", "share")


def add_parsers(commands: _SubParsersAction) -> None:
    parser = add_command(commands, "info", "show what a compressed checkpoint holds", ABOUT, run_info)
    parser.add_argument("path", metavar="PATH", help="compressed file or folder")
    parser.add_argument("--sort", choices=("size", "name", "bits", "loss"),
                        help="order of the tensors: size (most bytes first), name, bits (most bits per weight first), loss (largest "
                             "prediction first, with --statistics); default: as in the checkpoint")
    parser.add_argument("--statistics", metavar="FILE", help="from nnc calibrate, of the original; needs --original")
    parser.add_argument("--original", metavar="ORIGINAL", help="checkpoint that was compressed; needs --statistics")
    parser.add_argument("--tree", metavar="TENSOR", help="show the partition of this tensor")
    parser.add_argument("-o", "--output", type=parse_path, metavar="PNG", help="with --tree: draw it to this file, too; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run_info(arguments: Namespace) -> Result:
    if arguments.tree is not None:
        return _show_tree(arguments)
    if arguments.output is not None:
        raise InvalidArgument("-o draws a partition: name a tensor with --tree")
    from ..inspection import inspect

    info = inspect(arguments.path)
    tensors = list(info.tensors)
    losses = _predict(arguments)
    if arguments.sort == "name":
        tensors.sort(key=lambda tensor: tensor.name)
    elif arguments.sort == "loss":
        tensors.sort(key=lambda tensor: (-(losses.get(tensor.name) or 0.0), tensor.name))
    elif arguments.sort:
        tensors.sort(key=lambda tensor: (-(tensor.bytes if arguments.sort == "size" else tensor.bits), tensor.name))
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None
    rows = [_row(tensor) for tensor in tensors]
    data = _data(arguments.path, info, tensors)
    if losses is None:
        return Result(f"{_describe_file(arguments.path, info)}\n\n{table_of(HEAD, rows, width)}", data)
    total = sum(loss or 0.0 for loss in losses.values())
    said = ("predicted", f"{total:.4g} divergence of the network's output, by {printable(arguments.statistics)}")
    for row, entry, tensor in zip(rows, data["tensors"], tensors):
        loss = losses.get(tensor.name)
        row.append(f"{loss:.3g}" if loss is not None else "unseen" if tensor.name in losses else "-")
        entry["predicted_loss"] = finite(loss)
    data["predicted_loss"] = finite(total)
    return Result(f"{_describe_file(arguments.path, info, said)}\n\n{table_of((*HEAD, 'predicted'), rows, width)}", data)


def _show_tree(arguments: Namespace) -> Result:
    if arguments.sort or arguments.statistics is not None or arguments.original is not None:
        raise InvalidArgument("--tree shows one tensor: leave out --sort, --statistics and --original")
    from .tree import show_tree

    return show_tree(arguments.path, arguments.tree, arguments.output)


def _predict(arguments: Namespace) -> dict[str, float | None] | None:
    """Predicted loss of the float tensors, None for those that calibration did not see; None if no statistics are given."""
    if (arguments.statistics is None) != (arguments.original is None):
        raise InvalidArgument("--statistics and --original go together: the error is that against the original")
    if arguments.statistics is None:
        if arguments.sort == "loss":
            raise InvalidArgument("--sort loss needs --statistics and --original")
        return None
    from ..evaluation import predict_losses

    found = predict_losses(arguments.path, arguments.original, arguments.statistics)
    return {name: loss.predicted for name, loss in found.items()}


def _describe_file(path: str, info: FileInfo, *more: tuple[str, str]) -> str:
    def part(size: int) -> str:
        return f"{size:,} bytes, {100 * size / max(1, info.file_bytes):.1f} %"

    reference = [] if info.reference is None else [("reference", printable(info.reference) or "one without a name")]
    return lines_of([("path", f"{place(path, len(info.files))}, made from: {printable(info.origin)}"),
                     ("bytes", reduction(info.original_bytes, info.file_bytes)),
                     ("bits/weight", f"{info.bits_per_weight:.3f} ({info.parameters:,} weights, {len(info.tensors):,} tensors)"),
                     ("payload", part(info.payload)), ("side information", part(info.side)), ("exact", part(info.exact)),
                     ("overhead", part(info.overhead)), *reference, *more])


def _row(tensor: TensorInfo) -> list[str]:
    logarithmic = tensor.labelling == "logarithmic"
    unquantized = "-" if tensor.kind in ("alias", "tied") else "exact"
    return [tensor.name, "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype,
            "logarithmic" if logarithmic else "+".join((tensor.kind, *tensor.tools)),
            "-" if tensor.step is None or logarithmic else f"{tensor.step:.4g}",
            "-" if tensor.states is None else str(tensor.states),
            str(tensor.bytes), f"{tensor.bits:.3f}",
            unquantized if tensor.snr is None else f"{tensor.snr:.1f}", f"{100 * tensor.share:.2f}%"]


def _data(path: str, info: FileInfo, tensors: list[TensorInfo]) -> dict[str, Any]:
    return {"path": path, "files": list(info.files), "origin": info.origin, "reference": info.reference, "original_bytes": info.original_bytes,
            "file_bytes": info.file_bytes, "ratio": info.original_bytes / max(1, info.file_bytes), "parameters": info.parameters,
            "bits_per_weight": info.bits_per_weight, "payload_bytes": info.payload, "side_bytes": info.side,
            "exact_bytes": info.exact, "overhead_bytes": info.overhead, "tensors": [_tensor_data(tensor) for tensor in tensors]}


def _tensor_data(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "kind": tensor.kind, "step": tensor.step,
            "states": tensor.states, "labelling": tensor.labelling, "ctus": tensor.ctus, "bytes": tensor.bytes,
            "bits_per_weight": tensor.bits, "snr_db": tensor.snr, "share": tensor.share, "tools": list(tensor.tools)}
