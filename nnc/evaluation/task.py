"""What a task is: inputs for a network, a metric of its outputs, and the way in which two outputs are compared.

The three kinds of output:

    logits   (..., classes)   compared by KL(reference || model) in nats per prediction, and by the same first choice
    unit     (n, d), norm 1   compared by 1 - cosine
    values   anything else    compared by mean squared error and relative error

A task holds no network.  It may be run any number of times and gives the same batches every time.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator

from torch import Tensor, nn

from nnc.errors import InvalidArgument

KINDS = ("logits", "unit", "values")


@dataclass(frozen=True)
class Task:
    """One data set and what is measured on it.

    name              for tables
    kind              "logits", "unit" or "values": how outputs are compared
    metric            name of the figure with its unit, such as "top-1 %"; "CE nats" also gets a perplexity
    higher_is_better  direction of the metric
    batches           () -> the argument tuples for `model(*args)`, the same ones at each call
    measure           outputs of all batches, in order -> the figure; None: no labels, so only fidelity to a reference
    prepare           network -> callable that takes the batches and returns plain tensors; None: the network itself
    reduce            (number of the batch, its output) -> what `measure` needs of it, so that the outputs of a large
                      vocabulary need not be kept; None: the whole output

    Raises InvalidArgument for an unknown kind.
    """

    name: str
    kind: str
    metric: str
    higher_is_better: bool
    batches: Callable[[], Iterable[tuple]]
    measure: Callable[[list[Tensor]], float] | None = None
    prepare: Callable[[nn.Module], Callable[..., Any]] | None = None
    reduce: Callable[[int, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument(f"task {self.name}: kind is {self.kind!r}, must be one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Batches:
    """`count` argument tuples, each made when it is needed: a data set never lies in memory as float32 as a whole."""

    count: int
    make: Callable[[int], tuple]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple]:
        return (self.make(index) for index in range(self.count))
