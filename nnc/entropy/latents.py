"""Latents of the entropy model of a tensor, in a coder that learns from every decision and begins with a shipped prior.

The codes of rows and columns (steps, scales, confidences, labels) are a hyper-prior (US11257254B2): side information that picks the tables of the
levels.  They are themselves predicted: from the codes before, from those of the same tap of the input before, from another array of the same
axis, and from an earlier array that resembles them, which the encoder names (queries, keys and values have the same inputs, hence the same
steps).  What the predictions are worth is learned: counters of contexts, mixed by a network of integers (US11869221B2), both trained on
other networks beforehand (`examples/benchmarks/make_prior.py`) and trained on with every decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from zlib import compress, decompress, error

import numpy as np

from ..errors import Corruption
from ..kernels.latents import CONTEXTS, FLAGS, KINDS, NODES, PARTNERS, SLOTS, WEIGHT, follow_states, walk_codes, walk_flags
from ..registry import Table
from .mixing import mixing_tables

PRIOR = Path(__file__).with_name("latents.bin")
PRIOR_HASH = "f324f4c1691d0bf7c17fa6a0c4eafbc8bb5551b0504affbd01f59cc1edf3bf9a"
ARRAYS = Table(
    "latent",
    {
        0: "row steps",
        1: "column steps",
        2: "rows",
        3: "columns",
        4: "confidence",
        5: "labels",
        6: "trust",
    },
)
STEPS = (0, 1)  # kinds that have a unit
SCALES = (2, 3)  # kinds that may be those of two dependent quantizers (US11909975B2), with more of each octave for the same bits
DEPENDENT = KINDS - 1
_PARTNER_BITS, _UNIT_BITS = 4, 3
# first counters of the flags of an array; those of a kind follow each other
_SOME, _SAME, _DEPENDENT, _UNIT, _PARTNER = 0, 2 * KINDS, 3 * KINDS, 4 * KINDS, 4 * KINDS + (KINDS << _UNIT_BITS)
_NO_WORDS = np.empty(1, np.uint32)
_NO_TRACE = np.empty(1, np.int32)
_NO_CHOICE = np.empty((0, 0)), np.empty(0)
LEAST_DEPENDENT = 16  # so many codes are seldom so by chance
_MARGIN = 2 * KINDS  # decisions of the flags of an array, at most


@dataclass(frozen=True)
class Axis:
    """What is known of an array of codes before it is read.  kind: id in ARRAYS; number: of codes; taps: distance to the same tap of the input before, 1
    without; alone: whether the tensor is a vector."""

    kind: int
    number: int
    taps: int
    alone: bool


@dataclass(eq=False)
class LatentModel:
    """Counters and weights, as they are after what was coded so far.  chance: uint16 and seen: uint8 (CONTEXTS, SLOTS); weights: int32 (NODES *
    KINDS, CONTEXTS); flags: uint16 and often: uint8 (FLAGS,)."""

    chance: np.ndarray
    seen: np.ndarray
    weights: np.ndarray
    flags: np.ndarray
    often: np.ndarray

    def copy(self) -> LatentModel:
        return LatentModel(*(array.copy() for array in self.arrays))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.chance, self.seen, self.weights, self.flags, self.often

    @classmethod
    def blank(cls) -> LatentModel:
        """That has learned nothing."""
        return cls(
            np.full((CONTEXTS, SLOTS), 32768, np.uint16),
            np.zeros((CONTEXTS, SLOTS), np.uint8),
            np.full((NODES * KINDS, CONTEXTS), WEIGHT, np.int32),
            np.full(FLAGS, 32768, np.uint16),
            np.zeros(FLAGS, np.uint8),
        )

    @classmethod
    def shipped(cls) -> LatentModel:
        """The prior of this release; Corruption if the installation has another one."""
        return _read_prior().copy()


@lru_cache(maxsize=1)
def _read_prior() -> LatentModel:
    packed = PRIOR.read_bytes()
    if sha256(packed).hexdigest() != PRIOR_HASH:
        raise Corruption(f"{PRIOR}: is not the prior of this release: install nnc again")
    return unpack_model(packed)


def pack_model(model: LatentModel, most_seen: int) -> bytes:
    """Bytes of a prior, deflated: of every counter its chance in 1/256, where it was used, and how often up to `most_seen`; weights in 1/256."""
    parts = []
    for chance, seen in ((model.chance, model.seen), (model.flags, model.often)):
        used = np.minimum(seen, most_seen).astype(np.uint8)
        parts += [used, np.where(used > 0, chance >> 8, 128).astype(np.uint8)]
    weights = np.clip(np.round(model.weights / 256), -32768, 32767).astype("<i2")
    return compress(b"".join(part.tobytes() for part in (*parts, weights)), 9)


def unpack_model(packed: bytes) -> LatentModel:
    """Inverse of `pack_model`, but for what it rounds."""
    try:
        raw = decompress(packed)
    except error as problem:
        raise Corruption(f"{PRIOR}: {problem}: install nnc again") from None
    counters = CONTEXTS * SLOTS
    bounds = np.cumsum([0, counters, counters, FLAGS, FLAGS, 2 * NODES * KINDS * CONTEXTS])
    if len(raw) != bounds[-1]:
        raise Corruption(f"{PRIOR}: {len(raw)} bytes instead of {bounds[-1]}: install nnc again")
    seen, chance, often, flags = (np.frombuffer(raw[a:b], np.uint8) for a, b in zip(bounds[:4], bounds[1:5]))
    weights = np.frombuffer(raw[bounds[4] :], "<i2").astype(np.int32) * 256
    wide = [(array.astype(np.uint16) << 8) | 128 for array in (chance, flags)]
    shape = (CONTEXTS, SLOTS)
    return LatentModel(wide[0].reshape(shape), seen.reshape(shape).copy(), weights.reshape(-1, CONTEXTS), wide[1], often.copy())


@dataclass(eq=False)
class LatentCoder:
    """Codes arrays of latents one after the other, of one tensor or of several in a row: each is remembered for those that follow.

    model: learns with every array.  Reading: state: uint64 (2,), state of the coder and number of the words that are left; words: uint32.  Writing:
    `trace` collects the decisions, int32: twice the probability of a one in 1/4096, plus the decision.
    """

    model: LatentModel
    words: np.ndarray | None = None
    state: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))
    trace: list[np.ndarray] = field(default_factory=list)
    _earlier: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @property
    def reading(self) -> bool:
        return self.words is not None

    def read(self, axis: Axis, known: np.ndarray | None) -> tuple[np.ndarray, int]:
        """The next array, int16 (number,), and the id of the unit of its codes, 0 where they have none.  known: an array of the same axis of the same
        tensor, if one was read before."""
        return self._code(axis, np.zeros(axis.number, np.int64), 0, known)

    def write(self, axis: Axis, codes: np.ndarray, unit: int, known: np.ndarray | None) -> None:
        """Inverse of `read`."""
        self._code(axis, codes.astype(np.int64), unit, known)

    def _code(self, axis: Axis, codes: np.ndarray, unit: int, known: np.ndarray | None) -> tuple[np.ndarray, int]:
        kind = axis.kind
        trace = _NO_TRACE if self.reading else np.empty(_MARGIN, np.int32)
        some, count = self._flags(int(codes.any()), 1, _SOME + kind + KINDS * axis.alone, trace, 0)
        earlier = self._earlier.setdefault(axis.number, [])
        which, same, dependent = 0, 0, 0
        if some:
            if kind in STEPS:
                unit, count = self._flags(unit, _UNIT_BITS, _UNIT + (kind << _UNIT_BITS), trace, count)
            if earlier:
                which = 0 if self.reading else choose_partner(codes, earlier)
                which, count = self._flags(which, _PARTNER_BITS, _PARTNER + (kind << _PARTNER_BITS), trace, count)
                if which > len(earlier):
                    raise Corruption(f"latents resemble array {which} of {len(earlier)}: the file is damaged")
            if which:
                same = int(np.array_equal(codes, earlier[which - 1]))
                same, count = self._flags(same, 1, _SAME + kind, trace, count)
            if same:
                codes = earlier[which - 1].copy()
            elif kind in SCALES:
                dependent = 0 if self.reading else int(are_dependent(codes))
                dependent, count = self._flags(dependent, 1, _DEPENDENT + kind, trace, count)
        if not self.reading:
            self.trace.append(trace[:count])
        if some and not same:
            partner = earlier[which - 1] if which else np.zeros(axis.number, np.int64)
            fits = known is not None and len(known) == axis.number  # not so of a codebook, whose grid is not the plane
            self._walk(axis, codes, bool(dependent), partner, known.astype(np.int64) if fits else np.zeros(axis.number, np.int64))
        if some:
            earlier.insert(0, codes)
            del earlier[PARTNERS:]
        return codes.astype(np.int16), unit

    def _flags(self, number: int, bits: int, first: int, trace: np.ndarray, count: int) -> tuple[int, int]:
        words = self.words if self.reading else _NO_WORDS
        model, steps = self.model, mixing_tables()[2]
        return walk_flags(self.reading, number, bits, first, self.state, words, model.flags, model.often, steps, trace, count)

    def _walk(self, axis: Axis, codes: np.ndarray, dependent: bool, partner: np.ndarray, known: np.ndarray) -> None:
        words = self.words if self.reading else _NO_WORDS
        trace = _run(self.model, codes, dependent, axis.taps, axis.kind, partner, known, _NO_CHOICE, self.reading, self.state, words)
        if not self.reading:
            self.trace.append(trace)


def _run(
    model: LatentModel,
    codes: np.ndarray,
    dependent: bool,
    taps: int,
    kind: int,
    partner: np.ndarray,
    known: np.ndarray,
    choice: tuple[np.ndarray, np.ndarray],
    reading: bool,
    state: np.ndarray,
    words: np.ndarray,
) -> np.ndarray:
    """The decisions of an array, or none when it is read."""
    trace = np.empty(1 if reading else 131 * len(codes), np.int32)  # what is not used takes no memory
    arrays = model.chance, model.seen, model.weights
    kind = DEPENDENT if dependent else kind
    count = walk_codes(
        reading, codes, dependent, taps, kind, partner, known, state, words, *arrays, *mixing_tables(), trace, 0, *choice
    )
    return trace[:count].copy()


def walk_array(
    model: LatentModel, codes: np.ndarray, taps: int, kind: int, known: np.ndarray, choice: tuple[np.ndarray, np.ndarray] = _NO_CHOICE
) -> tuple[np.ndarray, float]:
    """Let a model learn from an array that resembles no other: (codes, bits).  choice: costs and lengths as of kernels/latents.py, with which the
    codes are chosen."""
    codes = codes.astype(np.int64)
    dependent = not len(choice[0]) and kind in SCALES and are_dependent(codes)
    trace = _run(model, codes, dependent, taps, kind, np.zeros_like(codes), known, choice, False, np.zeros(2, np.uint64), _NO_WORDS)
    p, ones = (trace >> 1) / 4096, trace & 1
    return codes.astype(np.int16), float(-np.log2(np.where(ones, p, 1 - p)).sum())


def are_dependent(codes: np.ndarray) -> bool:
    """Whether codes can be those of dependent quantizers, and are not so by chance."""
    return len(codes) >= LEAST_DEPENDENT and bool(follow_states(codes.astype(np.int64)))


def choose_partner(codes: np.ndarray, earlier: list[np.ndarray]) -> int:
    """The number of the earlier array, from 1, that the codes resemble most, up to a constant; 0 if none is better than zero."""
    best, which = 0.9 * float(np.abs(codes).sum()) - 2, 0
    for number, other in enumerate(earlier, 1):
        apart = codes - other
        distance = float(np.abs(apart - np.median(apart)).sum())
        if distance < best - (2 if which else 0):
            best, which = distance, number
    return which
