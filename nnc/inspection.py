"""What a compressed checkpoint says about itself.  Of small tensors that share a stream only decoding tells what each of them takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .archive import Archive, open_compressed
from .centres import front_bytes
from .container import INDEX_NAME
from .quantize.trellis import LABELLINGS
from .reading import joined_bits
from .unit import Record


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.  step, snr (dB, to half a decibel): of coded and tiled ones, else None; states, labelling: of coded
    ones; bytes: of its streams and codes; bits: per element; share:
    of all bytes of the files; tools: names of those that it uses; latents: how those of a coded one are coded."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    step: float | None
    states: int | None
    labelling: str | None
    ctus: int
    bytes: int
    bits: float
    snr: float | None
    share: float
    tools: tuple[str, ...] = ()
    latents: str | None = None


@dataclass(frozen=True)
class FileInfo:
    """A compressed checkpoint.  reference: name of the one that it is a difference to ("" if it had none), None if there is none;
    payload: bytes of entropy coded levels; side: of latents and of parts of tools; exact: of tensors kept without
    loss; overhead: all others.
    """

    files: tuple[str, ...]
    file_bytes: int
    original_bytes: int
    parameters: int
    payload: int
    side: int
    exact: int
    origin: str
    tensors: tuple[TensorInfo, ...]
    reference: str | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.file_bytes / max(1, self.parameters)

    @property
    def overhead(self) -> int:
        return self.file_bytes - self.payload - self.side - self.exact


def inspect(path: str | os.PathLike) -> FileInfo:
    """Read the headers and directories of a compressed file or folder, and the small units in which tensors share a stream; Corruption if they are
    damaged."""
    with open_compressed(path) as archive:
        records = archive.records
        index = Path(path) / INDEX_NAME
        total = sum(file.size for file in archive.files) + (index.stat().st_size if index.is_file() else 0)
        coded = [record.coding for record in records if record.kind == "coded"]
        labels = sum(front_bytes(record.coding, record.coding.grid(record.shape).tiles()) for record in records if record.kind == "coded")
        tiled = [record.tiles for record in records if record.kind == "tiled"]
        own = [record for record in records if record.kind != "alias" or not record.tied]
        joined = _joined_bytes(archive)
        return FileInfo(
            tuple(str(file.path) for file in archive.files),
            total,
            sum(record.nbytes for record in own),
            sum(record.elements for record in own if record.dtype.is_floating_point),
            sum(sum(coding.streams) for coding in coded) - labels + sum(tiles.length for tiles in tiled) + sum(b for _, b in joined.values()),
            sum(coding.side for coding in coded) + labels + sum(tiles.side for tiles in tiled) + sum(a for a, _ in joined.values()),
            sum(record.stored for record in records if record.kind in ("exact", "plain")),
            archive.origin.kind,
            tuple(_describe(record, total, sum(joined.get(record.name, (0, 0)))) for record in records),
            archive.hint,
        )


def _joined_bytes(archive: Archive) -> dict[str, tuple[int, int]]:
    """Bytes of latents and of levels of the tensors that share a stream; the bytes of a stream are divided by the bits that each takes, none is
    left over."""
    found = {}
    for file in archive.files:
        for index, records in enumerate(file.unit_records()):
            joined = [record for record in records if record.joined]
            if not joined:
                continue
            bits = [part for member in joined_bits(file, index) for part in member]
            edges = np.round(np.cumsum([0, *bits]) * file.directory.units[index].stream / max(1e-9, sum(bits))).astype(int)
            sizes = np.diff(edges).tolist()
            found |= {record.name: (sizes[2 * n], sizes[2 * n + 1]) for n, record in enumerate(joined)}
    return found


def _describe(record: Record, total: int, joined: int) -> TensorInfo:
    coding = record.coding
    quantized = coding or record.tiles
    stored = 0 if record.kind == "alias" else record.stored + joined
    return TensorInfo(
        record.name,
        record.shape,
        str(record.dtype).removeprefix("torch."),
        "tied" if record.tied else "predicted" if coding and coding.prediction and not record.base else record.kind,
        quantized and quantized.step,
        coding and coding.states,
        coding and LABELLINGS.value(coding.labelling),
        len(coding.streams) if coding else 0,
        stored,
        8 * stored / max(1, record.elements),
        quantized and quantized.noise / 2,
        stored / total,
        (coding.tools.names if coding else ()) + (("inter",) if record.base else ()),
        coding and coding.latents,
    )
