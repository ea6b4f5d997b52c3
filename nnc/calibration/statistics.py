"""What is known about the loss near the weights: one Kronecker product per tensor, in the units of the fidelity.

    loss(E) = 1/2 tr(R E C E^T)

for an error E of the plane of a tensor; R belongs to its rows, C to its columns.  It is the Fisher matrix of the network in
Kronecker-factored form (Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015).

The file is a .safetensors file: for tensor number k the entries "k.rows" and "k.columns", and in the metadata the version,
the kind, the number of predictions and a fingerprint of the model.
"""

from __future__ import annotations

import json
import os
import re
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
ANEW = "calibrate anew, to another file"


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one tensor whose plane has m rows and n columns; arrays are float32.

    rows      R, (m, m), symmetric, often singular; (m,) where only its diagonal is known
    columns   C, (n, n) or (n,)
    samples   independent samples behind R and behind C: positions at which the tensor was used, times draws of labels for gradients

    All zero if the tensor's inputs were zero throughout: then nothing is known about it.
    """

    rows: np.ndarray
    columns: np.ndarray
    samples: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the plane."""
        return len(self.rows), len(self.columns)

    @property
    def transposed(self) -> TensorStatistics:
        """Those of the transposed plane."""
        return TensorStatistics(self.columns, self.rows, self.samples[::-1])

    def loss(self, error: np.ndarray) -> float:
        """Predicted increase of the fidelity's distance for an error (m, n) float32.

        Raises InvalidArgument for another shape.
        """
        if error.shape != self.shape:
            raise InvalidArgument(f"the error has shape {tuple(error.shape)}, the statistics are of a plane {self.shape}")
        error = np.ascontiguousarray(error, dtype=np.float32)
        right = error * self.columns if self.columns.ndim == 1 else error @ self.columns
        left = error * self.rows[:, None] if self.rows.ndim == 1 else self.rows @ error
        return 0.5 * float(np.einsum("ij,ij->", left, right, dtype=np.float64))


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
            arrays[f"{numbers[key]}.rows"] = np.ascontiguousarray(entry.rows)
            arrays[f"{numbers[key]}.columns"] = np.ascontiguousarray(entry.columns)
        table = {name: [numbers[id(entry)], *entry.samples] for name, entry in self.tensors.items()}
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
            number = re.search(r"os error (\d+)", str(error))  # safetensors tells of a file of its own beside
            reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or error
            raise InvalidArgument(f"{path}: {reason}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote; InvalidArgument for a file that is none of these, Corruption for a damaged one."""
        if Path(path).is_dir():
            raise InvalidArgument(f"{path} is a folder; statistics are one .safetensors file")
        if not Path(path).is_file():
            raise InvalidArgument(f"{path}: there is no such file of statistics; make it with nnc calibrate")
        try:
            open(path, "rb").close()  # safetensors would say of a file that must not be read that it is not there
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InvalidArgument(f"{path}: not a file of statistics; name another")
                if metadata.get("version") != str(VERSION):
                    raise InvalidArgument(f"{path}: statistics of version {metadata.get('version')}, this is {VERSION}; {ANEW}")
                table = json.loads(metadata["tensors"])
                entries: dict[int, TensorStatistics] = {}
                for number, *samples in table.values():
                    if number not in entries:
                        rows, columns = file.get_tensor(f"{number}.rows"), file.get_tensor(f"{number}.columns")
                        entries[number] = _checked(TensorStatistics(rows, columns, (int(samples[0]), int(samples[1]))), path)
                return cls(
                    {name: entries[row[0]] for name, row in table.items()},
                    metadata["kind"],
                    int(metadata["predictions"]),
                    tuple(json.loads(metadata["unseen"])),
                    metadata["fingerprint"],
                    json.loads(metadata["settings"]),
                )
        except SafetensorError as error:
            raise Corruption(f"{path}: not a file of statistics, or a damaged one ({error}); {ANEW}") from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise Corruption(f"{path}: damaged table of statistics ({type(error).__name__}); {ANEW}") from error
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from error


def _checked(entry: TensorStatistics, path: str | os.PathLike[str]) -> TensorStatistics:
    for side in (entry.rows, entry.columns):
        if side.ndim not in (1, 2) or side.shape != (len(side),) * side.ndim or side.dtype != np.float32:
            raise Corruption(f"{path}: damaged table of statistics (shape or dtype); {ANEW}")
        if not np.isfinite(side).all():
            raise Corruption(f"{path}: statistics that are not finite; {ANEW}")
    return entry
