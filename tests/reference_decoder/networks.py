"""Section 20 of the page: networks that choose the tables of levels."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .notation import Bytes, OtherVersion, must
from .tables import Table, exponential, normalise, shape_weights

HYPER, CONTEXT = 8, 19
PROJECT = (
    "3507d5aa1ac0b6b72e4a6c8beaf8a22125140a9134f504f5b7766255efd5099c",
    "4bb9638cdae700c665e339c74d2b4fc070baf57e82e6f211f369d3f2c6328082",
    "3be448382c35944b0733045a14524bf4ca2ccddba2a3f04487a8dfec4289f87d",
    "356a3524c76c71285b26ddd89282b7327e7a087f24d4ec12ce7d053c02904ecf",
    "df35084025d04a2389c0c194df30989976548b2517fdd11add31ee959f3580fe",
)
FILES = Path(__file__).parents[2] / "nnc" / "entropy"
T = [exponential(4096 - 16 * j) for j in range(16)]


@dataclass
class Layer:
    kernel: list[list[int]]
    bias: list[int]
    divisor: list[int]
    activation: int | None


@dataclass
class Network:
    kind: int
    inputs: list[int]
    layers: list[Layer]


def read_network(source: Bytes) -> Network:
    number = source.byte()
    if number > len(PROJECT):
        raise OtherVersion("the number of a network")
    if number == 0:
        return read_fields(source)
    data = (FILES / f"network-{number}.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest() == PROJECT[number - 1]
    return read_fields(Bytes(data))


def read_fields(source: Bytes) -> Network:
    kind = source.byte()
    must(kind <= 1, "an unknown kind of network")
    mask = source.varint((1 << (CONTEXT if kind else HYPER)) - 1)
    must(mask > 0, "a network without inputs")
    inputs = [i for i in range(CONTEXT) if mask >> i & 1]
    k = source.byte()
    must(2 <= k <= 8, "bits of a kernel")
    hidden = source.byte()
    must(hidden <= 3, "hidden layers")
    sizes, activations = [len(inputs)], []
    for _ in range(hidden):
        sizes.append(source.byte())
        activations.append(source.byte())
        must(1 <= sizes[-1] <= 64 and activations[-1] <= 1, "units or activation of a layer")
    sizes.append(2)
    return Network(kind, inputs, [read_layer(source, n, m, k, activation)
                                  for n, m, activation in zip(sizes, sizes[1:], [*activations, None])])


def read_layer(source: Bytes, n: int, m: int, k: int, activation: int | None) -> Layer:
    bias_width, bias_shift, divisor_width, divisor_shift = source.byte(), source.byte(), source.byte(), source.byte()
    must(max(bias_width, divisor_width) <= 32 and max(bias_shift, divisor_shift) <= 24, "width or shift of a number")
    length = m * (n * k + bias_width + divisor_width)
    data = source.take(-(-length // 8))
    digits = "".join(f"{byte:08b}" for byte in data)
    must("1" not in digits[length:], "bits after a layer")
    position = 0

    def number(width: int, signed: bool) -> int:
        nonlocal position
        text, position = digits[position:position + width], position + width
        value = int(text, 2) if text else 0
        return value - (1 << width) if signed and text.startswith("1") else value

    kernel = [[number(k, True) for _ in range(n)] for _ in range(m)]
    bias = [number(bias_width, True) << bias_shift for _ in range(m)]
    divisor = [(number(divisor_width, False) << divisor_shift) + 1 for _ in range(m)]
    must(max(divisor) <= 1 << 18, "a divisor that is too large")
    must(all(255 * sum(map(abs, row)) + abs(b) < 1 << 31 for row, b in zip(kernel, bias)), "sums beyond 32 bits")
    return Layer(kernel, bias, divisor, activation)


def g(v: int, activation: int) -> int:
    if activation == 0:
        return min(max(v, 0), 255)
    if v < 0:
        return 255 - g(-v, 1)
    e = exponential(4 * v) >> 16
    return (2 * 255 * 65536 + 65536 + e) // (2 * (65536 + e))


def outputs(network: Network, inputs: list[int]) -> list[int]:
    u = [inputs[i] for i in network.inputs]
    for layer in network.layers:
        v = []
        for row, b, c in zip(layer.kernel, layer.bias, layer.divisor):
            a = b + sum(h * x for h, x in zip(row, u))
            v.append(min(max((2 * a + c) // (2 * c), -512), 511))
        u = v if layer.activation is None else [g(x, layer.activation) for x in v]
    return u


@cache
def fine_table(position: int, shape: int, q: int) -> Table:
    def scaled(n: int) -> int:
        return T[n % 16] << (n // 16 + 8)

    reach = min(127, 2 + ((6 * (scaled(position - 68) >> 16)) >> 8))
    w = shape_weights(shape, scaled(68 - position), q, -reach - q, reach)
    return Table(-reach - q, normalise([*w, max(1, sum(w) >> 14)]))


@cache
def magnitude(c: int, twice: int) -> int:
    n = 68 - 4 * c
    bound = 65536 + 4 * ((min(twice, 511) * (T[n % 16] << (n // 16 + 8))) >> 9)
    return sum(exponential(4096 - 8 * n) <= bound for n in range(1, 256))


class Chooser:
    """The tables of one CTU, level by level.  row, column: what each adds to the scale index, without base; first_row, first_column: of
    the CTU in the plane."""

    def __init__(self, network: Network, coding: object, taps: int, row: list, column: list, first_row: int, first_column: int) -> None:
        self.network, self.coding, self.taps = network, coding, taps
        self.row, self.column, self.first_row, self.first_column = row, column, first_row, first_column
        self.magnitudes: dict[tuple[int, int], int] = {}
        self.along, self.down = ([[256 * 64, 0] for _ in axis] for axis in (row, column))  # mean, levels seen

    def table(self, i: int, j: int, c: int, q: int) -> Table:
        """q: of the table."""
        coding = self.coding
        place = self.first_row + i if coding.transposed else self.first_column + j
        inputs = [7 * c, *(min(max(128 + 8 * code, 0), 255) for code in (self.row[i], self.column[j])),
                  255 * (place % self.taps) // max(1, self.taps - 1), 255 * q,
                  *(min(255, 12 * side.bit_length()) for side in (coding.rows, coding.columns)),
                  85 * ((coding.states > 1) + (coding.labelling == 1) + coding.follow)]
        if self.network.kind == 1:
            before = (i - self.taps, j) if coding.transposed else (i, j - self.taps)
            inputs += [self.magnitudes.get(at, 64) for at in ((i - 1, j), (i - 2, j), (i, j - 1), (i, j - 2), (i - 1, j - 1), (i + 1, j - 1), before)]
            inputs += [self.along[i][0] >> 8, self.down[j][0] >> 8, 8 * min(self.along[i][1], 31), 8 * min(self.down[j][1], 31)]
        first, second = outputs(self.network, inputs)
        return fine_table(min(max(4 * c + first, 4), 147), min(max(second, 0), 7), q)

    def learn(self, i: int, j: int, c: int, q: int, k: int) -> None:
        """k: the level without raw bits."""
        if self.network.kind == 0:
            return
        found = self.magnitudes[i, j] = magnitude(c, abs(2 * k + q))
        for mean in (self.along[i], self.down[j]):
            mean[1] += 1
            mean[0] += (256 * found - mean[0]) // min(mean[1], 32)
