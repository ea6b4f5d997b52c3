"""What foretells the columns of a coded tensor: memories, or centres, which are columns coded beside its plane.

Centres are the columns of one more CTU with a stream of its own: as high as the plane, its steps some octaves finer, since every column that a centre foretells
gains from each of its digits.

Labels are latents, or, where rows of a table shall be read alone, stand in front of the stream of each CTU: so many bits for every column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .coder import gather_words
from .entropy.explicit import ModelBank
from .entropy.parametric import CLASSES
from .entropy.scales import OFF, kernel_codes
from .errors import Corruption
from .kernels.streams import decode_tile
from .latents import Latents
from .prediction.memory import CentreCodes, MemoryCodes, check_codes, read_memory
from .quantize.steps import StepCodes
from .quantize.trellis import make_trellis
from .unit import Coding, Record

NO_NUMBERS = np.empty(0, np.int32)


def centre_codes(rows: np.ndarray, base: int, steps: StepCodes) -> np.ndarray:
    """Scale codes of rows as the kernels take them for centres: int16; those of dead rows, in which a centre need not be zero, count as zero."""
    return kernel_codes(np.where(rows == OFF, 0, rows), base - steps.index)


def centre_steps(row_steps: np.ndarray, finer: int) -> np.ndarray:
    """Steps of centres in each row, float32."""
    return row_steps * np.float32(2.0**-finer)


def label_bytes(number: int, columns: int) -> int:
    """That labels 0..number of so many columns take in front of the stream of their CTU."""
    return (number.bit_length() * columns + 7) // 8


def front_bytes(coding: Coding, tiles: Sequence[tuple[int, int, int, int]]) -> int:
    """Of all labels that stand in front of streams."""
    memory = coding.tools.memory
    return sum(label_bytes(memory.centres.number, right - left) for _, _, left, right in tiles) if memory and not memory.labels else 0


def split_streams(
    coding: Coding, tiles: Sequence[tuple[int, int, int, int]], streams: Sequence[bytes | memoryview]
) -> tuple[Sequence[bytes | memoryview], np.ndarray | None]:
    """The streams of the levels of some CTUs, and the labels of their columns, int16, if they stand in front of these; Corruption if they cannot be any."""
    memory = coding.tools.memory
    if not memory or memory.labels:
        return streams, None
    number, widths = memory.centres.number, [right - left for _, _, left, right in tiles]
    lengths, size = [label_bytes(number, width) for width in widths], number.bit_length()
    if any(len(stream) < length for stream, length in zip(streams, lengths)):
        raise Corruption("a CTU ends within its labels: the file is damaged")
    found = np.empty(sum(widths), np.int16)
    ends = np.cumsum(widths)
    for width in set(widths):  # all of one width at once
        own = [n for n, other in enumerate(widths) if other == width]
        bits = np.unpackbits(np.frombuffer(b"".join(streams[n][: lengths[n]] for n in own), np.uint8)).reshape(len(own), -1)
        if bits[:, size * width :].any():
            raise Corruption("bits behind the labels of a CTU are not 0: the file is damaged")
        octets = np.zeros((len(own) * width, 8), np.uint8)
        octets[:, 8 - size :] = bits[:, : size * width].reshape(-1, size)
        labels = np.packbits(octets, axis=1).reshape(len(own), width)
        for n, of_tile in zip(own, labels):
            found[ends[n] - width : ends[n]] = of_tile
    check_codes(found, np.zeros(0, np.int16), number)
    return [stream[length:] for stream, length in zip(streams, lengths)], found


def pack_labels(labels: np.ndarray, number: int) -> bytes:
    """What stands in front of the stream of a CTU with these labels, int16, of 0..number."""
    size = np.arange(number.bit_length() - 1, -1, -1)
    return np.packbits((labels[:, None] >> size & 1).astype(np.uint8)).tobytes()


def read_memories(
    record: Record, latents: Latents, bank: ModelBank, row_steps: np.ndarray, data: bytes
) -> MemoryCodes | CentreCodes:
    """What foretells columns; data: stream of the centres, if there are any."""
    coding, memory = record.coding, record.coding.tools.memory
    if not memory.centres:
        return read_memory(memory.limit, latents.labels, latents.trust)
    number = memory.centres.number
    check_codes(np.zeros(0, np.int16) if latents.labels is None else latents.labels, latents.trust, number)
    codes = centre_codes(latents.rows, coding.base, latents.row_steps)
    centres = np.zeros((1 + number, len(codes)), np.float32)
    words, bounds = gather_words([data])
    trellis, steps = make_trellis(coding.states), centre_steps(row_steps, memory.centres.finer)
    tile, of_centres = (0, len(codes), 0, number), np.full(number, memory.centres.code, np.int16)
    state, left, _ = decode_tile(
        words, bounds[0], bounds[1], *tile, codes, of_centres, CLASSES, NO_NUMBERS, bank.table_set(coding.model).arrays,
        trellis.next_state, coding.shift, coding.labelling, steps, np.ones(number, np.float32), centres[1:].T,
    )  # fmt: skip
    if state or left:
        raise Corruption(f"tensor {record.name!r}: the stream of its centres does not end where it should: the file is damaged")
    if not np.isfinite([centres.min(), centres.max()]).all():
        raise Corruption(f"tensor {record.name!r}: a centre is beyond float32: the file is damaged")
    return CentreCodes(latents.labels, latents.trust, centres)
