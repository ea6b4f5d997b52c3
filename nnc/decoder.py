"""From units to tensors.  Never imports the encoder; everything up to the levels is integers, then two float32 products per
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from zlib import decompressobj, error

import numpy as np
import torch

from .coded import CodedTensor, Decoded, as_tensor
from .coder import chain_digests, checksum
from .directory import Unit
from .entropy.explicit import ModelBank
from .errors import Corruption, InvalidArgument
from .fields import Permutations
from .joined import decode_joined
from .prediction.reference import digest_tensor, digest_unit
from .side import read_side
from .tiles.decode import decode_plane
from .tools import Matrices
from .unit import CODED_DTYPES, DTYPES, Record


LONG = 1 << 11  # bytes of learned latents that are read in a thread of the pool


@dataclass(frozen=True, eq=False)
class ReferenceReader:
    """Where predicted tensors take their predictions from.  label: its name in messages; specs: dtype and shape by name; read: the
    tensor of a name."""

    label: str
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    read: Callable[[str], torch.Tensor]

    def check(self, record: Record) -> None:
        """InvalidArgument if what the record takes from the reference is not there, or has another shape or dtype."""
        if record.name not in self.specs:
            raise InvalidArgument(f"{self.label}: no tensor {record.name!r}: not the reference of this file, name the right one")
        dtype, shape = self.specs[record.name]
        if shape != record.shape or (dtype not in CODED_DTYPES if record.coding else dtype != record.dtype):
            what = f"{str(dtype).removeprefix('torch.')} {shape}"
            raise InvalidArgument(
                f"{self.label}: tensor {record.name!r} is {what} there: not the reference of this file, name the right one"
            )


def decode_unit(
    unit: Unit,
    records: tuple[Record, ...],
    data: bytes,
    bank: ModelBank,
    pool: Executor | None = None,
    reference: ReferenceReader | None = None,
    permutations: Permutations = (),
    matrices: Matrices = (),
    earlier: Callable[[str], torch.Tensor] | None = None,
) -> Callable[[], list[torch.Tensor]]:
    """Start to decode a unit; the returned function waits for the tensors of its records (aliases left out) and checks the
    digest.  permutations, matrices: of the directory; earlier: gives tensors of earlier units, which it is asked for while the returned function runs.

    Raises Corruption at once if the checksum of `data` differs, later if the streams do not decode to the levels that were coded;
    InvalidArgument if the reference is not the one that the unit was made with.
    """
    stored = sum(record.stored for record in records) + unit.stream
    if len(data) != stored:
        raise Corruption(f"unit of {records[0].name!r}: {len(data)} bytes, its records say {stored}: the file is damaged")
    if checksum(data) != unit.checksum:
        raise Corruption(f"unit of {records[0].name!r}: checksum differs: the file is damaged")
    for record in records:
        if record.referenced:  # before anything of this size is allocated
            if reference is None:
                raise InvalidArgument(f"tensor {record.name!r} is a difference to a reference: name that")
            reference.check(record)
    own = split_unit(records, data)
    joined = [(record, part) for record, part in own if record.joined]
    jobs = {r.name: start_record(r, part, bank, pool, permutations, matrices) for r, part in own if not r.joined}
    # here and now, since it is mostly Python: in the pool it would keep the threads that decode the others waiting for the interpreter
    together = decode_joined(*zip(*joined), memoryview(data)[stored - unit.stream :], bank, matrices) if joined else []

    def wait() -> list[torch.Tensor]:
        bases = _read_reference(unit, records, reference)
        ready = {record.name: found for (record, _), found in zip(joined, together)}
        results = {}
        for (record, _), base in zip(own, bases):
            if record.joined:
                found = ready.pop(record.name)
                results[record.name] = found.coded.finish(found.decoded, base, permutations), found.decoded.digests
                continue
            if record.base:
                base = results[record.base][0] if record.base in results else earlier(record.base)
            results[record.name] = jobs[record.name](base)
        digest = chain_digests([d for _, digests in results.values() for d in digests])
        if digest != unit.digest:
            raise Corruption(f"unit of {records[0].name!r}: digest of the levels differs: the file is damaged")
        return [tensor for tensor, _ in results.values()]

    return wait


def split_unit(records: tuple[Record, ...], data: bytes) -> list[tuple[Record, memoryview]]:
    """The records of a unit, aliases left out, each with its bytes; what is left behind them is the joined stream."""
    view, at, found = memoryview(data), 0, []
    for record in records:
        if record.kind != "alias":
            found.append((record, view[at : at + record.stored]))
            at += record.stored
    return found


def start_record(
    record: Record,
    data: memoryview,
    bank: ModelBank,
    pool: Executor | None = None,
    permutations: Permutations = (),
    matrices: Matrices = (),
) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    """Start to decode one tensor that is not joined from its bytes; the returned function takes its counterpart in the reference, if it needs one, and
    waits for the tensor and the digests of its streams."""
    if record.kind == "coded":
        return _start_coded(record, data, bank, pool, permutations, matrices)
    if record.kind == "tiled":
        return _start_tiled(record, data, pool)
    if record.kind == "same":
        return lambda base: (base.clone(), [])
    return _finished(record, data)


def _read_reference(unit: Unit, records: tuple[Record, ...], reference: ReferenceReader | None) -> list[torch.Tensor | None]:
    """What the records (aliases left out) take from the reference, all of it checked."""
    if not unit.reference:
        return [None for record in records if record.kind != "alias"]
    bases = [reference.read(record.name) if record.referenced else None for record in records if record.kind != "alias"]
    if digest_unit([digest_tensor(base, DTYPES.id(base.dtype)) for base in bases if base is not None]) != unit.reference:
        raise InvalidArgument(
            f"{reference.label}: tensor {records[0].name!r} is not what it was when this was compressed: name the right reference"
        )
    return bases


def _finished(record: Record, data: memoryview) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    tensor = None if record.filter in ("reference", "earlier") else _restore(record, data)
    return lambda base: (_restore(record, data, base) if tensor is None else tensor, [])


def _restore(record: Record, data: memoryview, base: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor that was not quantized: plain, exact or constant.  base: its counterpart in the reference, or the earlier tensor."""
    if record.kind == "constant":
        if record.dtype == torch.bool and record.value[0] > 1:
            raise Corruption(f"tensor {record.name!r}: a bool byte is neither 0 nor 1: the file is damaged")
        element = torch.frombuffer(bytearray(record.value), dtype=torch.uint8).view(record.dtype)
        return element.expand(record.elements).clone().reshape(record.shape)
    raw = bytes(data) if record.kind == "plain" or record.filter == "none" else _inflate(record, data)
    if len(raw) != record.nbytes:
        raise Corruption(f"tensor {record.name!r}: {len(raw)} bytes instead of {record.nbytes}: the file is damaged")
    if record.elements == 0:
        return torch.empty(record.shape, dtype=record.dtype)
    if record.filter in ("byte planes", "differences", "reference", "earlier"):
        planes = np.frombuffer(raw, np.uint8).reshape(record.dtype.itemsize, record.elements)
        values = np.ascontiguousarray(planes.T)
        if record.filter == "differences":
            kind = np.dtype(f"<u{record.dtype.itemsize}")
            values = np.cumsum(values.view(kind)[:, 0], dtype=kind)
        if record.filter in ("reference", "earlier"):
            kind = np.dtype(f"<u{record.dtype.itemsize}")
            steps, before = values.view(kind)[:, 0], base.contiguous().flatten().view(torch.uint8).numpy().view(kind)
            values = before + ((steps >> kind.type(1)) ^ (kind.type(0) - (steps & kind.type(1))))
        raw = values.tobytes()
    if record.dtype == torch.bool and max(raw) > 1:
        raise Corruption(f"tensor {record.name!r}: a bool byte is neither 0 nor 1: the file is damaged")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(record.dtype).reshape(record.shape)


