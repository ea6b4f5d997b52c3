"""What is known about the loss near the weights: one Kronecker product per tensor, in the units of the fidelity.

    loss(E) = 1/2 sum_i diagonal[i] * E_i full E_i^T

for an error E of the plane of a tensor, E_i its rows (axis = 1, `full` runs over the columns) or its columns (axis = 0, `full`
runs over the rows).  It is the Fisher matrix of the network in Kronecker-factored form (Martens & Grosse, "Optimizing neural
networks with Kronecker-factored approximate curvature", ICML 2015), one of whose sides is kept as a diagonal only.

The file is a .safetensors file: for tensor number k the entries "k.full" and "k.diagonal", and in the metadata the version,
the kind, the number of predictions and a fingerprint of the model.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import Corruption, InvalidArgument

FORMAT = "nnc statistics"
VERSION = 1
CHUNK = 1 << 22  # values of an error that are widened at a time


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor whose plane has m rows and n columns; arrays are float32.

    axis      the axis of the plane over which `full` runs: 1 columns, 0 rows
    full      (n, n) for axis 1 or (m, m) for axis 0, symmetric, often singular; 1-D if only its diagonal is known
    diagonal  (m,) for axis 1 or (n,) for axis 0, not negative
    uses      positions at which the tensor was used, over all batches

    All zero if the tensor's inputs were zero throughout: then nothing is known about it.
    """

    axis: int
    full: np.ndarray
    diagonal: np.ndarray
    uses: int

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the plane."""
        sizes = (len(self.diagonal), len(self.full))
        return sizes if self.axis == 1 else sizes[::-1]

    def loss(self, error: np.ndarray) -> float:
        """Predicted increase of the fidelity's distance for an error (m, n) float32, in float64 sums.

        Raises InvalidArgument for another shape.
        """
        if error.shape != self.shape:
            raise InvalidArgument(f"the error has shape {tuple(error.shape)}, the statistics are of a plane {self.shape}")
        rows = error if self.axis == 1 else error.T
        total, step = 0.0, max(1, CHUNK // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = np.ascontiguousarray(rows[start : start + step], dtype=np.float32)
            product = part * self.full if self.full.ndim == 1 else part @ self.full
            power = np.einsum("ij,ij->i", product, part, dtype=np.float64)
            total += float(power @ self.diagonal[start : start + step].astype(np.float64))
        return 0.5 * total


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of all float tensors of a network.

    tensors      by state-dict name; the names of a tied tensor share one object
    kind         "logits" (loss in KL nats per prediction), "unit" (1 - cosine) or "values" (mean squared error)
    predictions  predictions, vectors or single values that were seen
    unseen       float tensors of the state dict that never influenced the output
    fingerprint  of the names, shapes and weights of the model
    """

    tensors: Mapping[str, TensorStatistics]
    kind: str
    predictions: int
    unseen: tuple[str, ...] = ()
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .safetensors file, complete or not at all; InvalidArgument if it cannot be written."""
        unique = {id(entry): entry for entry in self.tensors.values()}
        numbers = {key: number for number, key in enumerate(unique)}
        arrays = {}
        for key, entry in unique.items():
            arrays[f"{numbers[key]}.full"] = np.ascontiguousarray(entry.full)
            arrays[f"{numbers[key]}.diagonal"] = np.ascontiguousarray(entry.diagonal)
        table = {name: [numbers[id(entry)], entry.axis, entry.uses] for name, entry in self.tensors.items()}
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "kind": self.kind,
            "predictions": str(self.predictions),
            "fingerprint": self.fingerprint,
            "tensors": json.dumps(table),
            "unseen": json.dumps(list(self.unseen)),
            "settings": json.dumps(dict(self.settings), sort_keys=True),
        }
        path = Path(path)
        temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            save_file(arrays, temporary, metadata)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise InvalidArgument(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote; InvalidArgument for a file that is none of these, Corruption for a damaged one."""
        if not Path(path).is_file():
            raise InvalidArgument(f"{path}: there is no such file of statistics")
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InvalidArgument(f"{path}: not a file of statistics; gather them first")
                if metadata.get("version") != str(VERSION):
                    raise InvalidArgument(
                        f"{path}: statistics of version {metadata.get('version')}, this is {VERSION}; gather anew"
                    )
                table = json.loads(metadata["tensors"])
                entries: dict[int, TensorStatistics] = {}
                for number, axis, uses in table.values():
                    if number not in entries:
                        full, diagonal = file.get_tensor(f"{number}.full"), file.get_tensor(f"{number}.diagonal")
                        entries[number] = _checked(TensorStatistics(axis, full, diagonal, uses), path)
                return cls(
                    {name: entries[row[0]] for name, row in table.items()},
                    metadata["kind"],
                    int(metadata["predictions"]),
                    tuple(json.loads(metadata["unseen"])),
                    metadata["fingerprint"],
                    json.loads(metadata["settings"]),
                )
        except SafetensorError as error:
            raise Corruption(f"{path}: damaged file of statistics ({error}); gather anew") from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise Corruption(f"{path}: damaged table of statistics ({type(error).__name__}); gather anew") from error
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from error


def _checked(entry: TensorStatistics, path: str | os.PathLike[str]) -> TensorStatistics:
    full, diagonal = entry.full, entry.diagonal
    square = full.ndim == 1 or (full.ndim == 2 and full.shape[0] == full.shape[1])
    if entry.axis not in (0, 1) or not square or diagonal.ndim != 1 or {full.dtype, diagonal.dtype} != {np.dtype(np.float32)}:
        raise Corruption(f"{path}: damaged table of statistics (axis or shape); gather anew")
    if not (np.isfinite(full).all() and np.isfinite(diagonal).all()):
        raise Corruption(f"{path}: statistics that are not finite; gather anew")
    return entry
