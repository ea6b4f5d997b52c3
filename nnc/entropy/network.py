"""Integer networks, which foretell the tables of levels: encoder and decoder get the same ones on every machine (US11869221B2,
US20240104786A1).

A layer takes integers u in 0..255 to `v = (H u + b) div c`, rounded to nearest as `floor((2 a + c) / (2 c))`, cut to -512..511, and all
but the last to `w = g(v)` with a table of 1024 integers 0..255:

    clip       min(max(v, 0), 255)
    sigmoid    255 / (1 + 2^(-v / 64)), rounded, from the exponential of entropy.parametric

H are K-bit integers, b integers, c positive.  No sum of them, in whatever order, leaves 32 bits: `bound` says so before anything runs.
The last layer has two outputs (entropy.fine): what is added to the scale in 1/16 octave, and the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..bits import Reader, Writer
from ..errors import Corruption, Unsupported
from ..registry import Table
from .parametric import exponential

KINDS = Table("kind of network", {0: "hyper", 1: "context"})
ACTIVATIONS = Table("activation", {0: "clip", 1: "sigmoid"})
MAX_NETWORKS = 16
MAX_INPUT = 255
RANGE = 512  # a sum over its divisor lies in -512..511
MAX_DIVISOR = 1 << 18
MAX_HIDDEN, MAX_UNITS = 3, 64
OUTPUTS = 2
MOST_BITS, LEAST_BITS = 8, 2  # of the entries of a kernel
_MAX_SHIFT = 24
SHIPPED = (  # SHA-256 of network-1.bin and so on
    "3507d5aa1ac0b6b72e4a6c8beaf8a22125140a9134f504f5b7766255efd5099c",
    "4bb9638cdae700c665e339c74d2b4fc070baf57e82e6f211f369d3f2c6328082",
    "3be448382c35944b0733045a14524bf4ca2ccddba2a3f04487a8dfec4289f87d",
    "356a3524c76c71285b26ddd89282b7327e7a087f24d4ec12ce7d053c02904ecf",
    "df35084025d04a2389c0c194df30989976548b2517fdd11add31ee959f3580fe",
)


@lru_cache(maxsize=2)
def activation_table(name: str) -> np.ndarray:
    """g over every integer -512..511: int32 (1024,), read only."""
    v = np.arange(-RANGE, RANGE, dtype=np.int64)
    table = np.clip(v, 0, MAX_INPUT)
    if name == "sigmoid":
        small = exponential(4 * np.abs(v)) >> 16  # 2^16 * 2^(-|v| / 64)
        high = (2 * MAX_INPUT * 65536 + 65536 + small) // (2 * (65536 + small))
        table = np.where(v >= 0, high, MAX_INPUT - high)
    table = table.astype(np.int32)
    table.setflags(write=False)
    return table


def divide(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a div c to nearest, the same rule for all signs, cut to -512..511; int64."""
    return np.clip((2 * a + c) // (2 * c), -RANGE, RANGE - 1)


@dataclass(frozen=True, eq=False)
class Layer:
    """kernel: int64 (outputs, inputs), K-bit; bias: int64 (outputs,); divisor: int64 (outputs,), positive; activation: of ACTIVATIONS, None
    for the last layer."""

    kernel: np.ndarray
    bias: np.ndarray
    divisor: np.ndarray
    activation: str | None = None

    @property
    def bound(self) -> int:
        """What no sum of `H u + b` exceeds in magnitude, after any of its terms and in any order."""
        return int((MAX_INPUT * np.abs(self.kernel).sum(1) + np.abs(self.bias)).max())

    def run(self, u: np.ndarray) -> np.ndarray:
        """int64 (n, inputs) to (n, outputs)."""
        v = divide(u @ self.kernel.T + self.bias, self.divisor)
        return v if self.activation is None else activation_table(self.activation)[v + RANGE].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Network:
    """kind: of KINDS; inputs: numbers of those that it takes (entropy.inputs), rising; bits: K; layers: from the first to the last;
    shipped: number of the one of this release that it is, 0 if the file holds it."""

    kind: str
    inputs: tuple[int, ...]
    bits: int
    layers: tuple[Layer, ...]
    shipped: int = 0

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """All inputs of the kind, integers 0..255 (n, inputs), to int64 (n, 2), in -512..511."""
        u = inputs[:, list(self.inputs)].astype(np.int64)
        for layer in self.layers:
            u = layer.run(u)
        return u

    @property
    def bound(self) -> int:
        """Of all sums; below 2^31."""
        return max(layer.bound for layer in self.layers)

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """As the kernels take it: inputs, sizes of the layers, then by layer kernels, biases, divisors, their reciprocals, activations."""
        sizes = [len(self.inputs), *(len(layer.bias) for layer in self.layers)]
        most, identity = max(sizes), np.arange(-RANGE, RANGE, dtype=np.int32)
        kernels = np.zeros((len(self.layers), most, most), np.int32)
        biases, divisors = np.zeros((len(self.layers), most), np.int32), np.ones((len(self.layers), most), np.int64)
        for n, layer in enumerate(self.layers):
            high, wide = layer.kernel.shape
            kernels[n, :high, :wide], biases[n, :high], divisors[n, :high] = layer.kernel, layer.bias, layer.divisor
        reciprocals = (1 << 52) // (2 * divisors) + 1  # exact for all that is divided: n < 2^11 c, and n * 2 c < 2^52
        tables = np.stack([activation_table(layer.activation) if layer.activation else identity for layer in self.layers])
        return np.array(self.inputs), np.array(sizes), kernels, biases, divisors, reciprocals, tables

    def write(self, out: Writer) -> None:
        out.byte(self.shipped)
        if not self.shipped:
            self.write_layers(out)

    @classmethod
    def read(cls, data: Reader, inputs: dict[str, int]) -> Network:
        """inputs: number of them by kind."""
        number = data.byte("number of a network")
        if number > len(SHIPPED):
            raise Unsupported(f"the file needs the network {number}, this release has {len(SHIPPED)}: upgrade nnc")
        return read_shipped(number, tuple(inputs.items())) if number else cls.read_layers(data, inputs)

    def write_layers(self, out: Writer) -> None:
        out.byte(KINDS.id(self.kind))
        out.varint(sum(1 << number for number in self.inputs))
        out.byte(self.bits)
        out.byte(len(self.layers) - 1)
        for layer in self.layers[:-1]:
            out.byte(len(layer.bias))
            out.byte(ACTIVATIONS.id(layer.activation))
        for layer in self.layers:
            fields = [_Packed.fit(layer.bias), _Packed.fit(layer.divisor - 1, signed=False)]
            for field in fields:
                out.byte(field.width)
                out.byte(field.shift)
            rows = [_to_bits(layer.kernel.reshape(-1), self.bits), *(_to_bits(f.numbers, f.width) for f in fields)]
            out.raw(np.packbits(np.concatenate(rows)).tobytes())

    @classmethod
    def read_layers(cls, data: Reader, inputs: dict[str, int]) -> Network:
        kind = KINDS.value(data.byte("kind of a network"))
        mask = data.varint("inputs of a network", (1 << inputs[kind]) - 1)
        if not mask:
            raise Corruption("a network without inputs: the file is damaged")
        used = tuple(n for n in range(inputs[kind]) if mask >> n & 1)
        bits = data.byte("bits of a network", MOST_BITS)
        if bits < LEAST_BITS:
            raise Corruption(f"a network of {bits} bits, needs {LEAST_BITS}: the file is damaged")
        sizes, activations = [len(used)], []
        for _ in range(data.byte("hidden layers of a network", MAX_HIDDEN)):
            sizes.append(data.byte("units of a layer", MAX_UNITS))
            if not sizes[-1]:
                raise Corruption("a layer without units: the file is damaged")
            activations.append(ACTIVATIONS.value(data.byte("activation")))
        sizes.append(OUTPUTS)
        layers = []
        for n, activation in enumerate([*activations, None]):
            rows, columns = sizes[n + 1], sizes[n]
            widths = [(data.byte("width of a number", 32), data.byte("shift of a number", _MAX_SHIFT)) for _ in range(2)]
            counts = [(rows * columns, bits), *((rows, width) for width, _ in widths)]
            found = np.frombuffer(data.raw(-(-sum(a * b for a, b in counts) // 8), "layer"), np.uint8)
            stream = np.unpackbits(found)
            parts, at = [], 0
            for place, (count, width) in enumerate(counts):
                parts.append(_from_bits(stream[at : at + count * width], count, width, place < 2))
                at += count * width
            if stream[at:].any():
                raise Corruption("bits after a layer: the file is damaged")
            bias, divisor = parts[1] << widths[0][1], (parts[2] << widths[1][1]) + 1
            layer = Layer(parts[0].reshape(rows, columns), bias, divisor, activation)
            if (divisor > MAX_DIVISOR).any():
                raise Corruption(f"a divisor of {divisor.max()}, the limit is {MAX_DIVISOR}: the file is damaged")
            if layer.bound >= 1 << 31:
                raise Corruption(f"sums of a layer reach {layer.bound}, the limit is {(1 << 31) - 1}: the file is damaged")
            layers.append(layer)
        return cls(kind, used, bits, tuple(layers))

    def data(self) -> bytes:
        """What `write_layers` writes."""
        out = Writer()
        self.write_layers(out)
        return out.data()


@dataclass(frozen=True, eq=False)
class _Packed:
    """Integers of `width` bits each, shifted to the left by `shift`."""

    numbers: np.ndarray
    width: int
    shift: int

    @classmethod
    def fit(cls, values: np.ndarray, signed: bool = True) -> _Packed:
        common = int(np.bitwise_or.reduce(np.abs(values)))
        shift = min(_MAX_SHIFT, (common & -common).bit_length() - 1) if common else 0
        numbers = values >> shift
        largest = int(max(numbers.max(), -1 - numbers.min()))
        return cls(numbers, (largest.bit_length() + signed) if largest or numbers.any() else 0, shift)


def _to_bits(values: np.ndarray, width: int) -> np.ndarray:
    """Two's complement, the most significant bit first: uint8 (len(values) * width,)."""
    return ((values[:, None] >> np.arange(width)[::-1]) & 1).astype(np.uint8).reshape(-1)


def _from_bits(stream: np.ndarray, count: int, width: int, signed: bool) -> np.ndarray:
    if not width:
        return np.zeros(count, np.int64)
    values = stream.reshape(count, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)[::-1])
    return values - ((values >> (width - 1)) << width) if signed else values


@lru_cache(maxsize=8)
def read_shipped(number: int, inputs: tuple[tuple[str, int], ...]) -> Network:
    """A network of this release, 1 or more; Corruption if the installation has another one under its number."""
    path = Path(__file__).with_name(f"network-{number}.bin")
    data = path.read_bytes()
    if sha256(data).hexdigest() != SHIPPED[number - 1]:
        raise Corruption(f"{path}: is not the network {number} of this release: install nnc again")
    found = Network.read_layers(Reader(data), dict(inputs))
    return Network(found.kind, found.inputs, found.bits, found.layers, number)
