"""Small networks that are trained in seconds on data of scikit-learn, for what is learned once and shipped: the prior of latents.

Images are its handwritten digits (the training part of examples/digits_cnn.py), text is what it says of its data sets.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))
WINDOW = 64


@dataclass(frozen=True)
class Trained:
    """A network, batches of inputs to calibrate it with, and what its outputs are."""

    name: str
    model: nn.Module
    batches: list[Tensor]
    kind: str


class Block(nn.Module):
    """Two convolutions around which the input passes, its channels repeated where there are more of them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.times = stride, outputs // inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + x[:, :, :: self.stride, :: self.stride].repeat(1, self.times, 1, 1))


def resnet() -> nn.Module:
    blocks = [Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1)]
    return nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def separable() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 1), nn.BatchNorm2d(48), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def upscaler() -> nn.Module:
    """Half of the resolution to the whole."""
    return nn.Sequential(nn.Conv2d(1, 48, 5, padding=2), nn.Tanh(), nn.Conv2d(48, 48, 3, padding=1), nn.Tanh(),
                         nn.Conv2d(48, 24, 3, padding=1), nn.Tanh(), nn.Conv2d(24, 4, 3, padding=1), nn.PixelShuffle(2))


class Recurrent(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding, self.lstm, self.output = nn.Embedding(symbols, 48), nn.LSTM(48, 112, 2, batch_first=True), nn.Linear(112, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(x))[0])


class Attentive(nn.Module):
    """A Llama, or a BERT over the rows of an image, of which only the outputs are returned."""

    def __init__(self, model: nn.Module, head: nn.Module | None = None, inputs: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.head, self.inputs = model, head, inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs is None:
            return self.model(x).logits
        return self.head(self.model(inputs_embeds=self.inputs(x[:, 0])).last_hidden_state.mean(1))


def train(model: nn.Module, draw: Callable[[torch.Generator], tuple[Tensor, Tensor]], loss: Callable, steps: int, rate: float) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        inputs, targets = draw(generator)
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def trained_networks(steps: int = 700) -> Iterator[Trained]:
    """One after the other."""
    from digits_cnn import WEIGHTS, build, shifted, split
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    images, _, labels, _ = (torch.from_numpy(array) for array in split())
    batches = list(images[:512].split(64))

    def digits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(images), (64,), generator=generator)
        return shifted(images[rows], generator), labels[rows]

    cnn = build()
    cnn.load_state_dict(load_file(WEIGHTS))
    yield Trained("cnn", cnn.eval(), batches, "logits")
    for name, model in (("resnet", resnet()), ("separable", separable())):
        yield Trained(name, train(model, digits, F.cross_entropy, steps, 4e-3), batches, "logits")
    bert = BertConfig(vocab_size=8, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=8)
    reader = Attentive(BertModel(bert, add_pooling_layer=False), nn.Linear(64, 10), nn.Linear(8, 64))
    yield Trained("bert", train(reader, digits, F.cross_entropy, steps, 2e-3), batches, "logits")

    def halves(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        whole, _ = digits(generator)
        return F.avg_pool2d(whole, 2), whole

    small = [F.avg_pool2d(batch, 2) for batch in batches]
    yield Trained("upscaler", train(upscaler(), halves, F.mse_loss, steps, 3e-3), small, "values")

    text = "".join(getattr(datasets, f"load_{name}")().DESCR for name in ("iris", "digits", "wine", "breast_cancer", "diabetes", "linnerud"))
    symbols = sorted(set(text))
    ids = torch.tensor([symbols.index(letter) for letter in text])

    def windows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(ids) - WINDOW - 1, (24,), generator=generator)
        rows = ids[starts[:, None] + torch.arange(WINDOW + 1)]
        return rows[:, :-1], rows[:, 1:]

    def next_letter(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    pages = list(ids[: WINDOW * 96].reshape(-1, WINDOW).split(16))
    llama = LlamaConfig(vocab_size=len(symbols), hidden_size=64, intermediate_size=168, num_hidden_layers=4, num_attention_heads=8,
                        num_key_value_heads=4, max_position_embeddings=WINDOW, tie_word_embeddings=True)
    yield Trained("llama", train(Attentive(LlamaForCausalLM(llama)), windows, next_letter, steps, 3e-3), pages, "logits")
    yield Trained("lstm", train(Recurrent(len(symbols)), windows, next_letter, steps, 5e-3), pages, "logits")
