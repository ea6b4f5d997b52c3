"""Options that several commands share, and the values on a command line that are more than a number or a name."""

from __future__ import annotations

import re
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
    _ActionsContainer,
    _SubParsersAction,
)
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ..errors import InvalidArgument
from .output import Result

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
MOST_BYTES = 2**63 - 1
TASK = ("task", "data")


class Help(RawDescriptionHelpFormatter):
    """Examples keep their lines, and the names of options a column of their own."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, **options})


class Parser(ArgumentParser):
    """Reports wrong usage as InvalidArgument: one line, like every other error.  Options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, "allow_abbrev": False, **options})

    def error(self, message: str) -> None:
        raise InvalidArgument(f"{message}: see {self.prog} --help")


def add_command(
    commands: _SubParsersAction, name: str, summary: str, description: str, run: Callable[[Namespace], Result]
) -> Parser:
    """A parser for one command; `run` takes the parsed arguments."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}")
    parser.set_defaults(run=run)
    return parser


def add_output(parser: _ActionsContainer, what: str, metavar: str = "OUT", required: bool = True) -> None:
    parser.add_argument("-o", "--output", type=parse_path, metavar=metavar, required=required, help=what)


def add_overwrite(parser: _ActionsContainer) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT if it exists; the old one stays until the new one is complete"
    )


def add_threads(parser: _ActionsContainer) -> None:
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to use, 1 or more (default: all cores, 16 at most); the result does not depend on it",
    )


def add_reference(parser: _ActionsContainer,
                  what: str = "the checkpoint that PATH is a difference to (default: the one of the remembered name beside it)") -> None:
    parser.add_argument("--reference", metavar="PATH", help=what)


def add_reporting(parser: _ActionsContainer, quiet: str) -> None:
    """--quiet and --json, which exclude each other."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help=quiet)
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text, and no progress bar")


def add_encoding(parser: _ActionsContainer) -> None:
    """How to encode, for compress and sweep."""
    group = parser.add_argument_group("encoding")
    group.add_argument(
        "--effort",
        metavar="LEVEL",
        help="fast, default, high or max: 1, 8, 64 or 256 trellis states; each level takes longer to compress "
        "and makes smaller files",
    )
    group.add_argument(
        "--states", type=int, metavar="N", help="trellis states instead of those of the effort: 1, 4, 8, 16, 32, 64, 128 or 256"
    )
    group.add_argument(
        "--labelling", metavar="NAME", help="grids of the trellis: auto (chosen per tensor, the default), plain or sign-symmetric"
    )
    group.add_argument(
        "--lagrangian",
        type=float,
        metavar="L",
        help="weight of one bit against the squared error, in step^2 (default: by effort, 0.14 to 0.38)",
    )
    group.add_argument(
        "--tools",
        metavar="NAMES",
        help="what may be tried on every tensor and is used where it pays: default (transform, memory and inter), all, none, or some of "
        "transform, memory, inter, tree, outliers, codebook, tiles with commas between; README says what they are",
    )
    group.add_argument(
        "--access",
        metavar="UNIT",
        help="what will be read at once: tensor (the default), or rows of tables such as embeddings, with still fewer bytes, which may make files larger",
    )
    group.add_argument(
        "--entropy",
        metavar="NAME",
        help="tables of the entropy coder: static (the default), hyper (chosen by a small integer network where that saves bytes) or "
        "context (by one that also sees the weights before: slow to load)",
    )
    group.add_argument(
        "--config", metavar="FILE", help="TOML file with options by name and [[rules]]; options of the command line win over it"
    )
    group.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="GLOB=ACTION[:FACTOR]",
        help="for tensors whose name matches GLOB: exact (no loss), skip (left uncompressed, readable by any "
        "safetensors tool), finer:2 or coarser:2 (step divided or multiplied, default factor 2); may be "
        "given several times, the last match counts",
    )


