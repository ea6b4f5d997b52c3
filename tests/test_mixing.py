"""The mixing coder: round trips, agreement with the slow decoder, its prior, and where it is used."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from reference_decoder.mixing import unmix  # noqa: E402

import nnc  # noqa: E402
from nnc.entropy import mixing  # noqa: E402
from nnc.entropy.mixing import decode_mixed, encode_mixed, read_prior  # noqa: E402
from nnc.errors import Corruption, Unsupported  # noqa: E402


def samples() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        "empty": b"", "one": b"\0", "other": b"\xff", "zeros": bytes(3000), "ones": b"\xff" * 3000,
        "random": random.integers(0, 256, 2000, np.uint8).tobytes(),
        "skewed": random.binomial(255, 0.02, 3000).astype(np.uint8).tobytes(),
        "text": b"".join(f"model.layers.{n}.self_attn.{part}_proj.weight".encode() for n in range(12) for part in "qkvo"),
        "prior": read_prior(),
    }  # fmt: skip


@pytest.mark.parametrize("name", samples())
def test_bytes_come_back(name):
    data = samples()[name]
    coded = encode_mixed(data)
    assert decode_mixed(coded, len(data)) == data and len(coded) <= 1.05 * len(data) + 8
    if name in ("zeros", "ones", "text", "prior"):
        assert len(coded) < len(zlib.compress(data, 9)) / (10 if name == "prior" else 1.2)
    with pytest.raises(Corruption, match="coded bytes"):
        decode_mixed(coded + b"\0", len(data))


@pytest.mark.parametrize("name", ["empty", "one", "skewed", "text"])
def test_two_decoders_agree(name):
    data = samples()[name][:600]
    assert unmix(encode_mixed(data), len(data)) == data


@pytest.mark.parametrize("seed", range(5))
def test_changed_bytes_decode_to_the_same_nonsense(seed):
    """No state of the coder depends on the machine: both decoders follow damage to the same bytes."""
    random = np.random.default_rng(seed)
    data = samples()["text"][:200]
    coded = bytearray(encode_mixed(data))
    coded[random.integers(len(coded))] ^= 1 << int(random.integers(8))
    found = []
    for decode in (decode_mixed, unmix):
        try:
            found.append(decode(bytes(coded), len(data)))
        except (ValueError, Corruption):
            found.append(None)
    assert found[0] == found[1]


def test_a_large_number_of_bits_keeps_in_range():
    random = np.random.default_rng(1)
    data = np.where(random.random(60_000) < 0.5, 0, 255).astype(np.uint8).tobytes()  # errors as large as they can be
    assert decode_mixed(encode_mixed(data), len(data)) == data


def test_the_prior_is_that_of_the_page(monkeypatch, tmp_path):
    page = (Path(nnc.__file__).parent / "FORMAT.md").read_text()
    assert hashlib.sha256(read_prior()).hexdigest() == mixing.PRIOR_HASH and mixing.PRIOR_HASH in page
    assert f"the {len(read_prior())} bytes of the *prior* 1" in page and len(read_prior()) < 100_000
    other = tmp_path / "prior.bin"
    other.write_bytes(read_prior()[:-1])
    monkeypatch.setattr(mixing, "PRIOR", other)
    read_prior.cache_clear()
    with pytest.raises(Corruption, match="is not the prior of this release: install nnc again"):
        encode_mixed(b"")
    read_prior.cache_clear()


def coder_of(path: Path) -> int:
    data = path.read_bytes()
    return struct.unpack_from("<I", data, 12 + struct.unpack_from("<Q", data)[0])[0] >> 29


def test_small_files_are_mixed_and_large_ones_need_not_wait(tmp_path):
    g = torch.Generator().manual_seed(0)
    nnc.compress({"layer.weight": torch.randn(30, 20, generator=g), "layer.bias": torch.zeros(30)}, tmp_path / "s.safetensors", bits=4)
    nnc.compress({"layer.weight": torch.randn(900, 800, generator=g)}, tmp_path / "l.safetensors", bits=4)
    assert (coder_of(tmp_path / "s.safetensors"), coder_of(tmp_path / "l.safetensors")) == (1, 0)


def test_unknown_coders_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    nnc.compress({"layer.weight": torch.randn(30, 20)}, path, bits=4)
    data = bytearray(path.read_bytes())
    at = 12 + struct.unpack_from("<Q", data)[0]
    struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] & (1 << 29) - 1 | 5 << 29)
    path.write_bytes(data)
    with pytest.raises(Unsupported, match="the directory is in the coder 5, this release reads 0 and 1: upgrade nnc"):
        nnc.load(path)
    struct.pack_into("<I", data, at, 1 << 29 | (1 << 18) + 1)  # longer than may be mixed
    path.write_bytes(data)
    with pytest.raises(Corruption, match="directory of"):
        nnc.load(path)
