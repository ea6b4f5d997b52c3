"""Calibration as a user asks for it: every source of data, what kind the output is, self-made data, targets, and clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import nnc
from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation import Reference, Task, classification, evaluate, predict_losses
from nnc.evaluation.matching import match_statistics, weights_of
from nnc.evaluation.task import Batches
from nnc.sources import make_inputs
from nnc.sources.calls import find_kind
from nnc.sources.generation import _stepper, write_text
from nnc.sources.inputs import Draft, count_samples, divide_inputs
from nnc.sources.inversion import bend_inputs, divergence
from nnc.sources.noise import _noise, draw_noise, find_shape

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
WORDS = ["<s>", "</s>", "<unk>", *"the a cat dog sat ran on mat in sun and then it was".split()]


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5)).eval()


def convolutions(side: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (side - 2) ** 2, 4))
    net[1].running_mean.copy_(torch.linspace(-1, 1, 8))
    net[1].running_var.copy_(torch.linspace(0.5, 2, 8))
    return net.eval()


class Speaker(nn.Module):
    """Ids (n, t) to scores (n, t, 12); every token is followed by the next number, as a rule."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(12, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 12)

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.table(ids)))) + 8 * F.one_hot((ids + 1) % 12, 12)


class Unit(nn.Module):
    """Ids (n, t) and lengths (n,) to vectors of norm 1."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(50, 8), nn.Linear(8, 8)

    def forward(self, ids, lengths):
        mask = (torch.arange(ids.shape[1]) < lengths[:, None])[..., None]
        return F.normalize(self.mix((self.table(ids) * mask).sum(1)), dim=-1)


def rows(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def make_folder(folder: Path, kind: str) -> Path:
    """A Hugging Face folder with a tiny model and a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    size = dict(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=1)
    if kind == "causal":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, **size))
    else:
        model = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=16,
                pad_token_id=1,
                **size,
            )
        )
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("causal"), "causal")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("encoder"), "encoder")


def check_calibrates(network: nn.Module, data: object, kind: str, **options) -> nnc.Statistics:
    """Statistics of every tensor that is used, the same twice; the kind is found."""
    found = nnc.calibrate(network, data, **options)
    again = nnc.calibrate(network, data, **options)
    assert found.kind == kind and found.predictions and found.tensors.keys() == again.tensors.keys()
    for name, entry in found.tensors.items():
        assert np.array_equal(entry.rows, again.tensors[name].rows) and np.array_equal(entry.columns, again.tensors[name].columns)
    return found


# ------------------------------------------------------------------------------------------------------------- sources


def test_arrays_files_and_tensors_are_one_source(tmp_path):
    x = rows()
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(40, np.int64))
    np.savez(tmp_path / "odd.npz", features=x)
    reference = check_calibrates(dense(), x, "logits")
    for data in (tmp_path / "x.npy", str(tmp_path / "x.npz"), tmp_path / "odd.npz", torch.from_numpy(x)):
        found = nnc.calibrate(dense(), data)
        assert np.array_equal(found.tensors["0.weight"].columns, reference.tensors["0.weight"].columns)
    assert reference.predictions == 35, "an eighth of each batch is held back"


def test_images_are_arranged_and_scaled(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=images)
    inputs = make_inputs(convolutions(), tmp_path / "i.npz", options={"batch": "10", "mean": "0.5", "std": "0.25,0.5,1"})
    (x,) = next(iter(inputs.calibration.batches()))
    assert x.shape == (9, 3, 8, 8) and inputs.kind == "logits" and inputs.samples == 18 and "shape (10, 4)" in inputs.notes[0]
    assert float(x[:, 0].amin()) == pytest.approx(-2, abs=0.05) and float(x[:, 2].amin()) == pytest.approx(-0.5, abs=0.05)


