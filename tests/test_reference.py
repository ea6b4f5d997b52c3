"""Prediction from another checkpoint: acceptance figures of METHODS S6, what is the same costs nothing, and the wrong reference is told."""

from __future__ import annotations

import shutil
import warnings
from math import e, log2, pi

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nnc
from nnc.alignment import align
from nnc.archive import MAX_CHAIN, open_reference
from nnc.checkpoint import open_checkpoint
from nnc.errors import Corruption, InvalidArgument
from nnc.prediction.permutation import decode_permutation, encode_permutation, spread

STEP = 0.05


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def bits(path, weights: int) -> float:
    return 8 * path.stat().st_size / weights


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three layers with a norm between; names in the order of use."""
    parts = {
        "first.weight": (96, 40),
        "first.bias": (96,),
        "norm.weight": (96,),
        "middle.weight": (64, 96, 3, 3),
        "last.weight": (20, 64 * 4),
        "last.bias": (20,),
    }
    state = {name: normal(*shape, seed=seed + number) for number, (name, shape) in enumerate(parts.items())}
    state["norm.weight"] = state["norm.weight"].abs() + 0.5
    return state | {"norm.steps": torch.tensor(7), "table": normal(500, 32, seed=seed + 9)}


def drifted(state: dict[str, torch.Tensor], part: float, seed: int = 100) -> dict[str, torch.Tensor]:
    """Every float tensor moved by noise of this part of its size."""
    return {
        name: t + part * t.std() * normal(*t.shape, seed=seed + k) if t.is_floating_point() and t.ndim else t.clone()
        for k, (name, t) in enumerate(state.items())
    }


class TestAcceptance:
    """METHODS S6 (c): 256 x 256, rows permuted, drift d, step 0.05."""

    @pytest.mark.parametrize("drift", [0.05, 0.2])
    def test_permuted_rows_with_drift(self, tmp_path, drift):
        rng = np.random.default_rng(1)
        base = rng.standard_normal((256, 256)).astype(np.float32)
        order = rng.permutation(256)
        tuned = {"w": torch.from_numpy((base[order] + drift * rng.standard_normal((256, 256))).astype(np.float32))}
        reference = {"w": torch.from_numpy(base)}
        with open_checkpoint(tuned) as checkpoint:
            found = align(checkpoint, open_reference(reference), "")
        assert (found.order(found.matches["w"].orders[0]) == order).all()
        path = tmp_path / "delta.safetensors"
        nnc.compress(tuned, path, step=STEP, effort="fast", reference=reference)
        theory = log2(drift * (2 * pi * e) ** 0.5 / STEP)
        assert bits(path, 256 * 256) <= theory + 0.2  # the whole file, permutation and confidences included
        nnc.compress(tuned, tmp_path / "alone.safetensors", step=STEP, effort="fast")
        assert bits(tmp_path / "alone.safetensors", 256 * 256) > theory + 2

    def test_confidence_of_unrelated_rows(self, tmp_path):
        """With a fifth of the rows unrelated the mask beats full trust, and stays away from what intra would cost."""
        base, other = normal(256, 256, seed=2), normal(256, 256, seed=3)
        tuned = base + 0.1 * normal(256, 256, seed=4)
        tuned[::5] = other[::5]
        with open_checkpoint({"w": tuned}) as checkpoint:
            confidence = align(checkpoint, open_reference({"w": base}), "").matches["w"].confidence
        assert (confidence[::5] == -8).all() and (np.delete(confidence, np.s_[::5]) == 0).all()
        masked, trusted = tmp_path / "masked.safetensors", tmp_path / "trusted.safetensors"
        nnc.compress({"w": tuned}, masked, step=STEP, effort="fast", reference={"w": base})
        nnc.compress({"w": tuned - base}, trusted, step=STEP, effort="fast")
        assert masked.stat().st_size < 0.99 * trusted.stat().st_size

    def test_unrelated_reference_costs_nothing(self, tmp_path):
        alone, against = tmp_path / "alone.safetensors", tmp_path / "against.safetensors"
        tuned = network(50)
        del tuned["norm.weight"]  # which is positive, and so like any other
        nnc.compress(tuned, alone, bits=4)
        summary = nnc.compress(tuned, against, bits=4, reference=network(0) | {"norm.steps": torch.tensor(1)})
        assert summary.predicted == () and summary.same == ()
        assert against.stat().st_size <= 1.001 * alone.stat().st_size
        assert nnc.inspect(against).reference is None  # nothing of it is needed
        nnc.load(against)


class TestPrediction:
    def test_same_snr_in_fewer_bytes(self, tmp_path):
        base = network()
        tuned = drifted(base, 0.1)
        plain = nnc.compress(tuned, tmp_path / "plain.safetensors", snr=30)
        delta = nnc.compress(tuned, tmp_path / "delta.safetensors", snr=30, reference=base)
        assert abs(delta.snr - plain.snr) < 0.1
        assert delta.file_bytes < 0.6 * plain.file_bytes
        assert "norm.steps" in delta.same and "middle.weight" in delta.predicted
        decoded = nnc.load(tmp_path / "delta.safetensors", reference=base)
        error = sum(float((decoded[n] - tuned[n]).double().square().sum()) for n in delta.predicted)
        energy = sum(float(tuned[n].double().square().sum()) for n in delta.predicted)
        assert abs(10 * np.log10(energy / error) - 30) < 0.6

    def test_order_is_carried_to_the_next_layer(self, tmp_path):
        """Hidden units exchanged in two layers: outputs, what belongs to them, and inputs of the next layer, also behind a flatten."""
        base = network()
        rng = np.random.default_rng(5)
        one, two = torch.from_numpy(rng.permutation(96)), torch.from_numpy(rng.permutation(64))
        tuned = dict(base)
        for name in ("first.weight", "first.bias", "norm.weight"):
            tuned[name] = base[name][one]
        tuned["middle.weight"] = base["middle.weight"][two][:, one]
        tuned["last.weight"] = base["last.weight"].reshape(20, 64, 4)[:, two].reshape(20, 256)
        tuned = drifted(tuned, 0.05)
        with open_checkpoint(tuned) as checkpoint:
            found = align(checkpoint, open_reference(base), "")
        orders = {name: match.orders for name, match in found.matches.items()}
        assert len(found.permutations) == 2
        assert orders["first.weight"] == (1, 0) and orders["first.bias"] == (0, 1) and orders["norm.weight"] == (0, 1)
        assert orders["middle.weight"] == (2, 1) and orders["last.weight"] == (0, 2)
        moved = nnc.compress(tuned, tmp_path / "moved.safetensors", snr=30, reference=base)
        straight = nnc.compress(drifted(base, 0.05), tmp_path / "straight.safetensors", snr=30, reference=base)
        assert moved.file_bytes < straight.file_bytes + 400  # the two orders, once each

    def test_identical_rows_cost_almost_nothing(self, tmp_path):
        base = {"table": normal(4000, 64)}
        tuned = {"table": base["table"].clone()}
        tuned["table"][::100] += 0.1 * normal(40, 64, seed=7)
        path = tmp_path / "delta.safetensors"
        nnc.compress(tuned, path, snr=30, reference=base)
        assert path.stat().st_size < 1500  # 40 rows of 64, against 4000
        decoded = nnc.load(path, reference=base)["table"]
        untouched = np.delete(np.arange(4000), np.s_[::100])
        assert torch.equal(decoded[untouched], base["table"][untouched])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_dtypes(self, tmp_path, dtype):
        """A reference of another float dtype serves; the tensor comes back in its own."""
        base = {"w": normal(64, 64), "scale": torch.tensor(3.0)}
        tuned = {"w": (base["w"] + 0.05 * normal(64, 64, seed=1)).to(dtype), "scale": torch.tensor(3.0, dtype=dtype)}
        path = tmp_path / "delta.safetensors"
        summary = nnc.compress(tuned, path, snr=35, reference=base)
        assert summary.predicted == ("w",) and summary.same == ()
        decoded = nnc.load(path, reference=base)
        assert decoded["w"].dtype == dtype and torch.allclose(decoded["w"].float(), tuned["w"].float(), atol=0.2)

    def test_everything_is_the_same(self, tmp_path):
        base = network() | {"nan": torch.tensor([1.0, float("nan")]), "empty": torch.zeros(0, 3)}
        path = tmp_path / "delta.safetensors"
        summary = nnc.compress(base, path, reference=base)
        assert set(summary.same) == set(base) and path.stat().st_size < 700
        decoded = nnc.load(path, reference=base)
        assert all(torch.equal(decoded[n].nan_to_num(), base[n].nan_to_num()) for n in base)
        decoded["table"].zero_()  # not the memory of the reference
        assert base["table"].any()

    def test_modules_ties_and_threads(self, tmp_path):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
        base[1].weight = base[0].weight
        tuned = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
        tuned[1].weight = tuned[0].weight
        tuned.load_state_dict(drifted(base.state_dict(), 0.1))
        for threads in (1, 2):
            nnc.compress(tuned, tmp_path / f"{threads}.safetensors", bits=3, reference=base, threads=threads)
        assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
        state = nnc.load(tmp_path / "1.safetensors", reference=base)
        assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
        nnc.load_into(tuned, tmp_path / "1.safetensors", reference=base)

    def test_rules_hold(self, tmp_path):
        base = network()
        tuned = drifted(base, 0.1)
        path = tmp_path / "delta.safetensors"
        nnc.compress(tuned, path, snr=35, reference=base, rules=("table=exact", "first.weight=skip", "last.weight=finer:8"))
        kinds = {tensor.name: tensor for tensor in nnc.inspect(path).tensors}
        assert kinds["table"].kind == "exact" and kinds["first.weight"].kind == "plain"
        assert kinds["last.weight"].snr > kinds["middle.weight"].snr + 12
        decoded = nnc.load(path, reference=base)
        assert torch.equal(decoded["table"], tuned["table"])

    def test_shards(self, tmp_path):
        base = network()
        nnc.compress(drifted(base, 0.1), tmp_path / "out", snr=30, reference=base, shard_bytes=8000)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
        assert nnc.load(tmp_path / "out", reference=base).keys() == base.keys()
        assert nnc.load(tmp_path / "out", reference=base, names=["last.bias"]).keys() == {"last.bias"}


class TestLossless:
    def test_bits_come_back(self, tmp_path):
        base = network()
        tuned = drifted(base, 0.01)
        tuned["half"] = normal(30, 30).half()
        tuned["flags"] = normal(50) > 0
        tuned["numbers"] = torch.arange(300, dtype=torch.int64) ** 3
        base |= {"half": (tuned["half"].float() * 1.01).half(), "flags": ~tuned["flags"], "numbers": tuned["numbers"] + 2}
        tuned["table"][3, 4] = float("nan")
        tuned["table"][0, 0] = -0.0
        alone = nnc.compress(tuned, tmp_path / "alone.safetensors", lossless=True)
        delta = nnc.compress(tuned, tmp_path / "delta.safetensors", lossless=True, reference=base)
        assert delta.file_bytes < 0.85 * alone.file_bytes
        for path, known in ((tmp_path / "alone.safetensors", None), (tmp_path / "delta.safetensors", base)):
            decoded = nnc.load(path, reference=known)
            for name in tuned:
                before, after = (t.reshape(-1).view(torch.uint8) for t in (tuned[name], decoded[name]))
                assert torch.equal(before, after), name

    def test_lossless_excludes_targets(self, tmp_path):
        with pytest.raises(InvalidArgument, match="lossless keeps every value, bits asks for a loss"):
            nnc.compress(network(), tmp_path / "x.safetensors", lossless=True, bits=3)


class TestFinding:
    """Where a reference is looked for, and what is said if it is not the right one."""

    @pytest.fixture
    def files(self, tmp_path):
        base, tuned = network(), drifted(network(), 0.1)
        save_file(base, tmp_path / "base.safetensors")
        nnc.compress(tuned, tmp_path / "delta.safetensors", snr=30, reference=tmp_path / "base.safetensors")
        return tmp_path, base, tuned

    def test_beside_it(self, files):
        folder, base, _ = files
        expected = nnc.load(folder / "delta.safetensors", reference=base)
        found = nnc.load(folder / "delta.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in base)
        assert nnc.inspect(folder / "delta.safetensors").reference == "base.safetensors"
        assert nnc.verify(folder / "delta.safetensors") == len(base)
        nnc.decompress(folder / "delta.safetensors", folder / "back.safetensors")

    def test_link_goes_by_its_own_name(self, files):
        """As in a cache whose files are links to blobs."""
        folder, base, tuned = files
        (folder / "blobs").mkdir()
        (folder / "base.safetensors").rename(folder / "blobs" / "1f2e")
        (folder / "base.safetensors").symlink_to(folder / "blobs" / "1f2e")
        nnc.compress(tuned, folder / "other.safetensors", snr=30, reference=folder / "base.safetensors")
        assert nnc.inspect(folder / "other.safetensors").reference == "base.safetensors"
        assert nnc.load(folder / "other.safetensors").keys() == base.keys()

    def test_missing(self, files):
        folder, base, _ = files
        (folder / "base.safetensors").unlink()
        with pytest.raises(InvalidArgument, match="needs its reference 'base.safetensors', which is not beside it"):
            nnc.load(folder / "delta.safetensors")
        nnc.inspect(folder / "delta.safetensors")  # says what it is without
        assert nnc.load(folder / "delta.safetensors", reference=base).keys() == base.keys()

    def test_wrong_values(self, files):
        folder, base, tuned = files
        with pytest.raises(InvalidArgument, match="is not what it was when this was compressed: name the right reference"):
            nnc.load(folder / "delta.safetensors", reference=tuned)
        base["table"][7, 7] += 1e-6
        with pytest.raises(InvalidArgument, match="not what it was"):
            nnc.verify(folder / "delta.safetensors", reference=base)

    @pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
    def test_wrong_architecture(self, files, change):
        folder, base, _ = files
        if change == "missing":
            del base["middle.weight"]
        elif change == "shape":
            base["middle.weight"] = base["middle.weight"][:, :5]
        else:
            base["middle.weight"] = base["middle.weight"].double()
        with pytest.raises(InvalidArgument, match="'middle.weight'.*not the reference of this file"):
            nnc.load(folder / "delta.safetensors", reference=base)

    def test_needless(self, files):
        """Nothing may have been predicted: whoever reads need not know."""
        folder, base, _ = files
        nnc.compress(base, folder / "alone.safetensors")
        assert nnc.load(folder / "alone.safetensors", reference=base).keys() == base.keys()

    @pytest.mark.parametrize("way", ["order", "half", "float16"])
    def test_prediction_without_a_residual(self, tmp_path, way):
        base = {"w": normal(40, 30).half().float()}
        tuned = {"order": base["w"][torch.randperm(40)], "half": base["w"] * 0.5, "float16": base["w"].half()}[way]
        nnc.compress({"w": tuned}, tmp_path / "delta.safetensors", snr=20, reference=base)
        assert torch.equal(nnc.load(tmp_path / "delta.safetensors", reference=base)["w"], tuned)

    def test_compressing_against_nothing_of_use(self, files):
        folder, base, _ = files
        with pytest.raises(InvalidArgument, match="of another architecture"):
            nnc.compress(base, folder / "x.safetensors", reference={"other": normal(4, 4)})
        with pytest.raises(InvalidArgument, match="there is no such reference"):
            nnc.compress(base, folder / "x.safetensors", reference=folder / "nothing")
        assert not (folder / "x.safetensors").exists()

    def test_compressed_reference_and_chain(self, files):
        folder, _, tuned = files
        nnc.compress(drifted(tuned, 0.1, 300), folder / "second.safetensors", snr=30, reference=folder / "delta.safetensors")
        assert nnc.inspect(folder / "second.safetensors").reference == "delta.safetensors"
        assert nnc.load(folder / "second.safetensors").keys() == tuned.keys()
        (folder / "base.safetensors").unlink()  # the reference of the reference
        with pytest.raises(InvalidArgument, match="delta.safetensors: needs its reference 'base.safetensors'"):
            nnc.load(folder / "second.safetensors")

    def test_circle(self, files):
        folder, _, tuned = files
        nnc.compress(tuned, folder / "one.safetensors", snr=20, reference=folder / "delta.safetensors")
        shutil.copy(folder / "one.safetensors", folder / "delta.safetensors")  # which now names itself
        with pytest.raises(Corruption, match="is its own reference"):
            nnc.load(folder / "one.safetensors")

    def test_destination_is_not_its_reference(self, files):
        folder, base, tuned = files
        with pytest.raises(InvalidArgument, match="is the reference and the output: name another output"):
            nnc.compress(tuned, folder / "delta.safetensors", reference=folder / "delta.safetensors", overwrite=True)
        nnc.compress(tuned, folder / "next.safetensors", reference=folder / "delta.safetensors")
        with pytest.raises(Corruption, match="is its own reference"):  # through the next
            nnc.compress(base, folder / "delta.safetensors", reference=folder / "next.safetensors", overwrite=True)
        assert nnc.load(folder / "next.safetensors").keys() == tuned.keys()

    @pytest.mark.slow
    def test_too_long_a_chain(self, tmp_path):
        state = {"w": normal(8, 8)}
        path = tmp_path / "0.safetensors"
        nnc.compress(state, path)
        for number in range(1, MAX_CHAIN + 1):
            before, path = path, tmp_path / f"{number}.safetensors"
            state = {"w": state["w"] + 0.1}
            nnc.compress(state, path, snr=40, reference=before, threads=1)
        nnc.load(path)
        state = {"w": state["w"] + 0.1}
        with pytest.raises(Corruption, match=f"more than {MAX_CHAIN} references in a row"):
            nnc.compress(state, tmp_path / "last.safetensors", snr=40, reference=path)


@pytest.mark.parametrize("size", [2, 3, 255, 256, 257, 70_000])
@pytest.mark.parametrize("kind", ["identity", "random", "rotated", "reversed"])
def test_permutations_come_back(size, kind):
    orders = {
        "identity": np.arange(size),
        "random": np.random.default_rng(size).permutation(size),
        "rotated": np.roll(np.arange(size), size // 3),
        "reversed": np.arange(size)[::-1],
    }
    data = encode_permutation(orders[kind])
    assert (decode_permutation(data, size) == orders[kind]).all()
    if kind == "random" and size > 200:
        entropy = np.log2(np.arange(1, size + 1)).sum() / 8
        assert len(data) < (1.35 if size <= 256 else 1.75) * entropy
    if kind == "rotated":
        assert len(data) < 40 + size / 200


def test_spread_keeps_neighbours_together():
    assert spread(np.array([2, 0, 1]), 6).tolist() == [4, 5, 0, 1, 2, 3]
