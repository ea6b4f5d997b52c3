"""Small files at equal levels: latents that are learned, joined streams and the mixed directory over the tables of the end-to-end codec.

    python examples/benchmarks/latents.py --check
    python examples/benchmarks/latents.py --case minilm_stsb_dev --way free

All files of a row hold the same levels: whenever the encoder lays out tensors, they are laid out in every way, and the sizes are looked up for the file that is kept.

    static      every array of codes in a mode of its own, a stream for each, the directory deflated
    directory   that one mixed
    joined      latents in the coder that learns, streams joined
    chosen      scale codes chosen by what they and the levels cost: what nnc writes
    networks    with `entropy = "context"`: tables that networks choose, where that saves bytes
    oracle      what else would be saved, in per cent of `chosen`, if the frequencies of every table (tensor, scale index, quantizer) were known and cost nothing: no model that sees
                what the tables see can save more.  `less`: the same without what a table fitted to few levels gains by chance (half of log2 e bits for every symbol that occurs)
"""
from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
from ablation import taken_away
from calibrated import KINDS
from sources import ZOO, import_zoo
from tables import Bound, Column, Table, finish, make_parser, note

import nnc
from nnc import container
from nnc.assembly import Assembly
from nnc.calibration.gather import gather
from nnc.encoding import Encoding
from nnc.entropy.explicit import TABLES
from nnc.entropy.parametric import CLASSES
from nnc.kernels.streams import DEAD
from nnc.learning.choice import levels_of
from nnc.rdo import WIDTH, count, level_bits

RATES = {"cifar10_resnet20": (2.1, 3.0), "kws_dscnn": (2.2, 4.2), "stories260K": (2.0, 4.2), "espcn_x3_epoch25": (1.3, 2.5)}
MINILM = "minilm_stsb_dev"
MAX_MIXED = container.MAX_MIXED
LEAST, LEAST_LARGE = 3.0, 1.0  # per cent of the static file, of small files and of MiniLM


@dataclass(frozen=True)
class Sizes:
    """Bytes of files with the same levels.  oracle, less: bytes that known tables would save besides."""

    static: int
    directory: int
    joined: int
    chosen: int
    networks: int
    oracle: float
    less: float


def ask_oracle(assembly: Assembly) -> tuple[float, float]:
    """Bytes that tables of the levels would save if they were known, and less what they gain by chance."""
    saved = chance = 0.0
    bank, matrices = (getattr(assembly.files[0].directory, name) for name in ("bank", "matrices"))
    for tensor in levels_of(assembly.encoded, bank, matrices):
        coding, coded = tensor.encoded.record.coding, tensor.coded
        counts = np.zeros((TABLES, WIDTH), np.int64)
        for number, (top, bottom, left, right) in enumerate(coded.whole.tiles):
            indices = coded.columns[left:right, None].astype(int) + coded.rows[None, top:bottom]
            codes = np.clip(indices[indices > DEAD], 1, CLASSES).astype(np.uint8)
            counts += count(tensor.read(number), codes, coding.states, coding.shift)
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        ideal = -(counts * np.log2(np.where(counts > 0, shares, 1))).sum()
        saved += (counts * level_bits(bank, coding.model)).sum() - ideal
        chance += 0.5 * np.log2(np.e) * np.maximum((counts > 0).sum(1) - 1, 0).sum()
    return saved / 8, (saved - chance) / 8


@contextmanager
def laid_out_in_all_ways(found: dict[int, Sizes]) -> Iterator[None]:
    """Whatever is laid out while this lasts is put down in `found`, by its size."""
    encode = Encoding.encode

    def several(self: Encoding, factor: float) -> Assembly:
        with taken_away(("learned", "dependent")):
            static = encode(self, factor).size
        with taken_away(("learned", "dependent")), mock.patch.object(container, "MAX_MIXED", MAX_MIXED):
            directory = encode(self, factor).size
        with mock.patch("nnc.encoder.choose_codes", lambda scales, *rest: scales):
            joined = encode(self, factor).size
        chosen = encode(self, factor)
        networks = encode(replace(self, asked=replace(self.asked, entropy="context")), factor).size
        found[chosen.size] = Sizes(static, directory, joined, chosen.size, networks, *ask_oracle(chosen))
        return chosen

    with mock.patch.object(Encoding, "encode", several):
        yield


def measure(weights: object, path: Path, bits: float, **options: object) -> Sizes:
    found: dict[int, Sizes] = {}
    with laid_out_in_all_ways(found):
        nnc.compress(weights, path, bits=bits, threads=1, overwrite=True, **options)
    return found[path.stat().st_size]


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("small files at equal levels")
    parser.add_argument("--case", action="append", choices=(*RATES, MINILM), help="only this network; may be given several times")
    parser.add_argument("--way", action="append", choices=("free", "calibrated"), help="only without data, or only calibrated")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    asked = parser.parse_args(arguments)
    zoo, rows, bounds = import_zoo(asked.zoo), [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        for name in asked.case or RATES:
            case = zoo.CASES[name]
            for way in asked.way or ("calibrated", "free"):
                options = {}
                if way == "calibrated":
                    note(f"{name}: calibrating")
                    options["statistics"] = gather(zoo.load(case), case.calibration(), KINDS[case.kind])
                for bits in RATES.get(name, (3.0,)):
                    note(f"{name}, {way}, {bits} bits")
                    sizes = measure(case.weights(), path, bits, **options)
                    saved = 100 * (1 - sizes.chosen / sizes.static)
                    known = [100 * part / sizes.chosen for part in (sizes.oracle, sizes.less)]
                    rows.append((name, way, bits, sizes.static, sizes.directory, sizes.joined, sizes.chosen, saved, sizes.networks, *known))
                    least = LEAST_LARGE if name == MINILM else LEAST
                    bounds.append(Bound(f"{name}, {way}, {bits} bits, per cent saved", saved, least, True))
    columns = (Column("network"), Column("way"), Column("bits", ".1f"), Column("static", ",d"), Column("directory", ",d"), Column("joined", ",d"),
               Column("chosen", ",d"), Column("saved %", ".2f"), Column("networks", ",d"), Column("oracle %", ".2f"), Column("less %", ".2f"))
    return finish([Table("latents", columns, tuple(rows))], bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
