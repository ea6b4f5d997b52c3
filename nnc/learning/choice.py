"""Which tensors have their levels coded with a network, at equal levels: what makes the file smallest, the networks' own bytes counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

from ..encoded import EncodedTensor
from ..entropy.explicit import NETWORKS, ModelBank
from ..entropy.inputs import HYPER, INPUTS
from ..entropy.network import SHIPPED, Network, read_shipped
from .samples import Levels, may_learn, take_samples
from .training import Recipe, train

SCALES = (0, 1, 2, 4)  # inputs: indices and quantizer
OWN = {  # what a file may carry, most often the first: the inputs that its networks see, and how each is trained
    "hyper": ((SCALES, Recipe(hidden=(), bits=5)), (tuple(range(HYPER)), Recipe(hidden=(5,), bits=5))),
    "context": (((*SCALES, *range(HYPER, INPUTS["context"])), Recipe(hidden=(6,), bits=5)),),
}
KINDS = {"static": (), "hyper": ("hyper",), "context": ("hyper", "context")}  # of networks that may be used, by what was asked for
LEAST_TO_LEARN = 1 << 13  # levels of a file that trains a network of its own
FRAME = 1  # bytes of a network in the directory, besides what it says


@dataclass(frozen=True, eq=False)
class Candidates:
    """Networks that the tensors of a file may use, in the order of their numbers."""

    networks: tuple[Network, ...]

    @classmethod
    def find(cls, tensors: Sequence[Levels], asked: str) -> Candidates:
        """Those of this release and some trained on the tensors."""
        found = [read_shipped(number, tuple(INPUTS.items())) for number in range(1, len(SHIPPED) + 1)]
        found = [network for network in found if network.kind in KINDS[asked]]
        if sum(t.encoded.record.elements for t in tensors) >= LEAST_TO_LEARN and (samples := take_samples(tensors)):
            found += [train(samples, kind, *recipe).freeze() for kind in KINDS[asked] for recipe in OWN[kind]]
        return cls(tuple(found))

    def cost(self, number: int) -> int:
        """Bytes of a network in the directory."""
        network = self.networks[number]
        return FRAME + (0 if network.shipped else len(network.data()))


def levels_of(encoded: Sequence[EncodedTensor], bank: ModelBank, matrices: tuple) -> list[Levels]:
    """The tensors whose tables a network may choose."""
    return [Levels.of(e, bank, matrices) for e in encoded if may_learn(e)]


def choose_networks(
    encoded: Sequence[EncodedTensor], bank: ModelBank, matrices: tuple, candidates: Candidates, run: Callable = map
) -> tuple[list[EncodedTensor], ModelBank]:
    """The tensors, some with other streams of the same levels, and the bank with the networks that they name; run: as `map`, over tensors."""
    tensors = levels_of(encoded, bank, matrices)
    numbers = range(len(candidates.networks))
    sizes = list(run(lambda tensor: [sum(tensor.encoded.record.coding.streams), *tensor.price(candidates.networks)], tensors))

    def size(used: tuple[int, ...]) -> tuple[int, int]:
        allowed = [0, *(1 + n for n in used)]
        return sum(min(of[n] for n in allowed) for of in sizes) + sum(map(candidates.cost, used)), len(used)

    used = min(chain.from_iterable(combinations(numbers, count) for count in range(len(numbers) + 1)), key=size)

    def encode(task: tuple[Levels, list[int]]) -> EncodedTensor | None:
        """The tensor with the best network, None where tables are as short."""
        tensor, of = task
        best = min([0, *(1 + n for n in used)], key=lambda n: of[n])
        return tensor.encode(candidates.networks[best - 1], NETWORKS + used.index(best - 1)) if best else None

    found = [other for other in run(encode, list(zip(tensors, sizes))) if other]
    others = {other.record.name: other for other in found}
    return [others.get(e.record.name, e) for e in encoded], replace(bank, networks=tuple(candidates.networks[n] for n in used))
