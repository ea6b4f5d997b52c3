"""Integer networks as entropy models of levels: bit identity, what integers cost, how they learn, and what they are worth.

    python examples/benchmarks/integer_networks.py --check

`identity`: the tables of all levels of a plane, by every way to run one network, as one hash; next to it the same network in float32, with its
sums in another order (US11869221B2).
`integers`: rate of networks of K-bit integers against one in floats, all trained from the same start.
`saturated`: a network whose units all begin beyond 255, with the surrogate gradient of clipping and with its own (US20240104786A1, claim 15).
`models`: 512 x 512 Gaussian weights with log-normal scales of rows and columns, rounded to steps of 1/2 (US11257254B2): scale codes are the
hyperprior, a network of the levels before the context.  "factorized" is the entropy of the levels, the oracle knows all scales; files are whole
files, networks and side information included.
`speed`: of decoding, time of the one thread, interleaved, the best of many turns.
"""
from __future__ import annotations

import operator
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from gaussian import TINY_LAGRANGIAN, factorized_bits, make_gaussian, make_scaled, oracle_bits
from make_network import levels_of_file
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc.coder import pack_words
from nnc.entropy.explicit import NETWORKS
from nnc.entropy.fine import FINE, fine_tables, table_number
from nnc.entropy.inputs import CONTEXT, HYPER, INPUTS, Place
from nnc.entropy.network import MAX_INPUT, RANGE, Network, activation_table, read_shipped
from nnc.errors import Corruption
from nnc.kernels.networks import price_levels
from nnc.kernels.words import end_words, push_levels
from nnc.learning.choice import Candidates
from nnc.learning.samples import Samples
from nnc.learning.shadow import Shadow
from nnc.learning.training import Recipe, soft_bits, train, true_bits
from nnc.levels import LearnedLevels, number_inputs, run
from nnc.side import read_side

STEP = 0.5
SOURCE = 384  # rows and columns of the plane of S1: 147456 levels
SEEN = tuple(range(HYPER, CONTEXT))  # the levels before, and nothing else
RECIPE = Recipe(hidden=(32, 16), bits=8, steps=1200)
CONTEXT_RECIPE = Recipe(hidden=(16,), bits=8, steps=1500)
ALONE = 20  # scale index of all levels where there are no scale codes


# ---- levels without scale codes ----------------------------------------------------------------------------------------

def place_alone(rows: int, columns: int) -> Place:
    return Place(np.full(rows, ALONE, np.int16), np.zeros(columns, np.int16), ALONE, 1, False, 0)


