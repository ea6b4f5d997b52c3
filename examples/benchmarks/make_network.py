"""Make nnc/entropy/network-1.bin to network-5.bin: the networks that a file may name instead of carrying its own.

    python examples/benchmarks/make_network.py nnc/entropy

The networks whose levels they learn from are trained here, in a few minutes: on the digits of scikit-learn and on the text of LICENSE.
Their bytes are part of the format (FORMAT.md, section 20): others need other numbers there.  The first four
see side information only, each learned from the tensors that it codes best (as clusters are found: start with tensors of equal tails, learn,
assign again); the fifth sees the levels before, too.  Printed are the hashes, and the bits per level of a checkpoint that was left out:
with the tables of its files, and with the best network for each tensor.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from sklearn.datasets import load_digits
from tables import note
from torch import nn
from torch.nn import functional as F

import nnc
from nnc.archive import open_compressed
from nnc.decoder import split_unit
from nnc.encoded import EncodedTensor
from nnc.entropy.fine import FINE, LOWEST
from nnc.entropy.inputs import CONTEXT, HYPER
from nnc.entropy.network import Network
from nnc.learning.samples import Levels, Samples, may_learn, take_samples
from nnc.learning.training import Recipe, bank_bits, train, true_bits

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
OPTIONS = ({"bits": 2.0}, {"bits": 3.0}, {"bits": 4.5}, {"bits": 3.0, "effort": "fast"}, {"bits": 2.2, "labelling": "sign-symmetric"})
LEVELS = 1 << 14  # of every compressed checkpoint
HYPER_INPUTS = (0, 1, 2, 3, 4, 7)  # not the sides of the plane, which would name the tensors learned from
CONTEXT_INPUTS = (*HYPER_INPUTS, *range(HYPER, CONTEXT))
GROUPS = 4  # of tensors, at first by the length of their tails
ROUNDS = (1000, 1000, 2500)  # steps between assignments


def separable(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU(),
                         nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Text(nn.Module):
    """Foretells the next byte of a text; attention: with a transformer, else with an LSTM."""

    def __init__(self, symbols: int, attention: bool) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(symbols, 64), nn.Parameter(0.02 * torch.randn(64, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 192, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) if attention else nn.LSTM(64, 96, 2, batch_first=True)
        self.attention, self.head = attention, nn.Linear(64 if attention else 96, symbols)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.embedding(x)
        if self.attention:
            u = self.body(u + self.place, nn.Transformer.generate_square_subsequent_mask(64), is_causal=True)
        else:
            u = self.body(u)[0]
        return self.head(u)


def descend(net: nn.Module, loss: Callable[[], torch.Tensor], steps: int, sparse: bool) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.0 if sparse else 0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        found = loss()
        if sparse:
            found = found + 1e-4 * sum(p.abs().sum() for p in net.parameters() if p.dim() > 1)
        found.backward()
        optimizer.step()
    return net.state_dict()


def checkpoints(steps: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Name and state of every network, after that many steps; the last one is not learned from."""
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    text = torch.tensor(list(TEXT.read_bytes()))
    symbols, codes = torch.unique(text, return_inverse=True)
    generator = torch.Generator().manual_seed(0)

    def pick() -> torch.Tensor:
        return torch.randint(len(images), (128,), generator=generator)

    def classify(net: nn.Module, clean: bool = True) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            part = pick()
            return F.cross_entropy(net(images[part] + (0 if clean else 0.3 * torch.randn(128, 1, 8, 8, generator=generator))), labels[part])
        return loss

    def restore(net: nn.Module) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            part = images[pick()]
            return F.mse_loss(net(F.avg_pool2d(part, 2)), part)
        return loss

    def foretell(net: nn.Module) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            at = torch.randint(len(codes) - 65, (24,), generator=generator)
            window = codes[at[:, None] + torch.arange(65)]
            return F.cross_entropy(net(window[:, :-1]).transpose(1, 2), window[:, 1:])
        return loss

    made = (
        ("mlp", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10)), classify, 4, False),
        ("cnn", lambda: nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 3, padding=1),
                                      nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
                                      nn.Linear(1024, 10)), lambda net: classify(net, False), 2, True),
        ("separable", lambda: nn.Sequential(nn.Conv2d(1, 48, 3), nn.ReLU(), separable(48, 96), separable(96, 96), nn.AdaptiveAvgPool2d(1),
                                            nn.Flatten(), nn.Linear(96, 10)), lambda net: classify(net, False), 2, False),
        ("enlarge", lambda: nn.Sequential(nn.Conv2d(1, 48, 5, padding=2), nn.Tanh(), nn.Conv2d(48, 32, 3, padding=1), nn.Tanh(),
                                          nn.Conv2d(32, 4, 3, padding=1), nn.PixelShuffle(2)), restore, 3, False),
        ("lstm", lambda: Text(len(symbols), False), foretell, 1, False),
        ("transformer", lambda: Text(len(symbols), True), foretell, 1, True),
        ("left out", lambda: nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
                                           nn.MaxPool2d(2), nn.Flatten(), nn.Linear(768, 10)), lambda net: classify(net, False), 2, False),
    )
    for number, (name, build, task, times, sparse) in enumerate(made):
        torch.manual_seed(number)
        net = build()
        note(f"train {name}")
        yield name, descend(net, task(net), times * steps, sparse)


