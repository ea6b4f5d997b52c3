"""The divergence of many networks from one: its outputs are computed once and kept as far as memory goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnc.errors import InsufficientData
from nnc.evaluation.fidelity import Fidelity, FidelityMeter
from nnc.evaluation.runner import evaluating, make_runner
from nnc.evaluation.task import Task

KEPT = 1 << 29  # bytes of outputs that are kept; what is beyond is computed again each time


class Reference:
    """A network and the batches of a task on which others are compared with it."""

    def __init__(self, network: nn.Module, task: Task, memory: float = KEPT) -> None:
        self.network, self.task = network, task
        self.kept: dict[int, Tensor] = {}
        self.room = memory

    def compare(self, network: nn.Module) -> Fidelity:
        """Distance of the network's outputs; InvalidArgument if it does not run, InsufficientData without batches."""
        meter = FidelityMeter(self.task.kind)
        with evaluating(self.network), evaluating(network), torch.inference_mode():
            run, run_reference = make_runner(network, self.task), make_runner(self.network, self.task)
            for index, arguments in enumerate(self.task.batches()):
                expected = self.kept.get(index)
                if expected is None:
                    expected = run_reference(index, arguments)
                    if expected.nbytes <= self.room:
                        self.room -= expected.nbytes
                        self.kept[index] = expected.cpu()
                meter.add(run(index, arguments), expected)
        found = meter.result()
        if found is None:
            raise InsufficientData(f"task {self.task.name}: no batches to run on")
        return found
