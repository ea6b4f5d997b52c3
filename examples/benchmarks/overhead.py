"""Which bytes of a file are not entropy coded levels.

    python examples/benchmarks/overhead.py --out results --check

payload: streams of levels; side: row and column codes (entropy coded, too); exact: tensors kept without loss; rest: header,
directory, entropy tables.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sources import ZOO, minilm_or_random, resnet20_or_random
from tables import Bound, Column, Table, finish, make_parser, note

import nnc

BOUNDS = (1.0, 5.0)  # per cent of the file, MiniLM and ResNet-20


def measure_overhead(name: str, weights: Path, bits: float, effort: str, threads: int | None) -> tuple:
    """A row of the table; shares in per cent of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        note(f"{name} at {bits:g} bits")
        nnc.compress(weights, path, bits=bits, effort=effort, threads=threads)
        info = nnc.inspect(path)
        without = info.file_bytes - info.payload - info.side
        return (name, info.bits_per_weight, info.file_bytes, info.payload, info.side, info.exact, info.overhead,
                100 * (without + info.side) / info.file_bytes, 100 * without / info.file_bytes)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("share of a compressed file that is not entropy coded payload")
    parser.add_argument("--bits", type=float, default=3.0, help="per parameter of the whole file; the bounds are for 3")
    parser.add_argument("--effort", default="default", help="fast, default, high or max")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of the private zoo, for ResNet-20")
    parser.add_argument("--threads", type=int, help="default: all cores")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sources = minilm_or_random(Path(folder)), resnet20_or_random(asked.zoo, Path(folder))
        rows = [measure_overhead(name, path, asked.bits, asked.effort, asked.threads) for name, path in sources]
    columns = (Column("checkpoint"), Column("bits", ".4f"),
               *(Column(f"{part} bytes", ",d") for part in ("file", "payload", "side", "exact", "rest")),
               Column("not payload %", ".3f"), Column("neither payload nor side %", ".3f"))
    bounds = [Bound(f"bytes of {row[0]} that are not payload, in per cent", row[7], limit) for limit, row in zip(BOUNDS, rows)]
    return finish([Table("overhead", columns, tuple(rows))], bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
