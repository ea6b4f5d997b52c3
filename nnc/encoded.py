"""What comes out of the encoder for one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

import numpy as np
import torch

from .bases import Basis
from .latents import Latents
from .outliers import Outliers
from .prediction.memory import CentreCodes, MemoryCodes
from .unit import Record


@dataclass(frozen=True, eq=False)
class Predicted:
    """The prediction of a tensor from its counterpart in a reference, or from an earlier tensor.  plane: float32 (rows, columns), not transposed; orders:
    numbers of the permutations it was made with; confidence: int16 codes of its rows; digest: of the counterpart; base: name of the earlier tensor."""

    plane: np.ndarray
    orders: tuple[int, int]
    confidence: np.ndarray
    digest: bytes = b""
    base: str = ""


@dataclass(frozen=True, eq=False)
class Layout:
    """What is done to the plane of a tensor before it is coded.  basis: of its columns; memory: foretells columns, of the transposed plane if
    `transposed`; strips: weights of a CTU if a row of the tensor shall lie in one of them, so that it can be read alone, else 0."""

    basis: Basis | None = None
    memory: MemoryCodes | CentreCodes | None = None
    transposed: bool = False
    strips: int = 0

    def coefficients(self, plane: np.ndarray) -> np.ndarray:
        """In the basis, not transposed."""
        return self.basis.coefficients(plane) if self.basis else plane


PLAIN = Layout()


@dataclass(frozen=True, eq=False)
class Outlying:
    """Outliers of a tensor.  record, data: what a file says of them; positions: int64, rising, in its elements; weights: float32, what
    stands there; values: what a decoder puts there, in its dtype."""

    record: Outliers
    data: bytes
    positions: np.ndarray
    weights: np.ndarray
    values: torch.Tensor

    def leave(self, plane: np.ndarray) -> np.ndarray:
        """The plane (not transposed) without them."""
        plane = plane.copy()
        plane.reshape(-1)[self.positions] = 0
        return plane

    def account(self, plane: np.ndarray, values: np.ndarray, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Weights and values of a plane with them, to tell errors by."""
        places = self.positions
        if transposed:
            row, column = np.divmod(places, plane.shape[0])
            places = column * plane.shape[1] + row
        plane = plane.copy()
        plane.reshape(-1)[places] = self.weights
        values.reshape(-1)[places] = self.values.to(torch.float32).numpy()
        return plane, values

    def place(self, tensor: torch.Tensor) -> None:
        tensor.view(-1)[torch.from_numpy(self.positions)] = self.values


@dataclass(frozen=True, eq=False)
class Joint:
    """What is left of a small coded tensor where it shares a stream with others.  latents: of it; parts: bytes of its tools; tiles: of every CTU a
    function that pushes its levels onto a coder, (words, state, number of words) -> (state, number of words); most: words that they push."""

    latents: Latents
    parts: bytes
    tiles: tuple[Callable[[np.ndarray, np.uint64, int], tuple[np.uint64, int]], ...]
    most: int


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """record: for the directory; data: its bytes in the unit; digests: of its streams; content: CRC-32 of the bytes of the tensor
    it decodes to.

    error, energy: sums of squared errors and of squared weights; loss: as predicted from calibration, None without; reference: digest of
    what it takes from the reference, empty if nothing; saved: bits that a memory is reckoned to have saved at these steps, without
    calibration; joint: how it is joined with others, None if it is not."""

    record: Record
    data: bytes
    digests: tuple[int, ...]
    content: int
    error: float = 0.0
    energy: float = 0.0
    loss: float | None = None
    reference: bytes = b""
    saved: float = 0.0
    joint: Joint | None = None

    def cost(self, price: float | None) -> float:
        """What ways to code the same tensor are compared by: bits, and loss at `price` per bit; without a price half a bit per weight for an
        octave of the squared error, as fine quantization trades them."""
        bits = 8.0 * len(self.data)
        if price:
            return bits + (self.loss or 0.0) / price
        return bits + self.record.elements / 2 * log2(max(self.error, 1e-300))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, little endian, without a copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")


def same_bytes(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors of one dtype have the same bytes: NaN is like itself, and 0 not like -0."""
    return torch.equal(*(tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, two)))
