"""Latents that are learned, and tensors that share a stream: laws, limits, and the slow decoder of the page."""
from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import reference_decoder as decoder
import torch
from make_golden import coded_as, make_statistics
from reference_decoder.latents import Latents as SlowLatents
from reference_decoder.notation import OtherVersion

import nnc
from nnc import side
from nnc.archive import open_compressed
from nnc.container import open_file
from nnc.entropy import latents as entropy_latents
from nnc.entropy.explicit import ModelBank
from nnc.entropy.latents import (
    ARRAYS,
    Axis,
    LatentCoder,
    LatentModel,
    are_dependent,
    choose_partner,
    pack_model,
    unpack_model,
    walk_array,
)
from nnc.entropy.scales import OFF, kernel_codes
from nnc.kernels.latents import next_latent, search_latents
from nnc.latent_choice import REACH, _choose, _price
from nnc.latents import start_coder
from nnc.packing import _push_all
from nnc.partition.grid import Grid
from nnc.quantize.steps import UNITS, StepCodes, rebuild_steps
from nnc.quantize.trellis import make_trellis
from nnc.rdo import LOW, Scales, codes_of, level_bits


def dependent_codes(rng: np.random.Generator, number: int) -> np.ndarray:
    codes, s = [], 0
    for _ in range(number):
        codes.append(2 * int(rng.integers(-6, 6)) + (s & 1))
        s = next_latent(s, codes[-1])
    return np.array(codes, np.int16)


