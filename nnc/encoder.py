"""From tensors to units.  Never imports the decoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import torch

from .buffers import contiguous, empty
from .centres import pack_labels
from .coder import checksum
from .ctus import CtuCoder, group_tiles
from .directory import MAX_EXPANSION
from .encoded import PLAIN, EncodedTensor, Joint, Layout, Outlying, Predicted, tensor_bytes
from .entropy.explicit import TABLES, ModelBank
from .entropy.scales import OFF
from .entropy.trees import encode_trees
from .exact import encode_exact
from .feedback import find_levels_with_feedback
from .fields import NO_CODES, Orders, Prediction, Steps
from .job import Job
from .kernels.planes import error_and_energy
from .latent_choice import choose_codes
from .latents import Latents
from .memories import refit_centres, refit_memory
from .packing import keeps_labels_near, may_join, pack_tensor
from .partition.grid import choose_grid, choose_strips
from .partition.planes import choose_split, plane_shape
from .prediction.memory import CentreCodes
from .quantize.logarithm import rebuild_powers
from .quantize.steps import UNITS, StepCodes, rebuild_steps
from .quantize.trellis import LABELLINGS, make_trellis
from .powers import Powers, fit_scales, measure_powers
from .rdo import (
    WIDTH,
    Scales,
    Search,
    choose_model,
    codes_of,
    count,
    first_model,
    level_bits,
    move,
    search_tiles,
)
from .sensitivity import (
    DAMPING,
    Sensitivity,
    choose_steps,
    following_steps,
    shrink,
)
from .splitting import Task, choose_trees, deviates, place, skipped_cells
from .substitution import FrozenCodec, measure_loss, substitute
from .tools import Centres, Memory, Tools, Transform, Tree
from .unit import Coding, Record

SMALLEST_STEP, LARGEST_STEP = 1e-35, 1e30  # float32 products stay normal and finite between
MAX_EMPTY = 1 << 22  # bytes of a tensor that may shrink to nothing; readers bound the tensors of a file by its size
MEMORY_AREA = 1 << 20  # weights of a CTU in which columns are foretold by memories
FINEST = 1 << 20  # largest weight in steps: levels of the format end at 2^22, and float32 has 24 bits
LOGARITHMIC = LABELLINGS.id("logarithmic")


def make_plane(tensor: torch.Tensor) -> tuple[int, np.ndarray]:
    """Plane recipe and plane float32 (rows, columns) of a float tensor; a view where the dtype allows."""
    shape = tuple(tensor.shape)
    split = choose_split(shape)
    return split, tensor.detach().to(torch.float32).contiguous().numpy().reshape(plane_shape(shape, split))


def encode_coded(
    name: str,
    tensor: torch.Tensor,
    powers: Powers,
    step: float,
    search: Search,
    bank: ModelBank,
    pool: Executor | None = None,
    follow: bool = False,
    sensitivity: Sensitivity | None = None,
    predicted: Predicted | None = None,
    layout: Layout = PLAIN,
    outliers: Outlying | None = None,
) -> EncodedTensor:
    """Quantize and code a tensor with the given step.

    powers: those of its plane as it is coded, so of what remains of it after the prediction; pool: threads for its CTUs; follow: the steps of the rows
    follow their scales; sensitivity: to tell the loss by, without effect on the levels.

    Where the step is finer than float32 can tell, or where so few bytes would remain that readers refuse them, the tensor is kept
    without loss.
    """
    split, weights = make_plane(tensor)
    weights = _inliers(weights if predicted is None else weights - predicted.plane, outliers)
    plane = layout.coefficients(weights)
    step, steps = float(np.float32(step)), None
    if layout.memory:
        plane = plane.T if layout.transposed else plane
        steps = following_steps(plane) if follow and layout.transposed else None
        follow = follow and not layout.transposed
    job = Job(plane, split, step, step, follow, steps, sensitivity, layout=layout, predicted=predicted, outliers=outliers)
    if outliers:
        powers = measure_powers(plane)
    saved = 0.0
    if layout.memory:
        job, saved = _refit_memory(job, search, pool)
        powers = measure_powers(job.relative_plane(_left(job)))
    return replace(_or_exact(name, tensor, encode_plane(name, tensor, job, powers, search, bank, pool)), saved=saved)


def encode_calibrated(
    name: str,
    tensor: torch.Tensor,
    sensitivity: Sensitivity,
    factor: float,
    search: Search,
    bank: ModelBank,
    pool: Executor | None = None,
    substitution: str = "feedback",
    predicted: Predicted | None = None,
    relief: float = 1.0,
    layout: Layout = PLAIN,
    outliers: Outlying | None = None,
) -> EncodedTensor:
    """The same with the steps that its sensitivity asks for at the common factor, and with feedback of errors.

    relief: of the caps of the steps; substitution: "feedback"; "gradient", a search by gradients after that; "none", the weights as they are.
    """
    split, weights = make_plane(tensor)
    turn = (lambda plane: np.ascontiguousarray(plane.T)) if sensitivity.transposed else (lambda plane: plane)
    wanted = turn(layout.coefficients(_inliers(weights, outliers)))
    plane = wanted if predicted is None else turn(layout.coefficients(_inliers(weights - predicted.plane, outliers)))
    target = None
    if substitution == "feedback" and not layout.memory:
        sensitivity, target, lagrangian = shrink(sensitivity, plane, factor, search.lagrangian)
        search = replace(search, lagrangian=lagrangian)
    steps = choose_steps(sensitivity, wanted, factor, search.states, relief)
    step = float(np.float32(steps.step))
    price = factor**2 / 2 * search.lagrangian if substitution == "gradient" else None
    chosen = (steps.rows, steps.columns)
    job = Job(plane, split, step, step, False, chosen, sensitivity, substitution != "none", price, predicted, layout, outliers, target, steps.worths)
    job = _refit_memory(job, search, pool)[0] if layout.memory else job
    powers = measure_powers(job.relative_plane(_left(job)))
    return _or_exact(name, tensor, encode_plane(name, tensor, job, powers, search, bank, pool))


def _left(job: Job) -> np.ndarray:
    """What is quantized of a plane, or about that, where columns foretell those behind them in a closed loop."""
    return job.walk.residual(job.plane) if job.walk else job.wanted


def _inliers(plane: np.ndarray, outliers: Outlying | None) -> np.ndarray:
    return outliers.leave(plane) if outliers else plane


def _or_exact(name: str, tensor: torch.Tensor, encoded: EncodedTensor | None) -> EncodedTensor:
    enough = encoded and (encoded.reference or encoded.record.nbytes <= MAX_EMPTY + MAX_EXPANSION * len(encoded.data))
    return encoded if enough else encode_exact(name, tensor)


def _refit_memory(job: Job, search: Search, pool: Executor | None) -> tuple[Job, float]:
    """The job with a memory for its steps, and the bits that it is reckoned to save; steps that follow scales are taken for equal ones."""
    rows, columns = job.steps or (StepCodes.even(len(job.plane)), StepCodes.even(job.plane.shape[1]))
    row_steps, column_steps = rebuild_steps(rows, job.grid_step), rebuild_steps(columns, 1.0)
    if isinstance(job.layout.memory, CentreCodes):
        centres, saved = refit_centres(job.layout.memory, job.plane, row_steps, column_steps, search)
        return replace(job, layout=replace(job.layout, memory=centres and centres.codes), centres=centres), saved
    part = make_trellis(search.states).spacing ** 2 / 12
    memory, saved = refit_memory(job.layout.memory, job.plane, row_steps, column_steps, part, pool.map if pool else map)
    return replace(job, layout=replace(job.layout, memory=memory)), saved


def encode_plane(
    name: str,
    tensor: torch.Tensor,
    job: Job,
    powers: Powers,
    search: Search,
    bank: ModelBank,
    pool: Executor | None,
) -> EncodedTensor | None:
    """Code a plane of any tensor; powers: of its relative plane.  None if the step is too fine for its largest weight."""
    trellis = make_trellis(search.states)
    plane, grid_step = job.wanted, job.grid_step
    scales = fit_scales(powers, trellis.spacing * grid_step, job.follow, job.steps)
    row_steps, column_steps = scales.row_steps(grid_step), scales.column_steps()
    smallest, largest = column_steps.min(), column_steps.max()
    if (
        not (SMALLEST_STEP < row_steps * smallest).all()
        or not (row_steps * max(1, largest) < LARGEST_STEP).all()
        or not (powers.peaks / FINEST < scales.grid_steps(grid_step)).all()
    ):
        return None
    memory, walk = job.layout.memory, job.walk
    closed = job.fed or walk is not None  # columns depend on those before
    if job.layout.strips and not walk:
        grid = choose_strips(*plane.shape, job.transposed, job.layout.strips)
    else:
        grid = choose_grid(*plane.shape, *((MEMORY_AREA,) if walk else ()))
    tiles = grid.tiles()
    run: Callable = pool.map if pool and grid.count > 1 else map
    groups = group_tiles(tiles, pool)
    model, offset = first_model(bank), 0
    split = search.trees and deviates(walk.residual(plane) if walk else plane, scales, grid_step)
    passes = search.passes + job.fed  # the weights that feedback leaves are wider than those given
    number, final = 0, False
    while not final:
        bits = np.roll(level_bits(bank, model), -2 * offset, axis=0)
        final, before, replaced, chosen, counts = number >= passes - 1, scales, plane, None, None

        if not closed:
            levels, of_groups, counts = [], [], np.zeros((TABLES, WIDTH), np.int64)
            for found, ends, of_group in run(lambda group: search_tiles(plane, group, scales, grid_step, bits, search), groups):
                of_groups.append(found)
                levels += np.split(found, ends[:-1])
                counts += of_group
        else:
            fed = job.sensitivity if job.fed else None
            keep = split or job.fed or job.price is not None
            of_groups = [None] * len(groups)
            levels, replaced = find_levels_with_feedback(plane, grid, scales, grid_step, bits, search, fed, run, walk, keep, job.worths)
            if job.price is not None and final:
                codec = FrozenCodec(grid, scales, grid_step, bits, search, run)
                found = measure_loss(plane, job.statistics, DAMPING)
                best = substitute(plane, found, codec, job.price, (levels, replaced))
                levels, replaced = list(best.levels), best.plane
            if job.fed:
                scales = _refit(job, scales, replaced, trellis.spacing * grid_step, final)

        if split and (number == 0 or before.trees):
            found = place(levels, replaced, grid, before, grid_step, search.states)
            free = number == 0 and not job.fed  # later, what is skipped has no levels; with feedback the loss of skipping is not known
            skipped = None if free else skipped_cells(before.trees, plane.shape)
            scales, chosen = choose_trees(
                Task(replaced, grid, replace(scales, trees=None), grid_step, bank, search, *found, skipped)
            )
            final = final and not (number == 0 and scales.trees)  # levels are to be found anew

        def count_tile(found: np.ndarray, tile: tuple[int, int, int, int]) -> np.ndarray:
            return count(found, codes_of(tile, scales), search.states, scales.shift)

        if chosen is not None and not final:  # its skipped cells still have levels
            model, offset = chosen, 0
        elif not job.fed or final:
            counts = counts if scales is before and counts is not None else sum(run(count_tile, levels, tiles))
            model, offset, _ = choose_model(counts, bank, scales.offsets())
        number += 1
    scales = move(scales, offset)
    inner = int(np.prod(tensor.shape[job.split + 1 :]))
    taps = tuple(inner if turned and number % inner == 0 else 1 for turned, number in ((job.transposed, grid.rows), (not job.transposed, grid.columns)))
    scales = choose_codes(scales, levels, grid, level_bits(bank, model), search.states, taps, run)
    tables = bank.table_set(model).arrays
    values = empty(plane.shape, np.float32, order="F" if memory else "C")  # what is foretold are columns
    labelling = 0 if search.labelling == LOGARITHMIC else search.labelling
    coder = CtuCoder(scales, tables, trellis.next_state, labelling, row_steps, column_steps, memory)
    streams, digests = coder.encode(groups, levels, of_groups, values, run)
    pushes = coder.pushes(levels, tiles)
    near = job.centres is not None and keeps_labels_near(grid, sum(map(len, streams)), job.layout.strips)
    latents = Latents(
        scales.of_rows,
        scales.of_columns,
        scales.rows,
        scales.columns,
        job.predicted.confidence if job.predicted else None,
        *((None if near else memory.labels, memory.confidence) if memory else ()),
    )
    centres, tree, parts = None, None, b""
    if job.centres:
        centres, parts = job.centres.write(scales, level_bits(bank, model), tables, search.states)
    if near:
        streams = [pack_labels(memory.labels[left:right], centres.number) + stream for (_, _, left, right), stream in zip(tiles, streams)]
    if scales.trees:
        tree_model, of_trees = encode_trees(scales.trees, grid)
        tree, parts = Tree(tree_model, len(of_trees)), parts + of_trees
    plane = job.plane
    if search.labelling == LOGARITHMIC:
        values = rebuild_powers(values, job.step)
        plane = make_plane(tensor)[1]
    if memory:
        values = contiguous(values) if plane.flags.c_contiguous else values
    if job.outliers:
        plane, values = job.outliers.account(plane, values, job.transposed)
    error, energy = error_and_energy(plane, values) if plane.flags.c_contiguous else error_and_energy(plane.T, values.T)
    if job.predicted:
        energy = float(np.square(make_plane(tensor)[1], dtype=np.float64).sum())
    if not np.isfinite(error):  # so some value is not
        return None
    noise = count_noise(error, energy)
    coding = Coding(
        job.split,
        job.transposed,
        job.follow,
        grid.height,
        grid.width,
        search.states,
        search.labelling,
        scales.shift,
        job.step,
        model,
        scales.base,
        noise,
        NO_CODES,
        NO_CODES,
        Steps(NO_CODES, UNITS.value(0)),
        Steps(NO_CODES, UNITS.value(0)),
        (),
        Prediction(Orders(*job.predicted.orders), NO_CODES) if job.predicted else None,
        _name_tools(job, tree, centres, near),
    )
    parts += job.outliers.data if job.outliers else b""
    coding, data = pack_tensor(coding, tuple(tensor.shape), latents, parts, streams)
    base = job.predicted.base if job.predicted else ""
    joint = Joint(latents, parts, pushes, 3 * tensor.numel() + 4 * len(tiles)) if may_join(coding, data) and not base else None
    record = Record(name, tensor.dtype, tuple(tensor.shape), "coded", coding=coding, base=base)
    loss = None
    if job.sensitivity:
        wrong = values - plane
        loss = job.sensitivity.loss(wrong.T if job.sensitivity.transposed and not job.transposed else wrong)
    values = contiguous(values.T) if job.transposed else values
    if job.layout.basis:
        values = job.layout.basis.plane(values)
    if job.predicted:
        values = values + job.predicted.plane
    if (job.layout.basis or job.predicted) and not np.isfinite(values).all():
        return None
    largest = torch.finfo(tensor.dtype).max
    final = torch.from_numpy(values if tensor.dtype == torch.float32 else np.clip(values, -largest, largest)).to(tensor.dtype)
    if job.outliers:
        job.outliers.place(final)
    content = checksum(tensor_bytes(final))
    reference = job.predicted.digest if job.predicted else b""
    return EncodedTensor(record, data, tuple(digests), content, error, energy, loss, reference, joint=joint)


def _name_tools(job: Job, tree: Tree | None, centres: Centres | None, near: bool) -> Tools:
    """What a record says, without codes; near: whether labels are with the CTUs."""
    layout = job.layout
    transform = Transform(tuple((number, stride) for number, _, stride in layout.basis.steps)) if layout.basis else None
    limit = job.walk.limit if job.walk else 0
    memory = Memory(limit, None if near else NO_CODES, NO_CODES, centres) if layout.memory else None
    return Tools(transform, memory, tree, job.outliers.record if job.outliers else None)


def count_noise(error: float, energy: float) -> int:
    """Signal to noise ratio in half decibels, as records hold it."""
    return int(np.clip(round(20 * np.log10(energy / max(error, 1e-30 * energy))), 0, 255)) if energy > 0 else 0


def _refit(job: Job, scales: Scales, replaced: np.ndarray, spacing: float, final: bool) -> Scales:
    """Scales for the weights that feedback put in place of the given ones.  final: the levels stay, so what is dead stays dead."""
    relative = job.relative_plane(replaced)
    if final:
        relative[scales.rows == OFF] = 0
        relative[:, scales.columns == OFF] = 0
    return fit_scales(measure_powers(relative), spacing, job.follow, job.steps, scales.shift if final else None)
