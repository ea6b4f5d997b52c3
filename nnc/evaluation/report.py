"""Run a network on a task, beside a reference if there is one, and report the metric and the distance between the two."""
from __future__ import annotations

import dataclasses
import math
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from nnc.calibration.statistics import Statistics
from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.fidelity import Fidelity, FidelityMeter, LayerError, LayerMeter
from nnc.evaluation.models import Builder, Source, open_network, pretrained_folder
from nnc.evaluation.pretrained import first_line
from nnc.evaluation.reference import Reference
from nnc.evaluation.runner import evaluating, make_runner
from nnc.evaluation.task import Task
from nnc.evaluation.tensors import TensorLoss, tensor_losses

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What a network does on a task.

    task, metric      names
    value             the metric; None if the task has no labels, nan if an output was not finite
    higher_is_better  direction of the metric
    count             outputs: predictions (logits), vectors (unit) or single values
    finite            whether all outputs were; a logit of -inf is allowed
    reference_value   the metric of the reference; None without one
    fidelity          distance to the reference; None without one
    layers            errors of the layers, in the order of the network; empty unless asked for
    notes             what had to be bridged to load the weights, and what could not be compared
    seconds           for running and measuring, without loading
    predicted         divergence from the reference by statistics from calibration; None without these
    tensors           predicted and measured divergence by tensor, the largest first; empty without statistics
    """

    task: str
    metric: str
    value: float | None
    higher_is_better: bool
    count: int
    finite: bool
    reference_value: float | None
    fidelity: Fidelity | None
    layers: tuple[LayerError, ...]
    notes: tuple[str, ...]
    seconds: float
    predicted: float | None = None
    tensors: tuple[TensorLoss, ...] = ()

    @property
    def loss(self) -> float | None:
        """What was lost against the reference, in units of the metric; positive is worse."""
        if self.value is None or self.reference_value is None:
            return None
        return self.reference_value - self.value if self.higher_is_better else self.value - self.reference_value

    @property
    def perplexity(self) -> float | None:
        """exp(cross-entropy) if the metric is "CE nats"."""
        if self.metric != "CE nats" or self.value is None:
            return None
        return math.exp(self.value) if self.value < 700 else self.value if math.isnan(self.value) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all fields, loss and perplexity; numbers that are not finite become None, `finite` tells why."""
        return _plain(dataclasses.asdict(self) | {"loss": self.loss, "perplexity": self.perplexity})


def evaluate(source: Source, task: Task, model: Builder | None = None, original: Source | None = None, layers: bool = False,
             progress: Progress | None = None, device: str | torch.device | None = None,
             statistics: str | os.PathLike | Statistics | None = None, measured_tensors: int = 0) -> Report:
    """Run the network of `source` on a task.

    source, original  a compressed or an original checkpoint (file or folder), a state dict, or an nn.Module that is ready to
                       run where it is; its training flags are put back
    model      what to build for weights: "module:function", "path/to/file.py:function", a function, or a module that is
               copied; None: what config.json beside the weights says
    layers     also the error of every layer, against the original
    progress   called with (batches done, batches in all or 0 if unknown, text)
    device     where networks that are built here run; default the CPU
    statistics  from calibration of the original: also the predicted divergence, in all and by tensor
    measured_tensors  so many tensors with the largest predictions are also measured: the original with that tensor alone exchanged

    Raises InvalidArgument if the weights do not fit, the network does not run on the data, or there is nothing to measure
    (no labels and no original); InsufficientData for an empty data set.
    """
    if task.measure is None and original is None:
        raise InvalidArgument(f"task {task.name} has no labels, so there is nothing to measure without an original")
    if layers and original is None:
        raise InvalidArgument("the error of the layers is one against an original; give the original or leave layers out")
    if original is None and (statistics is not None or measured_tensors):
        raise InvalidArgument("statistics predict the divergence from an original; give the original or leave statistics out")
    if measured_tensors < 0:
        raise InvalidArgument(f"measured_tensors = {measured_tensors}: must be 0 or more")
    if measured_tensors and statistics is None:
        raise InvalidArgument("tensors are measured beside their prediction; give statistics or leave measured_tensors out")
    if model is not None and isinstance(source, nn.Module) and (original is None or isinstance(original, nn.Module)):
        raise InvalidArgument("model is given, but there are no weights to put into it; leave it out")
    target = check_device(device)
    folder = pretrained_folder(source) or pretrained_folder(original)
    network, notes = open_network(source, model, folder)
    other, more = (None, ()) if original is None else open_network(original, model, folder)
    for given, built in ((source, network), (original, other)):
        if built is not None and built is not given:
            built.to(target)
    report = compare(network, other, task, layers, progress, notes + tuple(f"original: {note}" for note in more))
    if statistics is None:
        return report
    statistics = statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
    if statistics.kind != task.kind:
        raise InvalidArgument(f"the statistics are for outputs of kind {statistics.kind}, task {task.name} has {task.kind}")
    measure = Reference(other, task) if measured_tensors else None
    losses = tensor_losses(network, other, statistics, measure, measured_tensors, progress)
    return dataclasses.replace(report, predicted=math.fsum(loss.predicted or 0.0 for loss in losses), tensors=losses)


