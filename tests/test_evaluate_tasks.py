"""nnc.evaluation: tasks, their metrics, and the defects of their data files."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation import Batches, Task, classification, evaluate, make_task, perplexity, similarity
from nnc.evaluation.models import find_function
from nnc.evaluation.sentences import spearman


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


# ------------------------------------------------------------------------------------------------ tasks and data files


def test_task_refuses_an_unknown_kind():
    with pytest.raises(InvalidArgument, match="kind is 'image', must be one of logits, unit, values"):
        Task("x", "image", "PSNR", True, list)


def test_batches_are_sized_and_repeatable():
    batches = Batches(3, lambda i: (i,))
    assert len(batches) == 3 and list(batches) == list(batches) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    "shape, expected", [((7, 5, 6, 3), (3, 5, 6)), ((7, 5, 6), (1, 5, 6)), ((7, 3, 5, 6), (3, 5, 6)), ((7, 5, 6, 1), (1, 5, 6))]
)
def test_uint8_images_become_channels_first_fractions(tmp_path, shape, expected):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "t.npz", x=images, y=np.zeros(7, np.int32))
    parts = list(make_task("classification", tmp_path / "t.npz", batch="3").batches())
    assert [len(x) for (x,) in parts] == [3, 3, 1]
    whole = torch.cat([x for (x,) in parts])
    assert whole.dtype == torch.float32 and whole.shape == (7, *expected)
    arranged = images.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else images.reshape(7, *expected)
    assert np.array_equal(whole.numpy(), arranged.astype(np.float32) / np.float32(255))


def test_mean_and_std_apply_per_channel(tmp_path):
    images = np.random.default_rng(0).random((4, 3, 2, 2))
    np.savez(tmp_path / "t.npz", images=images)
    ((x,),) = make_task("classification", tmp_path / "t.npz", mean="0.1,0.2,0.3", std=[1, 2, 4]).batches()
    expected = (images - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([1, 2, 4])[:, None, None]
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)
    ((y,),) = make_task("classification", tmp_path / "t.npz", mean=0.5).batches()
    np.testing.assert_allclose(y.numpy(), images - 0.5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 30, 1000])
def test_accuracy_counts_hits_whatever_the_batches(batch):
    images, labels = digits_like()
    model = small_net().eval()
    hits = (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    report = evaluate(model, classification(images, labels, batch=batch))
    assert report.value == pytest.approx(100 * hits) and report.count == 30
    assert report.metric == "top-1 %" and report.higher_is_better and report.finite and report.fidelity is None


def test_limit_takes_the_first_images():
    images, labels = digits_like()
    model = small_net()
    assert (
        evaluate(model, classification(images, labels, limit="7", batch=3)).value
        == evaluate(model, classification(images[:7], labels[:7])).value
    )
    assert evaluate(model, classification(images, labels, limit=1000)).count == 30


@pytest.mark.parametrize(
    "arrays, error, message",
    [
        ({"pictures": np.zeros((2, 3))}, InvalidArgument, "no array images or x; it has pictures"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, InvalidArgument, "3 labels for 2 images"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 1), int)}, InvalidArgument, r"labels: shape is \(2, 1\)"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, InvalidArgument, "dtype is float64, must be an integer"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, -1])}, InvalidArgument, r"values are -1\.\.0"),
        ({"x": np.zeros((2, 3), int), "y": np.zeros(2, int)}, InvalidArgument, "dtype of the images is int64"),
        ({"x": np.zeros((2, 3), np.uint8), "y": np.zeros(2, int)}, InvalidArgument, r"shape of the images is \(2, 3\)"),
        ({"x": np.zeros((2, 5, 5, 5), np.uint8), "y": np.zeros(2, int)}, InvalidArgument, "must have 1, 3 or 4 channels"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, InsufficientData, "no images"),
    ],
)
def test_defects_of_image_files(tmp_path, arrays, error, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(error, match=message) as caught:
        make_task("classification", tmp_path / "t.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch": 0}, "option batch: 0 given, must be a whole number >= 1"),
        ({"limit": "many"}, "option limit: 'many'"),
        ({"batch": 2.5}, "option batch: 2.5"),
        ({"mean": "a,b"}, "option mean: 'a,b'"),
        ({"mean": []}, r"option mean: \[\]"),
        ({"std": 0}, "option std: 0 given, must be > 0"),
        ({"std": [1, 2]}, "option std: 2 numbers given, the images have 6"),
        ({"colour": 1}, "unknown option colour, must be one of batch, limit, mean, std"),
    ],
)
def test_bad_options(tmp_path, options, message):
    np.savez(tmp_path / "t.npz", x=np.zeros((2, 6)), y=np.zeros(2, int))
    with pytest.raises(InvalidArgument, match=message):
        make_task("classification", tmp_path / "t.npz", **options)


def test_files_that_are_no_arrays(tmp_path):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("half.npz", b"PK\x03\x04" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidArgument, match="not a plain .npy or .npz file"):
            make_task("classification", tmp_path / name)
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InvalidArgument, match="not a plain .npy or .npz file"):
        make_task("classification", tmp_path / "o.npz")
    np.savez(tmp_path / "cut.npz", x=np.zeros((5, 6)), y=np.zeros(5, int))
    whole = (tmp_path / "cut.npz").read_bytes()
    for end in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:end])
        with pytest.raises(InvalidArgument):
            make_task("classification", tmp_path / "cut.npz")
    with pytest.raises(InvalidArgument, match="not found"):
        make_task("classification", tmp_path / "none.npz")
    with pytest.raises(InvalidArgument, match="is a folder"):
        make_task("perplexity", tmp_path)


def test_labels_beyond_the_models_classes_and_wrong_outputs():
    images, labels = digits_like()
    with pytest.raises(InvalidArgument, match="a label is 9, the model has only 4 classes"):
        evaluate(small_net(), classification(images, np.where(labels == 0, 9, labels)))
    with pytest.raises(InvalidArgument, match=r"returned shape \(30, 6, 1\), must be \(30, classes\)"):
        evaluate(nn.Unflatten(1, (6, 1)), classification(images, labels))


def test_make_task_names_what_there_is():
    with pytest.raises(InvalidArgument, match="task is 'regression', must be classification, perplexity, similarity, module:"):
        make_task("regression", "x.npz")
    with pytest.raises(InvalidArgument, match="task similarity needs a data file"):
        make_task("similarity", None)


def test_task_from_a_function(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nimport torch\nimport beside\nfrom nnc.evaluation import Task\n"
        "@dataclasses.dataclass\nclass Loose:\n    name: str = 'loose'\n    kind: str = 'values'\n    metric: str = 'sum'\n"
        "    higher_is_better: bool = False\n    def batches(self): return [(torch.ones(2, 3),)]\n"
        "    def measure(self, outputs): return sum(float(o.sum()) for o in outputs)\n"
        "def whole(data=None, scale=1):\n"
        "    return Task('whole', 'values', str(data), True, lambda: [(scale * torch.ones(1),)], lambda o: float(o[0]))\n"
        "def loose(): return Loose()\ndef nothing(): return 3\nnumber = 4\n"
    )
    (tmp_path / "beside.py").write_text("")
    file, path = tmp_path / "mine.py", list(sys.path)
    assert evaluate(nn.Identity(), make_task(f"{file}:loose")).value == 6
    report = evaluate(nn.Identity(), make_task(f"{file}:whole", "d", scale=5))
    assert (report.metric, report.value) == ("d", 5)
    monkeypatch.chdir(tmp_path)
    assert make_task("mine:whole", None).metric == "None"
    assert sys.path == path
    with pytest.raises(InvalidArgument, match="got an unexpected keyword argument 'size'"):
        make_task(f"{file}:whole", None, size=1)
    for spec, message in (
        (f"{file}:nothing", "returned a int without name, kind"),
        (f"{file}:absent", "has no function absent"),
        (f"{file}:number", "has no function number"),
        (f"{tmp_path}/no.py:f", "no file"),
        ("mine2:f", "no module mine2"),
        (":f", "not of the form"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            make_task(spec, None)
    (tmp_path / "broken.py").write_text("import mine3\ndef f(): pass\n")
    with pytest.raises(InvalidArgument, match=r"broken:f: raised ModuleNotFoundError: .*mine3.* \(broken.py, line 1\)") as caught:
        find_function("broken:f")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError), "the user's own mistake is shown as it is"


# ---------------------------------------------------------------------------------------------------- language models


class Bigram(nn.Module):
    """(n, t) ids to (n, t, vocabulary) logits."""

    def __init__(self, vocabulary: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, ids):
        assert ids.dtype == torch.int64
        return self.table(ids)


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("window", [1, 7, 99])
def test_every_token_of_a_stream_is_predicted_once(tmp_path, window, batch):
    stream = np.random.default_rng(0).integers(0, 11, 100).astype(np.uint16)
    np.save(tmp_path / "t.npy", stream)
    model = Bigram()
    report = evaluate(model, make_task("perplexity", tmp_path / "t.npy", window=window, batch=batch))
    used = 99 // window * window
    ids = torch.from_numpy(stream.astype(np.int64))
    expected = F.cross_entropy(model.table(ids[:used]).double(), ids[1 : used + 1]).item()
    assert report.count == used
    assert report.value == pytest.approx(expected, rel=1e-9)
    assert report.perplexity == pytest.approx(math.exp(expected)) and not report.higher_is_better


def test_ready_windows_limit_and_names(tmp_path):
    windows = np.random.default_rng(0).integers(0, 11, (5, 9))
    model = Bigram()
    ids = torch.from_numpy(windows)
    for key in ("tokens", "ids", "input_ids"):
        np.savez(tmp_path / "t.npz", **{key: windows})
        report = evaluate(model, make_task("perplexity", tmp_path / "t.npz", limit=3, batch=2))
        assert report.count == 24
        expected = F.cross_entropy(model.table(ids[:3, :-1]).double().flatten(0, 1), ids[:3, 1:].flatten())
        assert report.value == pytest.approx(expected.item())


def test_uniform_prediction_costs_log_of_the_vocabulary():
    model = Bigram(8)
    nn.init.zeros_(model.table.weight)
    assert evaluate(model, perplexity(np.arange(8), window=7)).perplexity == pytest.approx(8)


@pytest.mark.parametrize(
    "tokens, options, error, message",
    [
        (np.arange(10), {}, InsufficientData, "10 tokens, a window needs 513; lower the option window"),
        (np.zeros((3, 1), int), {}, InsufficientData, "windows of 1 token"),
        (np.zeros(0, int), {}, InsufficientData, "empty"),
        (np.zeros(20), {}, InvalidArgument, "dtype is float64"),
        (np.zeros((2, 3, 4), int), {}, InvalidArgument, "must have 1 or 2 dimension"),
        (np.array([3, -5]), {"window": 1}, InvalidArgument, r"values are -5\.\.3"),
        (np.arange(10), {"window": 0}, InvalidArgument, "option window: 0"),
        (np.arange(10), {"window": 2, "tokenizer": "x"}, InvalidArgument, "holds token ids already"),
    ],
)
def test_defects_of_tokens(tmp_path, tokens, options, error, message):
    np.save(tmp_path / "t.npy", tokens)
    with pytest.raises(error, match=message):
        make_task("perplexity", tmp_path / "t.npy", **options)


def test_models_that_do_not_suit_the_tokens():
    with pytest.raises(InvalidArgument, match="does not run on batch 0 with inputs .1, 12. .*data and model belong together"):
        evaluate(Bigram(11), perplexity(np.arange(13), window=12))
    with pytest.raises(InvalidArgument, match="a token is 11, the model's vocabulary has only 11"):
        evaluate(Bigram(11), perplexity(np.arange(12), window=11))
    with pytest.raises(InvalidArgument, match=r"returned shape \(1, 3\), must be \(1, 3, vocabulary\)"):
        evaluate(Squash(), perplexity(np.arange(4), window=3))


class Squash(nn.Module):
    def forward(self, ids):
        return ids.float()


# ---------------------------------------------------------------------------------------------------- sentence pairs


class Bag(nn.Module):
    """Unit mean of the embeddings of the first `lengths` ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)

    def forward(self, ids, lengths):
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return F.normalize((self.words(ids) * mask[..., None]).sum(1), dim=-1)


