"""After the target is met and all levels are fixed: what stays float follows the original network's outputs.

    decode > tuner > vectors coded anew > files > compare > keep or not

The tuner (distillation.Distillation) runs the network; here only tensors go in and come out.  A change is kept if it is worth its bytes:
a divergence that falls by the factor `g` would take `log2(g) / 2` bits per weight otherwise (its logarithm falls by 2 octaves per bit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, log2

import torch

from .assembly import Assembly, assemble_files
from .encoded import EncodedTensor
from .encoder import count_noise, make_plane
from .encoding import Encoding
from .entropy.explicit import ModelBank
from .kernels.planes import error_and_energy
from .powers import measure_powers
from .rebuilt import decode_tensor
from .sensitivity import Sensitivity
from .vectors import encode_vector

# (state before, state after) -> divergence after, in parts of that before
Compare = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], float]


@dataclass(frozen=True, eq=False)
class Tuned:
    """vectors: new values, none where nothing was won; before, after: divergence on inputs that were held back; left: what was
    minimised, in parts of what it was."""

    vectors: Mapping[str, torch.Tensor]
    before: float = 0.0
    after: float = 0.0
    left: float = 1.0


Tuner = Callable[[dict[str, torch.Tensor], list[str]], Tuned]  # (state as decoded, names of vectors) -> what to change


def gain_bits(left: float) -> float:
    """Bits per weight that a divergence is worth of which so much is left; 0 if it is no less."""
    return -log2(max(left, 1e-9)) / 2 if left < 1 else 0.0


def decode_all(assembly: Assembly, encoding: Encoding) -> dict[str, torch.Tensor]:
    """All tensors under their names; aliases share the memory of what they stand for."""
    bank = assembly.files[0].directory.bank
    state: dict[str, torch.Tensor] = {}
    for e in assembly.encoded:
        if e.record.kind != "alias":
            state[e.record.name] = decode_tensor(e, bank, encoding.alignment, encoding.matrices, state.get(e.record.base))
    return {plan.name: state[plan.target or plan.name] for plan in encoding.plans}


def apply_tuning(
    encoding: Encoding,
    assembly: Assembly,
    factor: float,
    tuner: Tuner,
    compare: Compare,
    goal: float = inf,
) -> Assembly:
    """The assembly with what the tuner found, or as it was where that is not worth its bytes.

    factor: of the steps of the assembly; compare: judges what would really be decoded, on inputs that were held back; goal: bytes that
    must not be exceeded.
    """
    state = decode_all(assembly, encoding)
    plans = {plan.name: plan for plan in encoding.plans}
    doubled = {plan.target for plan in encoding.plans if plan.treatment == "alias" and not plan.tied}
    free = [e.record.name for e in assembly.encoded if e.record.kind == "coded" and e.record.name not in doubled]
    vectors = [name for name in free if plans[name].sensitivity and plans[name].treatment == "vector"]
    tuned = tuner(state, vectors) if vectors else Tuned({})
    if not tuned.vectors:
        return assembly
    new = _rebuild(encoding, assembly, factor, tuned)
    bits = gain_bits(compare(state, decode_all(new, encoding)))
    worth = bits * sum(plan.weights for plan in encoding.coded)
    fits = new.size <= max(goal, assembly.size)
    return new if bits > 0 and fits and worth > 8 * (new.size - assembly.size) else assembly


def _rebuild(encoding: Encoding, assembly: Assembly, factor: float, tuned: Tuned) -> Assembly:
    """Everything assembled again with what was tuned."""
    directory = assembly.files[0].directory
    plans = {plan.name: plan for plan in encoding.plans}

    def work(e: EncodedTensor) -> EncodedTensor:
        name = e.record.name
        if name not in tuned.vectors:
            return e
        tensor, sensitivity = tuned.vectors[name], plans[name].sensitivity
        new = encode_vector(name, tensor, measure_powers(make_plane(tensor)[1]), sensitivity, factor, encoding.search)
        return _account(new, encoding.checkpoint.read(name), sensitivity)

    encoded = encoding.workers.map(work, assembly.encoded, [e.record.elements for e in assembly.encoded])
    targets = {plan.name: plan.target for plan in encoding.plans if plan.treatment == "alias"}
    return assemble_files(encoded, targets, directory.bank, directory.origin, encoding.limit, directory.reference, encoding.matrices)


def _account(encoded: EncodedTensor, original: torch.Tensor, sensitivity: Sensitivity) -> EncodedTensor:
    """The same vector with error, energy and loss against the original tensor, not against the tuned one it was coded from."""
    plane, values = make_plane(original)[1], make_plane(decode_tensor(encoded, ModelBank()))[1]
    error, energy = error_and_energy(plane, values)
    coding = encoded.record.coding and replace(encoded.record.coding, noise=count_noise(error, energy))
    loss = sensitivity.statistics.loss(values - plane)
    return replace(encoded, record=replace(encoded.record, coding=coding), error=error, energy=energy, loss=loss)
