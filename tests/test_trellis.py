"""The trellis: laws of the state machines, optimality of the search against enumeration, equality of replay and definition."""
from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nnc.entropy.explicit import ModelBank
from nnc.errors import InvalidArgument
from nnc.kernels.columns import _run_eight, _run_trellis
from nnc.kernels.words import replay_levels
from nnc.quantize.trellis import STATES, make_trellis
from nnc.rdo import LOW, Gathered, Search, find_levels, level_bits

TRELLISES = [s for s in STATES.values() if s > 1]


def value(k: int, q: int, labelling: int) -> int:
    return 2 * k + q if labelling == 0 else 2 * k - q * int(np.sign(k))


def path_cost(x, levels, labelling, states, bits, lagrangian, codes, shift=0) -> float:
    """Cost of a path by the definition, in float64."""
    trellis = make_trellis(states)
    s = total = 0
    for v, k, c in zip(x, levels, codes):
        q = s & 1
        table = 2 * int(c) + (q if shift == 0 else 1)
        total += (float(v) - value(int(k), q, labelling)) ** 2 + lagrangian * float(bits[table, (int(k) >> shift) - LOW])
        s = trellis.next_state[s, int(k) & 1]
    return total


@pytest.mark.parametrize("states", TRELLISES)
def test_every_state_has_two_successors_and_two_predecessors(states):
    trellis = make_trellis(states)
    assert sorted(np.bincount(trellis.next_state.ravel(), minlength=states)) == [2] * states
    for s in range(states):
        for parity in (0, 1):
            assert trellis.predecessors[trellis.next_state[s, parity], parity] == s
    # both predecessors of a state use the same quantizer: one comparison decides
    assert (trellis.predecessors[:, 0] % 2 == trellis.predecessors[:, 1] % 2).all()


def test_tables_of_four_and_eight_states_are_the_documented_ones():
    assert make_trellis(4).next_state.tolist() == [[0, 1], [2, 3], [1, 0], [3, 2]]
    assert make_trellis(8).next_state.tolist() == [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]


def test_unknown_number_of_states_is_refused():
    with pytest.raises(InvalidArgument, match="states = 5"):
        make_trellis(5)


def test_eight_states_in_registers_are_those_of_the_machine():
    rng, before, start = np.random.default_rng(0), make_trellis(8).predecessors.T.astype(np.uint32), 3
    branch = rng.gamma(1, 1, (4, 100)).astype(np.float32)
    found = [np.zeros((100, 8), np.uint8) for _ in range(2)]
    cost = np.empty((2, 8), np.float32)
    ends = [_run_eight(branch, 100, start, found[0]), _run_trellis(branch, 100, start, *cost, *before, found[1])]
    assert ends[0] == ends[1] and np.array_equal(found[0][3:], found[1][3:])  # before, not every state can be reached


@pytest.mark.slow
@pytest.mark.parametrize("labelling", [0, 1])
@pytest.mark.parametrize("states", [4, *(pytest.param(states, marks=pytest.mark.slow) for states in (8, 16, 64))])
@pytest.mark.parametrize("lagrangian", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_search_equals_exhaustive_search(states, labelling, lagrangian):
    rng = np.random.default_rng(states + labelling)
    bits = level_bits(ModelBank(), 2)
    for _ in range(30):
        x = rng.normal(0, 3, 5).astype(np.float32)
        codes = rng.integers(14, 20, 5).astype(np.uint8)
        found = find_levels(Gathered(x, codes, np.empty(0, np.uint32)), bits, 0, Search(states, labelling, lagrangian, 1))
        choices = []
        for v in x:  # at a small Lagrangian the optimum is among the neighbours of both grids
            middle = int(np.floor(v / 2))
            choices.append(range(middle - 2, middle + 4))
        best = min(path_cost(x, path, labelling, states, bits, lagrangian, codes) for path in product(*choices))
        assert path_cost(x, found, labelling, states, bits, lagrangian, codes) <= best + 1e-4


@pytest.mark.parametrize("states", TRELLISES)
def test_long_sequences_in_lanes_are_as_good_as_one_run(states):
    """The search is cut into lanes with a warm-up; its cost stays within 0.1 % of a plain Viterbi search over everything."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 4, 3000).astype(np.float32)
    codes = np.full(3000, 21, np.uint8)
    bits, lagrangian = level_bits(ModelBank(), 0), 0.35
    found = find_levels(Gathered(x, codes, np.empty(0, np.uint32)), bits, 0, Search(states, 0, lagrangian, 1))
    assert path_cost(x, found, 0, states, bits, lagrangian, codes) <= 1.001 * plain_viterbi(x, states, bits[42:44], lagrangian)


def plain_viterbi(x, states, bits, lagrangian) -> float:
    trellis = make_trellis(states)
    cost = np.full(states, np.inf)
    cost[0] = 0
    for v in x.astype(np.float64):
        new = np.full(states, np.inf)
        for q in (0, 1):
            low = int(np.floor((v - q) / 2))
            for k in (low, low + 1):
                step = (v - 2 * k - q) ** 2 + lagrangian * bits[q, k - LOW]
                sources = np.arange(q, states, 2)
                np.minimum.at(new, trellis.next_state[sources, k & 1], cost[sources] + step)
        cost = new
    return float(cost.min())


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 63, 64, 65, 1000])
@pytest.mark.parametrize("states", [1, 4, 8, 256])
def test_any_length_gives_a_path_near_its_input(n, states):
    x = np.random.default_rng(n).normal(0, 5, n).astype(np.float32)
    weights = Gathered(x, np.full(n, 20, np.uint8), np.empty(0, np.uint32))
    levels = find_levels(weights, level_bits(ModelBank(), 2), 0, Search(states, 0, 0.1, 1))
    values = np.empty(n, np.float32)
    replay_levels(levels, make_trellis(states).next_state, 0, values)
    assert n == 0 or np.abs(values - x).max() <= 3  # no path needs to be further away than the wider quantizer


def test_more_states_are_better_at_the_same_tables():
    x = np.random.default_rng(3).normal(0, 3, 20_000).astype(np.float32)
    codes = np.full(len(x), 19, np.uint8)
    bits = level_bits(ModelBank(), 0)
    costs = [path_cost(x, find_levels(Gathered(x, codes, np.empty(0, np.uint32)), bits, 0, Search(s, 0, 0.38, 1)), 0, s, bits, 0.38, codes)
             for s in TRELLISES]
    assert all(a > b for a, b in zip(costs, costs[1:]))


@pytest.mark.parametrize("states, labelling", [(1, 0), (8, 0), (8, 1), (128, 0), (128, 1)])
def test_replay_is_the_definition(states, labelling):
    levels = np.random.default_rng(0).integers(-40, 41, 500).astype(np.int32)
    trellis = make_trellis(states)
    out = np.empty(500, np.float32)
    replay_levels(levels, trellis.next_state, labelling, out)
    s, expected = 0, []
    for k in levels.tolist():
        expected.append(k if states == 1 else value(k, s & 1, labelling))
        s = trellis.next_state[s, k & 1]
    assert out.tolist() == expected
    flipped = levels.copy()
    flipped[100] ^= 1
    other = np.empty(500, np.float32)
    replay_levels(flipped, trellis.next_state, labelling, other)
    assert (other[:100] == out[:100]).all()
    assert states == 1 or (other[101:] != out[101:]).any()  # dependence is real