def test_token_ids(tmp_path):
    ids = np.random.default_rng(0).integers(0, 12, 900)
    np.save(tmp_path / "ids.npy", ids)
    np.savez(tmp_path / "ids.npz", input_ids=ids.reshape(30, 30).astype(np.int32))
    check_calibrates(Speaker(), tmp_path / "ids.npy", "logits", data_options={"window": 20}, samples=16)
    inputs = make_inputs(Speaker(), tmp_path / "ids.npz", samples=10)
    assert inputs.samples + sum(map(count_samples, inputs.held_back.batches())) == 10
    short = make_inputs(Speaker(), ids[:30])
    assert next(iter(short.calibration.batches()))[0].shape == (1, 29), "a short text is one window"
    assert short.held_back is None


@pytest.mark.slow
def test_text_for_a_language_model(causal, tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat and then it ran in the sun " * 20)
    found = check_calibrates(nnc_network(causal), tmp_path / "t.txt", "logits", data_options={"tokenizer": causal}, samples=8)
    same = nnc.calibrate(causal, tmp_path / "t.txt", samples=8)
    assert np.array_equal(found.tensors["lm_head.weight"].rows, same.tensors["lm_head.weight"].rows)
    inputs = make_inputs(nnc_network(causal), tmp_path / "t.txt", folder=causal)
    assert next(iter(inputs.calibration.batches()))[0].shape == (7, 16), "the whole context"


@pytest.mark.slow
def test_text_for_an_encoder(encoder, tmp_path):
    lines = ["the cat sat", "a dog ran in the sun", "", "it was on the mat and then it ran"] * 6
    (tmp_path / "t.txt").write_text("\n".join(lines))
    found = nnc.calibrate(encoder, tmp_path / "t.txt", data_options={"batch": "3"})
    assert found.kind == "values" and "embeddings.word_embeddings.weight" in found.tensors
    assert any(name.startswith("pooler") for name in found.unseen), "nothing comes of it in the hidden states"
    inputs = make_inputs(nnc_network(encoder), tmp_path / "t.txt", folder=encoder, samples=4)
    (batch,) = next(iter(inputs.calibration.batches()))
    assert set(batch) == {"input_ids", "attention_mask"}
    output = inputs.calibration.prepare(nnc_network(encoder))(batch)
    assert output.shape == (int(batch["attention_mask"].sum()), 16), "padding has no output"


def test_sentence_pairs(encoder, tmp_path):
    (tmp_path / "p.tsv").write_text("the cat sat\ta dog ran\t0.5\nit was\tthe sun\t0.1\non the mat\tin the sun\t0.9\n" * 3)
    found = nnc.calibrate(encoder, tmp_path / "p.tsv", data_options={"batch": 4})
    assert found.kind == "unit" and found.predictions < 18
    ids = np.random.default_rng(0).integers(1, 50, (9, 5))
    np.savez(tmp_path / "p.npz", a_ids=ids, b_ids=ids[::-1], a_len=np.full(9, 5), b_len=np.full(9, 5), score=np.arange(9.0))
    check_calibrates(Unit(), tmp_path / "p.npz", "unit", data_options={"batch": 6})


def test_iterables_of_batches():
    network, x = dense(), torch.from_numpy(rows())
    batches = [x[:20], x[20:30], x[30:]]
    reference = check_calibrates(network, batches, "logits")
    labelled = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in batches]
    for data in (
        [(part,) for part in batches],
        iter(batches),
        [part.numpy() for part in batches],
        labelled,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(40)), batch_size=10),
    ):
        found = nnc.calibrate(network, data)
        assert found.predictions == 36 and (found.tensors.keys() == reference.tensors.keys())
    inputs = make_inputs(network, labelled)
    assert "the last entry of each batch was left out as labels" in inputs.notes
    assert make_inputs(network, iter(batches), samples=25).samples == 23


def test_mappings_are_keyword_arguments(causal):
    ids = torch.randint(0, len(WORDS), (4, 8))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}] * 2
    inputs = make_inputs(nnc_network(causal), batches)
    assert inputs.kind == "logits" and "labels were left out" in inputs.notes
    assert set(next(iter(inputs.calibration.batches()))[0]) == {"input_ids", "attention_mask"}


