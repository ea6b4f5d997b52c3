"""Gathers the statistics of all float tensors of a network from inputs without labels.

A first run over the data, without gradients, shows how each tensor is used.  Then the tensors are taken in groups whose
matrices and kept activations fit in memory, one run over the data per group: per batch one forward pass and a few backward
passes from labels that the network draws itself.  Random numbers depend on seed, batch and draw only, not on the groups.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from ..errors import InsufficientData, InvalidArgument
from .fingerprint import digest_batches, digest_model
from .forward import find_layer, is_finite, run_batch
from .labels import DOUBT, FACTORS, KINDS, Labels, choose_draws, count_predictions
from .moments import ElementMoment, Lookup, LookupMoment, Product, ProductMoment, combine
from .ops import Capture, Survey
from .places import Place, Places
from .statistics import Statistics, TensorStatistics

Progress = Callable[[int, int, str], None]


def gather(
    model: nn.Module,
    batches: Iterable[tuple],
    kind: str,
    *,
    run: Callable[[nn.Module], Callable[..., Any]] | None = None,
    joint: bool = True,
    draws: int | None = None,
    doubt: float = DOUBT,
    memory: float = 2e9,
    seed: int = 0,
    file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of every float tensor of `model`'s state dict; the model runs in eval mode and is left as it was.

    batches   argument tuples for `model(*args)`, the same ones each time it is iterated over
    kind      "logits" (..., classes), "unit" (n, d) of norm 1, or "values": what the output is
    run       network -> callable for the batches that returns a tensor, if the network itself does not
    joint     scale to the gradient of whole samples; False: positions of a sequence or an image count as independent
    draws     labels drawn per batch; default 1 to 8, such that there are 4096 predictions and 32 gradients
    doubt     share of the uniform distribution in the one that labels are drawn from
    memory    bytes for matrices and kept inputs at a time; less means more runs over the data
    file      finished groups are kept there, and not gathered again by a call with the same model, data and settings
    progress  called with (batches done, batches to do, what)

    Raises InvalidArgument (an option out of its range, outputs that are no finite tensor, token ids outside of a table, a file of
    another model or of other settings) and InsufficientData (no batch, or none with a prediction).
    """
    batches = _check(model, batches, kind, draws, doubt, memory)
    places = Places(model)
    settings = {"joint": joint, "draws": draws, "doubt": float(doubt), "seed": seed}
    fingerprint = digest_model(model)
    done = Statistics({}, kind, 0, (), fingerprint, settings)
    if file is not None:
        settings["data"] = digest_batches(batches)
        done = _resume(Path(file), done)
        if done.settings.get("complete"):
            return done
    call = model if run is None else run(model)
    with frozen(model, places):
        survey, predictions, count = _survey(call, model, batches, kind, places, progress)
        draws = choose_draws(predictions, count) if draws is None else draws
        used = [place for place in places.all if place.name in survey.matrices or place.name in survey.elements]
        tensors, unseen = dict(done.tensors), list(done.unseen)
        # a finished tensor is under one of the two names' lists
        left = [place for place in used if place.name not in tensors and place.name not in unseen]
        groups = list(_groups(left, survey, memory))
        runs = count * (2 if survey.thin else 1)
        for number, group in enumerate(groups):

            def report(batch: int) -> None:
                if progress is not None:
                    progress(number * runs + batch, len(groups) * runs, "gathering statistics")

            for place, found in _gather_group(
                call, batches, kind, places, group, survey, predictions, draws, doubt, joint, seed, report
            ):
                if found is None:
                    unseen += place.names
                else:
                    tensors.update(dict.fromkeys(place.names, found))
            last = number == len(groups) - 1
            if file is not None and not last:
                Statistics(tensors, kind, predictions, tuple(unseen), fingerprint, settings).save(file)
    if not tensors:
        raise InvalidArgument(
            "no weight influences the output by a gradient: the forward pass runs under torch.no_grad or detaches its output"
        )
    missing = {name for place in places.all for name in place.names if name not in tensors}
    order = [name for place in places.all for name in place.names if name in tensors]
    names = [name for place in places.all for name in place.names if name in missing]
    result = Statistics(
        {n: tensors[n] for n in order}, kind, predictions, tuple(names), fingerprint, {**settings, "complete": True}
    )
    if file is not None:
        result.save(file)
    return result


