"""Make nnc/entropy/prior.bin: directories of small networks of random weights, which the mixing coder reads before any file.

    python examples/benchmarks/make_prior.py prior.bin

The prior is part of the format: another one needs another number there (FORMAT.md, section 2).  Needs transformers, for the names of its
networks; the digits network of the examples is the only one that was trained.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import nnc
from nnc.container import open_file

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.ModuleDict({"conv1": nn.Conv2d(inputs, outputs, 3, bias=False), "bn1": nn.BatchNorm2d(outputs),
                          "conv2": nn.Conv2d(outputs, outputs, 3, bias=False), "bn2": nn.BatchNorm2d(outputs)})


def networks() -> dict[str, tuple[nn.Module, float]]:
    """Networks and bits per weight."""
    few = {"vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "gpt2": (GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=48, n_layer=1, n_head=4)), 3),
        "lstm": (nn.ModuleDict({"embedding": nn.Embedding(200, 32), "lstm": nn.LSTM(32, 48, 2, bidirectional=True),
                                "attention": nn.Linear(96, 1), "output": nn.Linear(96, 200)}), 3),
        "bert": (BertModel(BertConfig(**few, hidden_size=48, intermediate_size=96, max_position_embeddings=64)), 3),
        "llama": (LlamaForCausalLM(LlamaConfig(**few, hidden_size=48, intermediate_size=96, num_key_value_heads=2)), 4),
        "resnet": (nn.ModuleDict({"conv1": nn.Conv2d(3, 16, 3, bias=False), "bn1": nn.BatchNorm2d(16),
                                  "layer1": nn.Sequential(block(16, 16), block(16, 16)),
                                  "layer2": nn.Sequential(block(16, 32), block(32, 32)), "fc": nn.Linear(32, 10)}), 2.5),
        "sequence": (nn.ModuleDict({
            "features": nn.Sequential(nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24),
                                      nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 1), nn.BatchNorm2d(48)),
            "classifier": nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 12))}), 3),
    }


def directory(source: object, path: Path, **options: object) -> bytes:
    nnc.compress(source, path, overwrite=True, **options)
    return open_file(path).directory.write()


def main() -> None:
    from digits_cnn import WEIGHTS, build, split

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path, parts = Path(scratch) / "small.safetensors", []
        for model, bits in networks().values():
            with torch.no_grad():  # rows of different scales and biases, as training leaves them
                for parameter in model.parameters():
                    sides = [1] * (parameter.dim() - 1)
                    spread = torch.randn(len(parameter), *sides)
                    parameter.copy_(parameter * torch.exp(0.3 * spread) if sides else parameter + 0.1 * spread)
            parts.append(directory(model, path, bits=bits))
        parts.append(directory(WEIGHTS, path, bits=3))
        model = build()
        model.load_state_dict(load_file(WEIGHTS))
        parts.append(directory(model.eval(), path, bits=2, data=torch.from_numpy(split()[0])))
    Path(sys.argv[1]).write_bytes(b"".join(parts))
    print(f"{sum(map(len, parts))} bytes: {', '.join(str(len(part)) for part in parts)}")


if __name__ == "__main__":
    main()
