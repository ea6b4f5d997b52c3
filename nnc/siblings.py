"""Tensors of a checkpoint that foretell others of it: weights and their running averages, experts or layers that began as copies of one.  Encoder only.

Prediction from the co-located weights of an earlier tensor of the same shape (inter prediction, units of US20220360778A1): the earlier one as it
will be decoded, so that errors do not add up, and nobody needs more than two tensors to have one.  Which tensors are alike is told from drawn
entries, the same ones in all tensors of a shape; each is compared with a few earlier ones, so that time grows linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch

from .alignment import trust_rows
from .checkpoint import Checkpoint, TensorSpec
from .config import Config
from .encoded import Predicted
from .encoder import make_plane
from .partition.planes import choose_split
from .prediction.reference import predict
from .unit import CODED_DTYPES
from .workers import Workers

LEAST = 1 << 12  # weights of a tensor
DRAWN = 1 << 12  # entries that tell whether tensors are alike: cosines of others are within 0.016 of zero
ALIKE = 0.3  # cosine from which on all entries are looked at
EARLIER = 32  # tensors of a shape that later ones are compared with
WORTH = 0.1  # bits per weight that a prediction must save, as a reader needs two tensors then
SURE = 0.5  # bits per weight beyond which it need not be compared with none


@dataclass(frozen=True, eq=False)
class Sibling:
    """Of a tensor: name of the earlier one; confidence: int16 codes of the rows; saved: bits per weight that it is reckoned to save, where levels are
    fine.  Without loss the difference is coded as it is, if that is shorter."""

    base: str
    confidence: np.ndarray
    saved: float


@dataclass(frozen=True, eq=False)
class Siblings:
    """Those that were found, by the name of the later one."""

    found: dict[str, Sibling] = field(default_factory=dict)

    def predicted(self, name: str, base: torch.Tensor) -> Predicted:
        """The prediction of a tensor from its sibling."""
        sibling = self.found[name]
        return Predicted(predict(make_plane(base)[1], None, None, sibling.confidence), (0, 0), sibling.confidence, base=sibling.base)

    def surely_saves(self, name: str) -> bool:
        """Whether the prediction of a tensor need not be compared with none."""
        return self.found[name].saved > SURE


NO_SIBLINGS = Siblings()


def find_siblings(
    checkpoint: Checkpoint, asked: Config, workers: Workers, progress: Callable[[int, int, str], None] | None = None
) -> Siblings:
    """Of the tensors that will be quantized, or of all matrices if nothing is; in the order of the checkpoint.  progress: called with (done, total, what)."""
    if "inter" not in asked.asked_tools:
        return NO_SIBLINGS

    def wanted(spec: TensorSpec) -> bool:
        rule = asked.rule_for(spec.name)
        kept = spec.tied_to or (rule and (rule.action == "skip" or (rule.action == "exact" and not asked.lossless)))
        return not kept and spec.dtype in CODED_DTYPES and choose_split(spec.shape) > 0 and spec.numel >= LEAST

    groups: dict[tuple, list[TensorSpec]] = {}
    for spec in filter(wanted, checkpoint.specs):
        groups.setdefault((tuple(spec.shape), spec.dtype if asked.lossless else None), []).append(spec)
    specs = [spec for group in groups.values() if len(group) > 1 for spec in group]
    total, done = sum(spec.nbytes for spec in specs), 0

    def finished(spec: TensorSpec) -> None:
        nonlocal done
        done += spec.nbytes
        if progress:
            progress(done, total, f"compare {spec.name}")

    entries = workers.map(lambda spec: _draw(checkpoint.read(spec.name)), specs, _sizes(specs), finished)
    drawn = dict(zip([spec.name for spec in specs], entries))
    pairs = [pair for group in groups.values() if len(group) > 1 for pair in _pair(group, drawn)]

    def compare(pair: tuple[TensorSpec, TensorSpec]) -> Sibling | None:
        base, spec = pair
        if asked.lossless:
            return Sibling(base.name, np.zeros(0, np.int16), 0.0)
        weights, other = (make_plane(checkpoint.read(one.name))[1] for one in (spec, base))
        if not (np.isfinite(weights).all() and np.isfinite(other).all()):
            return None
        confidence, saved = trust_rows(weights, other)
        return Sibling(base.name, confidence, saved / weights.size) if saved > WORTH * weights.size else None

    siblings = workers.map(compare, pairs, _sizes([spec for _, spec in pairs]))
    return Siblings({spec.name: sibling for (_, spec), sibling in zip(pairs, siblings) if sibling})


def _sizes(specs: Collection[TensorSpec]) -> list[int]:
    return [spec.numel for spec in specs]


def _draw(tensor: torch.Tensor) -> np.ndarray | None:
    """Some entries, of length one: float32; None if they are all zero, or some are not finite."""
    places = (np.arange(DRAWN) * 0.6180339887498949 % 1 * tensor.numel()).astype(np.int64)  # spread evenly, without a period
    found = tensor.flatten()[torch.from_numpy(np.unique(places))].to(torch.float32).numpy()
    length = np.sqrt(np.square(found, dtype=np.float64).sum())
    return (found / length).astype(np.float32) if 0 < length < np.inf else None


def _pair(specs: list[TensorSpec], drawn: dict[str, np.ndarray | None]) -> list[tuple[TensorSpec, TensorSpec]]:
    """(earlier, later) of tensors of one shape that seem to be alike; no tensor is both."""
    first, entries, pairs = [], [], []
    for spec in specs:
        own = drawn[spec.name]
        if own is None:
            continue
        cosines = np.stack(entries) @ own if entries else np.zeros(1, np.float32)
        best = int(np.argmax(np.round(cosines, 6)))  # the last bits of BLAS may depend on the number of threads
        if cosines[best] >= ALIKE:
            pairs.append((first[best], spec))
        elif len(first) < EARLIER:
            first.append(spec)
            entries.append(own)
    return pairs
