"""The examples with transformers, on networks that are made on the spot."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nnc

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name; the number of threads of torch is put back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in ("02_search_sentences", "03_generate_text", "loading"):
        sys.modules.pop(name, None)


def test_search(example, monkeypatch, capsys):
    search = example("02_search_sentences")
    monkeypatch.setattr(search, "find_encoder", lambda: None)
    monkeypatch.setattr(sys, "argv", ["02", "--bits", "6"])
    search.main()
    out = capsys.readouterr().out
    assert "same first hit for 6 of 6 queries" in out and "embeddings are equal" in out
    assert out.count("The harbour freezes over in January.") == 2


def test_generation_of_a_network_that_is_trained_there(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["03", "--steps", "30", "--length", "12"])
    example("03_generate_text").main()
    out = capsys.readouterr().out
    assert "by nnc eval, the same after from_pretrained" in out and "the same text" in out


def make_llama2c(width: int, heads: int, few: int, vocabulary: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    shapes = {"tok_embeddings": (vocabulary, width), "norm": (width,)}
    for layer in ("layers.0.", "layers.1."):
        shapes |= {layer + "attention_norm": (width,), layer + "ffn_norm": (width,)}
        shapes |= {layer + f"attention.w{n}": (width // heads * (few if n in "kv" else heads), width) for n in "qkvo"}
        shapes[layer + "attention.wo"] = (width, width)
        shapes |= {layer + "feed_forward.w1": (24, width), layer + "feed_forward.w3": (24, width), layer + "feed_forward.w2": (width, 24)}
    return {f"{name}.weight": torch.randn(shape, generator=g) * (0.3 if len(shape) > 1 else 1) for name, shape in shapes.items()}


@torch.inference_mode()
def run_llama2c(state: dict[str, torch.Tensor], ids: torch.Tensor, heads: int, few: int) -> torch.Tensor:
    """llama2.c itself: rotation of neighbours, groups of queries on a key, SwiGLU, tied head."""
    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * state[name + ".weight"]

    def rotate(x):
        half = x.shape[-1] // 2
        angle = torch.outer(torch.arange(len(ids)).float(), 10000.0 ** (-torch.arange(half) / half))[:, None]
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    x = state["tok_embeddings.weight"][ids]
    size = x.shape[1] // heads
    for layer in ("layers.0.", "layers.1."):
        h = norm(x, layer + "attention_norm")
        q, k, v = (h @ state[layer + f"attention.w{n}.weight"].T for n in "qkv")
        q, k = rotate(q.view(len(ids), heads, size)), rotate(k.view(len(ids), few, size))
        k, v = (t.view(len(ids), few, size).repeat_interleave(heads // few, 1) for t in (k, v))
        scores = torch.einsum("ihc,jhc->hij", q, k) / size**0.5
        weights = scores.masked_fill(~torch.ones(len(ids), len(ids)).tril().bool(), -torch.inf).softmax(-1)
        x = x + torch.einsum("hij,jhc->ihc", weights, v).flatten(1) @ state[layer + "attention.wo.weight"].T
        h = norm(x, layer + "ffn_norm")
        gate, up = (h @ state[layer + f"feed_forward.w{n}.weight"].T for n in "13")
        x = x + (torch.nn.functional.silu(gate) * up) @ state[layer + "feed_forward.w2.weight"].T
    return norm(x, "norm") @ state["tok_embeddings.weight"].T


def test_conversion_computes_what_llama2c_computes(example, monkeypatch, capsys, tmp_path):
    generate = example("03_generate_text")
    state = make_llama2c(16, 4, 2, 40)
    ids = torch.arange(20) * 7 % 40
    with torch.inference_mode():
        logits = generate.convert(state, 4).eval()(ids[None]).logits[0]
    assert torch.allclose(logits, run_llama2c(state, ids, 4, 2), atol=1e-4)
    save_file(state, tmp_path / "net.safetensors")
    np.save(tmp_path / "tokens.npy", np.arange(500, dtype=np.int16) * 7 % 40)
    scored = b"\x08\0\0\0" + b"".join(b"\0\0\0\0" + len(p).to_bytes(4, "little") + p for p in [b"<0x41>", *[b"%d" % n for n in range(39)]])
    (tmp_path / "words.bin").write_bytes(scored)
    options = ["--weights", tmp_path / "net.safetensors", "--heads", "4", "--vocabulary", tmp_path / "words.bin", "--tokens", tmp_path / "tokens.npy"]
    monkeypatch.setattr(sys, "argv", ["03", "--length", "5", "--window", "32", *map(str, options)])
    generate.main()
    assert "by nnc eval, the same after from_pretrained" in capsys.readouterr().out


def test_vocabulary_of_sentencepiece(example):
    """Field 1 of the model holds tokens: text, score, kind; others are passed over."""
    def token(text: str) -> bytes:
        body = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\0\0\x80\xbf" + b"\x18\x01"
        return b"\x0a" + bytes([len(body)]) + body

    data = token("<unk>") + token("\u2581a") + b"\x12\x02\x08\x01" + token("bc")
    assert example("03_generate_text").read_pieces(data) == [b"<unk>", b" a", b"bc"]


def test_loading_benchmark_compares_weights_and_embeddings(example, capsys, tmp_path):
    loading = example("loading")
    loading.make_tiny(tmp_path / "plain", tmp_path / "small")
    nnc.decompress(tmp_path / "small", tmp_path / "back")
    assert loading.compare_weights(tmp_path / "small", tmp_path / "back")
    nnc.compress(tmp_path / "plain", tmp_path / "other", bits=5)
    assert not loading.compare_weights(tmp_path / "other", tmp_path / "back")
    assert "embeddings are NOT those" in capsys.readouterr().out
