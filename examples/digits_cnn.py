"""A small convolutional network on the handwritten digits of scikit-learn, as data for the examples.

    python examples/digits_cnn.py --train examples/digits_cnn.safetensors   # train and save (under a minute), print the accuracy
    python examples/digits_cnn.py --data digits_test.npz                    # write the test images

1797 real images of 8x8 pixels; a third of them, stratified with a fixed seed, is the test set and is never trained on.
For nnc: `examples/digits_cnn.py:build` is the model, `examples/digits_cnn.py:task` the task, which needs no data file.
"""
from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from nnc.evaluation import Task, classification

WEIGHTS = Path(__file__).resolve().parent / "digits_cnn.safetensors"
EPOCHS, BATCH = 60, 50


def build() -> nn.Module:
    """(n, 1, 8, 8) float32, 0..1, to (n, 10) logits."""
    layers: list[tuple[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate([(1, 32), (32, 32), (32, 64), (64, 64)], 1):
        layers += [(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
                   (f"norm{number}", nn.BatchNorm2d(outputs)), (f"relu{number}", nn.ReLU())]
        if number % 2 == 0:
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
    layers += [("flatten", nn.Flatten()), ("hidden", nn.Linear(256, 256)), ("norm5", nn.BatchNorm1d(256)), ("relu5", nn.ReLU()),
               ("classes", nn.Linear(256, 10))]
    return nn.Sequential(OrderedDict(layers))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images (n, 1, 8, 8) float32, training labels, test labels (n,) int64."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    return tuple(train_test_split(images, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0))


def task() -> Task:
    """Top-1 accuracy on the test set."""
    _, images, _, labels = split()
    return classification(images, labels, name="digits")


def write_data(path: str | Path) -> None:
    """The test set as an .npz file with `images` and `labels`."""
    _, images, _, labels = split()
    np.savez_compressed(path, images=images, labels=labels)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = moves[:, 0, None] + torch.arange(8)
    columns = moves[:, 1, None] + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train() -> nn.Module:
    """Adam with a cosine schedule, label smoothing and shifts; deterministic for one version of torch and one thread."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, _, labels, _ = (torch.from_numpy(array) for array in split())
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss_of(model(shifted(images[rows], generator)), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FILE", type=Path, help="train the network and save it as .safetensors")
    parser.add_argument("--data", metavar="FILE", type=Path, help="write the test images and labels as .npz")
    arguments = parser.parse_args()
    if arguments.train is None and arguments.data is None:
        parser.error("nothing to do; give --train FILE or --data FILE")
    if arguments.data:
        write_data(arguments.data)
        print(f"{arguments.data}: {len(split()[1])} test images")
    if arguments.train:
        torch.set_num_threads(1)  # the order of sums, and so the weights, would follow the number of threads
        model = train()
        _, images, _, labels = (torch.from_numpy(array) for array in split())
        with torch.inference_mode():
            accuracy = 100 * float((model(images).argmax(1) == labels).double().mean())
        save_file(model.state_dict(), arguments.train)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{arguments.train}: {count} parameters, {accuracy:.2f} % of {len(labels)} test images")


if __name__ == "__main__":
    main()