@contextmanager
def each_alone() -> Iterator[None]:
    """No tensor shares a stream with others."""
    with mock.patch("nnc.encoder.may_join", lambda coding, data: False):
        yield


def levels_of_file(path: Path) -> list[Levels]:
    """The coded tensors of a file written by `each_alone` whose tables a network may choose."""
    found = []
    with open_compressed(path) as archive:
        for file in archive.files:
            for index, records in enumerate(file.unit_records()):
                for record, data in split_unit(records, file.read_unit(index)):
                    encoded = EncodedTensor(record, bytes(data), (), 0)
                    if may_learn(encoded):
                        found.append(Levels.of(encoded, file.directory.bank, file.directory.matrices))
    return found


def without_bypass(tensor: Levels) -> float:
    """Bits of the levels with the tables of their file."""
    coding = tensor.encoded.record.coding
    return 8 * sum(coding.streams) - coding.shift * tensor.encoded.record.elements


@dataclass(frozen=True)
class Part:
    """Levels of one tensor of one file.  share: of the levels of the file; static: bits per level with its tables."""

    samples: Samples
    share: float
    static: float


def collect(steps: int) -> tuple[list[Part], list[Part]]:
    """Tensors to learn from, and those left out."""
    learned, left_out = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, state in checkpoints(steps):
            for options in OPTIONS:
                with each_alone():
                    nnc.compress(state, Path(scratch) / "x.safetensors", threads=1, overwrite=True, **options)
                tensors = levels_of_file(Path(scratch) / "x.safetensors")
                total = sum(t.encoded.record.elements for t in tensors)
                for tensor in tensors:
                    share = tensor.encoded.record.elements / total
                    found = take_samples([tensor], max(64, int(LEVELS * share)))
                    weight = found.weight * np.float32(share / found.weight.sum())
                    part = Part(replace(found, weight=weight), share, without_bypass(tensor) / tensor.encoded.record.elements)
                    (left_out if name == "left out" else learned).append(part)
    return learned, left_out


def tail(part: Part) -> float:
    """Bits that a parametric shape of long tails saves in place of the Gaussian one."""
    samples, bits = part.samples, bank_bits()
    scale, quantizer, column = (torch.from_numpy(x) for x in (samples.scale, samples.quantizer, samples.column))
    gauss, long = (bits[FINE * scale - LOWEST, shape, quantizer, column].mean() for shape in (0, 4))
    return float(gauss - long)


def learn_hyper(parts: list[Part]) -> list[Network]:
    """A network for every group of tensors."""
    order = np.argsort([tail(part) for part in parts], kind="stable")
    before = np.cumsum([parts[n].share for n in order])
    groups = np.empty(len(parts), int)
    groups[order] = np.minimum(GROUPS * before / before[-1], GROUPS - 1)
    shadows, networks, groups = [None] * GROUPS, [], groups.tolist()
    for steps in ROUNDS:
        for n in range(GROUPS):
            own = Samples.join([part.samples for part, group in zip(parts, groups) if group == n])
            note(f"learn hyper {n + 1} from {len(own.values)} levels of {groups.count(n)} tensors")
            shadows[n] = train(own, "hyper", HYPER_INPUTS, Recipe(hidden=(16,), bits=8, steps=steps, seed=n), shadows[n])
        networks = [shadow.freeze() for shadow in shadows]
        groups = [int(np.argmin([true_bits(part.samples, network) for network in networks])) for part in parts]
    return networks


def best_bits(parts: list[Part], networks: list[Network], tables: bool) -> float:
    """Bits per level with the best network for every tensor, or the tables of its file."""
    found = [min([true_bits(part.samples, n) for n in networks] + ([part.static] if tables else [])) for part in parts]
    return sum(part.share * bits for part, bits in zip(parts, found)) / sum(part.share for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the networks go")
    parser.add_argument("--steps", type=int, default=500, help="of every network that is trained")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    learned, left_out = collect(asked.steps)
    hyper = learn_hyper(learned)
    note("learn context")
    everything = Samples.join([part.samples for part in learned])
    context = train(everything, "context", CONTEXT_INPUTS, Recipe(hidden=(24,), bits=8, steps=4000)).freeze()
    for number, network in enumerate([*hyper, context], 1):
        data = network.data()
        (asked.folder / f"network-{number}.bin").write_bytes(data)
        print(f"network {number}, {network.kind}: {len(data)} bytes, sums up to {network.bound}\n    {sha256(data).hexdigest()}")
    for name, parts in (("learned from", learned), ("left out", left_out)):
        static = sum(part.share * part.static for part in parts) / sum(part.share for part in parts)
        print(f"{name}: tables {static:.4f} bits, hyper {best_bits(parts, hyper, False):.4f}, the better one {best_bits(parts, hyper, True):.4f}, "
              f"context {best_bits(parts, [context], False):.4f}, the better one {best_bits(parts, [*hyper, context], True):.4f}")


if __name__ == "__main__":
    sys.exit(main())