def compare(network: nn.Module, reference: nn.Module | None, task: Task, layers: bool = False, progress: Progress | None = None,
            notes: tuple[str, ...] = ()) -> Report:
    """`evaluate` for networks that are in memory: both run on each batch in turn, so outputs of one batch are held at a time."""
    start = time.perf_counter()
    meter = FidelityMeter(task.kind)
    kept: list[Tensor] = []
    kept_reference: list[Tensor] = []
    count, finite, reference_finite = 0, True, True
    with ExitStack() as stack:
        for module in (network, reference):
            if module is not None:
                stack.enter_context(evaluating(module))
        stack.enter_context(torch.inference_mode())
        probe = LayerMeter(network, reference) if layers and reference is not None else None
        if probe:
            stack.callback(probe.close)
        run = make_runner(network, task)
        run_reference = None if reference is None else make_runner(reference, task)
        batches = task.batches()
        total = len(batches) if hasattr(batches, "__len__") else 0
        for index, arguments in enumerate(batches):
            expected = None
            if run_reference is not None:
                if probe:
                    probe.start(reference=True)
                expected = run_reference(index, arguments)
                reference_finite &= _is_finite(expected, task.kind)
            if probe:
                probe.start(reference=False)
            output = run(index, arguments)
            finite &= _is_finite(output, task.kind)
            count += output.numel() if task.kind == "values" else output.numel() // max(1, output.shape[-1])
            if expected is not None:
                meter.add(output, expected)
            if task.measure is not None:
                kept.append(_reduced(task, index, output))
                if expected is not None:
                    kept_reference.append(_reduced(task, index, expected))
            if progress is not None:
                progress(index + 1, total, task.name)
        if not count:
            raise InsufficientData(f"task {task.name}: no batches to run on")
        value = _measured(task, kept, finite)
        reference_value = None if reference is None else _measured(task, kept_reference, reference_finite)
    found = probe.result() if probe else ()
    if probe and len(found) < len(probe.kinds):
        notes += (f"{len(probe.kinds) - len(found)} layers could not be compared: not run, or outputs of another shape",)
    if not finite:
        notes += ("outputs of the model are not finite",)
    if not reference_finite:
        notes += ("outputs of the reference are not finite",)
    return Report(task.name, task.metric, value, task.higher_is_better, count, finite, reference_value, meter.result(),
                  found, notes, time.perf_counter() - start)


def _reduced(task: Task, index: int, output: Tensor) -> Tensor:
    return output.cpu() if task.reduce is None else task.reduce(index, output)


def _measured(task: Task, outputs: list[Tensor], finite: bool) -> float | None:
    if task.measure is None:
        return None
    return float(task.measure(outputs)) if finite else math.nan


def _is_finite(output: Tensor, kind: str) -> bool:
    if kind == "logits":  # -inf rules a class out, which networks do on purpose; a row of nothing else is nan as a probability
        top = output.amax(-1) if output.shape[-1] else output
        return bool(top.isfinite().all())
    return bool(output.isfinite().all())


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, the CPU for None; InvalidArgument if it is not usable on this machine."""
    try:
        target = torch.device("cpu" if device is None else device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch asserts when it was built without that device
        raise InvalidArgument(f"device {device}: not usable here ({first_line(error)})") from error
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
