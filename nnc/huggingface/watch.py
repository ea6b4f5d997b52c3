"""What the files opened for a model are asked for while it loads: `reading` notes it here, the quantizer looks.

transformers does not tell its quantizer which tensors it found a place for.  It opens all files in the thread that loads the model.
"""

from __future__ import annotations

from threading import local

_loading = local()


def watch_reading() -> set[str]:
    """From now on, the names that files opened by this thread are asked for: the set fills while the model loads."""
    _loading.served = set()
    return _loading.served


def watched() -> set[str] | None:
    """The set to note names in, None if nobody looks."""
    return getattr(_loading, "served", None)


def end_watching() -> None:
    _loading.served = None
