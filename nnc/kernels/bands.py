"""Kernel of the decoder over several CTUs of a plane: one call for all that a thread is given, since every return to Python waits for the other threads."""

from __future__ import annotations

from numba import njit

from .streams import decode_four, decode_tile


@njit(cache=True, nogil=True)
def decode_tiles(
    words, begin, end, top, bottom, left, right, lanes, row_codes, column_codes, classes, numbers, tables, next_state, shift, labelling, row_steps,
    column_steps, plane, state, left_over, digests,
):  # fmt: skip
    """CTUs one after the other, four side by side where `lanes` says so.

    begin, end, top, bottom, left, right: int64 (CTUs,), words and place of each; lanes: int64, for the next CTUs how many are of one shape: four, or any other
    number, that are decoded one by one; state, left_over, digests: uint64, int64, uint64 (CTUs,), results as of `decode_tile`; the rest as of that."""
    at = 0
    for number in lanes:
        if number == 4:
            own = slice(at, at + 4)
            decode_four(
                words, begin[own], end[own], top[own], left[own], bottom[at] - top[at], right[at] - left[at], row_codes, column_codes, classes,
                numbers, tables, next_state, shift, labelling, row_steps, column_steps, plane, state[own], left_over[own], digests[own],
            )  # fmt: skip
        else:
            for n in range(at, at + number):
                state[n], left_over[n], digests[n] = decode_tile(
                    words, begin[n], end[n], top[n], bottom[n], left[n], right[n], row_codes, column_codes, classes, numbers, tables, next_state,
                    shift, labelling, row_steps, column_steps, plane,
                )  # fmt: skip
        at += number
