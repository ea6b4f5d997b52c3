"""nnc.evaluation: Hugging Face folders, and sweeps over the rate.  The codec is a stand-in here."""
from __future__ import annotations

import csv
import json
import logging
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import nnc
from nnc.errors import InvalidArgument, Unsupported
from nnc.evaluation import Task, build_model, classification, evaluate, make_task, perplexity, sweep
from nnc.evaluation.models import fit, open_network
from nnc.evaluation.sentences import spearman
from nnc.evaluation.sweep import stored_bytes


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits_like(n: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 6)).astype(np.float32), rng.integers(0, 4, n)


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 4))


# --------------------------------------------------------------------------------------------------- Hugging Face folders

@pytest.fixture(scope="module")
def hugging(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny random models with a word-level tokenizer beside them."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    configs = {"BertModel": transformers.BertConfig(**small, max_position_embeddings=32),
               "GPT2LMHeadModel": transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32,
                                                          bos_token_id=0, eos_token_id=0),
               "LlamaForCausalLM": transformers.LlamaConfig(**small, num_key_value_heads=1, tie_word_embeddings=True)}
    folders = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp(name)
        model = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # else the embeddings of tiny random models are all alike
        config.architectures = [name]
        config.save_pretrained(folder)
        shared = {"lm_head.weight"} if name != "BertModel" else set()
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key not in shared}
        save_file(state, folder / "model.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 12}))
        folders[name] = folder
    return folders


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_causal_language_models(hugging, fake_nnc, capfd, name):
    import transformers
    folder = hugging[name]
    tokens = np.random.default_rng(0).integers(0, 40, (3, 9))
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    seed = torch.get_rng_state()
    report = evaluate(folder, perplexity(tokens, batch=2), original=folder / "model.safetensors", layers=True)
    assert torch.equal(torch.get_rng_state(), seed)
    assert report.fidelity.kl == 0 and report.finite and report.notes == () and len(report.layers) > 8
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == (level, bars)
    assert capfd.readouterr() == ("", "")
    model = build_model(None, folder).eval()
    assert type(model).__name__ == name and model.dtype == torch.float32
    fit(model, loaded(folder))  # lm_head is tied
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        expected = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert report.value == pytest.approx(expected, rel=1e-5) and report.value == report.reference_value
    half = {key: value.bfloat16() for key, value in loaded(folder).items()}
    rounded = evaluate(half, perplexity(tokens), original=folder)
    assert 0 < rounded.fidelity.kl < 1e-2
    assert evaluate(model, perplexity(tokens)).value == pytest.approx(expected, rel=1e-5)


def test_text_is_read_with_the_folders_tokenizer(hugging, tmp_path, capfd):
    folder = hugging["GPT2LMHeadModel"]
    (tmp_path / "t.txt").write_text("a b c d e f g h i j zebra " * 3, encoding="utf-8")
    task = make_task("perplexity", tmp_path / "t.txt", tokenizer=str(folder), window=4, batch=100)
    (ids,), = task.batches()
    assert ids.flatten().tolist() == [*([*range(2, 12), 1] * 3)][:32]
    assert capfd.readouterr() == ("", "")
    assert evaluate(loaded(folder), task, original=None, model=lambda: build_model(None, folder)).finite
    with pytest.raises(InvalidArgument, match="text needs the option tokenizer"):
        make_task("perplexity", tmp_path / "t.txt")
    with pytest.raises(InvalidArgument, match="is no folder"):
        make_task("perplexity", tmp_path / "t.txt", tokenizer=str(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match="no usable tokenizer in"):
        make_task("perplexity", tmp_path / "t.txt", tokenizer=str(tmp_path))
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(InvalidArgument, match="byte 3 is not UTF-8"):
        make_task("perplexity", tmp_path / "bad.txt", tokenizer=str(folder))


def test_sentence_encoders_are_pooled_over_the_words(hugging, fake_nnc, tmp_path):
    folder = hugging["BertModel"]
    (tmp_path / "p.csv").write_text('one,two,score\n"a b, c",d,1.5\n"e ""f""",g h i j a b c,2\nj,a,0.25\n')
    task = make_task("similarity", tmp_path / "p.csv", tokenizer=folder, batch=4)
    report = evaluate(folder, task, original=loaded(folder))
    assert report.fidelity.one_minus_cosine == 0 and report.count == 6 and -100 <= report.value <= 100
    model = build_model(None, folder).eval()
    fit(model, loaded(folder))
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    sentences = [["a", "b", "[UNK]", "c"], ["e", "[UNK]", "f", "[UNK]"], ["j"], ["d"], list("ghijabc"), ["a"]]
    with torch.inference_mode():
        hidden = [model(torch.tensor([[words[word] for word in sentence]])).last_hidden_state[0] for sentence in sentences]
        vectors = [F.normalize(states.mean(0), dim=0) for states in hidden]
        outputs = torch.cat([task.prepare(model)(*args) for args in task.batches()])
    assert torch.allclose(outputs.sort(0).values, torch.stack(vectors).sort(0).values, atol=1e-5)
    cosines = np.array([float(a @ b) for a, b in zip(vectors[:3], vectors[3:])])
    assert report.value == pytest.approx(100 * spearman(cosines, np.array([1.5, 2, 0.25])))
    (tmp_path / "p.tsv").write_text('a b\tc\t1\n"\td\t2\n')
    assert len(make_task("similarity", tmp_path / "p.tsv", tokenizer=folder, length=1).batches()) == 1
    (tmp_path / "q.tsv").write_text("a\tb\t1\nc\t\t2\n")
    with pytest.raises(InvalidArgument, match="a sentence of pair 2 has no tokens"):
        make_task("similarity", tmp_path / "q.tsv", tokenizer=folder)
    with pytest.raises(InvalidArgument, match="^BertModel has no head for the next token"):
        evaluate(folder, perplexity(np.arange(9), window=4))


def test_pretrained_weights_that_do_not_fit(hugging, capfd, monkeypatch):
    records = []
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [Collector(records)])
    folder = hugging["GPT2LMHeadModel"]
    state = loaded(folder)
    state["odd"] = torch.zeros(1)
    state["transformer.ln_f.bias"] = torch.zeros(17)
    del state["transformer.ln_f.weight"]
    with pytest.raises(InvalidArgument) as caught:
        open_network(state, None, folder)
    assert str(caught.value) == ("the weights do not fit the model: missing transformer.ln_f.weight; unexpected odd; "
                                 "transformer.ln_f.bias is (17,), must be (16,); check the option model")
    assert capfd.readouterr() == ("", "") and records == []


class Collector(logging.Handler):
    def __init__(self, records: list) -> None:
        super().__init__()
        self.records = records

    def emit(self, record):
        self.records.append(record)


def test_weights_run_in_float32_whatever_the_config_says(hugging, tmp_path):
    folder = hugging["BertModel"]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    state = loaded(folder)
    network, _ = open_network(state, None, tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert build_model(None, tmp_path).dtype == torch.float32


def test_configs_that_transformers_cannot_build(hugging, tmp_path):
    config = json.loads((hugging["BertModel"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(Unsupported, match="has no class NoSuchModel; say what to build with model="):
        build_model(None, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}))
    with pytest.raises(Unsupported, match="transformers cannot read it"):
        build_model(None, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Unsupported, match="transformers cannot read it"):
        build_model(None, tmp_path)
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert type(build_model(None, tmp_path)).__name__ == "BertModel"
    network, _ = open_network(loaded(hugging["BertModel"]), None, tmp_path)
    assert torch.equal(network.pooler.dense.weight, loaded(hugging["BertModel"])["pooler.dense.weight"])


# ---------------------------------------------------------------------------------------------------------------- sweeps

@dataclass(frozen=True)
class FakeSummary:
    file_bytes: int
    bits_per_weight: float


class FakeCheckpoint:
    def __init__(self, path: Path) -> None:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        self.tensors = {key: value for file in files for key, value in load_file(file).items()}
        self.specs = tuple(types.SimpleNamespace(name=key, shape=tuple(value.shape), dtype=value.dtype, tied_to=None)
                           for key, value in self.tensors.items())

    def read(self, name):
        return self.tensors[name]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.tensors = {}


@pytest.fixture
def fake_nnc(monkeypatch) -> list[dict]:
    """A codec that rounds to 2^bits steps per tensor; returns the calls of compress."""
    calls = []

    def one(path):
        return sorted(Path(path).glob("*.safetensors"))[0] if Path(path).is_dir() else Path(path)

    def is_compressed(path):
        with safe_open(one(path), "pt") as content:
            return (content.metadata() or {}).get("fake") == "1"

    def compress(source, destination, *, bits, effort, **options):
        calls.append({"destination": Path(destination), "bits": bits, "effort": effort, **options})
        state = load_file(one(source))
        for key, value in state.items():
            if value.is_floating_point():
                step = value.abs().max().clamp_min(1e-9) / 2 ** bits
                state[key] = (value / step).round() * step
        target = Path(destination)
        if Path(source).is_dir():
            target.mkdir()
            target = target / "model.safetensors"
        save_file(state, target, metadata={"fake": "1"})
        weights = sum(value.numel() for value in state.values() if value.is_floating_point())
        return FakeSummary(int(weights * bits / 8), bits)

    container, checkpoint = types.ModuleType("nnc.container"), types.ModuleType("nnc.checkpoint")
    container.is_compressed = is_compressed
    checkpoint.open_checkpoint = FakeCheckpoint
    monkeypatch.setitem(sys.modules, "nnc.container", container)
    monkeypatch.setitem(sys.modules, "nnc.checkpoint", checkpoint)
    monkeypatch.setattr(nnc, "load", lambda path: load_file(one(path)), raising=False)
    monkeypatch.setattr(nnc, "compress", compress, raising=False)
    return calls


@pytest.fixture
def stored(tmp_path) -> Path:
    save_file(small_net().state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_sweep_writes_an_honest_table(stored, fake_nnc, tmp_path):
    images, labels = digits_like(100)
    seen = []
    folder = tmp_path / "deep" / "out"
    pyplot = "matplotlib.pyplot" in sys.modules
    points = sweep(stored, classification(images, labels), model=small_net, bits=[8, 2.5, 4], effort="fast", out=folder,
                   progress=lambda *step: seen.append(step), threads=1)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
    assert [point.bits_asked for point in points] == [None, 8, 2.5, 4]
    original, fine, coarse, middle = points
    size = stored.stat().st_size
    weights = sum(value.numel() for value in small_net().state_dict().values() if value.is_floating_point())
    assert original.file_bytes == size and original.ratio == 1 and original.report.fidelity.kl == 0 and original.report.loss == 0
    assert fine.file_bytes == weights and fine.bits_per_weight == 8 and fine.ratio == size / weights
    assert 0 < fine.report.fidelity.kl < middle.report.fidelity.kl < coarse.report.fidelity.kl
    assert all(call["effort"] == "fast" and call["threads"] == 1 for call in fake_nnc)
    assert not any(call["destination"].exists() for call in fake_nnc)
    assert seen == [(0, 4, "original"), (1, 4, "8 bits"), (2, 4, "2.5 bits"), (3, 4, "4 bits"), (4, 4, "done")]

    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["bits_asked"] for row in rows] == ["", "8.0", "2.5", "4.0"]
    for row, point in zip(rows, points):
        assert int(row["file_bytes"]) == point.file_bytes and float(row["fidelity"]) == point.report.fidelity.kl
        assert float(row["value"]) == point.report.value and row["metric"] == "top-1 %" and row["fidelity_name"] == "KL nats"
        assert float(row["loss"]) == point.report.loss and float(row["bits_per_weight"]) == point.bits_per_weight
    text = (folder / "sweep.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# net.safetensors, classification\n") and len(table) == 6 and len({len(line) for line in table}) == 1
    assert "higher is better" in text
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in folder.iterdir()) == ["sweep.csv", "sweep.md", "sweep.png"]


def test_sweep_of_a_folder_without_labels(hugging, fake_nnc, tmp_path, capfd):
    tokens = np.random.default_rng(0).integers(0, 40, (3, 9))
    labelled = perplexity(tokens)
    task = Task("bare", "logits", "none", True, labelled.batches, None, labelled.prepare)
    points = sweep(hugging["LlamaForCausalLM"], task, bits=[6, 1], out=tmp_path / "out")
    assert [point.report.value for point in points] == [None] * 3
    assert points[0].report.fidelity.kl == 0 < points[1].report.fidelity.kl < points[2].report.fidelity.kl
    assert all(call["destination"].name == "model" for call in fake_nnc)
    head = (tmp_path / "out" / "sweep.md").read_text().splitlines()[2]
    assert "KL nats" in head and "loss" not in head
    assert capfd.readouterr() == ("", "")


def test_size_of_a_folder_is_that_of_its_weights(tmp_path):
    for name, size in (("model-1.safetensors", 100), ("model-2.safetensors", 20), ("pytorch_model.bin", 3), ("vocab.txt", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    assert stored_bytes(tmp_path) == 120 and stored_bytes(tmp_path / "vocab.txt") == 5
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert stored_bytes(tmp_path) == 3


def test_sweep_keeps_what_it_has_when_a_rate_fails(stored, fake_nnc, tmp_path, monkeypatch):
    whole = nnc.compress

    def compress(source, destination, *, bits, **options):
        if bits == 1:
            raise InvalidArgument("1 bit is out of reach")
        return whole(source, destination, bits=bits, **options)

    monkeypatch.setattr(nnc, "compress", compress)
    with pytest.raises(InvalidArgument, match="out of reach"):
        sweep(stored, classification(*digits_like()), model=small_net, bits=[4, 1, 3], out=tmp_path / "out")
    assert len((tmp_path / "out" / "sweep.csv").read_text().splitlines()) == 3


def test_sweep_survives_networks_that_break(stored, fake_nnc, tmp_path, monkeypatch):
    def broken(path):
        return {key: value * math.nan if value.is_floating_point() else value for key, value in load_file(path).items()}

    monkeypatch.setattr(nnc, "load", broken)
    points = sweep(stored, classification(*digits_like()), model=small_net, bits=[4], out=tmp_path)
    assert not points[1].report.finite
    assert "nan" in (tmp_path / "sweep.md").read_text() and (tmp_path / "sweep.png").exists()


def test_sweep_refuses_before_it_compresses(stored, fake_nnc, tmp_path, monkeypatch):
    task = classification(*digits_like())
    for bits, given in (([], "no rate"), ([3, 0], "0"), ([-1], "-1"), ([math.nan], "nan"), ([math.inf], "inf")):
        with pytest.raises(InvalidArgument, match=f"bits: {given} given, must be numbers > 0"):
            sweep(stored, task, model=small_net, bits=bits, out=tmp_path)
    with pytest.raises(InvalidArgument, match="is no folder and cannot be made one"):
        sweep(stored, task, model=small_net, bits=[3], out=stored)
    with pytest.raises(InvalidArgument, match="device warp"):
        sweep(stored, task, model=small_net, bits=[3], out=tmp_path, device="warp")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(InvalidArgument, match=r"install nnc\[plot\] or leave the plot out with plot=False"):
        sweep(stored, task, model=small_net, bits=[3], out=tmp_path)
    assert fake_nnc == []
    sweep(stored, task, model=small_net, bits=[3], out=tmp_path / "plain", plot=False)
    assert len(fake_nnc) == 1 and not (tmp_path / "plain" / "sweep.png").exists()