def trace(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of a plane in scan order, int32, and all inputs of each, uint8."""
    scanned = np.ascontiguousarray(levels.T, np.int32).reshape(-1)
    learned = LearnedLevels(Network("context", SEEN, 8, ()), place_alone(*levels.shape), 1, 0)
    return scanned, learned.trace(scanned, (0, levels.shape[0], 0, levels.shape[1]))


def make_field(size: int) -> np.ndarray:
    """Rounded Gaussian weights, whose scales are log-normal by row and by column and swing along both."""
    rng = np.random.default_rng(0)
    n = np.arange(size)
    logarithm = 0.7 * rng.standard_normal(size)[:, None] + 0.7 * rng.standard_normal(size)
    logarithm += 0.5 * np.sin(n / 17)[:, None] + 0.5 * np.cos(n / 11)
    return np.round(np.exp(logarithm) * rng.standard_normal((size, size)) / STEP).astype(np.int64)


# ---- S1: integers ------------------------------------------------------------------------------------------------------

def hash_tables(numbers: np.ndarray) -> str:
    """One hash of the tables of all levels, 1036 bytes each."""
    found, cumulative = sha256(), fine_tables()[0]
    for at in range(0, len(numbers), 1 << 14):
        found.update(cumulative[numbers[at : at + (1 << 14)]].tobytes())
    return found.hexdigest()


def layers_run(network: Network, values: np.ndarray, multiply: Callable, divide: Callable) -> np.ndarray:
    u = values[:, list(network.inputs)].astype(np.int64)
    for layer in network.layers:
        v = np.clip(divide(multiply(u, layer), layer.divisor), -RANGE, RANGE - 1)
        u = v if layer.activation is None else activation_table(layer.activation)[v + RANGE].astype(np.int64)
    return u


def nearest(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (2 * a.astype(np.int64) + c) // (2 * c)


def permuted(u: np.ndarray, layer: object, kind: type = np.int64, seed: int = 9) -> np.ndarray:
    """Sums of one term after the other, in another order."""
    total = np.zeros((len(u), len(layer.bias)), kind)
    for n in np.random.default_rng(seed).permutation(u.shape[1] + 1):
        total += layer.bias.astype(kind) if n == u.shape[1] else u[:, n : n + 1].astype(kind) * layer.kernel[:, n].astype(kind)
    return total


def in_torch(u: np.ndarray, layer: object) -> np.ndarray:
    return (torch.from_numpy(u) @ torch.from_numpy(layer.kernel).T + torch.from_numpy(layer.bias)).numpy()


def in_python(network: Network, values: np.ndarray) -> np.ndarray:
    layers = [(layer.kernel.tolist(), layer.bias.tolist(), layer.divisor.tolist(), layer.activation and activation_table(layer.activation).tolist())
              for layer in network.layers]
    found = []
    for u in values[:, list(network.inputs)].tolist():
        for kernel, bias, divisor, table in layers:
            v = [(2 * (sum(map(operator.mul, row, u)) + b) + c) // (2 * c) for row, b, c in zip(kernel, bias, divisor)]
            v = [min(max(x, -RANGE), RANGE - 1) for x in v]
            u = v if table is None else [table[x + RANGE] for x in v]
        found.append(u)
    return np.array(found)


def in_threads(network: Network, values: np.ndarray, threads: int) -> np.ndarray:
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(lambda part: run(network, part), np.array_split(values, 4 * threads))))


def float_outputs(shadow: Shadow, values: np.ndarray, order: np.random.Generator | None) -> np.ndarray:
    """The network in float32: as a matrix product, or one term after the other in another order."""
    with torch.no_grad():
        u = torch.from_numpy(values[:, list(shadow.inputs)]).float()
        for layer in shadow.layers:
            h, b, c = layer.integers()
            weights, bias = h / c[:, None], b / c
            if order is None:
                v = u @ weights.T + bias
            else:
                v = torch.zeros(len(u), len(bias))
                for n in order.permutation(u.shape[1]):
                    v = v + u[:, n : n + 1] * weights[:, n]
                v = v + bias
            u = v.clamp(0, MAX_INPUT) if layer.activation else v
    return u.numpy()


def edges(outputs: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Upper edge of every level in a Gaussian table of 16 bits whose scale is a float."""
    deviation = torch.from_numpy(2 ** ((4 * ALONE + outputs[:, 0] - 68) / 16))
    return torch.round(65536 * torch.special.ndtr((torch.from_numpy(levels) + 0.5) / deviation)).numpy()


def measure_identity(samples: Samples, levels: np.ndarray, shadow: Shadow) -> tuple[Table, list[Bound]]:
    network, values = shadow.freeze(), samples.values
    sums = "sums in another order"
    ways: dict[str, Callable[[], np.ndarray]] = {
        "compiled, 1 thread": lambda: run(network, values),
        "compiled, 4 threads": lambda: in_threads(network, values, 4),
        "numpy int64": lambda: network.run(values),
        f"numpy int64, {sums}": lambda: layers_run(network, values, permuted, nearest),
        f"numpy int32, {sums}": lambda: layers_run(network, values, lambda u, layer: permuted(u, layer, np.int32, 5), nearest),
        "torch int64": lambda: layers_run(network, values, in_torch, nearest),
        "Python": lambda: in_python(network, values),
    }
    rows, hashes, first = [], set(), None
    for name, way in ways.items():
        note(f"identity: {name}")
        outputs = way().astype(np.int64)
        first = outputs if first is None else first
        numbers = number_of(values, outputs)
        hashes.add(hash_tables(numbers))
        rows.append((name, len(numbers), int((outputs != first).any(1).sum()), hash_tables(numbers)[:16]))
    plain, other = (float_outputs(shadow, values, order) for order in (None, np.random.default_rng(9)))
    differ, edge = (plain != other).any(1), edges(plain, levels) != edges(other, levels)
    rows.append((f"float32, {sums}: outputs", len(differ), int(differ.sum()), ""))
    rows.append((f"float32, {sums}: 16-bit edge at the level", len(edge), int(edge.sum()), ""))
    columns = (Column("way"), Column("levels", "d"), Column("mismatches", "d"), Column("hash of the tables"))
    bounds = [Bound("hashes of the tables by the integer ways", len(hashes), 1), Bound("levels hashed", len(values), 100_000, at_least=True),
              Bound("largest sum in magnitude", network.bound, (1 << 31) - 1),
              Bound("float32 outputs that differ", int(differ.sum()), 1, at_least=True),
              Bound("float32 edges that differ", int(edge.sum()), 1, at_least=True)]
    return Table("identity", columns, tuple(rows)), bounds


def number_of(values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Tables by inputs and outputs."""
    return table_number(FINE * (values[:, 0].astype(np.int64) // 7) + outputs[:, 0], outputs[:, 1], values[:, 4] & 1)


def measure_integers(samples: Samples, floats: Shadow, whole: Shadow) -> tuple[Table, list[Bound]]:
    reference = soft_bits(samples, floats, rounded=False)
    note("integers: K = 6")
    six = train(samples, "context", SEEN, replace(RECIPE, bits=6)).freeze()
    rows, bounds = [("floats", None, reference, None, None)], []
    for network, limit in ((whole.freeze(), 0.5), (six, 1.0)):
        bits = true_bits(samples, network)
        rows.append((f"integers, K = {network.bits}, A = 8", len(network.data()), bits, 100 * (bits / reference - 1), network.bound))
        bounds.append(Bound(f"cost of integers of {network.bits} bits in %", 100 * (bits / reference - 1), limit))
    wrong = 0
    for name in ("clip", "sigmoid"):  # the formulas in Python's integers
        for v, found in zip(range(-RANGE, RANGE), activation_table(name).tolist()):
            small = int(activation_exponential(abs(v)))
            high = (2 * MAX_INPUT * 65536 + 65536 + small) // (2 * (65536 + small))
            wrong += found != (min(max(v, 0), MAX_INPUT) if name == "clip" else high if v >= 0 else MAX_INPUT - high)
    bounds.append(Bound("entries of the tables of activations that differ from their formulas", wrong, 0))
    columns = (Column("network"), Column("bytes", "d"), Column("bits", ".4f"), Column("over floats %", ".3f"), Column("largest sum", "d"))
    return Table("integers", columns, tuple(rows)), bounds


def activation_exponential(v: int) -> int:
    """floor(2^(32 - v/64)) >> 16, by nested roots."""
    value = 1 << (32 * 64 - v % 64)
    for _ in range(6):
        value = isqrt(value)
    return value >> (v // 64 + 16)


def saturated(samples: Samples) -> Shadow:
    """Units that are beyond the range for every level: the least sum of each is 265."""
    shadow = Shadow("context", SEEN, (16,), 8, seed=2)
    with torch.no_grad():
        layer = shadow.layers[0]
        layer.kernel *= 0.2
        layer.divisor += np.log(5)
        least = (torch.from_numpy(samples.values[:, list(SEEN)]).float() @ layer.kernel.T).amin(0) / MAX_INPUT
        layer.offset.copy_(265 / MAX_INPUT - least)
    return shadow


def measure_saturated(samples: Samples) -> tuple[Table, list[Bound]]:
    recipe = replace(RECIPE, hidden=(16,), steps=1500)
    note("saturated: floats")
    reference = soft_bits(samples, train(samples, "context", SEEN, replace(recipe, rounded=False)), rounded=False)
    rows, moved, bits = [("floats, not saturated", reference, None)], {}, {}
    for surrogate in (True, False):
        note(f"saturated: surrogate {surrogate}")
        start, shadow = saturated(samples), saturated(samples)
        shadow = train(samples, "context", SEEN, replace(recipe, surrogate=surrogate), shadow)
        moved[surrogate] = float((shadow.layers[0].kernel - start.layers[0].kernel).detach().abs().max())
        bits[surrogate] = true_bits(samples, shadow.freeze())
        rows.append(("surrogate gradient" if surrogate else "gradient of clipping", bits[surrogate], moved[surrogate]))
    columns = (Column("training"), Column("bits", ".4f"), Column("largest move of a kernel", ".4f"))
    bounds = [Bound("surrogate gradient over floats in %", 100 * (bits[True] / reference - 1), 1.0),
              Bound("move of saturated units by the gradient of clipping", moved[False], 0.0)]
    return Table("saturated", columns, tuple(rows)), bounds


def measure_s1(size: int) -> tuple[list[Table], list[Bound]]:
    levels, values = trace(make_field(size))
    samples = Samples.make(values, levels, np.ones(len(levels), np.float32))
    note("S1: floats")
    floats = train(samples, "context", SEEN, replace(RECIPE, rounded=False))
    note("S1: K = 8")
    whole = train(samples, "context", SEEN, RECIPE)
    found = [measure_identity(samples, levels, whole), measure_integers(samples, floats, whole), measure_saturated(samples)]
    return [table for table, _ in found], [bound for _, bounds in found for bound in bounds]


# ---- S3: what models are worth ----------------------------------------------------------------------------------------

def file_bits(weights: torch.Tensor, entropy: str, path: Path) -> float:
    summary = nnc.compress({"weight": weights}, path, step=STEP, effort="fast", lagrangian=TINY_LAGRANGIAN, entropy=entropy, overwrite=True)
    return 8 * summary.file_bytes / weights.numel()


def context_alone(levels: np.ndarray) -> tuple[float, float]:
    """Bits per level of the stream and the network with no scale codes; and bits of the stream over those of its tables."""
    scanned, values = trace(levels)
    chosen = np.random.default_rng(0).choice(len(scanned), min(len(scanned), 1 << 16), replace=False)
    samples = Samples.make(values[chosen], scanned[chosen], np.ones(len(chosen), np.float32))
    network = train(samples, "context", SEEN, CONTEXT_RECIPE).freeze()
    which, words = number_inputs(network, values), np.empty(3 * len(scanned) + 4, np.uint32)
    x, number = push_levels(scanned, which, fine_tables(), 0, words, np.uint64(0), 0)
    stream = pack_words(words[: end_words(np.uint64(x), words, number)])
    bits = np.empty(len(scanned), np.float32)
    price_levels(scanned, which, fine_tables(), 0, bits)
    return 8 * (len(stream) + len(network.data())) / len(scanned), 8 * len(stream) / float(bits.sum(dtype=np.float64))


def undecodable(path: Path) -> tuple[int, int]:
    """Rows of scale codes changed by one, one row after the other, and how many of these changes go unnoticed."""
    tensor = levels_of_file(path)[0]
    network = read_shipped(1, tuple(INPUTS.items()))
    encoded = tensor.encode(network, NETWORKS)
    coding = encoded.record.coding
    bank = replace(tensor.bank, networks=(network,))
    coded = read_side(encoded.record, encoded.data[: coding.side], bank, ())
    streams, at = [], coding.side
    for length in coding.streams:
        streams.append(encoded.data[at : at + length])
        at += length
    digests = coded.start(coded.whole, streams)().digests
    tried = range(0, len(coded.rows), max(1, len(coded.rows) // 32))
    unnoticed = 0
    for row in tried:
        rows = coded.rows.copy()
        rows[row] += 1
        try:
            unnoticed += replace(coded, rows=rows).start(coded.whole, streams)().digests == digests
        except Corruption:
            pass
    return len(tried), unnoticed


def measure_models(size: int, scratch: Path) -> tuple[Table, list[Bound]]:
    weights, scales = make_scaled(size, size)
    oracle, factorized = oracle_bits(weights, scales, STEP), factorized_bits(weights, STEP)
    path, found = scratch / "x.safetensors", {}
    for entropy in ("static", "hyper", "context"):
        note(f"models: {entropy}")
        found[entropy] = file_bits(weights, entropy, path)
        if entropy == "static":
            tried, unnoticed = undecodable(path)
    note("models: context alone")
    alone, over = context_alone((weights.double() / STEP).round().long().numpy())
    note("models: one scale")
    same = make_gaussian(size, size)
    even = {entropy: file_bits(same, entropy, path) for entropy in ("static", "context")}
    rows = (("factorized", factorized), ("oracle", oracle), ("scale codes, static tables", found["static"]),
            ("scale codes, hyper networks", found["hyper"]), ("context alone, with its network", alone),
            ("scale codes, context networks", found["context"]), ("one scale: static", even["static"]), ("one scale: context", even["context"]))
    table = Table("models", (Column("model"), Column("bits", ".4f"), Column("to the oracle", ".4f"), Column("to factorized", ".4f")),
                  tuple((name, bits, bits / oracle, bits / factorized) for name, bits in rows[:6]) + tuple((name, bits, None, None) for name, bits in rows[6:]))
    both = min(found["hyper"], alone)
    return table, [
        Bound("hyper over the oracle", found["hyper"] / oracle, 1.02),
        Bound("hyper below factorized in %", 100 * (1 - found["hyper"] / factorized), 14, at_least=True),
        Bound("context alone below factorized in %", 100 * (1 - alone / factorized), 6, at_least=True),
        Bound("hyper and context over the better one in %", 100 * (found["context"] / both - 1), 0.5),
        Bound("one scale: over static in %", 100 * (even["context"] / even["static"] - 1), 0.2),
        Bound("stream over the bits of its tables", over, 1.01),
        Bound(f"changed scale codes that go unnoticed, of {tried}", unnoticed, 0),
    ]


# ---- speed -------------------------------------------------------------------------------------------------------------

def measure_speed(size: int, scratch: Path) -> tuple[Table, list[Bound]]:
    weights, path = make_scaled(size, 1024)[0], scratch / "x.safetensors"
    nnc.compress({"weight": weights}, path, step=STEP, labelling="plain", tools="none", overwrite=True)
    tensor, ways = levels_of_file(path)[0], {}
    networks = {"static tables": None}
    for kind in ("hyper", "context"):  # what the encoder takes to
        found = [network for network in Candidates.find([tensor], kind).networks if network.kind == kind]
        networks[kind] = found[int(np.argmin(tensor.price(found)))]
    for name, network in networks.items():
        encoded = tensor.encode(network, NETWORKS) if network else tensor.encoded
        bank, coding = replace(tensor.bank, networks=(network,) if network else ()), encoded.record.coding
        streams, at = [], coding.side
        for length in coding.streams:
            streams.append(encoded.data[at : at + length])
            at += length
        ways[name] = (encoded, bank, streams)
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(40):
        for name, (encoded, bank, streams) in ways.items():
            if name == "context" and turn > 2:
                continue
            start = time.thread_time()
            coded = read_side(encoded.record, encoded.data[: encoded.record.coding.side], bank, ())
            coded.start(coded.whole, streams)()
            best[name] = min(best[name], time.thread_time() - start)
    rows = tuple((name, weights.numel() / spent / 1e6, best["static tables"] / spent) for name, spent in best.items())
    table = Table("speed", (Column("model"), Column("million weights a second", ".1f"), Column("to static tables", ".3f")), rows)
    return table, [Bound("speed of hyper to static tables", rows[1][2], 0.7, at_least=True)]


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("integer networks as entropy models: identity, cost, training, worth, speed")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the matrix of the models; the bounds are for 512")
    asked = parser.parse_args(arguments)
    tables, bounds = measure_s1(min(asked.size, SOURCE))
    with tempfile.TemporaryDirectory() as folder:
        for table, more in (measure_models(asked.size, Path(folder)), measure_speed(3 * asked.size, Path(folder))):
            tables.append(table)
            bounds += more
    return finish(tables, bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