def test_tasks_and_functions(tmp_path):
    task = classification(rows(), np.zeros(40, np.int64), batch=10)
    inputs = make_inputs(dense(), task)
    assert inputs.kind == "logits" and inputs.samples == 36 and len(inputs.held_back.batches()) == 4
    np.savez(tmp_path / "x.npz", x=rows())
    assert make_inputs(dense(), tmp_path / "x.npz", task="classification", options={"batch": 20}).samples == 36
    (tmp_path / "mine.py").write_text("import torch\ndef data(n='3'):\n    return [torch.ones(4, 6)] * int(n)\n")
    assert make_inputs(dense(), f"{tmp_path / 'mine.py'}:data", options={"n": "5"}).samples == 16


def test_samples_of_every_class_are_held_back():
    """Files are often sorted by class."""
    x = np.repeat(np.arange(8.0, dtype=np.float32), 32)[:, None] * np.ones((1, 6), np.float32)
    held = torch.cat([held for (held,) in make_inputs(dense(), x).held_back.batches()])
    assert len(held[:, 0].unique()) == 8


# --------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    "shape, change, kind",
    [
        ((4, 5), None, "logits"),
        ((4, 3, 5), None, "logits"),
        ((4, 5), lambda y: F.normalize(y, dim=-1), "unit"),
        ((4, 5), lambda y: y.softmax(-1), "values"),
        ((4, 1), None, "values"),
        ((4,), None, "values"),
        ((4, 2, 3, 3), None, "values"),
    ],
)
def test_kinds_of_outputs(shape, change, kind):
    class Fixed(nn.Module):
        def forward(self, x):
            y = torch.randn(shape)
            return y if change is None else change(y)

    assert find_kind(Fixed(), (torch.zeros(4, 7),))[0] == kind


def test_an_output_like_the_input_is_an_image():
    assert find_kind(nn.Linear(6, 6), (torch.zeros(4, 6),))[0] == "values"
    assert find_kind(nn.Embedding(6, 6), (torch.zeros(4, 6, dtype=torch.int64),))[0] == "logits"


def test_a_kind_may_be_given():
    assert nnc.calibrate(dense(), rows(), kind="values").kind == "values"
    with pytest.raises(InvalidArgument, match="must be one of logits, unit, values"):
        nnc.calibrate(dense(), rows(), kind="image")
    with pytest.raises(InvalidArgument, match="norm 1"):
        nnc.calibrate(dense(), rows(), kind="unit")


# ------------------------------------------------------------------------------------------------------------- no data