def _check(
    model: nn.Module,
    batches: Iterable[tuple],
    kind: str,
    draws: int | None,
    doubt: float,
    memory: float,
) -> Iterable[tuple]:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"the model is a {type(model).__name__}, must be a torch.nn.Module")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise InvalidArgument("the model was made under torch.inference_mode, which rules gradients out; build it outside")
    if kind not in KINDS:
        raise InvalidArgument(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if draws is not None and draws < 1:
        raise InvalidArgument(f"draws is {draws}, must be 1 or more")
    if not 0 <= doubt <= 1:
        raise InvalidArgument(f"doubt is {doubt}, must be from 0 to 1")
    if not memory > 0:
        raise InvalidArgument(f"memory is {memory}, must be a positive number of bytes")
    if not isinstance(batches, Iterable):
        raise InvalidArgument(f"the batches are a {type(batches).__name__}, must be a list of argument tuples")
    if iter(batches) is batches:
        raise InvalidArgument("the batches can be iterated over only once; pass a list of argument tuples")
    return batches


def _resume(file: Path, fresh: Statistics) -> Statistics:
    """What the file holds of the same work, or `fresh` if there is no file."""
    if not file.exists():
        return fresh
    kept = Statistics.load(file)
    settings = {key: value for key, value in kept.settings.items() if key != "complete"}
    for what, mine, theirs in (
        ("another model", fresh.fingerprint, kept.fingerprint),
        ("another kind of output", fresh.kind, kept.kind),
        *((f"another {key}", fresh.settings.get(key), settings.get(key)) for key in fresh.settings),
    ):
        if mine != theirs:
            raise InvalidArgument(f"{file} holds statistics of {what} ({theirs}, now {mine}); delete it or name another file")
    return kept


@contextmanager
def frozen(model: nn.Module, places: Places) -> Iterator[None]:
    """Eval mode, no gradients, buffers and random state put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers(), *(place.tensor for place in places.all)]}
    flags = [(t, t.requires_grad) for t in tensors.values()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        try:
            model.eval()
            for tensor, flag in flags:
                if flag:
                    tensor.requires_grad_(False)
            yield
        finally:
            for tensor, flag in flags:
                tensor.requires_grad_(flag)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


def _survey(
    call: Callable, model: nn.Module, batches: Iterable[tuple], kind: str, places: Places, progress: Progress | None
) -> tuple[Survey, int, int]:
    survey = Survey()
    capture = Capture(places, survey=survey, device=_device(places))
    predictions = count = 0
    total = len(batches) if hasattr(batches, "__len__") else 0
    with torch.no_grad():
        for number, args in enumerate(batches):
            capture.bytes = survey.begin()
            output = run_batch(call, args, number, 0, capture)
            survey.end(capture.bytes)
            if output.numel() and not is_finite(output, kind):
                raise InvalidArgument(f"{find_layer(call, model, args)} in batch {number}; check the weights and the data")
            predictions += count_predictions(output, kind)
            count += 1
            if progress is not None:
                progress(count, max(count, total), "looking at the network")
    if not count:
        raise InsufficientData("there is no batch of data to gather statistics from; pass at least one")
    if not predictions:
        raise InsufficientData(f"the {count} batches of data hold no prediction; pass at least one sample")
    return survey, predictions, count


def _groups(places: list[Place], survey: Survey, memory: float) -> Iterator[list[Place]]:
    group: list[Place] = []
    size = 0.0
    for place in places:
        # the matrices, the sums they become, and twice the elements for those with gradients of their own
        mine = 2 * survey.matrices.get(place.name, 0) + survey.activations.get(place.name, 0)
        mine += 8 * place.tensor.numel() if place.name in survey.elements else 0
        if group and size + mine > memory:
            yield group
            group, size = [], 0.0
        group.append(place)
        size += mine
    if group:
        yield group


def _gather_group(
    call: Callable,
    batches: Iterable[tuple],
    kind: str,
    places: Places,
    group: list[Place],
    survey: Survey,
    predictions: int,
    draws: int,
    doubt: float,
    joint: bool,
    seed: int,
    report: Callable[[int], None],
) -> list[tuple[Place, TensorStatistics | None]]:
    """One run over the data; None for a tensor that no gradient reaches."""
    capture = Capture(places, frozenset(place.name for place in group), device=_device(places))
    elements = [place for place in group if place.name in survey.elements]
    moments: dict[tuple[str, str], Any] = {}
    energies: dict[tuple[str, str], float] = {}
    for place in elements:
        place.tensor.requires_grad_(True)
    try:
        for number, args, disturbed in _passes(batches, survey.thin):
            capture.disturb(disturbed, seed + number)
            output = run_batch(call, args, number, seed, capture)
            if changed := capture.overwritten():
                capture.copies |= changed
                output = run_batch(call, args, number, seed, capture)
            if output.requires_grad:
                labels = Labels(output, kind, seed, number, doubt)
                leaves = {(p.name, "elements"): p.tensor for p in elements} | capture.leaves
                for draw in range(draws):
                    gradients = torch.autograd.grad(
                        output,
                        [capture.anchor, *leaves.values()],
                        labels.draw(draw),
                        retain_graph=draw < draws - 1,
                        allow_unused=True,
                    )
                    for key, gradient in zip(leaves, gradients[1:]):
                        if gradient is None:
                            continue
                        if key in capture.leaves:
                            energy = float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2 / draws
                            energies[key] = energies.get(key, 0.0) + energy
                        else:
                            place = places.by_name[key[0]]
                            moments.setdefault(key, ElementMoment(place.tensor, place.plane)).add(gradient, draws)
                    del gradients
                _add_uses(capture.uses, moments, draws)
            capture.begin()
            del output
            report(number + 1)
    finally:
        for place in elements:
            place.tensor.requires_grad_(False)
    scale = FACTORS[kind] / (predictions * (2 if survey.thin else 1))
    result: list[tuple[Place, TensorStatistics | None]] = []
    for place in group:
        parts = [moment.factors(energies.get(key) if joint else None) for key, moment in moments.items() if key[0] == place.name]
        if any(not (np.isfinite(part.rows).all() and np.isfinite(part.columns).all()) for part in parts):
            raise InvalidArgument(f"{place.name}: its inputs or gradients are not finite; check the weights and the data")
        result.append((place, combine(parts, scale) if parts else None))
    return result


def _passes(batches: Iterable[tuple], thin: frozenset[str]) -> Iterator[tuple[int, Any, frozenset[str]]]:
    """Number, arguments and disturbed tables of every run.  Where the data know less than half of a table, other data will use the other
    rows: then all batches run twice, the second time with other rows in half of the places."""
    number = 0
    for disturbed in (frozenset(), thin) if thin else (frozenset(),):
        for args in batches:
            yield number, args, disturbed
            number += 1


def _add_uses(uses: list[Product | Lookup], moments: dict[tuple[str, str], Any], draws: int) -> None:
    """The uses of one batch; those of one matrix together."""
    sorted_uses: dict[tuple[str, str], list] = {}
    for use in uses:
        if isinstance(use, Lookup):
            if use.moment is not None:
                sorted_uses.setdefault((use.slot.place.name, "lookup"), []).append(use)
        elif use.power is not None:
            sorted_uses.setdefault((use.slot.place.name, "swapped" if use.slot.swapped else "product"), []).append(use)
    for key, mine in sorted_uses.items():
        slot = mine[0].slot
        if key[1] == "lookup":
            moments.setdefault(key, LookupMoment(slot)).add(mine, draws)
            continue
        if key not in moments:
            rows = (
                max(slot.place.plane[0], len(mine[0].rows))
                if slot.place.plane[1] == mine[0].inputs.columns
                else len(mine[0].rows)
            )
            moments[key] = ProductMoment(slot, len(mine[0].rows) if slot.swapped else rows, mine[0].inputs.columns)
        moments[key].add(mine, draws)


def _device(places: Places) -> Any:
    return places.all[0].tensor.device if places.all else None
