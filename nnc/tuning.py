"""After the target is met and all levels are fixed: what stays float follows the original network's outputs.

    decode > tuner > vectors coded anew, steps of the outputs moved > files > measure > keep or not

The tuner (distillation.Distillation) runs the network; here only tensors go in and come out.  A change is kept if it is worth its bytes:
a divergence that falls by the factor `g` would take `log2(g) / 2` bits per weight otherwise (its logarithm falls by 2 octaves per bit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log2

import numpy as np
import torch

from .alignment import Alignment
from .assembly import Assembly, assemble_files
from .coder import chain_digests, checksum
from .decoder import decode_unit
from .directory import Unit
from .encoded import EncodedTensor
from .encoder import encode_vector, make_plane
from .encoding import Encoding
from .entropy.explicit import ModelBank
from .prediction.reference import digest_unit
from .rdo import measure_powers
from .rescaling import account, is_rescalable, rescale_outputs

LEAST_WEIGHTS = 32  # of an output: a factor for fewer costs more than it is worth
WORTHS = (4.0, 1.0, 0.25)  # what accurate factors are taken to be worth, in parts of what the tuner won: as the bytes allow
LEAST_WORTH = 0.72  # bits per weight, times the signal to noise ratio, for a factor that is wrong by 1: as much noise

# (state before, state after) -> divergence after, in parts of that before
Compare = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], float]


@dataclass(frozen=True, eq=False)
class Tuned:
    """vectors: new values; factors: float64 (outputs,) of the rows of planes; before, after: divergence on inputs that were held
    back; left: what was minimised, in parts of what it was.  Both dicts empty: nothing was won."""

    vectors: Mapping[str, torch.Tensor]
    factors: Mapping[str, np.ndarray]
    before: float = 0.0
    after: float = 0.0
    left: float = 1.0

    @property
    def bits(self) -> float:
        """Per weight, that the gain is worth."""
        return gain_bits(self.left)


# (state as decoded, names of vectors, name -> split of tensors whose outputs may have factors) -> what to change
Tuner = Callable[[dict[str, torch.Tensor], list[str], dict[str, int]], Tuned]


def gain_bits(left: float) -> float:
    """Bits per weight that a divergence is worth of which so much is left; 0 if it is no less."""
    return -log2(max(left, 1e-9)) / 2 if left < 1 else 0.0


def decode_tensor(encoded: EncodedTensor, bank: ModelBank, alignment: Alignment | None = None) -> torch.Tensor:
    """The tensor of an encoded one, as readers of the file will see it; checks its digests.  alignment: with the reference."""
    used = digest_unit([encoded.reference]) if encoded.reference else b""
    unit = Unit(1, False, checksum(encoded.data), chain_digests(list(encoded.digests)), used)
    reader, orders = (alignment.reader, tuple(alignment.permutations)) if alignment else (None, ())
    return decode_unit(unit, (encoded.record,), encoded.data, bank, None, reader, orders)()[0]


def decode_all(assembly: Assembly, encoding: Encoding) -> dict[str, torch.Tensor]:
    """All tensors under their names; aliases share the memory of what they stand for."""
    bank = assembly.files[0].directory.bank
    state = {e.record.name: decode_tensor(e, bank, encoding.alignment) for e in assembly.encoded if e.record.kind != "alias"}
    return {plan.name: state[plan.target or plan.name] for plan in encoding.plans}


def apply_tuning(
    encoding: Encoding,
    assembly: Assembly,
    factor: float,
    tuner: Tuner,
    compare: Compare,
    goal: float = inf,
    outputs: bool = False,
) -> Assembly:
    """The assembly with what the tuner found, or as it was where that is not worth its bytes.

    factor: of the steps of the assembly; compare: judges what would really be decoded, on inputs that were held back; goal: bytes that
    must not be exceeded; outputs: whether the steps of outputs may move besides the vectors.  That did not pay on the networks that were
    tried: finer codes of the steps take 1 % of the bytes, vectors do the same for nothing, and without any the gain did not carry over.
    """
    state = decode_all(assembly, encoding)
    plans = {plan.name: plan for plan in encoding.plans}
    doubled = {plan.target for plan in encoding.plans if plan.treatment == "alias" and not plan.tied}
    free = [
        e
        for e in assembly.encoded
        if e.record.kind == "coded" and plans[e.record.name].sensitivity and e.record.name not in doubled
    ]
    vectors = [e.record.name for e in free if plans[e.record.name].treatment == "vector"]
    rows = {
        e.record.name: e.record.coding.split
        for e in free
        if outputs and plans[e.record.name].treatment == "coded" and is_rescalable(e) and _weights(e) >= LEAST_WEIGHTS
    }
    weights = sum(plan.weights for plan in encoding.coded)
    for chosen in [rows, {}] if rows and vectors else [rows]:
        if not vectors and not chosen:
            continue
        tuned = tuner(state, vectors, chosen)
        if not tuned.vectors and not tuned.factors:
            continue
        best: tuple[float, Assembly] | None = None
        for worth in WORTHS if tuned.factors else WORTHS[:1]:
            new = _rebuild(encoding, assembly, factor, tuned, worth * weights)
            bits = gain_bits(compare(state, decode_all(new, encoding)))
            won = bits * weights - 8 * (new.size - assembly.size)
            if bits > 0 and new.size <= max(goal, assembly.size) and won > (best[0] if best else 0):
                best = won, new
        if best:
            return best[1]
    return assembly


def _weights(encoded: EncodedTensor) -> int:
    """Behind one output."""
    coding = encoded.record.coding
    grid = coding.grid(encoded.record.shape)
    return grid.rows if coding.transposed else grid.columns


def _rebuild(encoding: Encoding, assembly: Assembly, factor: float, tuned: Tuned, weights: int) -> Assembly:
    """Everything assembled again with what was tuned."""
    directory = assembly.files[0].directory
    plans = {plan.name: plan for plan in encoding.plans}
    spread = sum(float(np.square(np.log(f)).sum()) * plans[name].weights / len(f) for name, f in tuned.factors.items())
    worth = tuned.bits * weights / max(spread, 1e-12)

    def work(e: EncodedTensor) -> EncodedTensor:
        name = e.record.name
        if name not in tuned.vectors and name not in tuned.factors:
            return e
        plan = plans[name]
        original = encoding.checkpoint.read(name)
        if name in tuned.vectors:
            tensor = tuned.vectors[name]
            powers = measure_powers(make_plane(tensor)[1])
            new = encode_vector(name, tensor, powers, plan.sensitivity, factor, encoding.search)
            return account(new, decode_tensor(new, ModelBank()), original, plan.sensitivity)
        least = LEAST_WORTH * e.energy / max(e.error, 1e-12 * e.energy, 1e-300)
        decode = lambda encoded: decode_tensor(encoded, directory.bank)  # noqa: E731
        return rescale_outputs(e, tuned.factors[name], max(worth, least), decode, original, plan.sensitivity).encoded

    encoded = list(encoding.workers.map(work, assembly.encoded, [e.record.elements for e in assembly.encoded]))
    targets = {plan.name: plan.target for plan in encoding.plans if plan.treatment == "alias"}
    return assemble_files(encoded, targets, directory.bank, directory.origin, encoding.limit, directory.reference)
