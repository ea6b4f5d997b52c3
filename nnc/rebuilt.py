"""Encoded tensors as readers of their file will see them.  For the encoder, which asks the decoder here."""

from __future__ import annotations

import torch

from .alignment import Alignment
from .coder import chain_digests, checksum
from .decoder import decode_unit
from .directory import Unit
from .encoded import EncodedTensor
from .entropy.explicit import ModelBank
from .prediction.reference import digest_unit
from .tools import Matrices


def decode_tensor(
    encoded: EncodedTensor, bank: ModelBank, alignment: Alignment | None = None, matrices: Matrices = (), base: torch.Tensor | None = None
) -> torch.Tensor:
    """The tensor of an encoded one, as readers of the file will see it; checks its digests.  alignment: with the reference; matrices: of bases; base:
    the tensor that foretells it, as they will see that."""
    used = digest_unit([encoded.reference]) if encoded.reference else b""
    unit = Unit(1, False, checksum(encoded.data), chain_digests(list(encoded.digests)), used)
    reader, orders = (alignment.reader, tuple(alignment.permutations)) if alignment else (None, ())
    return decode_unit(unit, (encoded.record,), encoded.data, bank, None, reader, orders, matrices, lambda name: base)()[0]
