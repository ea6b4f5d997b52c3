"""The four kinds of error that nnc raises; every message is one line: what, its value, the bound, the remedy."""

from __future__ import annotations


class NncError(Exception):
    """Base of the four kinds; the command line prints it without a traceback."""


class InvalidArgument(NncError, ValueError):
    """The caller asked for something impossible: a wrong option, a missing file, an unknown name."""


class Unsupported(NncError):
    """Well-formed input that this version does not handle: a pickle that needs code, a newer format version."""


class Corruption(NncError):
    """A compressed file is damaged, truncated or hostile."""


class InsufficientData(NncError):
    """There is not enough to work with: an empty checkpoint, an empty data set, a missing tensor."""
