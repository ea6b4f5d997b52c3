"""A look-up network that runs: floats in, indices from layer to layer, integers out, floats only on request or where a layer needs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument, Unsupported
from ..workers import check_threads
from .layers import Float, Layer, Quantizer, Spread, Sums
from .levels import quantize
from .report import Report, make_report
from .tables import hash_tables

ALONE = 1 << 18  # gathers that are not worth threads
PARTS = 4  # that the lines of a layer are cut into per thread


@dataclass(frozen=True, eq=False)
class LookupNetwork:
    """A network in eval mode that runs on index tables; see `convert` and `load`.

    shape: of a sample; dtype: of the input, "float32" or an integer one; entry, exit: names of the values that come in and go out; layers: in
    order; state: parameters of the layers that stay float, by their names in the model; fixed: the sizes of samples may not differ; folded: norms
    are in the weights of the layers before them."""

    shape: tuple[int, ...]
    dtype: str
    entry: str
    exit: str
    layers: tuple[Layer, ...]
    state: dict[str, Tensor]
    fixed: bool = False
    folded: bool = True

    def __call__(self, x: Tensor | np.ndarray, *, threads: int | None = None) -> Tensor:
        """The output as floats: float32 for x of shape (samples, ...), the shape that the model returns.

        threads: default all cores; the result does not depend on it.  InvalidArgument for NaN or another shape than the network's."""
        values = self._run(x, threads)
        with torch.no_grad():
            return self._floats(values, self.exit)

    def logits(self, x: Tensor | np.ndarray, *, threads: int | None = None) -> np.ndarray:
        """The integers that the last layer returns, int32 or int64; times `scale` they are the output.  Unsupported if the last
        layer is a float one."""
        self._last_sums()
        return self._run(x, threads)[self.exit]

    @property
    def scale(self) -> float:
        """What `logits` are multiplied by to be floats; Unsupported if the last layer is a float one."""
        return self._last_sums().scale

    def indices(self, x: Tensor | np.ndarray, *, threads: int | None = None) -> dict[str, np.ndarray]:
        """What flows between the integer layers: uint8 indices, int32 or int64 sums where a layer's integers leave, by the name of the
        value."""
        values = self._run(x, threads, keep=True)
        return {layer.name: values[layer.name] for layer in self.layers if not isinstance(layer, Float)}

    def report(self) -> Report:
        """What each layer runs as and what that takes; `print` it, or take its `data()`."""
        return make_report(self.layers)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write one .safetensors file: indices, codebooks and levels without loss, no tables; see `load`.  Returns the path."""
        from .storage import save

        return save(self, path, overwrite=overwrite)

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 of all product tables, in hexadecimal."""
        return hash_tables(layer.table for layer in self.layers if isinstance(layer, Sums))

    def _last_sums(self) -> Sums:
        layer = self._makers.get(self.exit)
        if not isinstance(layer, Sums) or layer.activation is not None:
            raise Unsupported("the last layer is a float one: there are no integer outputs, call the network instead")
        return layer

    @cached_property
    def _makers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _levels(self) -> dict[str, np.ndarray]:
        """Levels of the values that are indices."""
        found: dict[str, np.ndarray] = {}
        for layer in self.layers:
            if getattr(layer, "levels", None) is not None:
                found[layer.name] = layer.levels
            elif not isinstance(layer, (Float, Sums)):
                found[layer.name] = found[layer.source]
        return found

    @cached_property
    def _last(self) -> dict[str, int]:
        """The number of the layer that takes each value last."""
        return {source: at for at, layer in enumerate(self.layers) for source in _sources(layer)}

    def _run(self, x: Tensor | np.ndarray, threads: int | None, keep: bool = False) -> dict[str, Any]:
        values: dict[str, Any] = {self.entry: self._check(x)}
        with _spreading(check_threads(threads)) as spread:
            for at, layer in enumerate(self.layers):
                if isinstance(layer, Float):
                    values[layer.name] = self._run_float(layer, values)
                elif isinstance(layer, Quantizer):
                    values[layer.name] = self._quantize(layer, values)
                else:
                    values[layer.name] = layer.run(values[layer.source], spread)
                for source in _sources(layer):
                    if self._last[source] == at and source != self.exit and not keep:
                        del values[source]
        return values

    def _check(self, x: Tensor | np.ndarray) -> Tensor:
        if not isinstance(x, (Tensor, np.ndarray)):
            raise InvalidArgument(f"the input is a {type(x).__name__}, must be a tensor or an array")
        x = torch.as_tensor(x).detach().cpu()
        if self.dtype == "float32":
            if not (x.is_floating_point() or x.dtype == torch.uint8):
                raise InvalidArgument(f"the input is {x.dtype}, must be floating point")
            x = x.float()
        elif x.is_floating_point():
            raise InvalidArgument(f"the input is {x.dtype}, must be integers")
        own = tuple(x.shape[1:])
        same = own == self.shape if self.fixed or len(self.shape) < 2 else len(own) == len(self.shape)
        if not x.ndim or not same:
            raise InvalidArgument(
                f"the input has the shape {tuple(x.shape)}, must be (samples, {', '.join(map(str, self.shape))})"
            )
        return x

    def _quantize(self, layer: Quantizer, values: dict[str, Any]) -> np.ndarray:
        floats = self._floats(values, layer.source)
        if not isinstance(floats, Tensor) or not floats.is_floating_point():
            raise InvalidArgument(f"{layer.source}: must be a tensor of floats to be quantized")
        indices, missing = quantize(floats.detach().float().numpy(), layer.levels)
        if missing:
            place = "the input holds" if layer.source == self.entry else f"{layer.source}: the layer returns"
            raise InvalidArgument(f"{place} {missing} NaN")
        return indices

    def _run_float(self, layer: Float, values: dict[str, Any]) -> Any:
        try:
            with torch.no_grad():
                return layer.call({source: self._floats(values, source) for source in layer.sources})
        except Exception as error:  # any layer of the user may run here
            reason = " ".join(str(error).split())[:200]
            raise InvalidArgument(f"{layer.label}: does not run on its input ({reason})") from None

    def _floats(self, values: dict[str, Any], name: str) -> Any:
        """A value as floats: levels of indices, scaled sums; anything else as it is."""
        value = values[name]
        if name in self._levels:
            return torch.from_numpy(self._levels[name][value])
        maker = self._makers.get(name)
        return torch.from_numpy((value * maker.scale).astype(np.float32)) if isinstance(maker, Sums) else value


def _sources(layer: Layer) -> tuple[str, ...]:
    return layer.sources if isinstance(layer, Float) else (layer.source,)


@contextmanager
def _spreading(threads: int) -> Iterator[Spread]:
    """Ranges of lines to threads, which begin when there is enough to do."""
    pools: list[ThreadPoolExecutor] = []

    def spread(work: Any, lines: int, gathers: int) -> None:
        if threads == 1 or gathers < ALONE or lines < 2:
            work(0, lines)
            return
        if not pools:
            pools.append(ThreadPoolExecutor(threads))
        parts = min(lines, PARTS * threads)
        edges = [lines * part // parts for part in range(parts + 1)]
        list(pools[0].map(work, edges[:-1], edges[1:]))

    try:
        yield spread
    finally:
        for pool in pools:
            pool.shutdown()
