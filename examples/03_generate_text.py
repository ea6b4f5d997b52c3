"""Generate text with a compressed Llama: convert a checkpoint of llama2.c to a Hugging Face folder, compress it, continue a text.

    python examples/03_generate_text.py                      # a small network, trained here in a few seconds
    python examples/03_generate_text.py --weights stories260K.safetensors --vocabulary tok512.bin --tokens text.npy

--weights      .safetensors with the names of llama2.c (`layers.0.attention.wq.weight`, ...), its head tied to the embedding
--heads        query heads; the file does not say how many
--vocabulary   tokenizer of llama2.c (.bin) or of SentencePiece (.model); without it, text is shown as numbers
--tokens       token ids (.npy) to measure perplexity on

Generation is greedy: it continues with the likeliest token, so that two networks that agree write the same text.
"""

from __future__ import annotations

import argparse
import inspect
import math
import struct
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import nnc  # from now on transformers reads compressed folders
from nnc.evaluation.language import perplexity

NAMES = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention.wq": "self_attn.q_proj",
         "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
         "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj"}
OTHERS = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--window", type=int, default=256, help="tokens of a window for the perplexity")
    parser.add_argument("--length", type=int, help="tokens to generate; default 200, or 60 without --weights")
    parser.add_argument("--bits", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=500, help="of training, without --weights")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        plain, small = Path(scratch) / "plain", Path(scratch) / "small"
        if arguments.weights:
            convert(load_file(arguments.weights), arguments.heads).save_pretrained(plain)
            start, write = [1], read_vocabulary(arguments.vocabulary)  # token 1 begins a text
            tokens = None if arguments.tokens is None else np.load(arguments.tokens).astype(np.int64)
        else:
            text = inspect.getsource(textwrap)[:2000]  # a page, which it learns nearly by heart
            letters = sorted(set(text))
            tokens = np.array([letters.index(letter) for letter in text])
            train(tokens, len(letters), arguments.steps).save_pretrained(plain)
            start, write = tokens[600:620].tolist(), lambda ids: "".join(letters[number] for number in ids)
        summary = nnc.compress(plain, small, bits=arguments.bits)
        print(f"{summary.original_bytes:,} bytes -> {summary.file_bytes:,}, {summary.bits_per_weight:.2f} bits per weight\n")
        written = [generate(folder, start, arguments.length or (200 if arguments.weights else 60)) for folder in (plain, small)]
        print(textwrap.indent(write(written[1]), "  | "))
        same = next((n for n, (one, two) in enumerate(zip(*written)) if one != two), None)
        print(f"\noriginal and compressed: {'the same text' if same is None else f'the texts differ from token {same} on'}")
        if tokens is not None:
            compare_perplexity(plain, small, tokens, arguments.window)


def convert(state: dict[str, Tensor], heads: int) -> LlamaForCausalLM:
    """The Hugging Face model of a llama2.c checkpoint.  That rotates neighbours (2i, 2i + 1) of a head, this (i, i + half)."""
    vocabulary, width = state["tok_embeddings.weight"].shape
    size = width // heads
    few = state["layers.0.attention.wk.weight"].shape[0] // size
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    converted = {new: state[old] for old, new in OTHERS.items()}
    for number in range(layers):
        for old, new in NAMES.items():
            weight = state[f"layers.{number}.{old}.weight"]
            if old.endswith(("wq", "wk")):
                weight = weight.view(-1, size // 2, 2, width).transpose(1, 2).reshape(weight.shape)
            converted[f"model.layers.{number}.{new}.weight"] = weight.contiguous()
    hidden = state["layers.0.feed_forward.w1.weight"].shape[0]
    model = LlamaForCausalLM(make_config(vocabulary, width, hidden, layers, heads, few))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)  # tied to the embedding
    return model


def make_config(vocabulary: int, width: int, hidden: int, layers: int, heads: int, few: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=few, max_position_embeddings=512, rms_norm_eps=1e-5,
                       tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, pad_token_id=None)


def train(tokens: np.ndarray, vocabulary: int, steps: int) -> LlamaForCausalLM:
    """A small character model of one text."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # its matrices are too small to share
    model = LlamaForCausalLM(make_config(vocabulary, 64, 172, 2, 8, 4)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = torch.from_numpy(tokens)
    for _ in range(steps):
        places = torch.randint(0, len(stream) - 255, (4, 1)) + torch.arange(256)
        loss = model(stream[places], labels=stream[places]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {steps} steps to {loss.item():.2f} nats per character")
    return model.eval()


@torch.inference_mode()
def generate(folder: Path, start: list[int], length: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([start])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)[0].tolist()


def compare_perplexity(plain: Path, small: Path, tokens: np.ndarray, window: int) -> None:
    task = perplexity(tokens, window=window)
    original, told = nnc.evaluate(plain, task).value, nnc.evaluate(small, task).value
    loaded = nnc.evaluate(AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32), task).value
    print(f"perplexity: original {math.exp(original):.5f}, compressed {math.exp(told):.5f} by nnc eval, "
          f"{'the same' if loaded == told else f'{math.exp(loaded):.5f}'} after from_pretrained")


def read_vocabulary(path: Path | None) -> Callable[[list[int]], str]:
    """Text of token ids."""
    if path is None:
        return lambda ids: " ".join(map(str, ids))
    data = path.read_bytes()
    pieces = read_pieces(data) if path.suffix == ".model" else read_scored(data)
    return lambda ids: b"".join(pieces[number] for number in ids if number > 2).decode("utf-8", "replace").strip()


def read_scored(data: bytes) -> list[bytes]:
    """llama2.c: length of the longest token, then for each token a float score, a length and its bytes."""
    pieces, at = [], 4
    while at < len(data):
        length = struct.unpack_from("<i", data, at + 4)[0]
        piece, at = data[at + 8 : at + 8 + length], at + 8 + length
        pieces.append(bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") else piece)
    return pieces


def read_pieces(data: bytes) -> list[bytes]:
    """SentencePiece: a protocol buffer whose field 1 is a token each, of which field 1 is the text."""
    def fields(part: bytes):
        at = 0
        while at < len(part):
            key, at = varint(part, at)
            if key & 7 == 2:
                length, at = varint(part, at)
                yield key >> 3, part[at : at + length]
                at += length
            elif key & 7 == 0:
                _, at = varint(part, at)
            else:
                at += 4 if key & 7 == 5 else 8

    def varint(part: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value, shift, at = value | (part[at] & 127) << shift, shift + 7, at + 1
            if part[at - 1] < 128:
                return value, at

    return [dict(fields(token))[1].replace("\u2581".encode(), b" ") for number, token in fields(data) if number == 1]


if __name__ == "__main__":
    main()
