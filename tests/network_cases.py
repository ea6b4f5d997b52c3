"""Networks of random integers, and an encoder that uses them whether they pay or not."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np

from nnc.encoded import EncodedTensor
from nnc.entropy.explicit import NETWORKS, ModelBank
from nnc.entropy.inputs import INPUTS
from nnc.entropy.network import OUTPUTS, SHIPPED, Layer, Network, read_shipped
from nnc.learning.choice import levels_of


def random_network(kind: str, seed: int, hidden: Sequence[int] = (7,), bits: int = 8, activation: str = "clip",
                   inputs: Sequence[int] | None = None) -> Network:
    """One whose outputs vary with all that it sees: the scale by about two octaves, the shape by all of them."""
    rng = np.random.default_rng(seed)
    inputs = tuple(range(INPUTS[kind])) if inputs is None else tuple(inputs)
    sizes, most, layers = [len(inputs), *hidden, OUTPUTS], 1 << (bits - 1), []
    for n, (wide, high) in enumerate(zip(sizes, sizes[1:])):
        last = n == len(sizes) - 2
        kernel = rng.integers(-most, most, (high, wide))
        reach = np.maximum(1, np.abs(kernel).sum(1) * 64)  # of the sums
        divisor = np.maximum(1, reach // np.array([24, 4])) if last else np.maximum(1, reach // 200)
        middle = divisor * (np.array([0, 3]) if last else 100)
        layers.append(Layer(kernel, middle - kernel.sum(1) * 100, divisor, None if last else activation))
    return Network(kind, inputs, bits, tuple(layers))


def shipped_networks() -> tuple[Network, ...]:
    return tuple(read_shipped(number, tuple(INPUTS.items())) for number in range(1, len(SHIPPED) + 1))


def hyper_networks() -> tuple[Network, ...]:
    return random_network("hyper", 1), random_network("hyper", 2, (5, 4), 6, "sigmoid", (0, 1, 2, 3, 4)), random_network("hyper", 6, (), 4)


def context_networks() -> tuple[Network, ...]:
    return (random_network("context", 3), random_network("context", 4, (6, 5), 5, "sigmoid"),
            random_network("context", 5, (), 7, inputs=(0, 8, 10, 14, 15, 16, 17, 18)))


NETWORKS_OF = {"hyper": hyper_networks, "context": context_networks, "shipped": shipped_networks,
               "both": lambda: (*hyper_networks()[:2], *context_networks()[:2])}


@contextmanager
def forcing(networks: Sequence[Network]) -> Iterator[None]:
    """Files use these networks, whether that pays or not, and train none."""
    with (patch("nnc.encoding.choose_networks", force_networks(networks)), patch("nnc.encoding.take_smaller", lambda static, learned: learned),
          patch("nnc.learning.choice.LEAST_TO_LEARN", 1 << 60)):
        yield


def force_networks(networks: Sequence[Network]) -> Callable:
    """As `choose_networks`, but the tensors take the networks in turn."""

    def choose(encoded: Sequence[EncodedTensor], bank: ModelBank, matrices: tuple, *_: object) -> tuple[list[EncodedTensor], ModelBank]:
        chosen = {}
        for n, tensor in enumerate(levels_of(encoded, bank, matrices)):
            number = n % len(networks)
            chosen[tensor.encoded.record.name] = tensor.encode(networks[number], NETWORKS + number)
        return [chosen.get(e.record.name, e) for e in encoded], replace(bank, networks=tuple(networks))

    return choose
