"""LSTM, GRU and plain recurrent layers step by step, so that every product with a weight matrix can be seen.

Gates in torch's order.  LSTM: i, f, g, o; c' = f c + i g; h' = o tanh(c').  GRU: r, z, n = tanh(W x + b + r (U h + b'));
h' = (1 - z) n + z h.  Both forms of input are one: a sequence of steps, each with as many rows as samples still run (a packed
sequence), of which a plain batch is the case of equal steps.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
State = tuple[Tensor, ...]


def _lstm(x: Tensor, u: Tensor, state: State) -> State:
    i, f, g, o = (x + u).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, u: Tensor, state: State) -> State:
    (xr, xz, xn), (ur, uz, un) = x.chunk(3, -1), u.chunk(3, -1)
    z = (xz + uz).sigmoid()
    return ((1 - z) * (xn + (xr + ur).sigmoid() * un).tanh() + z * state[0],)


CELLS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda x, u, state: ((x + u).tanh(),),
    "rnn_relu": lambda x, u, state: ((x + u).relu(),),
}


def run_cell(
    linear: Linear, kind: str, x: Tensor, state: Any, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> Any:
    """One step with the arguments of torch's `*_cell` functions; returns what they return."""
    new = CELLS[kind](
        linear(x, w, b), linear(state[0] if kind == "lstm" else state, u, c), tuple(state) if kind == "lstm" else (state,)
    )
    return new if kind == "lstm" else new[0]


def run_layers(linear: Linear, kind: str, *args: Any) -> tuple[Tensor, ...]:
    """A whole network with the arguments of torch's `lstm`, `gru`, `rnn_tanh` or `rnn_relu`, plain or packed.

    Returns (output, h_n) and for an LSTM c_n.  Dropout between layers is left out: it is for training.
    """
    packed = isinstance(args[3], (list, tuple))
    if packed:
        data, sizes, state, weights, biases, layers, _, _, both = args
        counts, first = [int(n) for n in sizes], False
    else:
        x, state, weights, biases, layers, _, _, both, first = args
        x = x.transpose(0, 1) if first else x
        counts, data = [x.shape[1]] * x.shape[0], x.reshape(-1, x.shape[-1])
    states = tuple(state) if kind == "lstm" else (state,)
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    finals: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            mine = list(weights[number * each : (number + 1) * each])
            output, final = _direction(
                linear, kind, data.split(counts), tuple(s[number] for s in states), mine, biases, direction == 1
            )
            outputs.append(output)
            finals.append(final)
        data = torch.cat(outputs, -1) if both else outputs[0]
    stacked = tuple(torch.stack(parts) for parts in zip(*finals))
    if not packed:
        data = data.reshape(x.shape[0], x.shape[1], -1)
        data = data.transpose(0, 1) if first else data
    return (data, *stacked)


def _direction(
    linear: Linear, kind: str, steps: Sequence[Tensor], initial: State, weights: list[Tensor], biases: bool, reverse: bool
) -> tuple[Tensor, State]:
    w, u, b, c = (*weights[:4],) if biases else (*weights[:2], None, None)
    projection = weights[-1] if len(weights) == (5 if biases else 3) else None
    sizes = [len(step) for step in steps]
    inputs = linear(torch.cat(list(steps)), w, b).split(sizes)
    order = list(range(len(steps)))[:: -1 if reverse else 1]
    state = tuple(s[: sizes[order[0]]] for s in initial)
    ended: list[State] = []
    outputs: list[Tensor] = [initial[0]] * len(steps)
    for t in order:
        rows, running = sizes[t], len(state[0])
        if rows < running:  # samples that have ended, forwards
            ended.append(tuple(s[rows:] for s in state))
            state = tuple(s[:rows] for s in state)
        elif rows > running:  # samples that begin here, backwards
            state = tuple(torch.cat([s, i[running:rows]]) for s, i in zip(state, initial))
        state = CELLS[kind](inputs[t], linear(state[0], u, c), state)
        if projection is not None:
            state = (linear(state[0], projection, None), *state[1:])
        outputs[t] = state[0]
    final = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended)))
    return torch.cat(outputs), final
