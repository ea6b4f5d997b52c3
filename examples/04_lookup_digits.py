"""Classify handwritten digits with index tables and integer additions only.

    python examples/04_lookup_digits.py

A multilayer perceptron is trained here in a few seconds; the convolutional network is that of digits_cnn.py.  Both are converted without
retraining, from images without labels.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from digits_cnn import WEIGHTS, build, split
from safetensors.torch import load_file
from torch import Tensor, nn

import nnc

SETTINGS = ((8, 16), (16, 32), (32, 100), (32, 1000))  # levels of activations, of weights
Settings = tuple[tuple[int, int], ...]


def train_perceptron(images: Tensor, labels: Tensor) -> nn.Module:
    """64-128-64-10 with tanh; deterministic for one version of torch and one thread."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(40):
        for rows in torch.randperm(len(images), generator=generator).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows], label_smoothing=0.05).backward()
            optimizer.step()
    return model.eval()


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return 100 * float((outputs.argmax(1) == labels).double().mean())


def seconds(call: Callable[[], object]) -> float:
    """The shortest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def show(
    name: str, model: nn.Module, calibration: Tensor, images: Tensor, labels: Tensor, settings: Settings
) -> nnc.lookup.LookupNetwork:
    """Print a line for every setting, and return the last network."""
    with torch.inference_mode():
        original = model(images)
        torch_time = seconds(lambda: model(images))
    print(
        f"{name}: {accuracy(original, labels):.2f} % as float32, {torch_time * 1e3:.1f} ms for {len(images)} images with torch on one thread"
    )
    print(
        f"{'levels':>9} {'top-1 %':>8} {'same top-1':>10} {'table bytes':>11} {'entropy':>8} {'file b/w':>8} {'ms':>6} {'ratio':>6}"
    )
    for activations, weights in settings:
        network = nnc.lookup.convert(model, calibration, weights=weights, activations=activations)
        outputs = network(images)
        same = 100 * float((outputs.argmax(1) == original.argmax(1)).double().mean())
        report = network.report()
        with tempfile.TemporaryDirectory() as folder:
            bits = 8 * network.save(Path(folder) / "network.safetensors").stat().st_size / report.weights
        spent = seconds(lambda: network(images, threads=1))
        print(f"{activations:4}/{weights:<4} {accuracy(outputs, labels):8.2f} {same:9.2f}% {report.table_bytes:11,} {report.entropy:8.2f} "
              f"{bits:8.2f} {spent * 1e3:6.1f} {spent / torch_time:6.1f}")  # fmt: skip
    return network


def main() -> None:
    torch.set_num_threads(1)
    training, images, training_labels, labels = (torch.from_numpy(array) for array in split())
    perceptron = train_perceptron(training, training_labels)
    show("perceptron", perceptron, training, images, labels, SETTINGS)
    network = nnc.lookup.convert(perceptron, training, weights=100, activations=32)
    print(f"\n{network.report()}\n")
    # The integers that come out, and what makes floats of them.
    print(f"integer logits of the first image: {network.logits(images[:1])[0].tolist()}, times {network.scale:.3g}\n")

    model = build().eval()
    model.load_state_dict(load_file(WEIGHTS))
    network = show("convolutions", model, training, images, labels, SETTINGS[:3])
    print(f"\n{network.report()}\n")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        # A file comes back to the same bits; the tables are made again and compared with their hash.
        again = nnc.lookup.load(network.save(folder / "digits.safetensors"))
        print(f"loaded again: {int((again.logits(images) != network.logits(images)).sum())} logits differ")

        # Weights of a checkpoint that has few values are kept as they are.
        nnc.compress(WEIGHTS, folder / "small.safetensors", bits=3, tools="codebook")
        network = nnc.lookup.convert(build(), training, source=folder / "small.safetensors")
        report = network.report()
        print(
            f"from a checkpoint of 3 bits with codebooks: {accuracy(network(images), labels):.2f} %, {report.table_bytes:,} bytes of tables"
        )


if __name__ == "__main__":
    main()