def pairs_file(path: Path, n: int = 9, **changed) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "a_ids": rng.integers(0, 20, (n, 7)).astype(np.uint16),
        "b_ids": rng.integers(0, 20, (n, 5)),
        "a_len": rng.integers(1, 8, n),
        "b_len": rng.integers(1, 6, n),
        "score": rng.random(n).round(1).astype(np.float32),
    } | changed
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_similarity_puts_vectors_back_in_order(tmp_path, batch):
    from scipy.stats import spearmanr

    file = pairs_file(tmp_path / "p.npz")
    arrays, model = np.load(file), Bag()
    with torch.inference_mode():
        inputs = [(torch.from_numpy(arrays[f"{s}_ids"].astype(np.int64)), torch.from_numpy(arrays[f"{s}_len"])) for s in "ab"]
        a, b = (model(*pair).double().numpy() for pair in inputs)
    report = evaluate(model, make_task("similarity", file, batch=batch))
    assert report.value == pytest.approx(100 * spearmanr((a * b).sum(1), arrays["score"]).statistic)
    assert report.count == 18
    assert evaluate(model, make_task("similarity", file, limit=4)).count == 8


def test_spearman_with_ties_and_without_order():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    for n in (2, 3, 50):
        a, b = rng.integers(0, 5, n).astype(float), rng.random(n)
        a[:2] = 0, 1
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
        assert spearman(a, a) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
        assert spearman(a, np.zeros(n)) == 0


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"b_ids": None}, InvalidArgument, "no array b_ids"),
        ({"score": None}, InvalidArgument, "no array score"),
        ({"a_len": np.full(9, 8)}, InvalidArgument, r"lengths are 1\.\.8, must be in 1\.\.7"),
        ({"a_len": np.zeros(9, int)}, InvalidArgument, r"lengths are 0"),
        ({"score": np.full(9, np.nan)}, InvalidArgument, "must be finite numbers"),
        ({"score": np.ones(9)}, InsufficientData, "with different scores"),
        ({"score": np.arange(8)}, InvalidArgument, "must be 16 for 8 scores"),
        ({"b_ids": np.zeros((8, 5), int)}, InvalidArgument, "9 a_ids and 8 b_ids"),
        ({"a_ids": np.zeros((9, 7))}, InvalidArgument, "a_ids: dtype is float64"),
    ],
)
def test_defects_of_pairs(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        make_task("similarity", pairs_file(tmp_path / "p.npz", **changed))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.tsv", "a\tb\n", "row 1 has 2 columns, must have 3"),
        ("p.tsv", "a\tb\t1\na\tb\tx\n", "score of row 2 is 'x'"),
        ("p.csv", "one,two,score\n", "no sentence pairs"),
        ("p.tsv", " \n", "no text"),
        ("p.csv", 'a,"b,1\n' + "x" * 200_000, "is no table row"),
        ("p.tsv", "a\tb\t1\nc\td\t2\n", "sentences need the option tokenizer"),
    ],
)
def test_defects_of_pair_tables(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((InvalidArgument, InsufficientData), match=message):
        make_task("similarity", tmp_path / name)


def test_unit_outputs_must_have_norm_one():
    ids, lengths = np.arange(8).reshape(4, 2), np.full(4, 2)
    with pytest.raises(InvalidArgument, match="a vector of norm .* must have norm 1"):
        evaluate(Scale(Bag()), similarity(ids, lengths, np.arange(2)))


class Scale(nn.Module):
    def __init__(self, inner: nn.Module, by: float = 2.0) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, *args):
        return self.inner(*args) * self.by
