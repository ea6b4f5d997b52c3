"""The command line: `nnc` and `python -m nnc`.  stdout carries results only; progress and one line per error go to stderr."""
from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from . import __version__
from .commands import calibrate, compress, evaluate, info, restore
from .commands.options import Parser
from .commands.output import printable
from .errors import Corruption, InsufficientData, InvalidArgument, NncError, Unsupported

EXIT_CODES = {InvalidArgument: 2, Unsupported: 3, Corruption: 4, InsufficientData: 5}
MACHINE, INTERRUPTED, CLOSED_PIPE = 1, 130, 141

ABOUT = "Neural network weight compression: small checkpoints that load back as runnable models."
EPILOG = """\
`nnc COMMAND --help` explains a command with examples.

exit codes: 0 done, 1 the machine failed (memory, disk), 2 wrong usage, 3 not supported,
            4 the file is damaged, 5 not enough data, 130 interrupted,
            141 the reader of the output went away
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.  argv: arguments without the program's name; default: those of the process."""
    try:
        _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _tell("nnc: interrupted")
        return INTERRUPTED
    except NncError as error:
        _complain(str(error))
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except BrokenPipeError:
        _drop_output()
        return CLOSED_PIPE
    except MemoryError as error:
        _complain(f"not enough memory: {error}" if str(error) else "not enough memory")
        return MACHINE
    except OSError as error:
        _drop_output()
        reason = error.strerror or str(error)
        _complain(f"{error.filename}: {reason}" if error.filename else reason)
        return MACHINE
    return 0


def make_parser() -> Parser:
    """The parser of all commands, in the order of `nnc --help`."""
    parser = Parser(prog="nnc", description=ABOUT, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"nnc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (compress, calibrate, restore, info, evaluate):
        module.add_parsers(commands)
    return parser


def _run(argv: Sequence[str] | None) -> None:
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit:  # --help and --version have been answered; wrong usage is an InvalidArgument
        return
    result = arguments.run(arguments)
    if arguments.json:
        _print(json.dumps(result.data, indent=1, allow_nan=False))
    elif not (result.secondary and arguments.quiet):
        _print(result.text)


def _print(text: str) -> None:
    if sys.stdout is not None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))


def _complain(message: str) -> None:
    _tell(f"nnc: error: {message}")


def _tell(message: str) -> None:
    if sys.stderr is not None:
        print(printable(" ".join(message.split())), file=sys.stderr)


def _drop_output() -> None:
    """Let what is left for a dead stdout go nowhere, else the interpreter tries again at exit and prints a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run() -> int:
    """Entry point of the program: being terminated is an interruption, so that nothing half-written stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(run())
