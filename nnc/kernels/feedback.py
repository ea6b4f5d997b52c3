"""Successive cancellation with a trellis down the rows.

For a layer `y = W x` with `S = E[x x^T]` the loss of an error E is `tr(E S E^T)`.  Columns are quantized in order, and the error of
each is fed into the ones still to come (the update of optimal brain surgery with a fixed order, GPTQ: Frantar et al. 2022):

    S^-1 = U^T U,  U upper triangular:  e_j = (t_j - value_j) / U_jj,  t_l -= e_j U_jl for l > j;   the loss is the sum of e_j^2

Rows do not see each other's errors, so the trellis runs down the rows inside a column, and its state goes on into the next column: the
feedback stays exact.

With a matrix on the side of the outputs too, `tr(R E S E^T)`, the error of a weight is fed down its column as well.  Then every
survivor of the trellis carries its own feedback (per-survivor processing: Raheli, Polydoros and Tzou, IEEE Trans. Comm. 43, 1995), and
a column as a whole feeds what is left of its errors into the columns still to come.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .columns import make_scratch, search_column
from .planes import _add_codes, _limit
from .streams import DEAD, _grid_value
from .viterbi import _bracket

BLOCK = 32  # columns whose errors are fed back one by one; those beyond get them together
_FAR = np.float32(1e30)


@njit(cache=True, nogil=True)
def _search_survivors(x, classes, first, last, rate, low, shift, labelling, worth, pred, start, matrix, survivors, out, wrong):
    """Best path through the rows first..last of a column whose errors feed into the rows below; returns its last state.

    x: float32 (rows,), all of the column.  classes: uint8 (rows,), 0 where a weight is not coded.  matrix: float32 (rows, rows), what
    an error in row i, in steps, adds to row l > i, in steps of that.  survivors: (cost, feedback and so on) scratch.  out: int32
    (rows,) levels; wrong: float32 (rows,), the errors after feedback.
    """
    feedback, other, level_of, state_of, error_of = survivors
    states = pred.shape[0]
    last_column = rate.shape[1] - 1
    cost = np.full(states, _FAR, np.float32)
    new = np.empty(states, np.float32)
    branch = np.empty((states, 2), np.float32)
    level = np.empty((states, 2), np.int64)
    error = np.empty((states, 2), np.float32)
    cost[start] = 0
    for s in range(states):
        feedback[s, : last - first] = 0
    for i in range(first, last):
        c = 2 * np.int64(classes[i])
        row = matrix[i, i + 1 : last]
        if c == 0:
            for s in range(states):
                d = x[i] - feedback[s, i - first]
                error_of[i - first, s] = d
                state_of[i - first, s] = s
                mine = feedback[s, i + 1 - first : last - first]
                for p in range(len(mine)):
                    mine[p] += d * row[p]
            continue
        least = np.float32(np.inf)
        for s in range(states):
            if cost[s] >= _FAR:
                branch[s, 0] = branch[s, 1] = _FAR
                continue
            v = x[i] - feedback[s, i - first]
            q = s & 1
            if states == 1:
                k = np.int64(np.floor(v))
                best = np.float32(np.inf)
                for candidate in (k, k + 1, np.int64(0)):
                    d = v - np.float32(candidate)
                    table = c + (1 if shift > 0 else 0)
                    a = d * d * worth + rate[table, min(max((candidate >> shift) - low, 0), last_column)]
                    if a < best:
                        best = a
                        level[0, 0] = candidate
                        error[0, 0] = d
                branch[0, 0] = best
                continue
            k, d, gap = _bracket(v, q, labelling)
            e = gap - d
            k1 = k + 1
            sign = np.float32(1)
            if labelling == 1 and v < 0:
                k = -k
                k1 = -k1
                sign = np.float32(-1)
            table = c + (q if shift == 0 else 1)
            a = d * d * worth + rate[table, min(max((k >> shift) - low, 0), last_column)]
            b = e * e * worth + rate[table, min(max((k1 >> shift) - low, 0), last_column)]
            odd = k & 1
            branch[s, odd] = a
            level[s, odd] = k
            error[s, odd] = sign * d
            branch[s, 1 - odd] = b
            level[s, 1 - odd] = k1
            error[s, 1 - odd] = -sign * e
        for t in range(states):
            s = pred[t, 0]
            parity = 0
            a = cost[s] + branch[s, 0]
            if states > 1:
                b = cost[pred[t, 1]] + branch[pred[t, 1], 1]
                if b < a:
                    a = b
                    s = pred[t, 1]
                    parity = 1
            new[t] = min(a, _FAR)
            least = min(least, a)
            d = error[s, parity]
            level_of[i - first, t] = level[s, parity]
            state_of[i - first, t] = s
            error_of[i - first, t] = d
            if a < _FAR:
                before = feedback[s, i + 1 - first : last - first]
                after = other[t, i + 1 - first : last - first]
                for p in range(len(row)):
                    after[p] = before[p] + d * row[p]
        for t in range(states):
            cost[t] = new[t] - least if new[t] < _FAR else _FAR
        feedback, other = other, feedback
    s = np.int64(np.argmin(cost))
    end = s
    for i in range(last - 1, first - 1, -1):
        out[i] = level_of[i - first, s]
        wrong[i] = error_of[i - first, s]
        s = np.int64(state_of[i - first, s])
    return end


@njit(cache=True, nogil=True)
def _leave_errors(found, quantizers, spacing, labelling, row_steps, column_step, now, error, levels):
    """Levels of a column that were found, and its errors after them."""
    for i in range(len(found)):
        levels[i] = found[i]
        value = _grid_value(np.int64(found[i]), np.int64(quantizers[i]), spacing, labelling)
        error[i] = now[i] - value * row_steps[i] * column_step


@njit(cache=True, nogil=True)
def search_band(
    target,
    upper,
    matrix,
    height,
    width,
    row_codes,
    column_codes,
    cells,
    cut,
    classes,
    row_steps,
    column_steps,
    rate,
    low,
    shift,
    labelling,
    next_state,
    pred,
    labels,
    trust,
    floor,
    worths,
    levels,
):
    """Levels of a plane or of a band of its rows, columns in order with feedback of their errors.

    target: float32 (columns, rows), the weights; on return what was quantized in their place, but for the feedback down a column.
    upper: float32 (columns, columns), U above, or (columns, 0) without feedback between columns.  matrix: float32 (rows, rows),
    feedback down a column as of `_search_survivors`, or (rows, 0) without.  height, width: of a CTU, in each of which the trellis
    starts anew.  row_codes, column_codes: int16 as for the decoder; cells, cut: as of `gather_tile`.  row_steps, column_steps: float32.
    rate and the following: as of `search_trellis`.  labels, trust, floor: memories as of `add_memories`, or (0,) without; the residuals
    are then what is quantized.  worths: float32 (columns,), what a squared error of one, in steps, is worth in rate.  levels: int32 (columns, rows), zero where a weight is not coded.
    """
    columns, rows = target.shape
    states = next_state.shape[0]
    spacing = 1 if states == 1 else 2
    x = np.empty(rows, np.float32)
    c = np.empty(rows, np.uint8)
    where = np.empty(rows, np.int64)
    found = np.empty(rows, np.int32)
    own = np.empty(rows, np.int16)
    by_row = np.float32(1) / row_steps
    coupled = matrix.shape[1] > 0
    fed = upper.shape[1] > 0
    span = min(height, rows)
    scratch = make_scratch(pred, span)
    quantizers = np.zeros(rows, np.uint8)
    deep = (span, states) if coupled else (1, 1)
    survivors = (
        np.zeros((deep[1], deep[0]), np.float32),
        np.zeros((deep[1], deep[0]), np.float32),
        np.zeros(deep, np.int32),
        np.zeros(deep, np.int16),
        np.zeros(deep, np.float32),
    )
    wrong = np.zeros(rows, np.float32)
    errors = np.zeros((BLOCK, rows), np.float32)
    state = np.zeros((rows + height - 1) // height, np.int64)
    last_label = 0
    for j in range(len(labels)):
        last_label = max(last_label, labels[j])
    memories = np.zeros((last_label + 1, rows), np.float32)
    seen = np.zeros(last_label + 1, np.int64)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        for j in range(first, last):
            if j % width == 0:
                state[:] = 0
                memories[:] = 0
                seen[:] = 0
            now = target[j]
            label = labels[j] if len(labels) > 0 else 0
            memory = memories[label]
            if label > 0:
                for i in range(rows):
                    now[i] -= trust[j] * memory[i]
            error = errors[j - first]
            by_column = np.float32(1) / column_steps[j]
            for i in range(rows):
                x[i] = now[i] * by_row[i] * by_column
            for band in range(len(state)):
                top, bottom = band * height, min((band + 1) * height, rows)
                n = 0
                least = _add_codes(row_codes[top:bottom], column_codes[j], cells, cut, j, top, own[top:bottom])
                if least > DEAD and not coupled:  # nothing is left out
                    _limit(own[top:bottom], np.int16(classes), c[top:bottom])
                    state[band] = search_column(
                        x[top:bottom], c[top:bottom], rate, low, shift, labelling, worths[j], pred, state[band], scratch,
                        found[top:bottom], quantizers[top:bottom],
                    )  # fmt: skip
                    _leave_errors(
                        found[top:bottom], quantizers[top:bottom], spacing, labelling, row_steps[top:bottom], column_steps[j],
                        now[top:bottom], error[top:bottom], levels[j, top:bottom],
                    )  # fmt: skip
                    continue
                for i in range(top, bottom):
                    error[i] = now[i]
                    found[i] = 0
                    c[i] = 0
                    if own[i] > DEAD:
                        c[i] = min(max(own[i], np.int16(1)), np.int16(classes))
                        where[n] = i
                        n += 1
                if coupled:
                    end = _search_survivors(
                        x, c, top, bottom, rate, low, shift, labelling, worths[j], pred, state[band], matrix, survivors, found, wrong
                    )
                    for i in range(top, bottom):
                        row, below = matrix[i, bottom:], x[bottom:]
                        for p in range(len(row)):
                            below[p] -= wrong[i] * row[p]
                else:
                    for p in range(n):  # those that are coded move together
                        x[top + p] = x[where[p]]
                        c[top + p] = c[where[p]]
                    end = search_column(
                        x[top : top + n], c[top : top + n], rate, low, shift, labelling, worths[j], pred, state[band], scratch,
                        found[top : top + n], quantizers[top : top + n],
                    )  # fmt: skip
                    for p in range(n - 1, -1, -1):
                        found[where[p]] = found[top + p]
                s = state[band]
                for p in range(n):
                    i = where[p]
                    k = np.int64(found[i])
                    levels[j, i] = k
                    error[i] = now[i] - _grid_value(k, s & 1, spacing, labelling) * row_steps[i] * column_steps[j]
                    s = next_state[s, k & 1]
                state[band] = end
            if label > 0:
                seen[label] += 1
                part = max(np.float32(1) / np.float32(seen[label]), floor)
                for i in range(rows):
                    memory[i] += part * (now[i] - error[i] + trust[j] * memory[i] - memory[i])
            if not fed:
                continue
            scale = np.float32(1) / upper[j, j]
            for i in range(rows):
                error[i] *= scale
            for later in range(j + 1, last):
                u = upper[j, later]
                ahead = target[later]
                for i in range(rows):
                    ahead[i] -= u * error[i]
        if not fed:
            continue
        for later in range(last, columns):
            ahead = target[later]
            for b in range(0, last - first, 4):  # a block that is not full is the last one: nothing follows
                e0, e1, e2, e3 = errors[b], errors[b + 1], errors[b + 2], errors[b + 3]
                u0, u1 = upper[first + b, later], upper[first + b + 1, later]
                u2, u3 = upper[first + b + 2, later], upper[first + b + 3, later]
                for i in range(rows):
                    ahead[i] -= u0 * e0[i] + u1 * e1[i] + u2 * e2[i] + u3 * e3[i]
