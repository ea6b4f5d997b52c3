"""The bytes of a coded tensor from its latents and its CTUs: alone, or joined with others in one stream.  Encoder only.

Alone, latents are coded each in a mode of its own, or all with the coder that learns, if that is worth its time.  The coder is a stack, so
what is read last is pushed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .coder import pack_words
from .container import OWN_ENTRY
from .encoded import EncodedTensor, Joint
from .entropy.latents import LatentCoder, LatentModel
from .entropy.scales import encode_codes
from .fields import LEARNED_CODES, Codes, Steps
from .kernels.latents import push_bits
from .kernels.words import end_words
from .latents import Latents, write_latents
from .partition.grid import Grid
from .quantize.steps import UNITS
from .unit import MAX_JOINED, Coding, Record, join_parts

NAMES = ("rows", "columns", "row steps", "column steps", "confidence", "labels", "trust")  # of latents, in the order of static bytes
WORTH = 1000  # the coder that learns must save one byte of so many


def pack_tensor(coding: Coding, shape: tuple[int, ...], latents: Latents, parts: bytes, streams: Sequence[bytes]) -> tuple[Coding, bytes]:
    """A tensor alone: its coding with the codes filled in, and its bytes.  parts: bytes of its tools."""
    encoded = {name: encode_codes(codes) for name, codes in latents.arrays.items()}
    codes = {name: Codes(mode, spread, len(data)) for name, (mode, spread, data) in encoded.items()}
    steps = latents.row_steps.unit, latents.column_steps.unit
    side = b"".join(encoded[name][2] for name in NAMES if name in encoded)
    coding = replace(_with_codes(coding, codes, steps), latents="static", streams=tuple(map(len, streams)))
    total = len(side) + sum(map(len, streams)) + len(parts)
    if total >= OWN_ENTRY and pays(len(side), total):
        coder = LatentCoder(LatentModel.shipped())
        write_latents(coding, shape, latents, coder)
        learned = _push_all(coder.trace, ())
        if pays(len(side) - len(learned), total):
            coding, side = replace(with_learned(coding, "learned"), latent_bytes=len(learned)), learned
    return coding, join_parts(side + parts, streams)


def keeps_labels_near(grid: Grid, levels: int, strips: int) -> bool:
    """Whether labels of columns stand in front of their CTUs, so that who reads some of these need not read all of them: in `strips` for such readers, of a
    tensor with so many bytes of levels that it is never joined."""
    return bool(strips) and grid.count > 1 and grid.height == grid.rows and levels >= OWN_ENTRY


def pays(saved: int, total: int) -> bool:
    """Whether so many bytes of a tensor are worth the time of the coder that learns."""
    return WORTH * saved > total


def _with_codes(coding: Coding, codes: dict[str, Codes], units: tuple[int, int]) -> Coding:
    tools, prediction = coding.tools, coding.prediction
    if tools.memory:
        tools = replace(tools, memory=replace(tools.memory, labels=tools.memory.labels and codes["labels"], confidence=codes["trust"]))
    if prediction:
        prediction = replace(prediction, confidence=codes["confidence"])
    steps = Steps(codes["row steps"], units[0]), Steps(codes["column steps"], units[1])
    return replace(coding, rows=codes["rows"], columns=codes["columns"], row_steps=steps[0], column_steps=steps[1], prediction=prediction, tools=tools)


def with_learned(coding: Coding, latents: str) -> Coding:
    """The coding of a tensor whose latents are learned ones."""
    even = UNITS.value(0)  # the unit is with the codes
    coding = _with_codes(coding, dict.fromkeys(NAMES, LEARNED_CODES), (even, even))
    return replace(coding, latents=latents, latent_bytes=0)


def may_join(coding: Coding, data: bytes) -> bool:
    """Whether a tensor is small enough to be joined with others."""
    return len(data) < OWN_ENTRY and len(coding.streams) <= MAX_JOINED


def join_tensors(members: Sequence[EncodedTensor]) -> tuple[list[Record], list[bytes], bytes]:
    """Tensors of one unit: their records and their bytes, those that can be joined without their latents and levels, and the stream of these."""
    records, parts, joints = [], [], []
    coder = LatentCoder(LatentModel.shipped()) if any(member.joint for member in members) else None
    for member in members:
        record, joint = member.record, member.joint
        if joint:
            coding = replace(with_learned(record.coding, "joined"), streams=(0,) * len(record.coding.streams))
            record = replace(record, coding=coding)
            first = len(coder.trace)
            write_latents(coding, record.shape, joint.latents, coder)
            joints.append((slice(first, len(coder.trace)), joint))
        records.append(record)
        parts.append(joint.parts if joint else member.data)
    return records, parts, _push_all(coder.trace, joints) if joints else b""


def _push_all(trace: list[np.ndarray], joints: Sequence[tuple[slice, Joint]]) -> bytes:
    """The stream of decisions, and of the levels of each tensor behind its own."""
    joints = joints or [(slice(0, len(trace)), None)]
    most = sum(map(len, trace)) + sum(joint.most for _, joint in joints if joint)
    words = np.empty(most + 4, np.uint32)
    x, number = np.uint64(0), 0
    for own, joint in reversed(joints):
        for push in reversed(joint.tiles if joint else ()):
            x, number = push(words, x, number)
        decisions = np.concatenate([np.empty(0, np.int32), *trace[own]])
        x, number = push_bits(decisions, len(decisions), np.uint64(x), number, words)
    return pack_words(words[: end_words(np.uint64(x), words, number)])
