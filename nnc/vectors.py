"""From tensors with one long axis to units: biases, norms, running statistics.  Never imports the decoder.

Positive values go to a logarithmic grid, others to a fine one; either as the difference to a prediction if that is shorter.
"""

from __future__ import annotations

import numpy as np
import torch

from .encoded import EncodedTensor, Predicted
from .encoder import LOGARITHMIC, encode_coded, encode_plane, make_plane
from .entropy.explicit import ModelBank
from .job import Job
from .quantize.logarithm import RESOLUTION, logarithms
from .quantize.steps import UNITS, StepCodes
from .powers import Powers, measure_powers
from .rdo import Search
from .sensitivity import Sensitivity, short_step

FINEST_VECTOR, COARSEST_VECTOR = 1 / 512, 1 / 2  # steps of vectors, of their rms


def encode_logarithmic(
    name: str, tensor: torch.Tensor, bank: ModelBank, coarse: int = 0, sensitivity: Sensitivity | None = None
) -> EncodedTensor | None:
    """Code a tensor of positive values on the logarithmic grid, 2^(coarse / 2) of its points apart; None if it has others."""
    split, plane = make_plane(tensor)
    levels = logarithms(plane)
    if levels is None:
        return None
    steps = StepCodes(np.full(len(plane), coarse, np.int16), UNITS.value(0)), StepCodes.even(plane.shape[1])
    job = Job(levels[0], split, 1.0, levels[1], False, steps if coarse else None, sensitivity)
    powers = measure_powers(job.relative_plane(levels[0]))
    return encode_plane(name, tensor, job, powers, Search(1, LOGARITHMIC, 0.0, 1), bank, None)


def encode_fine(
    name: str,
    tensor: torch.Tensor,
    step: float,
    search: Search,
    coarse: int | None,
    sensitivity: Sensitivity | None = None,
    predicted: Predicted | None = None,
) -> EncodedTensor:
    """Code a tensor with one long axis: positive values on the logarithmic grid, others with the step, and either as the difference to
    its prediction if that is shorter.  coarse: of the logarithmic grid, None to leave it out."""
    best = None if coarse is None else encode_logarithmic(name, tensor, ModelBank(), coarse, sensitivity)
    if best is None:
        powers = measure_powers(make_plane(tensor)[1])
        best = encode_coded(name, tensor, powers, step, search, ModelBank(), sensitivity=sensitivity)
    if predicted is None:
        return best
    powers = measure_powers(make_plane(tensor)[1] - predicted.plane)
    other = encode_coded(name, tensor, powers, step, search, ModelBank(), sensitivity=sensitivity, predicted=predicted)
    return min(best, other, key=lambda encoded: len(encoded.data) + 3 * bool(encoded.reference))


def encode_vector(
    name: str,
    tensor: torch.Tensor,
    powers: Powers,
    sensitivity: Sensitivity,
    factor: float,
    search: Search,
    predicted: Predicted | None = None,
) -> EncodedTensor:
    """Code a tensor with one long axis at the step that its sensitivity asks for, positive values on the logarithmic grid."""
    plane = make_plane(tensor)[1]
    power = np.outer(sensitivity.rows**-2.0, sensitivity.columns**-2.0)  # squared errors cost that much
    octaves = factor / (np.log(2) * np.sqrt((power * np.square(plane, dtype=np.float64)).mean()))
    coarse = 2 * int(np.clip(np.floor(np.log2(RESOLUTION * octaves)), 0, 5))  # whole octaves: all points are of the fine grid
    wanted = factor / np.sqrt(power.mean())
    step = short_step(min(max(wanted, FINEST_VECTOR * powers.rms), COARSEST_VECTOR * powers.rms))
    return encode_fine(name, tensor, step, search, coarse, sensitivity, predicted)
