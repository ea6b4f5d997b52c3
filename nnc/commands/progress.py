"""Progress bars with the time left, on stderr, only where a person looks at them."""
from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .output import printable

Progress = Callable[[int, int, str], None]
COLUMNS, ROWS = 80, 24  # of a terminal that does not know its own size, where tqdm draws nothing


@contextmanager
def show_progress(arguments: Namespace, unit: str) -> Iterator[Progress | None]:
    """A callback (done, total, text) that draws a bar named after the command; None where stderr is no terminal, and with --quiet
    or --json.  unit: "B" for bytes, "" for numbers as large that mean something else from pass to pass."""
    if arguments.quiet or arguments.json or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    size = {"dynamic_ncols": True} if _has_size() else {"ncols": COLUMNS, "nrows": ROWS}
    with tqdm(desc=arguments.command, unit=unit, unit_scale=unit in ("B", ""), file=sys.stderr, leave=False, **size) as bar:
        def show(done: int, total: int, text: str) -> None:
            if done < bar.n or (total or None) != bar.total:  # another pass: the time left is that of a pass
                bar.total = total or None
                bar.reset()
            bar.set_postfix_str(printable(text.removeprefix(f"{arguments.command} ")), refresh=False)
            bar.update(done - bar.n)

        yield show


def _has_size() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False
