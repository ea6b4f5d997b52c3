"""One network on the batches of a task: eval mode, the batch on its device, one tensor out, and errors that say what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument, NncError
from nnc.evaluation.fidelity import check_unit, first_tensor
from nnc.evaluation.pretrained import first_line
from nnc.evaluation.task import Task

# what a network raises that is given something it was not made for
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def make_runner(network: nn.Module, task: Task) -> Callable[[int, tuple], Tensor]:
    """(number of the batch, its arguments) -> the output of a network as one tensor, or InvalidArgument that says what is wrong."""
    call = network if task.prepare is None else task.prepare(network)
    place = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))

    def run(index: int, arguments: tuple) -> Tensor:
        if not isinstance(arguments, (tuple, list)):
            raise InvalidArgument(
                f"task {task.name}: batch {index} is a {type(arguments).__name__}, must be a tuple of arguments"
            )
        moved = tuple(a.to(place) if isinstance(a, Tensor) else a for a in arguments)
        try:
            output = call(*moved)
        except NncError:
            raise
        except FAILURES as error:
            shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in arguments)
            raise InvalidArgument(
                f"task {task.name}: the model does not run on batch {index} with inputs {shapes} "
                f"({first_line(error)}); check that data and model belong together"
            ) from error
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or not tensor.ndim:
            what = type(output).__name__ if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise InvalidArgument(f"task {task.name}: the model returned {what}, must be a floating-point tensor")
        if task.kind == "unit":
            check_unit(tensor, f"task {task.name}")
        return tensor.cpu() if tensor.device.type == "mps" else tensor  # which has no float64

    return run


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; the flag of every submodule is put back."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
