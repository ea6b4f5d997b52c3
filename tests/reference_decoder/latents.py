"""Section 20 of the page: latents that are learned."""
from __future__ import annotations

import hashlib
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

from .entropy import Coder
from .mixing import PAGE, SQUASH, STRETCH
from .notation import must
from .records import UNITS, Coding, Record
from .tables import Table

PRIOR = Path(__file__).parents[2] / "nnc" / "entropy" / "latents.bin"  # data that the page names by its hash
ROW_STEPS, COLUMN_STEPS, ROWS, COLUMNS, CONFIDENCE, LABELS, TRUST = range(7)


@lru_cache(maxsize=1)
def prior() -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]], list[list[int]]]:
    """Counters of the contexts, flags, weights."""
    packed = PRIOR.read_bytes()
    assert hashlib.sha256(packed).hexdigest() in PAGE.read_text(), "the prior is not that of the page"
    raw = zlib.decompress(packed)
    places = 14 * 2048
    n, t, rest = raw[:places], raw[places:2 * places], raw[2 * places:]
    counters = [[(256 * t[2048 * m + i] + 128, n[2048 * m + i]) for i in range(2048)] for m in range(14)]
    flags = [(256 * rest[224 + i] + 128, rest[i]) for i in range(224)]
    weights = struct.unpack("<896h", rest[448:])
    return counters, flags, [[256 * w for w in weights[14 * i:14 * i + 14]] for i in range(64)]