def _inflate(record: Record, data: memoryview) -> bytes:
    inflater = decompressobj()
    try:
        raw = inflater.decompress(data, record.nbytes + 1)
    except error as problem:
        raise Corruption(f"tensor {record.name!r}: {problem}: the file is damaged") from None
    if not inflater.eof or inflater.unused_data:
        raise Corruption(f"tensor {record.name!r}: the deflated bytes do not end where they should: the file is damaged")
    return raw


def _start_coded(
    record: Record, data: memoryview, bank: ModelBank, pool: Executor | None, permutations: Permutations, matrices: Matrices
) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    coding = record.coding
    side = record, bytes(data[: coding.side]), bank, matrices
    streams = [data[begin:end] for begin, end in pairwise(accumulate(coding.streams, initial=coding.side))]

    def finish(coded: CodedTensor, decoded: Decoded, base: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
        return coded.finish(decoded, base, permutations), decoded.digests

    if pool and coding.latent_bytes >= LONG:  # else all threads would wait until they are read

        def start() -> tuple[CodedTensor, Callable[[], Decoded]]:
            coded = read_side(*side)
            return coded, coded.start(coded.whole, streams, pool)

        started = pool.submit(start)

        def finish_later(base: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
            coded, wait = started.result()
            return finish(coded, wait(), base)

        return finish_later
    coded = read_side(*side)
    wait = coded.start(coded.whole, streams, pool)
    return lambda base: finish(coded, wait(), base)


def _start_tiled(
    record: Record, data: memoryview, pool: Executor | None
) -> Callable[[torch.Tensor | None], tuple[torch.Tensor, list[int]]]:
    """One stream, whose tiles depend on each other: one job."""

    def decode() -> tuple[torch.Tensor, list[int]]:
        try:
            found = decode_plane(record.tiles, record.shape, data)
        except Corruption as problem:
            raise Corruption(f"tensor {record.name!r}: {problem}") from None
        return as_tensor(record, found.values), [found.digest]

    result = pool.submit(decode).result if pool else decode
    return lambda base: result()
