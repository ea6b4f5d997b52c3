"""Small files at equal levels: latents that are learned, joined streams and the mixed directory over the tables of the end-to-end codec.

    python examples/benchmarks/latents.py --check
    python examples/benchmarks/latents.py --case minilm_stsb_dev --free

Both files hold the same levels: whenever the encoder lays out tensors, they are laid out twice, and the size of the other file is looked up for the one that is
kept.  `static`: every array of codes in a mode of its own, a stream for each, the directory deflated.  `directory`: that one mixed.  `joined`: latents in
the coder that learns, streams joined.  `chosen`: scale codes chosen by what they and the levels cost; what nnc writes.  `oracle`: what would be saved besides if the frequencies of
every table (tensor, scale index, quantizer) were known and cost nothing: no model of levels that sees what the tables see can save more.
"""
from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from ablation import taken_away
from calibrated import KINDS
from sources import ZOO, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc import container
from nnc.archive import open_compressed
from nnc.calibration.gather import gather
from nnc.encoding import Encoding
from nnc.kernels.words import count_levels
from nnc.quantize.trellis import make_trellis
from nnc.reading import read_stored

RATES = {"cifar10_resnet20": (2.1, 3.0), "kws_dscnn": (2.2, 4.2), "stories260K": (2.0, 4.2), "espcn_x3_epoch25": (1.3, 2.5)}
MINILM = "minilm_stsb_dev"
LEAST, LEAST_LARGE = 3.0, 1.0  # per cent of the static file, of small files and of MiniLM


@dataclass(frozen=True)
class Sizes:
    """Bytes of files with the same levels."""

    static: int
    directory: int
    joined: int
    chosen: int


@contextmanager
def laid_out_twice(found: dict[int, Sizes]) -> Iterator[None]:
    """Whatever is laid out while this lasts is put down in `found`, by its size."""
    encode = Encoding.encode

    def several(self: Encoding, factor: float) -> object:
        with taken_away(("learned", "dependent")):
            static = encode(self, factor).size
        with taken_away(("learned", "dependent")), mock.patch.object(container, "MAX_MIXED", 1 << 18):
            directory = encode(self, factor).size
        with mock.patch("nnc.encoder.choose_codes", lambda scales, *rest: scales):
            joined = encode(self, factor).size
        chosen = encode(self, factor)
        found[chosen.size] = Sizes(static, directory, joined, chosen.size)
        return chosen

    with mock.patch.object(Encoding, "encode", several):
        yield


def measure(weights: object, path: Path, bits: float, **options: object) -> Sizes:
    found: dict[int, Sizes] = {}
    with laid_out_twice(found):
        nnc.compress(weights, path, bits=bits, threads=1, overwrite=True, **options)
    return found[path.stat().st_size]
