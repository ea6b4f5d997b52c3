"""`nnc decompress` and `nnc verify`: from a compressed checkpoint back to tensors."""
from __future__ import annotations

import time
from argparse import Namespace, _SubParsersAction

from .options import add_command, add_output, add_overwrite, add_reference, add_reporting, add_threads
from .output import Result, lines_of, place, printable
from .progress import show_progress

DECOMPRESS = """\
PATH is a file or folder written by nnc compress.  OUT is a .safetensors file, a torch file (.pt, .pth,
.bin, .th, .ckpt, .tar), or else a folder with the side files.  Names, shapes and dtypes are those of
the original; the values are the same on every machine.

examples:
  nnc decompress small.safetensors -o net.safetensors
  nnc decompress small/ -o model/
"""
VERIFY = """\
PATH is a file or folder written by nnc compress.  Nothing is written; exit code 4 if anything does not fit.

example:
  nnc verify small/
"""


def add_parsers(commands: _SubParsersAction) -> None:
    parser = add_command(commands, "decompress", "write a compressed checkpoint back as an ordinary one", DECOMPRESS,
                         run_decompress)
    parser.add_argument("path", metavar="PATH", help="compressed file or folder")
    add_output(parser, "where to write; the ending says which form")
    add_reference(parser)
    add_threads(parser)
    add_overwrite(parser)
    add_reporting(parser, "no progress bar and no summary; errors are still told")

    parser = add_command(commands, "verify", "decode everything and check all lengths, checksums and digests", VERIFY, run_verify)
    parser.add_argument("path", metavar="PATH", help="compressed file or folder")
    add_reference(parser)
    add_threads(parser)
    add_reporting(parser, "no progress bar and no summary: only the exit code, and errors, tell")


def run_decompress(arguments: Namespace) -> Result:
    from ..restoration import decompress

    start = time.perf_counter()
    with show_progress(arguments, "B") as progress:
        files = decompress(arguments.path, arguments.output, threads=arguments.threads, overwrite=arguments.overwrite,
                           progress=progress, reference=arguments.reference)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in files)
    data = {"path": arguments.path, "output": arguments.output, "files": [str(file) for file in files], "file_bytes": size,
            "seconds": seconds}
    pairs = [("path", printable(arguments.path)), ("output", place(arguments.output, len(files))), ("bytes", f"{size:,}"),
             ("seconds", f"{seconds:.1f}")]
    return Result(lines_of(pairs), data, secondary=True)


def run_verify(arguments: Namespace) -> Result:
    from ..restoration import verify

    start = time.perf_counter()
    with show_progress(arguments, "B") as progress:
        tensors = verify(arguments.path, threads=arguments.threads, progress=progress, reference=arguments.reference)
    seconds = time.perf_counter() - start
    data = {"path": arguments.path, "tensors": tensors, "seconds": seconds}
    return Result(f"{printable(arguments.path)}: {tensors:,} tensors are intact", data, secondary=True)
