"""The kernel that walks the trees of a plane, to read them from a stream or to list what must be written.

One walk serves both directions, so the two cannot drift apart.  A decision is a flag (a symbol 0 or 1 with a coded probability, in one of
FLAGS contexts) or the code of a leaf.  Contexts:

    0..11    split: 3 * min(s - 1, 3) + number of the neighbours (left, above) that lie in smaller nodes;
             s: log2 of the longer side
    12       a square is cut once (1) or into four (0)
    13       a square that is cut once: vertical (1) or horizontal (0)
    14       another node of two sides longer than one: its shorter side is cut (1) or its longer one (0)
    15..17   skip: 15 + number of the neighbours that are skipped
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .streams import _refill, _start

_U = np.uint64
_SKIP = -64
_LEAF = 18  # context of the code of a leaf
_ORIGIN = 128  # symbol of the difference zero
STACK = 512  # a cut takes one node off and puts four on at most, and an axis is cut 40 times at most


@njit(cache=True, nogil=True)
def _sides(size):
    """log2 of a side, rounded up."""
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _pop(x, p, words, cumulative):
    """A symbol of a table: (symbol, state, next word)."""
    v = x & _U(0xFFFFFF)
    low, high = 0, len(cumulative) - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if _U(cumulative[middle]) <= v:
            low = middle
        else:
            high = middle
    start = _U(cumulative[low])
    x = (_U(cumulative[low + 1]) - start) * (x >> _U(24)) + (v - start)
    x, p = _refill(x, p, 0, words)
    return low, x, p


@njit(cache=True, nogil=True)
def walk_trees(reading, words, rates, cumulative, near, tiles, field, grain, splits, codes, trace):
    """Visit all nodes of all CTUs.

    reading: whether decisions come from `words` uint32 (with `rates` uint8 (FLAGS,), probability of each flag in 1/256, 0 where it is never
    set and not coded, and `cumulative` uint32 (258,), table of the differences), or from `splits` uint8 (0 none, 1 both, 2 horizontal,
    3 vertical) and `codes` int16 of the nodes and leaves in order, to be listed in `trace` int32 (decisions, 2): context and symbol.  What
    is read is written to splits and codes, if these are not empty.
    near: whether codes are differences to those of the neighbours.  tiles: int64 (CTUs, 4), in cells.  field: int16, to be filled with the
    codes of all cells; grain: uint8 of that shape, scratch.  Returns (coder state, words left, whether all codes are in range, decisions, nodes, leaves).
    """
    x, p = _start(words, 0, len(words))
    stack = np.empty((STACK, 4), np.int64)
    node = leaf = listed = 0
    good = True
    for number in range(len(tiles)):
        stack[0] = tiles[number]
        depth = 1
        while depth > 0:
            depth -= 1
            top, bottom, left, right = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            high, wide = _sides(bottom - top), _sides(right - left)
            kind = np.int64(0)
            if not reading:
                kind = np.int64(splits[node])
                node += 1
            longer = max(high, wide)
            if longer > 0:
                finer = 0
                if left > 0 and grain[top, left - 1] < high + wide:
                    finer += 1
                if top > 0 and grain[top - 1, left] < high + wide:
                    finer += 1
                # up to three flags: is it cut, once, and how
                context = 3 * min(longer - 1, 3) + finer
                flag = np.int64(kind > 0)
                if reading:
                    flag, x, p = _pop_flag(x, p, words, rates[context])
                else:
                    trace[listed, 0], trace[listed, 1] = context, flag
                    listed += 1
                if flag == 1:
                    once, context = True, 13
                    if high == wide:
                        flag = np.int64(kind > 1)
                        if reading:
                            flag, x, p = _pop_flag(x, p, words, rates[12])
                        else:
                            trace[listed, 0], trace[listed, 1] = 12, flag
                            listed += 1
                        once = flag == 1
                    else:
                        context = 14
                    shorter = 2 if high < wide else 3  # of a square: vertical
                    if not once:
                        kind = 1
                    elif min(high, wide) == 0:
                        kind = 5 - shorter
                    else:
                        flag = np.int64(kind == shorter)
                        if reading:
                            flag, x, p = _pop_flag(x, p, words, rates[context])
                        else:
                            trace[listed, 0], trace[listed, 1] = context, flag
                            listed += 1
                        kind = shorter if flag == 1 else 5 - shorter
            if reading and len(splits) > 0:
                splits[node] = kind
                node += 1
            if kind > 0:  # the last part first: the stack returns the others before it
                across = top + (1 << max(high - 1, 0))
                down = left + (1 << max(wide - 1, 0))
                if kind == 1:
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = across, bottom, down, right
                    depth += 1
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = across, bottom, left, down
                    depth += 1
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = top, across, down, right
                    depth += 1
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = top, across, left, down
                elif kind == 2:
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = across, bottom, left, right
                    depth += 1
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = top, across, left, right
                else:
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = top, bottom, down, right
                    depth += 1
                    stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = top, bottom, left, down
                depth += 1
                continue
            skipped = known = 0
            total = np.int64(0)
            if left > 0:
                code = np.int64(field[top, left - 1])
                if code == _SKIP:
                    skipped += 1
                else:
                    total += code
                    known += 1
            if top > 0:
                code = np.int64(field[top - 1, left])
                if code == _SKIP:
                    skipped += 1
                else:
                    total += code
                    known += 1
            guess = np.int64(0)
            if near:
                guess = total >> 1 if known == 2 else total
            code = np.int64(0)
            flag = np.int64(0)
            if reading:
                flag, x, p = _pop_flag(x, p, words, rates[15 + skipped])
            else:
                code = np.int64(codes[leaf])
                leaf += 1
                flag = np.int64(code == _SKIP)
                trace[listed, 0], trace[listed, 1] = 15 + skipped, flag
                listed += 1
            if flag == 1:
                code = _SKIP
            elif reading:
                symbol, x, p = _pop(x, p, words, cumulative)
                code = guess + symbol - _ORIGIN
                if code <= _SKIP or code > -_SKIP:
                    good = False
                    code = 0
            else:
                trace[listed, 0], trace[listed, 1] = _LEAF, code - guess + _ORIGIN
                listed += 1
            if reading:
                if len(codes) > 0:
                    codes[leaf] = code
                leaf += 1
            for i in range(top, bottom):
                for j in range(left, right):
                    field[i, j] = code
                    grain[i, j] = high + wide
    return x, p + 1, good, listed, node, leaf


@njit(cache=True, nogil=True)
def _pop_flag(x, p, words, rate):
    """A flag that is set with the probability rate / 256."""
    if rate == 0:
        return np.int64(0), x, p
    v = x & _U(0xFFFFFF)
    edge = _U(256 - np.int64(rate)) << _U(16)
    if v < edge:
        x = edge * (x >> _U(24)) + v
        flag = 0
    else:
        x = (_U(1 << 24) - edge) * (x >> _U(24)) + (v - edge)
        flag = 1
    x, p = _refill(x, p, 0, words)
    return np.int64(flag), x, p


@njit(cache=True, nogil=True)
def push_decisions(trace, rates, cumulative, words):
    """The stream that `walk_trees` reads the listed decisions from; words: uint32 scratch, one for each and two.  Returns its length."""
    x = _U(0)
    n = 0
    for i in range(len(trace) - 1, -1, -1):
        context, symbol = trace[i, 0], trace[i, 1]
        if context == _LEAF:
            start = _U(cumulative[symbol])
            frequency = _U(cumulative[symbol + 1]) - start
        elif rates[context] == 0:
            continue
        else:
            edge = _U(256 - np.int64(rates[context])) << _U(16)
            start = edge if symbol == 1 else _U(0)
            frequency = _U(1 << 24) - edge if symbol == 1 else edge
        if (x >> _U(40)) >= frequency:
            words[n] = np.uint32(x & _U(0xFFFFFFFF))
            n += 1
            x >>= _U(32)
        x = ((x // frequency) << _U(24)) + x % frequency + start
    while x > 0:
        words[n] = np.uint32(x & _U(0xFFFFFFFF))
        n += 1
        x >>= _U(32)
    return n