def test_a_language_model_writes_its_own_text():
    speaker = Speaker()
    draft = write_text(speaker, 12, 40, 0, {"window": 24}, None)
    ids = torch.cat([batch[0] for batch in draft.batches])
    assert ids.shape == (40, 24) and len(ids[:, 0].unique()) > 6
    assert float(((ids[:, 1:] - ids[:, :-1]) % 12 == 1).float().mean()) > 0.95, "each token follows as the network has it"
    again, other = (write_text(speaker, 12, 40, seed, {"window": 24}, None) for seed in (0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(draft.batches, again.batches))
    assert not torch.equal(ids, torch.cat([batch[0] for batch in other.batches]))
    found = check_calibrates(Speaker(), "self", "logits", data_options={"window": 12}, samples=9)
    assert not found.unseen


def test_a_language_model_of_hugging_face_writes_text_with_its_state(causal):
    network = nnc_network(causal)
    inputs = make_inputs(network, "self", options={"window": 16}, samples=8)
    (ids,) = next(iter(inputs.calibration.batches()))
    assert ids.shape[1] == 16 and bool((ids[:, 0] == 0).all()), "from the start token"
    after = ids[:, 1:][ids[:, :-1] == 1]
    assert bool((after == 0).all()), "a text that ends is followed by another"
    step = _stepper(network)
    with torch.no_grad():
        whole = network(input_ids=ids).logits
        for length in (1, 2, 3, 4):
            assert torch.allclose(step(ids[:, :length]), whole[:, length - 1], atol=1e-5)
    assert inputs.kind == "logits"


def test_an_encoder_gets_random_tokens(encoder):
    inputs = make_inputs(nnc_network(encoder), "self", samples=8)
    assert inputs.kind == "values" and any("random tokens" in note for note in inputs.notes)


def test_noise_fits_the_first_normalisation():
    network = convolutions()
    draft = draw_noise(network, 64, 0, {})
    x = torch.cat([batch[0] for batch in draft.batches])
    assert x.shape == (64, 3, 8, 8) and find_shape(network) == (3, 8, 8)
    with torch.no_grad():
        seen, plain = network[0](x), network[0](torch.randn(64, 3, 8, 8))

    def distance(y):
        mean, var, norm = y.mean((0, 2, 3)), y.var((0, 2, 3)), network[1]
        return float(((var + (mean - norm.running_mean) ** 2) / norm.running_var - 1 - (var / norm.running_var).log()).sum())

    assert distance(seen) < 0.2 * distance(plain), "nearer to what the network was trained on than plain noise"
    raw = torch.stack([_noise((3, 16, 16), 0, number) for number in range(32)])
    assert float((raw[..., 1:] * raw[..., :-1]).mean() / raw.square().mean()) > 0.5, "neighbours are alike"
    assert float(raw.square().mean()) == pytest.approx(1, abs=0.1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(draft.batches, draw_noise(convolutions(), 64, 0, {}).batches))
    check_calibrates(network, "self", "logits", samples=40)


def test_inputs_are_bent_to_all_layers_of_normalisation():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)).eval()
    network[4].running_mean.copy_(torch.linspace(-1, 1, 6))
    start = [torch.randn(8, 1, 10, 10)]
    bent, before, after = bend_inputs(network, start, 1.0, None)
    assert after < 0.5 * before and bent[0].shape == start[0].shape and not torch.equal(bent[0], start[0])
    with torch.no_grad():
        inner = divergence(network[4], network[:4](bent[0])) + divergence(network[1], network[:1](bent[0]))
    assert float(inner) == pytest.approx(after, rel=1e-3)
    assert not network[1]._forward_pre_hooks and network[0].weight.grad is None
    broken, before, after = bend_inputs(network, [torch.full((2, 1, 10, 10), torch.inf)], 1.0, None)
    assert bool(broken[0].isinf().all())


def test_noise_without_normalisation_and_with_a_shape():
    draft = draw_noise(dense(), 50, 0, {})
    x = torch.cat([batch[0] for batch in draft.batches])
    assert x.shape == (50, 6) and 0.8 < float(x.std()) < 1.2 and "real inputs do much better" in draft.notes[1]
    assert next(iter(draw_noise(convolutions(), 4, 0, {"shape": "3,8,8"}).batches))[0].shape == (4, 3, 8, 8)
    with pytest.raises(InvalidArgument, match="shape=3,32,32"):
        make_inputs(nn.Bilinear(3, 3, 2), "self")
    with pytest.raises(InvalidArgument, match="option shape"):
        make_inputs(convolutions(), "self", options={"shape": "3,x"})


# ----------------------------------------------------------------------------------------------------------- held back


def test_what_is_held_back():
    x = torch.from_numpy(rows())
    many = make_inputs(dense(), [x[i : i + 1] for i in range(40)])
    assert many.samples == 35 and torch.equal(torch.cat([held for (held,) in many.held_back.batches()]), x[7::8])
    two = make_inputs(dense(), [x[:3], x[3:5]])
    assert two.samples == 3 and torch.equal(two.held_back.batches()[0][0], x[3:5])
    one = make_inputs(dense(), [x])
    assert one.samples == 35 and torch.equal(next(iter(one.held_back.batches()))[0], x[7::8])
    few = make_inputs(dense(), [x[:3]])
    assert few.samples == 2 and torch.equal(few.held_back.batches()[0][0], x[2:3])
    single = make_inputs(dense(), [x[:1]])
    assert single.samples == 1 and single.held_back is None