def add_data(parser: _ActionsContainer, required: bool = False) -> None:
    """The options that say what a network is calibrated with and how it is run; `data_of` reads them."""
    parser.add_argument(
        "-d",
        "--data",
        type=parse_path,
        metavar="DATA",
        required=required,
        help="images, other numbers or token ids (.npz, .npy), sentence pairs (.tsv, .csv), text (any other file), a "
        "function module:function or path/to/file.py:function, or self: what the network makes itself",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="read the data as a task of nnc eval does: classification, perplexity, similarity or a function of "
        "your own (default: by the file)",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="function without arguments that returns the torch module to run; path/to/file.py:function too; "
        "default: what config.json says",
    )
    parser.add_argument(
        "--option",
        type=parse_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the data, such as batch=16, window=256, mean=0.5, tokenizer=model/, or shape=3,32,32 for self; "
        "may be repeated",
    )
    parser.add_argument(
        "--kind",
        choices=("logits", "unit", "values"),
        help="what the network's output is: logits, vectors of norm 1, or other values (default: found)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="images, windows of tokens, sentences or pairs to use at most (default: 1024 images, 65536 tokens, 512 sentences)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever is drawn by chance (default 0)")
    parser.add_argument(
        "--memory",
        type=parse_size,
        default=2 * 10**9,
        metavar="BYTES",
        help="bytes for calibration matrices at a time (default 2GB); less takes longer",
    )


def data_of(arguments: Namespace) -> dict[str, Any]:
    """The options of `add_data`, as `calibrate` and `compress` take them."""
    return {
        "data": arguments.data,
        "task": arguments.task,
        "model": arguments.model,
        "data_options": pairs_of(arguments),
        "kind": arguments.kind,
        "samples": arguments.samples,
        "seed": arguments.seed,
        "memory": arguments.memory,
    }


def pairs_of(arguments: Namespace, taken: tuple[str, ...] = ()) -> dict[str, str]:
    """Keys and values of --option; InvalidArgument for a key that is given twice, or `taken` by an option of its own."""
    options: dict[str, str] = {}
    for key, value in arguments.option:
        if key in options or key in taken:
            reason = (
                "is given twice" if key in options else f"has an option of its own: use {' or '.join(f'--{t}' for t in TASK)}"
            )
            raise InvalidArgument(f"--option {key}={value}: {key} {reason}")
        options[key] = value
    return options


def encoding_of(arguments: Namespace) -> dict[str, Any]:
    """The options of `add_encoding` but effort, as `compress` takes them."""
    return {
        "states": arguments.states,
        "labelling": arguments.labelling,
        "lagrangian": arguments.lagrangian,
        "tools": arguments.tools,
        "access": arguments.access,
        "entropy": arguments.entropy,
        "config": arguments.config,
        "rules": tuple(arguments.rule),
    }


def parse_size(text: str) -> int:
    """Bytes of "500kB", "2MB", "1.5MiB" or "50000"; a fraction of a byte is dropped, since a size is a bound."""
    found = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?) ?([A-Za-z]*)", text, re.ASCII)
    if found is None or found[2].lower() not in UNITS:
        raise ArgumentTypeError(f"{text!r} is no size: write bytes or a unit, such as 50000, 500kB, 2MB or 1.5MiB")
    size = int(Fraction(found[1]) * UNITS[found[2].lower()])
    if not 1 <= size <= MOST_BYTES:
        raise ArgumentTypeError(f"{text!r} is {size} bytes: must be 1 to {MOST_BYTES}")
    return size


def parse_path(text: str) -> str:
    """A name that is not empty: that would be the current folder."""
    if not text.strip():
        raise ArgumentTypeError("the name is empty: write that of a file or a folder")
    return text


def parse_rates(text: str) -> list[float]:
    """Bits per weight, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no list of numbers: write 2,3,4 or 2.5") from None


def parse_pair(text: str) -> tuple[str, str]:
    """Key and value of "key=value"."""
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise ArgumentTypeError(f"{text!r} is no option of a task: write key=value, such as batch=64")
    return key, value
