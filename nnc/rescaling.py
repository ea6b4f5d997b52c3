"""New steps for the outputs of a tensor that is already coded: its levels and streams stay as they are, byte for byte.

    value(i, j) = integer(i, j) * step * 2^((E_i + F_j) / 128)        scale index = clip(base + r_i - e_i + s_j - f_j)

E_i = unit * code are the exponents of the steps, e_i the same in quarter octaves, r_i the scale codes.  The table of a weight goes by its
scale index, which must not change: where e_i moves, either r_i moves by as much (what all have in common goes to `base`), or E_i stays
inside its quarter octave.  The unit of the codes, their common offset (which goes to `step` and costs nothing) and one of these two ways
are chosen by the bits of the codes plus what wrong factors cost.  Encoder only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from .coder import checksum
from .encoded import EncodedTensor, tensor_bytes
from .encoder import LARGEST_STEP, SMALLEST_STEP, count_noise, make_plane
from .entropy.parametric import CLASSES
from .entropy.scales import MOST, OFF, decode_codes, encode_codes
from .fields import Codes, Steps
from .kernels.planes import error_and_energy
from .quantize.logarithm import RESOLUTION
from .quantize.steps import QUARTER, UNITS, StepCodes, rebuild_steps
from .quantize.trellis import LABELLINGS
from .sensitivity import Sensitivity, short_step
from .unit import Coding

LARGEST_FACTOR = 2.0  # and 1/2 the smallest: tuning changes steps by parts of them
OFFSETS = 8  # common offsets to try, in parts of a unit

Decode = Callable[[EncodedTensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Rescaled:
    """encoded: with the new steps; factors: float64 (outputs,), what the outputs were really multiplied by."""

    encoded: EncodedTensor
    factors: np.ndarray


@dataclass(frozen=True, eq=False)
class _Choice:
    """offset: of all exponents, in 128ths of an octave; base: added to the base scale index."""

    bits: float
    steps: StepCodes
    scales: np.ndarray
    offset: float
    base: int


def is_rescalable(encoded: EncodedTensor) -> bool:
    """Whether a tensor has outputs with steps that are free to change: coded, more than one row, no steps that follow scales."""
    coding = encoded.record.coding
    return bool(
        encoded.record.kind == "coded"
        and coding.split
        and not coding.follow
        and LABELLINGS.value(coding.labelling) != "logarithmic"
    )


def rescale_outputs(
    encoded: EncodedTensor,
    factors: np.ndarray,
    worth: float,
    decode: Decode,
    original: torch.Tensor,
    sensitivity: Sensitivity | None = None,
) -> Rescaled:
    """Multiply the rows of the plane of a tensor (not transposed: its outputs), as nearly as pays, by changing their steps.

    factors   (outputs,), positive, taken to be within 1/2..2
    worth     bits per weight and squared natural logarithm that a factor is wrong by
    decode    tensor of an encoded one, as readers will see it
    original, sensitivity   what `error`, `energy` and `loss` are taken against

    The result is the same object, and factors of one, where nothing pays.
    """
    record, coding = encoded.record, encoded.record.coding
    side = 1 if coding.transposed else 0  # of the coded plane: rows or columns
    arrays = _read_codes(encoded)
    units = [coding.row_steps.unit, coding.column_steps.unit]
    steps, scales = StepCodes(arrays[2 + side], units[side]), arrays[side]
    wanted = RESOLUTION * np.log2(np.clip(np.asarray(factors, np.float64), 1 / LARGEST_FACTOR, LARGEST_FACTOR))
    live = scales != OFF
    grid = coding.grid(record.shape)
    price = worth * ((grid.rows, grid.columns)[1 - side]) * (np.log(2) / RESOLUTION) ** 2
    best: _Choice | None = None
    for choice in _choices(steps, scales, wanted, live, price, coding.base):
        if best is None or choice.bits < best.bits:
            best = choice
    step = short_step(coding.step * 2.0 ** (best.offset / RESOLUTION))
    arrays[side], arrays[2 + side], units[side] = best.scales, best.steps.codes, best.steps.unit
    unchanged = step == coding.step and np.array_equal(best.steps.exponents[live], steps.exponents[live])
    if unchanged or not _is_normal(arrays, units, step):
        return Rescaled(encoded, np.ones(len(wanted)))
    moved = best.steps.exponents - steps.exponents + RESOLUTION * np.log2(step / coding.step)
    written = [encode_codes(codes) for codes in arrays]
    codes = [Codes(mode, spread, len(data)) for mode, spread, data in written]
    coded = replace(
        coding,
        step=float(np.float32(step)),
        base=coding.base + best.base,
        rows=codes[0],
        columns=codes[1],
        row_steps=_steps(codes[2], units[0]),
        column_steps=_steps(codes[3], units[1]),
    )
    front = b"".join(data for _, _, data in written)
    new = replace(encoded, record=replace(record, coding=coded), data=front + encoded.data[coding.side :], side=len(front))
    new = account(new, decode(new), original, sensitivity)
    return Rescaled(new, np.where(live, 2.0 ** (moved / RESOLUTION), 1.0))


def account(
    encoded: EncodedTensor, decoded: torch.Tensor, original: torch.Tensor, sensitivity: Sensitivity | None
) -> EncodedTensor:
    """The same with content, error, energy and loss of what it decodes to."""
    plane, values = make_plane(original)[1], make_plane(decoded)[1]
    error, energy = error_and_energy(plane, values)
    noise = count_noise(error, energy)
    coding = replace(encoded.record.coding, noise=noise) if encoded.record.coding else None
    loss = encoded.loss
    if sensitivity:
        loss = sensitivity.statistics.loss(values - plane)
    return replace(
        encoded,
        record=replace(encoded.record, coding=coding),
        content=checksum(tensor_bytes(decoded)),
        error=error,
        energy=energy,
        loss=loss,
    )


def _read_codes(encoded: EncodedTensor) -> list[np.ndarray]:
    """Scale codes of rows and columns, step codes of rows and columns: int16 each."""
    coding: Coding = encoded.record.coding
    grid = coding.grid(encoded.record.shape)
    arrays, at = [], 0
    parts = (coding.rows, coding.columns, coding.row_steps.codes, coding.column_steps.codes)
    for codes, number in zip(parts, 2 * (grid.rows, grid.columns)):
        arrays.append(decode_codes(codes.mode, codes.spread, encoded.data[at : at + codes.length], number))
        at += codes.length
    return arrays


def _choices(
    old: StepCodes, scales: np.ndarray, wanted: np.ndarray, live: np.ndarray, price: float, base: int
) -> Iterator[_Choice]:
    """The codes as they are with and without a common factor, then every unit with several offsets, both ways.

    wanted: changes of the exponents; price: bits per weight-row and squared error of an exponent."""
    target = old.exponents + wanted

    def cost(steps: StepCodes, scales: np.ndarray, offset: float) -> float:
        wrong = (steps.exponents + offset - target)[live]
        return 8 * (len(encode_codes(steps.codes)[2]) + len(encode_codes(scales)[2])) + price * float(wrong @ wrong)

    common = float(wanted[live].mean()) if live.any() else 0.0
    for offset in (0.0, common):
        yield _Choice(cost(old, scales, offset), old, scales, offset, 0)
    if not live.any():
        return
    floor = old.index * QUARTER - QUARTER // 2  # the exponents of a quarter octave begin here
    for unit in UNITS.values():
        low, high = -(-floor // unit), (floor + QUARTER - 1) // unit
        inside = bool((low <= high)[live].all())  # every quarter octave that is in use has a multiple of the unit
        for part in range(OFFSETS):
            for kept in (False, True) if inside else (False,):
                first = (common if kept else float(np.median(target[live]))) + unit * (part / OFFSETS - 0.5)
                codes = np.round((target - first) / unit)
                codes = np.where(live, np.clip(codes, low, high) if kept else np.clip(codes, -MOST, MOST), 0)
                if np.abs(codes).max() > MOST:
                    continue
                steps = StepCodes(codes.astype(np.int16), unit)
                change = steps.index - old.index
                shared = int(np.median(change[live]))
                moved = np.where(live, scales + change - shared, OFF)
                if not 0 <= base + shared <= CLASSES or moved[live].min() <= OFF or moved[live].max() > MOST:
                    continue
                offset = float((target - steps.exponents)[live].mean())
                moved = moved.astype(np.int16)
                yield _Choice(cost(steps, moved, offset), steps, moved, offset, shared)


def _steps(codes: Codes, unit: int) -> Steps:
    return Steps(codes, unit if codes.mode != "none" else UNITS.value(0))


def _is_normal(arrays: list[np.ndarray], units: list[int], step: float) -> bool:
    """Whether all products of steps stay normal float32 numbers."""
    rows = rebuild_steps(StepCodes(arrays[2], units[0]), step)
    columns = rebuild_steps(StepCodes(arrays[3], units[1]), 1.0)
    return bool((SMALLEST_STEP < rows * columns.min()).all() and (rows * max(1.0, float(columns.max())) < LARGEST_STEP).all())
