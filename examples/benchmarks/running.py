"""Run all-MiniLM-L6-v2 from its compressed file: memory, speed and equality against dense weights; and what one row costs to read.

    python examples/benchmarks/running.py --out results --check

Each line is a process of its own.  resident: growth of the resident memory from before the network exists until three batches have run
through it, which includes activations; held: most bytes of decoded weights at any time.  Needs transformers and the package with
MiniLM, or takes random weights of its shapes.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sources import minilm_or_random
from tables import Bound, Column, Table, finish, make_parser, note

import nnc

TABLE = "embeddings.word_embeddings.weight"
RUN = """
import ctypes, gc, hashlib, json, resource, sys, time
import torch, nnc, numpy
from transformers import BertConfig, BertModel

path, mode, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmRSS"))

def sides(layers, width):
    return dict(num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, num_attention_heads=12)

ids = torch.randint(1000, 30000, (8, 32), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    BertModel(BertConfig(vocab_size=30522, **sides(1, 24))).eval()(ids)   # libraries allocate what they need once
    with nnc.open(path) as archive:
        archive.tensor("encoder.layer.0.attention.self.query.weight")
    before = resident()
    model = BertModel(BertConfig(**sides(6, 384))).eval()
    runtime = None
    if mode == "dense":
        nnc.load_into(model, path, strict=False).requires_grad_(False)
    else:
        runtime = nnc.runtime.attach(model, path, cache=int(mode), threads=threads, strict=False)
    held, times = 0, []
    for number in range(8):
        start = time.perf_counter()
        out = model(ids).last_hidden_state
        times.append(time.perf_counter() - start)
        if runtime:
            held = max(held, runtime.cache.held + runtime._room * bool(runtime._coming))
        if number == 2:
            after = resident()
print(json.dumps({"resident": after - before, "held": held, "seconds": sorted(times[1:])[3],
                  "digest": hashlib.sha256(out.numpy().tobytes()).hexdigest(), "dense": sum(t.nbytes for t in nnc.load(path).values())}))
"""


def run(path: Path, mode: str, threads: int) -> dict:
    note(f"cache {mode}")
    done = subprocess.run([sys.executable, "-c", RUN, str(path), mode, str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def row_share(path: Path, rows: list[int]) -> float:
    """Per cent of the file that is read to have rows of the table of words, opening included."""
    with open(path, "rb") as file, nnc.open(file) as archive:
        archive.tensor(TABLE, rows=rows)
        storage = archive.files[0].storage
        return 100 * storage.count / storage.size


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser("run a sentence encoder from its compressed file")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        name, source = minilm_or_random(Path(folder))
        path = Path(folder) / "small.safetensors"
        note(f"compress {name} to {asked.bits:g} bits")
        nnc.compress(source, path, bits=asked.bits)
        size = path.stat().st_size
        dense = run(path, "dense", asked.threads)
        total, largest = dense["dense"], 30522 * 384 * 4
        modes = {"dense": dense} | {str(limit): run(path, str(limit), asked.threads) for limit in (0, total // 2, 2 * total)}
        note("compress for access to rows")
        rows_path = Path(folder) / "rows.safetensors"
        nnc.compress(source, rows_path, bits=asked.bits, access="rows")
        modes["0, access rows"] = run(rows_path, "0", asked.threads)
        rows_dense = run(rows_path, "dense", asked.threads)
        some = range(5, 30522, 3000)
        shares, default = (max(row_share(file, [row]) for row in some) for file in (rows_path, path))
    rows = [(mode, found["resident"] / 1e6, found["held"] / 1e6, 1e3 * found["seconds"], found["seconds"] / dense["seconds"],
             str(found["digest"] == (rows_dense if "rows" in mode else dense)["digest"])) for mode, found in modes.items()]
    columns = (Column("cache"), Column("resident MB", ".1f"), Column("held MB", ".1f"), Column("ms per batch", ".1f"),
               Column("over dense", ".2f"), Column("equal"))
    facts = Table("facts", (Column("file MB", ".2f"), Column("dense MB", ".2f"), Column("largest layer MB", ".2f"), Column("row % of file", ".3f"),
                            Column("with access rows", ".3f")), ((size / 1e6, total / 1e6, largest / 1e6, default, shares),))
    bounds = [Bound("runs whose outputs differ from the dense ones", sum(row[-1] != "True" for row in rows), 0),
              Bound("resident bytes without a cache over 1.1 files and the largest layer",
                    modes["0"]["resident"] / (1.1 * size + largest), 1.0),
              Bound("bytes held with a cache of half over the limit", modes[str(total // 2)]["held"] / (total // 2), 1.05),
              Bound("per cent of the file that one row reads", default, 0.5),
              Bound("per cent of the file that one row reads, with access rows", shares, 0.5)]
    return finish([Table("running", columns, tuple(rows)), facts], bounds, asked.out, asked.check)


if __name__ == "__main__":
    sys.exit(main())