def clip(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def moved(counter: tuple[int, int], y: int) -> tuple[int, int]:
    t, n = counter
    return t + ((65535 * y - t) * (131072 // (2 * n + 3)) >> 16), min(n + 1, 30)


class Latents:
    """A model and the coder that it reads from."""

    def __init__(self, coder: Coder) -> None:
        counters, flags, weights = prior()
        self.coder = coder
        self.counters, self.flags, self.weights = [c[:] for c in counters], flags[:], [w[:] for w in weights]
        self.remembered: dict[int, list[list[int]]] = {}

    def decide(self, p: int) -> int:
        return self.coder.symbol(Table(0, [2**24 - 4096 * p, 4096 * p]))

    def number(self, bits: int, first: int) -> int:
        node = 1
        for _ in range(bits):
            place = first + node - 1
            y = self.decide(clip(self.flags[place][0] >> 4, 16, 4080))
            self.flags[place] = moved(self.flags[place], y)
            node = 2 * node + y
        return node - (1 << bits)

    def array(self, kind: int, count: int, taps: int, alone: bool, known: list[int] | None) -> tuple[list[int], int]:
        """Codes and the id of their unit."""
        unit = 0
        if not self.number(1, kind + 8 * alone):
            return [0] * count, unit
        if kind <= COLUMN_STEPS:
            unit = self.number(3, 32 + 8 * kind)
        earlier = self.remembered.setdefault(count, [])
        which = self.number(4, 96 + 16 * kind) if earlier else 0
        must(which <= len(earlier), "latents that resemble an array that is not there")
        like = earlier[which - 1] if which else [0] * count
        if which and self.number(1, 16 + kind):
            codes = like[:]
        else:
            dependent = kind in (ROWS, COLUMNS) and self.number(1, 24 + kind) == 1
            fits = known is not None and len(known) == count
            codes = self.codes(7 if dependent else kind, count, taps, like, known if fits else [0] * count, dependent)
        self.remembered[count] = [codes, *earlier][:15]
        return codes, unit

    def codes(self, kind: int, count: int, taps: int, like: list[int], known: list[int], dependent: bool) -> list[int]:
        c: list[int] = []
        mean, activity, run, state, e, latest, m = 0, 16, 0, 0, [40] + [64] * 6, {}, 2 if dependent else 1
        for j in range(count):
            before = c[j - 1] if j else 0
            second = c[j - 2] if j >= 2 else before
            tap = c[j - taps] if j >= taps else before
            corner = c[j - taps - 1] if j > taps else tap
            slope = before + tap - corner if taps > 1 and j > taps else (before + second + 1) >> 1
            g = [(mean + 8) >> 4, before, tap, slope, like[j], (before + tap + 1) >> 1,
                 known[j] - known[j - 1] + before if j else known[0], c[j - 2 * taps] if j >= 2 * taps else tap,
                 like[j] - like[j - 1] + before if j else like[0], known[j], latest.get(known[j], 0)]
            best = min(range(7), key=lambda i: (e[i], i))
            start = clip(g[best], -64, 64)
            if dependent and (start - state) % 2:
                start += -1 if start > 0 else 1
            calm, runs = min(activity.bit_length(), 7), 2 * min(run, 3) + (e[4] < 8)
            value = start
            if self.decision(0, start, 1, kind, g, calm, runs, best):
                if abs(start) + m <= 64:
                    side = -1 if self.decision(1, start, 1, kind, g, calm, runs, best) else 1
                else:
                    side = -1 if start > 0 else 1
                value, node = start + m * side, 2
                while value * side + m <= 64 and self.decision(node, value, side, kind, g, calm, runs, best):
                    value, node = value + m * side, node + 1
            if dependent:
                state = (state >> 1) ^ (5 if state & 1 else 0) ^ (2 if value & 2 else 0)
            c.append(value)
            latest[known[j]] = value
            e = [old + ((16 * abs(value - g[i]) - old) >> 3) for i, old in enumerate(e)]
            activity += (16 * abs(value - start) - activity) >> 3
            run = run + 1 if value == like[j] else 0
            mean += (16 * value - mean) >> 4
        return c

    def decision(self, n: int, value: int, side: int, k: int, g: list[int], calm: int, runs: int, best: int) -> int:
        n = min(n, 7)
        mean, before, tap, slope, like, _, shifted, further, other, known, same = (clip((x - value) * side, -7, 7) + 7 for x in g)
        zero = clip(-value * side, -7, 7) + 7
        places = [8 * n + k, (16 * n + zero) * 16 + mean, (16 * n + before) * 16 + tap, (16 * n + slope) * 8 + calm,
                  (16 * n + like) * 8 + runs, (16 * n + known) * 16 + zero, (8 * n + calm) * 8 + best, (16 * n + before) * 16 + zero,
                  (16 * n + other) * 16 + like, (16 * n + tap) * 16 + further, (16 * n + shifted) * 16 + before,
                  (16 * n + mean) * 8 + calm, (16 * n + same) * 8 + k, (16 * n + slope) * 16 + known]
        found = [counters[place] for counters, place in zip(self.counters, places)]
        inputs, weights = [STRETCH[t >> 4] for t, _ in found], self.weights[8 * n + k]
        p = SQUASH[clip(sum(w * x for w, x in zip(weights, inputs)) >> 16, -2047, 2047) + 2047]
        y = self.decide(p)
        for i, x in enumerate(inputs):
            weights[i] += (x * (((y << 12) - p) * 32) + 32768) >> 16
            self.counters[i][places[i]] = moved(found[i], y)
        return y


def read_latents(latents: Latents, record: Record) -> dict[int, list[int]]:
    """All arrays of a record by kind; the units of its step codes go to the record."""
    coding: Coding = record.coding
    split, shape = coding.split, record.shape
    inner = math.prod(shape[split + 1:])
    arrays: dict[int, list[int]] = {}
    first: dict[str, list[int]] = {}

    def read(kind: int, side: str, count: int) -> None:
        inputs = side == ("rows" if coding.transposed else "columns") and kind != CONFIDENCE
        taps = inner if inputs and count % inner == 0 else 1
        known = arrays[LABELS] if kind == TRUST and LABELS in arrays else first.get(side)
        arrays[kind], unit = latents.array(kind, count, taps, len(shape) < 2, known)
        if kind <= COLUMN_STEPS:
            must(unit < len(UNITS), "an unknown unit of step codes")
            (coding.row_steps if kind == ROW_STEPS else coding.column_steps).unit = UNITS[unit]
        if any(arrays[kind]):
            first.setdefault(side, arrays[kind])

    for kind, side in ((ROW_STEPS, "rows"), (COLUMN_STEPS, "columns"), (ROWS, "rows"), (COLUMNS, "columns")):
        read(kind, side, coding.rows if side == "rows" else coding.columns)
    if coding.prediction:
        read(CONFIDENCE, "columns" if coding.transposed else "rows", math.prod(shape[:split]))
    if coding.tools.memory:
        if coding.tools.memory.limit < 17:
            read(LABELS, "columns", coding.columns)
        read(TRUST, "columns", coding.columns)
    must(not any(arrays[COLUMN_STEPS]) or not (coding.tools.codebook or coding.labelling == 2), "column steps where there are none")
    return arrays
