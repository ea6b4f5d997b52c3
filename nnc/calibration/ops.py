"""Sees every use of a weight while a network runs, and hangs a hook on what comes out.

A TorchFunctionMode meets each torch function with its arguments.  Functions that multiply by a whole parameter or look rows of
it up are handled here; a parameter that goes into any other function counts as `elements`, for which ordinary gradients do.
Handled weights are detached, so that a tensor used in both ways gets each use once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import InvalidArgument
from .moments import WIDEST, Lookup, Product
from .patches import Patches, Rows
from .places import Places, Slot
from .recurrent import CELLS, run_cell, run_layers

DISTURBED = 0.5  # of the places
NEW = 0.01  # chance that the next id is a new one


@dataclass
class Survey:
    """What a run without gradients showed: which tensors were used in which way, and the bytes that their uses keep."""

    matrices: dict[str, int] = field(default_factory=dict)  # name -> bytes of R and C
    elements: set[str] = field(default_factory=set)
    activations: dict[str, int] = field(default_factory=dict)  # name -> bytes in one batch, the largest
    rows: dict[str, Tensor] = field(default_factory=dict)  # name of a table -> int64, how often each row was looked up

    @property
    def thin(self) -> frozenset[str]:
        """Tables of which less than half was looked up and other data will look up other rows: the chance of a new row is that of rows
        seen once (Good, Biometrika 40, 1953).  Not those of positions, of which the first so many rows were looked up."""
        found = set()
        for name, counts in self.rows.items():
            seen, once = int((counts > 0).sum()), int((counts == 1).sum())
            if 2 * seen < len(counts) and once > NEW * int(counts.sum()) and not bool((counts[:seen] > 0).all()):
                found.add(name)
        return frozenset(found)

    def begin(self) -> dict[str, int]:
        return {}

    def end(self, batch: dict[str, int]) -> None:
        for name, size in batch.items():
            self.activations[name] = max(size, self.activations.get(name, 0))


class Capture(TorchFunctionMode):
    """Records the uses of the tensors named in `active`, or of all tensors into a Survey.

    uses    of the last run, in order
    leaves  the tensors that stood in for the active parameters in the last run, by name and way of use
    copies  names whose inputs are written over later in the run, so that they have to be copied
    disturbed  tables of which other rows are taken for half of the ids, drawn by `generator`
    """

    def __init__(
        self, places: Places, active: frozenset[str] = frozenset(), survey: Survey | None = None, device: Any = None
    ) -> None:
        super().__init__()
        self.places, self.active, self.survey = places, active, survey
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.uses: list[Product | Lookup] = []
        self.leaves: dict[tuple[str, str], Tensor] = {}
        self.copies: set[str] = set()
        self.bytes: dict[str, int] = {}
        self.disturbed: frozenset[str] = frozenset()
        self.generator = torch.Generator()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(function)
        if handler is not None:
            result = handler(self, function, *args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if self.survey is not None and isinstance(result, (Tensor, tuple, list)):
            self._note_elements(args, kwargs, result)
        return result

    def disturb(self, tables: frozenset[str], seed: int) -> None:
        """Say which tables are disturbed in the next run."""
        self.disturbed = tables
        self.generator.manual_seed(seed)

    def begin(self) -> None:
        """Forget the last run."""
        self.uses.clear()
        self.leaves.clear()

    def overwritten(self) -> set[str]:
        """Names of matrices whose inputs were changed in place after their use."""
        return {u.slot.place.name for u in self.uses if isinstance(u, Product) and u.source._version != u.version}

    def note(self, *arguments: Any) -> None:
        """Parameters that go into a function elementwise."""
        if self.survey is not None:
            for argument in arguments:
                if (place := self.places.find(argument)) is not None:
                    self.survey.elements.add(place.name)

    def _note_elements(self, args: tuple, kwargs: dict, result: Any) -> None:
        found = {place for argument in _tensors((args, kwargs)) if (place := self.places.find(argument)) is not None}
        if found:
            # a view is no use yet
            views = {self.places.find(t) for t in _tensors(result)}
            self.survey.elements.update(place.name for place in found - views)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """F.linear, seen."""
        slot = self.places.matrix(weight)
        self.note(x, bias, *(() if slot else (weight,)))
        if slot is None:
            return F.linear(x, weight, bias)
        return self.product(slot, weight, x, lambda x, w: F.linear(x, w, bias), Rows)

    def product(self, slot: Slot, weight: Tensor, x: Tensor, run: Callable[[Tensor, Tensor], Tensor], inputs: Callable) -> Tensor:
        """Run a product of inputs x and a view of a parameter, record it, and hang the hook on its outputs."""
        name = slot.place.name
        if name in self.copies:
            x = x.clone()
        out = run(x, self._leaf(slot, "swapped" if slot.swapped else "product", weight))
        if self.survey is not None:
            outputs = out.numel() // max(1, inputs(x).positions)
            wide = outputs**2 if outputs <= WIDEST else outputs
            size = 4 * (inputs(x).columns ** 2 + wide)
            self.survey.matrices[name] = max(size, self.survey.matrices.get(name, 0))
            self.bytes[name] = self.bytes.get(name, 0) + 4 * (x.numel() + out.numel())
        if name not in self.active:
            return out
        return self._attach(out, Product(slot, inputs(x), x))

    def lookup(self, table: Tensor, ids: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """Record rows taken from a whole table (rows, columns)."""
        place = self.places.whole(table)
        if place is None or place.tensor.shape != place.plane:
            return NotImplemented
        if self.survey is not None:
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
                raise InvalidArgument(
                    f"{place.name}: the data has token ids {int(ids.min())} to {int(ids.max())}, the table has {len(table)} rows "
                    f"(ids 0 to {len(table) - 1}); take the tokenizer that belongs to the model, or shorter inputs"
                )
            counts = torch.bincount(ids.flatten(), minlength=len(table))
            self.survey.rows[place.name] = counts + self.survey.rows.get(place.name, 0)
            size = 4 * table.shape[1] ** 2
            self.survey.matrices[place.name] = max(size, self.survey.matrices.get(place.name, 0))
            self.bytes[place.name] = self.bytes.get(place.name, 0) + 4 * ids.numel() * table.shape[1]
        if place.name in self.disturbed:
            others = torch.randint(len(table), ids.shape, generator=self.generator).to(ids)
            ids = torch.where((torch.rand(ids.shape, generator=self.generator) < DISTURBED).to(ids.device), others, ids)
        slot = Slot(place, 0, False)
        out = run(self._leaf(slot, "lookup", table), ids)
        return out if place.name not in self.active else self._attach(out, Lookup(slot, ids))

    def _leaf(self, slot: Slot, way: str, view: Tensor) -> Tensor:
        """A view of a parameter apart from the graph; for an active one, of a leaf whose gradient is that of all uses this way."""
        place = slot.place
        if place.name not in self.active:
            return view.detach()
        leaf = self.leaves.get((place.name, way))
        if leaf is None:
            leaf = self.leaves[place.name, way] = place.tensor.detach().requires_grad_(torch.is_grad_enabled())
        if slot.swapped:
            return leaf.t()
        return leaf if view.shape == leaf.shape else leaf.reshape(-1, view.shape[1])[slot.row : slot.row + len(view)]

    def _attach(self, out: Tensor, use: Product | Lookup) -> Tensor:
        if not torch.is_grad_enabled():
            return out
        if not out.requires_grad:
            # no leaf: the network may go on in place
            out = out + self.anchor
        out.register_hook(use.receive)
        self.uses.append(use)
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _linear(c: Capture, function: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return c.linear(input, weight, bias)


def _matmul(c: Capture, function: Callable, a: Tensor, b: Any = None, *, mat2: Any = None, other: Any = None, **rest: Any) -> Any:
    b = next((t for t in (b, mat2, other) if t is not None), None)
    if rest or not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.dim() or not b.dim():
        return NotImplemented
    if function is torch.Tensor.__rmatmul__:
        a, b = b, a
    if b.dim() == 2 and (slot := c.places.matrix(b.t())):
        c.note(a)
        return c.product(slot, b.t(), a, lambda x, w: torch.matmul(x, w.t()), Rows)
    if a.dim() == 2 and (slot := c.places.matrix(a)):
        c.note(b)
        left = b.dim() > 1
        return c.product(
            slot, a, b, lambda x, w: torch.matmul(w, x), (lambda x: Rows(x.transpose(-1, -2), True)) if left else Rows
        )
    return NotImplemented


def _addmm(
    c: Capture, function: Callable, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **rest: Any
) -> Any:
    slot = c.places.matrix(mat2.t())
    if rest or alpha != 1 or slot is None:
        return NotImplemented
    c.note(input, mat1)
    return c.product(slot, mat2.t(), mat1, lambda x, w: torch.addmm(input, x, w.t(), beta=beta), Rows)


def _convolution(axes: int) -> Callable:
    def spread(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * axes if len(values) == 1 else values

    def handle(c, function, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Any:
        place = c.places.whole(weight)
        if place is None:
            return NotImplemented
        c.note(input, bias)
        pad = padding if isinstance(padding, str) else spread(padding)
        kernel = list(weight.shape[2:])
        return c.product(
            Slot(place, 0, False),
            weight,
            input,
            lambda x, w: function(x, w, bias, stride, padding, dilation, groups),
            lambda x: Patches(x, kernel, spread(stride), pad, spread(dilation), groups),
        )

    return handle


def _embedding(c, function, input, weight, padding_idx=None, max_norm=None, *rest, **more) -> Any:
    # a table that renormalizes itself would change the model
    run = lambda table, ids: function(ids, table if max_norm is None else table.clone(), padding_idx, max_norm, *rest, **more)  # noqa: E731
    return c.lookup(weight, input, run)


def _getitem(c: Capture, function: Callable, tensor: Tensor, index: Any) -> Any:
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32) or c.places.find(tensor) is None:
        return NotImplemented
    if index.numel() and int(index.min()) < 0:
        return NotImplemented
    return c.lookup(tensor, index, lambda table, ids: function(table, ids))


def _batch_norm(
    c, function, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Any:
    if training or running_mean is None or running_var is None:
        return NotImplemented
    c.note(input, running_mean, running_var, weight, bias)
    # spelled out: torch has no gradient for the running statistics
    shape = (1, -1, *[1] * (input.dim() - 2))
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (input - running_mean.reshape(shape)) * scale.reshape(shape)
    return (y if bias is None else y + bias.reshape(shape)).to(input.dtype)


def _open(function: FunctionType) -> FunctionType:
    """The same function of torch, which does not stop at a mode: what it calls can be seen."""
    inner = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda *_: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner


_ATTENTION = _open(F.multi_head_attention_forward)


def _attention(c: Capture, function: Callable, *args: Any, **kwargs: Any) -> Any:
    with c:
        return _ATTENTION(*args, **kwargs)


def _recurrent(kind: str) -> Callable:
    return lambda c, function, *args: run_layers(c.linear, kind, *args)


def _recurrent_cell(kind: str) -> Callable:
    return lambda c, function, *args: run_cell(c.linear, kind, *args)


HANDLERS: dict[Any, Callable] = {
    F.linear: _linear,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mm: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.__rmatmul__: _matmul,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
    F.batch_norm: _batch_norm,
    F.multi_head_attention_forward: _attention,
    **{getattr(torch._VF, kind): _recurrent(kind) for kind in CELLS},
    **{getattr(torch._VF, f"{kind}_cell"): _recurrent_cell(kind) for kind in CELLS},
}
