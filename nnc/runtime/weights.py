"""Decode a weight when it is used: from the cache, from a thread that has read ahead, or from the file.

Layers run in an order that is the same every time, so that after each use the weight that followed it last time is decoded in a thread,
if it has room in the cache.  A tensor that is still in use somewhere is not decoded twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from threading import Lock
from weakref import WeakValueDictionary

import torch

from ..archive import Archive, ReferenceSource, open_archive
from ..errors import Corruption, InvalidArgument
from ..workers import check_threads
from .cache import WeightCache


def _uncompiled(function: Callable) -> Callable:
    """`torch.compiler.disable`, which imports the compiler, a second of work, once there is a compiler."""
    kept: list[Callable] = []

    @wraps(function)
    def call(*arguments):
        if "torch._dynamo" not in sys.modules:
            return function(*arguments)
        if not kept:
            kept.append(torch.compiler.disable(function))
        return kept[0](*arguments)

    return call


@dataclass(frozen=True)
class Use:
    """What a module needs: a stored tensor in a dtype and on a device."""

    name: str
    dtype: torch.dtype
    device: torch.device


class Runtime:
    """The compressed weights of an attached module.  cache: bytes of decoded weights that may be held; used: what was decoded, found in
    the cache and read ahead so far, in numbers of tensors.

    It is shared by copies of the module, and pickles as the path of the checkpoint, which must be there, the same, where it is
    unpickled.
    """

    def __init__(self, path: str | os.PathLike, cache: float, threads: int | None, reference: ReferenceSource | None) -> None:
        self.path, self.reference, self.threads = path, reference, check_threads(threads)
        self._cache = cache
        self._room = 0
        self._open()

    def _open(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self.archive: Archive = open_archive(self.path, self._pool, self.reference)
        self.cache = WeightCache(self._cache, 1)
        self.used = {"decoded": 0, "found": 0, "ahead": 0}
        self._reader: ThreadPoolExecutor | None = None
        self._coming: dict[Use, Future] = {}
        self._passing: Use | None = None  # read ahead, but not to stay
        self._following: dict[Use, Use] = {}
        self._before: Use | None = None
        self._alive: WeakValueDictionary[Use, torch.Tensor] = WeakValueDictionary()
        self._lock = Lock()

    def expect(self, uses: Iterable[Use]) -> None:
        """The order in which weights will probably be used at first."""
        uses = list(uses)
        self._following = dict(zip(uses, uses[1:] + uses[:1]))
        self.cache.cycle = 2 * len(uses)
        # Room for what is read ahead and not kept, so that a full cache does not end reading ahead.
        sizes = [self._size(use) for use in uses]
        self._room = max((size for size in sizes if 4 * size <= self._cache < sum(sizes)), default=0)
        self.cache.limit = self._cache - self._room

    @_uncompiled
    def weight(self, use: Use) -> torch.Tensor:
        """The decoded tensor, not to be written to."""
        found = self.cache.find(use)
        with self._lock:
            if self._before is not None and self._before != use:
                self._following[self._before] = use
            self._before = use
            coming = self._coming.pop(use, None)
            self._passing = None if self._passing == use else self._passing
            if found is None and coming is None:
                found = self._alive.get(use)
        if found is not None:
            self.used["found"] += 1
        elif coming is not None:
            found = coming.result()
            self.used["ahead"] += 1
        else:
            kept = self.cache.reserve(self._size(use))
            found = self._decode(use, kept)
            self.used["decoded"] += 1
        self._read_ahead(use)
        return found

    def _size(self, use: Use) -> int:
        return self.archive.record(use.name).elements * use.dtype.itemsize

    def _decode(self, use: Use, kept: bool) -> torch.Tensor:
        """kept: its bytes are reserved in the cache."""
        try:
            tensor = self.archive.tensor(use.name).to(use.device, use.dtype)
        except BaseException:
            if kept:
                self.cache.release(self._size(use))
            raise
        self._alive[use] = tensor
        if kept:
            self.cache.keep(use, tensor)
        return tensor

    def _read_ahead(self, use: Use) -> None:
        """Decode what will probably be used next, if there is room for it."""
        following = self._following.get(use)
        if following is None or following == use or self.cache.holds(following):
            return
        with self._lock:
            if following in self._coming or following in self._alive:
                return
            kept = self.cache.reserve(self._size(following))
            if not kept:
                if self._size(following) > self._room:
                    return
                self._coming.pop(self._passing, None)  # was not used after all
                self._passing = following
            if self._reader is None:
                self._reader = ThreadPoolExecutor(1, thread_name_prefix="nnc-read-ahead")
            self._coming[following] = self._reader.submit(self._decode, following, kept)

    @_uncompiled
    def rows(self, use: Use, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Distinct rows of a tensor and, for every number, which of them it is; None if the tensor is decoded or as cheap to decode."""
        if self.cache.holds(use) or use in self._alive or use in self._coming:
            return None
        record = self.archive.record(use.name)
        if self.cache.held + self._size(use) <= self.cache.limit:
            return None  # from the cache every time after this
        distinct, places = numbers.reshape(-1).unique(return_inverse=True)
        if len(distinct) > record.shape[0] // 2:
            return None
        found = self.archive.tensor(use.name, rows=distinct).to(use.device, use.dtype)
        return found, places.reshape(numbers.shape)

    def close(self) -> None:
        """Let go of files, threads and decoded weights; attached modules cannot run any more."""
        if self._reader:
            self._reader.shutdown(cancel_futures=True)
        if self._pool:
            self._pool.shutdown()
        self._coming.clear()
        self.cache.clear()
        self.archive.close()

    def __deepcopy__(self, memo: dict) -> Runtime:
        return self

    def __getstate__(self) -> dict:
        if not isinstance(self.path, (str, os.PathLike)) or not isinstance(self.reference, (str, os.PathLike, type(None))):
            raise InvalidArgument(
                "a module that runs from an open file or a reference in memory cannot be pickled: attach a path"
            )
        order = [(use.name, use.dtype, str(use.device)) for use in self._following]
        return {
            "path": os.path.abspath(self.path),
            "reference": self.reference,
            "cache": self._cache,
            "threads": self.threads,
            "identity": self.archive.identity,
            "order": order,
        }

    def __setstate__(self, state: dict) -> None:
        self.path, self.reference, self.threads, self._cache = (state[key] for key in ("path", "reference", "threads", "cache"))
        self._room = 0
        self._open()
        if self.archive.identity != state["identity"]:
            raise Corruption(f"{self.path}: is not the checkpoint that the module was attached to: attach it anew")
        self.expect(Use(name, dtype, torch.device(device)) for name, dtype, device in state["order"])