@pytest.mark.parametrize("count, size", [(1, 40), (2, 20), (2, 9), (7, 7), (8, 5), (9, 1), (17, 3), (40, 1)])
def test_every_sample_is_in_one_part(count, size):
    """Of batches that are made when they are needed, and of a list of the same."""
    made = Batches(count, lambda index: (torch.arange(index * size, (index + 1) * size).float()[:, None],))
    short = Batches(count + 1, lambda index: made.make(index) if index < count else (torch.full((1, 1), 1e4),))
    for batches in (made, short) if size >= 8 else (made,):
        parts = []
        for source in (batches, list(batches)):
            inputs = divide_inputs(Draft("x", source), "values", lambda network: network, ())
            parts += [torch.cat([x for (x,) in part.batches()]).flatten() for part in (inputs.calibration, inputs.held_back)]
            assert inputs.samples == len(parts[-2])
        assert torch.equal(parts[0], parts[2]) and torch.equal(parts[1], parts[3])
        both = torch.cat(parts[:2]).sort().values
        assert torch.equal(both, torch.cat([x for (x,) in batches]).flatten().sort().values) and parts[1].numel()


@pytest.mark.slow
def test_one_sample_calibrates_without_a_measurement(tmp_path):
    summary = nnc.compress(dense(), tmp_path / "o.safetensors", data=rows(1), snr=30)
    assert summary.loss > 0 and summary.measured is None


# ----------------------------------------------------------------------------------------------- statistics and networks


def test_statistics_are_kept_resumed_and_refused(tmp_path):
    file = tmp_path / "s.safetensors"
    found = nnc.calibrate(dense(), rows(), output=file)
    before = file.read_bytes()
    assert nnc.calibrate(dense(), rows(), output=file).tensors.keys() == found.tensors.keys() and file.read_bytes() == before
    with pytest.raises(InvalidArgument, match="another data"):
        nnc.calibrate(dense(), rows(seed=1), output=file)
    other = dense()
    with torch.no_grad():
        other[0].weight += 1
    with pytest.raises(InvalidArgument, match="another model"):
        nnc.calibrate(other, rows(), output=file)
    with pytest.raises(InvalidArgument, match="is a folder"):
        nnc.calibrate(dense(), rows(), output=tmp_path)
    with pytest.raises(InvalidArgument, match="'0.weight' of the source has other values"):
        nnc.compress(other, tmp_path / "o.safetensors", statistics=file, snr=30)
    with pytest.raises(InvalidArgument, match="know no tensor of the source"):
        nnc.compress(nn.Bilinear(9, 9, 9), tmp_path / "o.safetensors", statistics=file, snr=30)
    assert not (tmp_path / "o.safetensors").exists()


def test_statistics_find_their_tensors_under_other_names():
    found = nnc.calibrate(dense(), rows())
    for rename in (lambda name: f"module.{name}", lambda name: f"net.{name}"):
        renamed = {rename(name): value for name, value in dense().state_dict().items()}
        holder = nn.Module()
        matched = match_statistics(found, _weights(renamed), "x")
        assert matched.tensors[rename("2.weight")] is found.tensors["2.weight"] and not matched.unseen
        assert weights_of(holder) == []
    half = {name: value.double() for name, value in dense().state_dict().items()}
    assert match_statistics(found, _weights({**half, "more": torch.randn(3, 3)}), "x").unseen == ("more",)


def _weights(state):
    from nnc.evaluation.matching import Weight

    return [Weight(name, tuple(value.shape), lambda value=value: value) for name, value in state.items()]


def test_compress_writes_and_reads_statistics(tmp_path):
    file = tmp_path / "s.safetensors"
    first = nnc.compress(dense(), tmp_path / "a.safetensors", data=rows(), statistics=file, snr=30)
    second = nnc.compress(dense(), tmp_path / "b.safetensors", data=rows(), statistics=file, snr=30)
    third = nnc.compress(dense(), tmp_path / "c.safetensors", statistics=nnc.Statistics.load(file), snr=30)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert first.measured == second.measured and third.measured is None and third.loss == first.loss
    assert (first.kind, first.samples, first.data, third.data) == ("logits", 35, "data", "statistics")


