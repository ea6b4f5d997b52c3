"""Make nnc/entropy/latents.bin: what the coder of latents knows before the first of them (nnc/entropy/latents.py).

    python examples/benchmarks/make_latent_prior.py latents.bin

Networks are trained in this script (small_networks.py) and compressed at several rates, with calibration and without; the coder learns from their
latents, one file after the other.  The prior is part of the format: FORMAT.md and the package name it by its hash.  Takes some minutes.
"""
from __future__ import annotations

import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import torch
from small_networks import trained_networks

import nnc
from nnc.archive import open_compressed
from nnc.entropy.latents import LatentCoder, LatentModel, pack_model
from nnc.latents import write_latents

RATES = {"calibrated": (1.6, 2.3, 3.2, 4.5), "free": (1.8, 3.0, 4.5)}
TRUST = 3  # what was seen often elsewhere counts as so many times here: files differ


def learn(path: Path, model: LatentModel) -> int:
    """Let the model learn from all latents of a file; returns the number of their decisions."""
    coder = LatentCoder(model)
    with open_compressed(path) as archive:
        for record in archive.records:
            if record.kind == "coded":
                write_latents(record.coding, record.shape, archive.read_stored(record.name).latents, coder)
    return sum(map(len, coder.trace))


def main() -> None:
    torch.set_num_threads(1)
    model, decisions = LatentModel.blank(), 0
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for trained in trained_networks():
            statistics = nnc.calibrate(trained.model, trained.batches, kind=trained.kind)
            for how, rates in RATES.items():
                for bits in rates:
                    path = Path(scratch) / f"{trained.name}-{how}-{bits}.safetensors"
                    more = {"statistics": statistics} if how == "calibrated" else {}
                    try:
                        nnc.compress(trained.model, path, bits=bits, threads=1, **more)
                    except nnc.InvalidArgument as problem:  # smaller than the smallest possible file
                        print(f"{path.stem}: {problem}", file=sys.stderr)
                        continue
                    files.append(path)
            print(f"{trained.name}: {len(files)} files", file=sys.stderr)
        for path in sorted(files, key=lambda path: sha256(path.stem.encode()).digest()):  # networks and rates mixed
            decisions += learn(path, model)
    packed = pack_model(model, TRUST)
    Path(sys.argv[1]).write_bytes(packed)
    print(f"{len(packed)} bytes from {decisions} decisions, SHA-256 {sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
