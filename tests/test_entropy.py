"""Entropy coding: the kernels against constriction word for word, tables against exact arithmetic, side information."""
from __future__ import annotations

from decimal import Decimal, getcontext

import constriction
import numpy as np
import pytest

from nnc.bits import Reader, Writer
from nnc.coded import NO_NUMBERS
from nnc.coder import TOTAL, decode_symbols, encode_symbols, make_table_set, pack_words, unpack_words
from nnc.entropy.explicit import TABLES, CodedTable, ExplicitSet, ModelBank
from nnc.entropy.parametric import CLASSES, SHAPES, exponential, level_frequencies, reach
from nnc.entropy.scales import MOST, OFF, decode_codes, encode_codes
from nnc.errors import Corruption
from nnc.kernels.streams import ESCAPE, decode_tile
from nnc.kernels.words import encode_tile
from nnc.quantize.logarithm import rebuild_powers
from nnc.quantize.steps import StepCodes, rebuild_steps
from nnc.quantize.trellis import make_trellis
from nnc.rdo import WIDTH, choose_model, count, fit_explicit_set

getcontext().prec = 60
AnsCoder, Categorical = constriction.stream.stack.AnsCoder, constriction.stream.model.Categorical


def random_stream(n: int, states: int, shift: int, wild: bool, seed: int = 0):
    rng = np.random.default_rng(seed)
    levels = np.round(rng.normal(0, 3 * 2**shift, n)).astype(np.int32)
    if wild:
        levels[rng.integers(0, n, max(1, n // 10))] *= 997
    return levels, rng.integers(10, 24, n).astype(np.uint8)


def encode(levels, codes, states, shift, model=3):
    words = np.empty(3 * len(levels) + 4, np.uint32)
    number, digest = encode_tile(levels, codes, ModelBank().table_set(model).arrays, make_trellis(states).next_state, shift, words)
    return words[:number], digest


def push_with_constriction(levels, codes, states, shift, model=3):
    """The same stream, symbol by symbol, through constriction's models."""
    tables = ModelBank().frequencies(model)
    trellis = make_trellis(states)
    symbols, s = [], 0
    for k, c in zip(levels.tolist(), codes.tolist()):
        table = tables[2 * c + (s & 1 if shift == 0 else 1)]
        s = int(trellis.next_state[s, k & 1])
        a = (k >> shift) - table.low
        inside = 0 <= a < len(table.counts) - 1
        symbols.append((a if inside else len(table.counts) - 1, table.counts))
        if not inside:
            excess = (-a if a < 0 else a - len(table.counts) + 2)
            length = excess.bit_length() - 1
            symbols += [(int(a < 0), uniform(1)), (length, uniform(5)), *chunks(excess - (1 << length), length)]
        symbols += chunks(k & ((1 << shift) - 1), shift)
    coder = AnsCoder()
    for symbol, counts in reversed(symbols):
        coder.encode_reverse(np.array([symbol], np.int32), Categorical(counts.astype(np.float64) - 1, perfect=False))
    return coder.get_compressed()


def uniform(bits):
    return np.full(1 << bits, TOTAL >> bits)


def chunks(value, bits):
    """Raw bits, the most significant 16 first."""
    out = []
    while bits > 0:
        n = min(16, bits)
        bits -= n
        out.append((value >> bits & ((1 << n) - 1), uniform(n)))
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 3, 50, 400])
@pytest.mark.parametrize("states, shift, wild", [(1, 0, False), (8, 0, False), (8, 0, True), (64, 3, False), (4, 9, True)])
def test_kernel_writes_the_words_of_constriction(n, states, shift, wild):
    levels, codes = random_stream(n, states, shift, wild and n > 0)
    assert encode(levels, codes, states, shift)[0].tolist() == push_with_constriction(levels, codes, states, shift).tolist()


@pytest.mark.parametrize("states, shift, wild", [(1, 0, False), (8, 0, True), (256, 0, False), (16, 5, True)])
def test_kernel_decodes_what_it_encodes(states, shift, wild):
    levels, codes = random_stream(600, states, shift, wild, 5)
    words, digest = encode(levels, codes, states, shift)
    rows = np.zeros(1, np.int16)
    plane = np.empty((1, 600), np.float32)
    trellis = make_trellis(states)
    result = decode_tile(words, 0, len(words), 0, 1, 0, 600, rows, codes.astype(np.int16), CLASSES, NO_NUMBERS, ModelBank().table_set(3).arrays,
                         trellis.next_state, shift, 0, np.ones(1, np.float32), np.ones(600, np.float32), plane)
    assert (result[0], result[1]) == (0, 0) and result[2] == digest
    s, expected = 0, []
    for k in levels.tolist():
        expected.append(trellis.spacing * k + (s & 1))
        s = trellis.next_state[s, k & 1]
    assert plane[0].tolist() == expected


@pytest.mark.parametrize("k", [2**22 - 1, -(2**22) + 1])
def test_the_largest_levels_survive(k):
    levels = np.array([k, 0, 1], np.int32)
    words, _ = encode(levels, np.full(3, 20, np.uint8), 1, 0)
    plane = np.empty((1, 3), np.float32)
    decode_tile(words, 0, len(words), 0, 1, 0, 3, np.full(1, 20, np.int16), np.zeros(3, np.int16), CLASSES, NO_NUMBERS, ModelBank().table_set(3).arrays,
                make_trellis(1).next_state, 0, 0, np.ones(1, np.float32), np.ones(3, np.float32), plane)
    assert plane[0].tolist() == levels.tolist()


def test_payload_is_within_a_tenth_of_a_percent_of_the_cross_entropy():
    levels, codes = random_stream(100_000, 8, 0, False)
    words, _ = encode(levels, codes, 8, 0)
    counts = count(levels, codes, 8, 0)
    ideal = sum(float((counts[t] * np.append(np.zeros(0), bits)).sum()) for t, bits in enumerate(_bits(3)))
    assert 32 * len(words) <= 1.001 * ideal + 64


def _bits(model):
    from nnc.rdo import level_bits

    return level_bits(ModelBank(), model)


@pytest.mark.parametrize("shape", range(SHAPES))
def test_parametric_tables_are_distributions_of_rising_width(shape):
    widths = []
    for c in range(1, CLASSES + 1):
        for q in (0, 1):
            table = level_frequencies(shape, c, q)
            assert table.counts.sum() == TOTAL and table.counts.min() >= 1
            assert (table.low, table.high) == (-reach(c) - q, reach(c))
            body = table.counts[:-1]
            # the remainder of the normalisation goes to one symbol, so symmetry is exact but for that one
            assert np.abs(body - body[::-1]).max() <= len(body)
        k = np.arange(table.low, table.high + 1) + 0.5
        widths.append(float((table.counts[:-1] * k**2).sum()))
    assert all(a < b for a, b in zip(widths[9:], widths[10:]))  # below, most frequencies are one


def test_exponential_is_the_floor_of_the_power():
    t = np.array([0, 1, 2, 100, 255, 256, 257, 1000, 4096, 8191, 20000])
    for value, got in zip(t.tolist(), exponential(t).tolist()):
        exact = int(Decimal(2) ** (Decimal(32) - Decimal(value % 256) / 256)) >> (value >> 8)
        assert got == exact


def test_powers_of_the_logarithmic_grid_are_exact():
    for k in (-700, -129, -128, -1, 0, 1, 5, 127, 128, 900):
        mantissa = int(Decimal(2) ** (Decimal(23) + Decimal(k % 128) / 128))
        assert float(rebuild_powers(np.array([k]), 1.0)[0]) == mantissa * 2.0 ** (k // 128 - 23)
    codes = StepCodes(np.array([2, -4, 0], np.int16), 64)
    assert rebuild_steps(codes, 3.0).tolist() == [6.0, 0.75, 3.0]
    assert rebuild_steps(StepCodes.even(3), 3.0, np.array([8, -16, 0])).tolist() == [6.0, 0.75, 3.0]
    assert codes.index.tolist() == [4, -8, 0]
    with pytest.raises(Corruption, match="beyond float32"):
        rebuild_powers(np.array([1 << 20]), 1.0)


def test_entries_of_a_table_hold_the_symbol_of_their_first_quantile():
    tables = make_table_set(ModelBank().frequencies(1), TABLES)
    for number, table in ModelBank().frequencies(1).items():
        edges = np.concatenate([[0], np.cumsum(table.counts)])
        for column in range(256):
            entry = int(tables.entries[number, column])
            level, frequency, start = entry >> 48, entry >> 24 & 0xFFFFFF, entry & 0xFFFFFF
            symbol = int(np.flatnonzero(edges <= column << 16)[-1])
            assert (start, frequency) == (edges[symbol], table.counts[symbol])
            assert level == (table.low + symbol if symbol < len(table.counts) - 1 else ESCAPE) & 0xFFFF


def test_words_lose_and_regain_their_zero_bytes():
    for words in ([], [1], [5, 0x00000100], [0, 1 << 31]):
        packed = pack_words(np.array(words, np.uint32))
        assert unpack_words(packed).tolist() == words


@pytest.mark.parametrize("codes", [np.zeros(7), np.arange(-20, 21), np.full(50, OFF), np.r_[np.full(40, OFF), np.zeros(60)], np.array([MOST]), np.array([-3, 60, OFF, 2]),
                                   np.round(np.random.default_rng(0).normal(0, 3, 1000))])
def test_scale_codes_round_trip(codes):
    mode, spread, data = encode_codes(codes.astype(int))
    assert decode_codes(mode, spread, data, len(codes)).tolist() == codes.tolist()


def test_scale_codes_cost_their_entropy():
    codes = np.round(np.random.default_rng(1).normal(0, 2, 4000)).astype(int)
    _, _, data = encode_codes(codes)
    p = np.bincount(codes - codes.min()) / len(codes)
    assert 8 * len(data) / len(codes) <= 1.01 * -(p[p > 0] * np.log2(p[p > 0])).sum() + 0.01


def test_damaged_scale_codes_are_noticed():
    mode, spread, data = encode_codes(np.round(np.random.default_rng(1).normal(0, 2, 400)).astype(int))
    for wrong in (b"", data[4:] + data[:4], b"\7" + data):
        with pytest.raises(Corruption):
            decode_codes(mode, spread, wrong, 400)
    for wrong in (b"", b"abc"):
        with pytest.raises(Corruption):
            decode_codes("deflated", 0, wrong, 400)


def test_side_symbols_use_constriction():
    counts = level_frequencies(2, 20, 0).counts
    symbols = np.random.default_rng(0).integers(0, len(counts), 300)
    data = encode_symbols(symbols, counts)
    back, ended = decode_symbols(data, counts, 300)
    assert back.tolist() == symbols.tolist() and ended


def test_explicit_sets_round_trip_and_save_bits_where_the_family_is_wrong():
    rng = np.random.default_rng(0)
    levels = (4 * np.round(rng.laplace(0, 2, 60_000))).astype(np.int32)  # only multiples of four: no shape fits
    codes = np.full(len(levels), 24, np.uint8)
    counts = count(levels, codes, 1, 0)
    chosen = fit_explicit_set(counts, 2)
    out = Writer()
    chosen.write(out)
    assert ExplicitSet.read(Reader(out.data())) == chosen
    bank = ModelBank((chosen,))
    model, offset, bits = choose_model(counts, bank)
    assert (model, offset) == (SHAPES, 0)
    assert bits < 0.7 * choose_model(counts, ModelBank())[2]
    p = counts[48] / counts[48].sum()
    assert bits <= 1.003 * -(p[p > 0] * np.log2(p[p > 0])).sum() * len(levels)


def test_explicit_tables_are_left_out_where_the_family_fits():
    counts = np.zeros((TABLES, WIDTH), np.int64)
    table = level_frequencies(0, 17, 0)
    counts[34, 160 + table.low:160 + table.high + 1] = table.counts[:-1] >> 14
    assert fit_explicit_set(counts, 0).tables == ()


@pytest.mark.parametrize("data", [b"\x09\x00", b"\x00\xff\xff\x03", b"\x00\x01\x02\x00\x01\x00", b"\x00\x01\x50\x00\x02\x00\x00", b"\x00\x01\x02\x00\x02\x81\x01\x00", b"\x00\x02\x04\x00\x02\x00\x00\x03\x00\x02\x00\x00"])
def test_malformed_explicit_sets_are_refused(data):
    with pytest.raises(Corruption):
        ExplicitSet.read(Reader(data))


def test_constant_code_lengths_mean_equal_frequencies():
    counts = CodedTable(-1, (16, 16, 16, 16)).frequencies().counts
    assert counts.tolist() == [TOTAL // 4] * 4