def arrays(seed: int) -> list[tuple[Axis, np.ndarray, int, int | None]]:
    """Axis, codes, unit, number of the array that is known."""
    rng = np.random.default_rng(seed)
    shapes = [(1, 1), (5, 1), (16, 1), (36, 9), (40, 1), (36, 9), (40, 1), (90, 9), (300, 1)]
    out: list[tuple[Axis, np.ndarray, int, int | None]] = []
    for turn in range(30):
        number, taps = shapes[turn % len(shapes)]
        kind = int(rng.integers(0, 7))
        what = turn % 6
        codes = rng.integers(-64, 65, number) if what == 0 else np.round(3 * rng.standard_normal(number)).astype(np.int64)
        codes = np.repeat(codes[: -(-number // 9)], 9)[:number] if what == 1 else codes
        codes = dependent_codes(rng, number) if what == 2 else codes
        codes = np.where(rng.random(number) < 0.1, OFF, codes) if what == 3 else codes
        codes = np.zeros(number, np.int64) if what == 4 else codes
        same = [n for n, (axis, *_) in enumerate(out) if axis.number == number]
        if what == 5 and same:
            codes = out[same[-1]][1] + (turn % 2)
        out.append((Axis(kind, number, taps, turn % 7 == 0), np.clip(codes, -64, 64).astype(np.int16),
                    int(rng.integers(0, 5)) if kind < 2 else 0, same[0] if same and turn % 3 else None))
    return out


def write_arrays(given: list) -> bytes:
    coder = LatentCoder(LatentModel.shipped())
    for axis, codes, unit, known in given:
        coder.write(axis, codes, unit, None if known is None else given[known][1])
    return _push_all(coder.trace, ())


@pytest.mark.parametrize("seed", range(4))
def test_arrays_come_back_here_and_in_the_slow_decoder(seed):
    given = arrays(seed)
    data = write_arrays(given)
    coder = LatentCoder(LatentModel.shipped(), *start_coder(data))
    slow = SlowLatents(decoder.Coder(data))
    for axis, codes, unit, known in given:
        before = None if known is None else given[known][1]
        read, found = coder.read(axis, before)
        assert read.tolist() == codes.tolist() and found == (unit if codes.any() else 0)
        other = slow.array(axis.kind, axis.number, axis.taps, axis.alone, None if before is None else before.tolist())
        assert other == (codes.tolist(), found)
    assert not coder.state.any()
    slow.coder.end()


def test_what_was_sent_before_costs_next_to_nothing():
    codes = np.random.default_rng(0).integers(-9, 10, 384).astype(np.int16)
    axis = Axis(ARRAYS.id("column steps"), 384, 1, False)
    once, twice, close = (LatentCoder(LatentModel.shipped()) for _ in range(3))
    for coder, more in ((once, []), (twice, [codes]), (close, [codes + (np.arange(384) % 50 == 0)])):
        for array in [codes, *more]:
            coder.write(axis, array.astype(np.int16), 0, None)
    sizes = [len(_push_all(coder.trace, ())) for coder in (once, twice, close)]
    assert sizes[1] - sizes[0] <= 2 and sizes[2] - sizes[0] < 0.25 * sizes[0]


def test_the_partner_is_the_array_that_resembles_most_up_to_a_constant():
    rng = np.random.default_rng(1)
    codes = rng.integers(-9, 10, 64)
    others = [rng.integers(-9, 10, 64), codes + 5, np.where(np.arange(64) < 4, 0, codes)]
    assert choose_partner(codes, others) == 2 and choose_partner(codes, others[:1]) == 0


def test_states_of_dependent_codes():
    rng = np.random.default_rng(2)
    codes = dependent_codes(rng, 200)
    assert are_dependent(codes) and not are_dependent(codes[:15])
    wrong = codes.copy()
    wrong[100] += 1
    assert not are_dependent(wrong)


def test_search_of_dependent_codes_is_optimal():
    rng = np.random.default_rng(3)
    for _ in range(30):
        costs = np.full((4, 129), np.inf)
        places = range(61, 68)  # codes -3..3
        costs[:, 61:68] = rng.random((4, 7))
        best = np.inf
        for choice in itertools.product(places, repeat=4):
            s, total = 0, 0.0
            for j, place in enumerate(choice):
                if (place - 64 ^ s) & 1:
                    break
                total += costs[j, place]
                s = next_latent(s, place - 64)
            else:
                best = min(best, total)
        values = np.empty(4, np.int64)
        assert search_latents(costs, values) == pytest.approx(best, abs=1e-12)
        assert costs[np.arange(4), values + 64].sum() == pytest.approx(best, abs=1e-12)


def scales_and_levels(seed: int, rows: int = 24, columns: int = 45) -> tuple[Scales, list[np.ndarray], Grid]:
    rng = np.random.default_rng(seed)
    of_rows = rng.integers(-3, 4, rows).astype(np.int16)
    of_rows[3] = OFF
    scales = Scales(20, of_rows, rng.integers(-3, 4, columns).astype(np.int16), 0, False, StepCodes.even(rows), StepCodes.even(columns))
    grid = Grid(rows, columns, rows, columns)
    codes = codes_of(grid.tiles()[0], scales)
    return scales, [np.round(rng.standard_normal(len(codes)) * 2.0 ** ((codes - 17.0) / 4)).astype(np.int32)], grid


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_prices_of_codes_are_the_bits_of_the_levels(name):
    scales, levels, grid = scales_and_levels(4)
    bits, states = level_bits(ModelBank(), 2), 8
    costs = _price(scales, levels, grid, bits, states, name, map)

    def total(scales: Scales) -> float:
        s, sum_of_bits = 0, 0.0
        for level, code in zip(levels[0].tolist(), codes_of(grid.tiles()[0], scales).tolist()):
            sum_of_bits += float(bits[2 * code + (s & 1), level - LOW])
            s = int(make_trellis(states).next_state[s, level & 1])
        return sum_of_bits

    assert costs[:, REACH].sum() == pytest.approx(total(scales), rel=1e-6)
    moved = getattr(scales, name).copy()
    moved[5] += 2
    after = total(replace(scales, **{name: moved}))
    assert costs[5, REACH + 2] - costs[5, REACH] == pytest.approx(after - total(scales), rel=1e-3)
    assert name == "columns" or not costs[3].any(), "a dead row has no levels"


def test_chosen_codes_never_cost_more_and_dead_rows_stay():
    for seed in range(5):
        scales, levels, grid = scales_and_levels(seed)
        costs = _price(scales, levels, grid, level_bits(ModelBank(), 2), 8, "rows", map)
        none = np.zeros(len(scales.rows), np.int16)
        found = _choose(scales.rows, costs, 1, ARRAYS.id("rows"), none)
        live = scales.rows != OFF
        assert (found[~live] == OFF).all() and (np.abs(found - scales.rows)[live] <= REACH).all()

        def total(codes: np.ndarray) -> float:
            at = (codes - scales.rows)[live] + REACH
            own = walk_array(LatentModel.shipped(), codes, 1, ARRAYS.id("rows"), none.astype(np.int64))[1]
            return own + costs[live][np.arange(live.sum()), at].sum()

        assert total(found) <= total(scales.rows) + 1e-9


def small_network(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scale = torch.exp(0.5 * torch.randn(24, generator=g))
    return {
        "conv.weight": torch.randn(24, 8, 3, 3, generator=g) * scale[:, None, None, None], "conv.bias": torch.randn(24, generator=g),
        "query.weight": torch.randn(24, 72, generator=g), "ids": torch.arange(9), "key.weight": torch.randn(24, 72, generator=g),
        "norm.weight": 1 + 0.1 * torch.rand(72, generator=g), "half": torch.randn(30, 20, generator=g).half(),
    }  # fmt: skip


@pytest.mark.parametrize("options", [{"snr": 18}, {"bits": 4, "calibrated": True}, {"snr": 40, "tools": "all"}, {"step": 0.3, "states": 1}])
def test_joined_tensors_are_those_of_static_ones_in_fewer_bytes(tmp_path, options):
    state = small_network()
    more = dict(options)
    if more.pop("calibrated", False):
        more["statistics"] = make_statistics(state, 1)
        more["kl"] = None
    more = {name: value for name, value in more.items() if value is not None}
    paths = {}
    for latents in (None, "static", "learned"):
        with coded_as(latents):
            paths[latents] = tmp_path / f"{latents}.safetensors"
            nnc.compress(state, paths[latents], threads=1, **more)
    with open_compressed(paths[None]) as archive:
        assert {record.coding.latents for record in archive.records if record.coding} == {"joined"}
    decoded = {latents: nnc.load(path) for latents, path in paths.items()}
    if "bits" not in options:  # a size moves the steps
        for name, tensor in decoded["static"].items():
            assert torch.equal(tensor, decoded[None][name]) and torch.equal(tensor, decoded["learned"][name])
        assert paths[None].stat().st_size < paths["static"].stat().st_size


def test_single_tensors_and_rows_of_a_joined_unit(tmp_path):
    state = small_network(1)
    path = tmp_path / "small.safetensors"
    nnc.compress(state, path, snr=25)
    full = nnc.load(path)
    with open_compressed(path) as archive:
        for name in [*reversed(list(full)), "conv.weight"]:
            assert torch.equal(archive.tensor(name), full[name])
        assert torch.equal(archive.tensor("query.weight", rows=[5, 3, 5]), full["query.weight"][[5, 3, 5]])
        changed = archive.tensor("conv.weight")
        changed.zero_()
        assert torch.equal(archive.tensor("conv.weight"), full["conv.weight"]), "what was handed out is not what is kept"


def test_shares_of_a_joined_stream_add_up(tmp_path):
    path = tmp_path / "small.safetensors"
    nnc.compress(small_network(2), path, snr=25)
    info = nnc.inspect(path)
    file = open_file(path)
    units = sum(length for _, length in file.places)
    assert sum(tensor.bytes for tensor in info.tensors) == units == info.payload + info.side + info.exact
    assert {tensor.latents for tensor in info.tensors if tensor.kind == "coded"} == {"joined"}
    big, small = (next(t.bytes for t in info.tensors if t.name == name) for name in ("conv.weight", "conv.bias"))
    assert big > 10 * small > 0


@pytest.mark.parametrize("latents", [None, "learned"])
def test_changed_latents_make_the_levels_undecodable(tmp_path, latents):
    """The latents really drive the tables: with others of the right form nothing of the file is handed out."""
    path = tmp_path / "small.safetensors"
    state = {"w": small_network(3)["conv.weight"]}
    with coded_as(latents):
        nnc.compress(state, path, step=0.2)
    slow = decoder.read_directory(decoder.read_container(path.read_bytes()))
    stored = nnc.archive.open_archive(path).read_stored("w")
    assert stored.latents.rows.any(), "the rows differ in scale"
    wrong = replace(stored.latents, rows=stored.latents.rows + 1)
    with coded_as(latents), pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnc.encoder.Latents", lambda *arguments: wrong)
        with pytest.raises(nnc.NncError):
            nnc.compress(state, tmp_path / "wrong.safetensors", step=0.2)
    assert slow.units[0].records[0].coding.latents == (2 if latents is None else 1)


def test_prior(monkeypatch, tmp_path):
    model = LatentModel.shipped()
    again = unpack_model(pack_model(model, 3))
    for one, two in zip(model.arrays, again.arrays):
        assert np.array_equal(one, two)
    model.chance[:] = 0
    assert LatentModel.shipped().chance.any(), "a model of its own every time"
    other = tmp_path / "latents.bin"
    other.write_bytes(pack_model(LatentModel.blank(), 3))
    monkeypatch.setattr(entropy_latents, "PRIOR", other)
    entropy_latents._read_prior.cache_clear()
    try:
        with pytest.raises(nnc.Corruption, match="not the prior of this release: install nnc again"):
            LatentModel.shipped()
    finally:
        monkeypatch.undo()
        entropy_latents._read_prior.cache_clear()


def test_prior_is_small():
    assert entropy_latents.PRIOR.stat().st_size < 40_000


@pytest.mark.slow
def test_random_streams_of_latents_end_in_an_error_or_in_arrays():
    """Both decoders agree on garbage, too."""
    draw = random.Random(5)
    for _ in range(60):
        data = draw.randbytes(draw.randrange(1, 40)).rstrip(b"\0") or b"\1"
        coder, slow = LatentCoder(LatentModel.shipped(), *start_coder(data)), SlowLatents(decoder.Coder(data))
        for _ in range(6):
            axis = Axis(draw.randrange(7), draw.choice([1, 9, 30]), draw.choice([1, 3]), False)
            try:
                other = slow.array(axis.kind, axis.number, axis.taps, axis.alone, None)
            except (ValueError, OtherVersion):
                with pytest.raises(nnc.Corruption):
                    coder.read(axis, None)
                break
            found = coder.read(axis, None)
            assert (found[0].tolist(), found[1]) == other


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("number", [1, 7, 300, 30000])
def test_an_axis_is_read_as_by_the_definition(number, follow):
    draw = np.random.default_rng(number)
    scales, codes = draw.integers(-20, 20, number).astype(np.int16), draw.integers(-64, 65, number).astype(np.int16)
    scales[draw.random(number) < 0.2] = OFF
    for unit in UNITS.values():
        steps = StepCodes(codes, unit)
        found = side._scales_and_steps(scales, steps, 17, 0.01, follow)
        assert found[0].dtype == np.int16 and np.array_equal(found[0], kernel_codes(scales, 17 - steps.index))
        assert np.array_equal(found[1], rebuild_steps(steps, 0.01, scales if follow else None))
        each = [rebuild_steps(StepCodes(codes[i : i + 1], unit), 0.01, scales[i : i + 1] if follow else None)[0] for i in range(min(number, 50))]
        assert np.array_equal(found[1][:50], each)


def test_steps_far_apart_are_refused():
    codes = np.array([0, 32767], np.int16)
    with pytest.raises(nnc.Corruption, match="further apart"):
        side._scales_and_steps(np.zeros(2, np.int16), StepCodes(codes, 64), 17, 0.01, False)
    with pytest.raises(nnc.Corruption, match="beyond float32"):
        side._scales_and_steps(np.zeros(2, np.int16), StepCodes(np.array([0, 400], np.int16), 64), 17, 0.01, False)
