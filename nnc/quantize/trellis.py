"""The state machines of dependent scalar quantization and their search.

Two scalar quantizers and a state machine: the parity of a level moves the state, the lowest bit of the state picks the quantizer.

    value = (2 k + q) * step            plain labelling
    value = (2 k - q sign(k)) * step    sign-symmetric labelling (ISO/IEC 15938-17)
    q = s & 1,  s' = (s >> 1) ^ (q ? h0 >> 1 : 0) ^ (k & 1 ? h1 >> 1 : 0)

with the parity check polynomials h0, h1 of Ungerboeck's rate-1/2 codes (IEEE Trans. IT 28, 1982; trellis coded quantization:
Marcellin and Fischer, IEEE Trans. Comm. 38, 1990).  One state is the uniform quantizer `value = k * step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import InvalidArgument
from ..registry import Table

_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}

STATES = Table("number of states", {0: 1, 1: 4, 2: 8, 3: 16, 4: 32, 5: 64, 6: 128, 7: 256})
LABELLINGS = Table("labelling", {0: "plain", 1: "sign-symmetric", 2: "logarithmic"})


@dataclass(frozen=True, eq=False)
class Trellis:
    """next_state: int64 (S, 2), state after a level of even or odd parity; predecessors: int64 (S, 2), state before, by parity."""

    states: int
    next_state: np.ndarray
    predecessors: np.ndarray

    @property
    def spacing(self) -> int:
        """Distance of neighbouring values of one quantizer, in steps."""
        return 1 if self.states == 1 else 2


@lru_cache(maxsize=None)
def make_trellis(states: int) -> Trellis:
    """The state machine with `states` states (1, 4, 8, ... 256)."""
    if states == 1:
        return Trellis(1, np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64))
    if states not in _CHECKS:
        raise InvalidArgument(f"states = {states}: must be one of {STATES.values()}")
    h0, h1 = (check >> 1 for check in _CHECKS[states])
    s = np.arange(states)
    after = np.stack([(s >> 1) ^ np.where(s & 1, h0, 0) ^ (h1 if parity else 0) for parity in (0, 1)], 1).astype(np.int64)
    before = np.empty_like(after)
    for parity in (0, 1):
        before[after[:, parity], parity] = s
    return Trellis(states, after, before)