def test_the_measured_divergence_is_that_of_the_file(tmp_path):
    network = dense()
    summary = nnc.compress(network, tmp_path / "o.safetensors", data=rows(), snr=20)
    held = make_inputs(network, rows()).held_back
    decoded = nnc.load_into(dense(), tmp_path / "o.safetensors")
    assert summary.measured == pytest.approx(evaluate(decoded, held, original=network).fidelity.kl)


def test_hugging_face_folders(causal, tmp_path):
    summary = nnc.compress(causal, tmp_path / "small", data="self", samples=8, snr=30)
    assert summary.measured is not None and summary.kind == "logits" and not summary.unseen
    assert (tmp_path / "small" / "config.json").exists()


@pytest.mark.slow
def test_kl_is_met_on_held_back_data(tmp_path):
    import digits_cnn

    data = dict(data=digits_cnn.task(), model=digits_cnn.build)
    summary = nnc.compress(digits_cnn.WEIGHTS, tmp_path / "o.safetensors", kl=0.001, effort="fast", **data)
    assert summary.measured == pytest.approx(0.001, rel=0.15)


@pytest.mark.slow
def test_bits_with_data_beat_bits_without(tmp_path):
    import digits_cnn

    task = digits_cnn.task()
    divergence = {}
    for name, extra in (("plain", {}), ("self", {"data": "self", "model": digits_cnn.build})):
        path = tmp_path / f"{name}.safetensors"
        nnc.compress(digits_cnn.WEIGHTS, path, bits=2, effort="fast", **extra)
        divergence[name] = evaluate(path, task, digits_cnn.build, original=digits_cnn.WEIGHTS).fidelity.kl
    assert divergence["self"] < 0.7 * divergence["plain"]


# ----------------------------------------------------------------------------------------------- predicted and measured


def test_losses_by_tensor(tmp_path):
    network, path = dense(), tmp_path / "o.safetensors"
    original = tmp_path / "net.safetensors"
    save_file(network.state_dict(), original)
    x = rows(400)
    statistics = nnc.calibrate(network, x, samples=400)
    summary = nnc.compress(original, path, statistics=statistics, snr=20)
    losses = predict_losses(path, original, statistics)
    assert sum(loss.predicted for loss in losses.values()) == pytest.approx(summary.loss, rel=1e-3)
    task = make_inputs(network, x).calibration
    report = evaluate(path, task, dense, original, statistics=statistics, measured_tensors=2)
    assert report.predicted == pytest.approx(summary.loss, rel=1e-3) and len(report.tensors) == 4
    measured = [loss for loss in report.tensors if loss.measured is not None]
    assert len(measured) == 2 and all(0.5 < loss.predicted / loss.measured < 2 for loss in measured)
    assert [loss.predicted for loss in report.tensors] == sorted((loss.predicted for loss in report.tensors), reverse=True)
    assert report.to_dict()["tensors"][0]["name"] == report.tensors[0].name
    with pytest.raises(InvalidArgument, match="without an original"):
        evaluate(path, task, dense, statistics=statistics)
    with pytest.raises(InvalidArgument, match="give statistics"):
        evaluate(path, task, dense, original, measured_tensors=2)
    with pytest.raises(InvalidArgument, match="kind logits, task"):
        evaluate(path, Task("t", "values", "", False, task.batches), dense, original, statistics=statistics)


def test_reference_outputs_beyond_the_memory_are_computed_again():
    task = make_inputs(dense(), rows()).calibration
    other = dense()
    with torch.no_grad():
        other[0].weight.mul_(1.1)
    values = {Reference(dense(), task, memory).compare(other).value for memory in (0, 1e9)}
    reference = Reference(dense(), task)
    assert len({*values, reference.compare(other).value, reference.compare(other).value}) == 1


# --------------------------------------------------------------------------------------------------------------- errors


class Silent(nn.Module):
    """A layer whose inputs are all zero beside one that works, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.dead, self.unused = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return self.live(x) + self.dead(x * 0)


def test_layers_that_were_not_seen_fall_back_and_are_told(tmp_path):
    torch.manual_seed(0)
    statistics = nnc.calibrate(Silent(), rows())
    assert statistics.unseen == ("unused.weight", "unused.bias")
    torch.manual_seed(0)
    summary = nnc.compress(Silent(), tmp_path / "o.safetensors", data=rows(), snr=30)
    assert {"unused.weight", "dead.weight"} <= set(summary.unseen) and "live.weight" not in summary.unseen


def check_refused(kind: type, said: str, network: nn.Module, data: object, **options) -> None:
    """One line that says what is wrong."""
    with pytest.raises(kind, match=said) as caught:
        nnc.calibrate(network, data, **options)
    assert "\n" not in str(caught.value)


def test_bad_inputs(tmp_path):
    nan = rows()
    nan[7, 3] = np.nan
    check_refused(InvalidArgument, "sample 7 holds NaN or Inf", dense(), nan)
    check_refused(InvalidArgument, "batch 1 holds NaN or Inf", dense(), [rows(), nan])
    broken = dense()
    with torch.no_grad():
        broken[0].weight[0, 0] = np.nan
    check_refused(InvalidArgument, "0 .Linear. is not finite", broken, rows())
    check_refused(InsufficientData, "no samples", dense(), rows(0))
    check_refused(InsufficientData, "no batch", dense(), [])
    check_refused(InvalidArgument, "does not run on batch 0", dense(), rows()[:, :5])
    check_refused(InvalidArgument, "does not run on all", dense(), [rows(), rows()[:, :5], rows()])
    check_refused(InvalidArgument, "not found", dense(), tmp_path / "none.npz")
    check_refused(InvalidArgument, "nothing to calibrate with", dense(), None)
    check_refused(InvalidArgument, "a dict holds no batches", dense(), {"x": 1})
    check_refused(InvalidArgument, "batch 0 is a int", dense(), [3])
    check_refused(InvalidArgument, "samples = 0", dense(), rows(), samples=0)
    check_refused(InvalidArgument, "seed = -1", dense(), rows(), seed=-1)
    check_refused(InvalidArgument, "unknown option colour", dense(), rows(), data_options={"colour": 1})
    check_refused(InvalidArgument, "unknown option colour", dense(), "self", data_options={"colour": 1})
    check_refused(InvalidArgument, "leave it out", dense(), rows(), model=dense)
    (tmp_path / "empty.txt").write_text("")
    check_refused(InsufficientData, "no text", Speaker(), tmp_path / "empty.txt")
    (tmp_path / "t.txt").write_text("some text")
    check_refused(InvalidArgument, "needs the option tokenizer", Speaker(), tmp_path / "t.txt")


def test_a_wrong_tokenizer(causal, tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat and then it was " * 9)
    check_refused(
        InvalidArgument, "the model's table has 12 rows", Speaker(), tmp_path / "t.txt", data_options={"tokenizer": causal}
    )
    check_refused(InvalidArgument, "a token id is 99", Speaker(), np.full(100, 99))


def test_what_compress_refuses_before_it_calibrates(tmp_path):
    out = tmp_path / "o.safetensors"
    for said, options in (
        ("leave out step", {"data": rows(), "step": 0.1}),
        ("different targets", {"data": rows(), "bits": 2, "kl": 0.1}),
        ("no data to use it with", {"tune": True}),
        ("no data to use it with", {"kind": "unit"}),
        ("give data or statistics", {"kl": 0.1}),
        ("no such file of statistics", {"statistics": tmp_path / "none"}),
    ):
        with pytest.raises(InvalidArgument, match=said):
            nnc.compress(dense(), out, **options)
    out.write_bytes(b"")
    with pytest.raises(InvalidArgument, match="exists"):
        nnc.compress(dense(), out, data=[3], bits=4)


def test_the_network_is_left_as_it_was(tmp_path):
    network = dense().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    nnc.compress(network, tmp_path / "o.safetensors", data=rows(), snr=20)
    assert network.training and all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def run(capsys):
    from nnc.__main__ import main

    def call(*argv: object, code: int = 0) -> str:
        assert main([str(part) for part in argv]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """net.safetensors, net.py with its model, x.npz."""
    folder = tmp_path_factory.mktemp("tiny")
    save_file(dense().state_dict(), folder / "net.safetensors")
    (folder / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5))\n"
    )
    np.savez(folder / "x.npz", x=rows(), y=np.zeros(40, np.int64))
    return folder


def test_commands(run, tiny, tmp_path):
    model = ["--model", f"{tiny / 'net.py'}:build"]
    source, stats, out = tiny / "net.safetensors", tmp_path / "s.safetensors", tmp_path / "o.safetensors"
    text = run("calibrate", source, "-d", tiny / "x.npz", *model, "-o", stats)
    assert "kind     logits: KL nats per prediction" in text and "seen     4 tensors" in text and "\n0.weight" in text
    assert run("calibrate", source, "-d", tiny / "x.npz", *model, "-o", stats, "--quiet") == ""
    data = json.loads(run("calibrate", source, "-d", tiny / "x.npz", *model, "-o", stats, "--json"))
    assert data["kind"] == "logits" and len(data["tensors"]) == 4 and data["unseen"] == data["all_zero"] == []
    text = run("compress", source, "-o", out, "--snr", "30", "-d", tiny / "x.npz", *model, "--statistics", stats)
    labels = [line.split("  ")[0] for line in text.splitlines()]
    assert labels[5:9] == ["calibrated", "predicted", "measured", "note"] and "outputs of kind logits" in text
    data = json.loads(run("compress", source, "-o", out, "--kl", "0.001", "--statistics", stats, "--overwrite", "--json"))
    assert data["predicted_divergence"] == pytest.approx(0.001, rel=0.2) and data["measured_divergence"] is None
    assert data["kind"] == "logits" and data["unseen"] == []
    text = run("info", out, "--statistics", stats, "--original", source, "--sort", "loss")
    assert text.splitlines()[9].endswith("share  predicted") and "divergence of the network's output" in text
    described = json.loads(run("info", out, "--statistics", stats, "--original", source, "--json"))
    assert described["predicted_loss"] == pytest.approx(data["predicted_divergence"], rel=0.01)
    task = ["--task", "classification", "--data", tiny / "x.npz", *model, "--original", source, "--statistics", stats]
    text = run("eval", out, *task, "--per-tensor", "2")
    assert "predicted/measured" in text and "sum of 2" in text
    data = json.loads(run("eval", out, *task, "--per-tensor", "--json"))
    assert len(data["tensors"]) == 4 and all(entry["measured"] is not None for entry in data["tensors"])
    assert "sum of 4" in run("eval", out, *task)


def test_commands_refuse(run, tiny, tmp_path):
    model = ["--model", f"{tiny / 'net.py'}:build"]
    source, stats, out = tiny / "net.safetensors", tmp_path / "s.safetensors", tmp_path / "o.safetensors"
    small = tmp_path / "small.safetensors"
    run("compress", source, "-o", small, "--quiet")
    for said, argv in (
        ("not found", ["calibrate", source, "-d", "none.npz", *model, "-o", stats]),
        ("no config.json", ["calibrate", source, "-d", tiny / "x.npz", "-o", stats]),
        ("is given twice", ["calibrate", source, "-d", "self", *model, "-o", stats, "--option", "a=1", "--option", "a=2"]),
        ("no data to use it with", ["compress", source, "-o", out, "--tune"]),
        ("go together", ["info", small, "--statistics", stats]),
        ("needs --statistics", ["info", small, "--sort", "loss"]),
        ("no such file of statistics", ["info", small, "--statistics", stats, "--original", source]),
    ):
        line = run(*argv, code=2)
        assert said in line and line.count("\n") == 1, line
    assert not stats.exists() and not out.exists()
    run("calibrate", source, "-d", "self", *model, "-o", stats, "--quiet")
    assert load_file(stats)


def nnc_network(folder: Path) -> nn.Module:
    from nnc.evaluation.models import open_network

    return open_network(folder)[0]
