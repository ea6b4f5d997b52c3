"""All tensors of a checkpoint at one common factor of their steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from .alignment import Alignment
from .allocate import choose_labelling, fit_bank, try_step, vector_step
from .assembly import Assembly, assemble_files, take_smaller
from .checkpoint import Checkpoint
from .cluster.choice import Request, encode_best
from .config import Config
from .directory import ReferenceEntry
from .encoded import PLAIN, EncodedTensor, Layout, Outlying, Predicted
from .encoder import encode_calibrated, encode_coded, make_plane
from .entropy.explicit import NETWORKS, ModelBank
from .entropy.parametric import SHAPES
from .exact import encode_exact, encode_plain, encode_same
from .learning.choice import Candidates, choose_networks, levels_of
from .memories import surely_saves
from .plan import Plan
from .quantize.trellis import LABELLINGS
from .powers import measure_powers
from .rdo import Search
from .rebuilt import decode_tensor
from .sensitivity import Sensitivity, short_step
from .siblings import NO_SIBLINGS, Siblings
from .tiling.choice import encode_alternative
from .tools import NO_TOOLS, Matrices
from .unit import Record
from .vectors import encode_fine, encode_vector
from .workers import Workers

Progress = Callable[[int, int, str], None]
FIXED = ("exact", "plain", "same")  # treatments that do not depend on the factor


@dataclass(frozen=True, eq=False)
class Encoding:
    """One request: a checkpoint, its plans, what was asked for.  limit: bytes per file, None for a single one; alignment: with the
    reference; matrices: of bases; siblings: tensors that foretell others; relief: how much coarser than where tensors start to vanish steps may become; fixed: tensors that do not depend on the factor, kept from one call to the next; candidates: the networks that are tried, once there are some."""

    checkpoint: Checkpoint
    plans: list[Plan]
    asked: Config
    workers: Workers
    progress: Progress | None
    limit: int | None
    alignment: Alignment | None = None
    matrices: Matrices = ()
    siblings: Siblings = NO_SIBLINGS
    relief: float = 1.0
    fixed: dict[str, EncodedTensor] = field(default_factory=dict)
    candidates: list[Candidates] = field(default_factory=list)

    @property
    def coded(self) -> list[Plan]:
        return [plan for plan in self.plans if plan.treatment == "coded"]

    @cached_property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(plan.spec.numel for plan in self.plans)

    @property
    def search(self) -> Search:
        effort = self.asked.chosen_effort
        return Search(effort.states, 0, effort.lagrangian, effort.passes, "tree" in self.asked.chosen_tools)

    def encode(self, factor: float) -> Assembly:
        """Everything encoded with steps `factor` times the relative ones (for the target "step": all equal to it)."""
        choices = {plan.name: self._choose(plan, factor) for plan in self.coded}
        bank = self._fit_bank(choices)
        weights = sum(plan.weights for plan in self.coded) or 1
        typical = (
            sum(plan.weights * choices[plan.name][0] / (plan.sample.most or plan.sample.rms) for plan in self.coded) / weights
            or 1.0
        )

        def work(plan: Plan) -> EncodedTensor:
            if plan.treatment != "coded":
                return self._encode_other(plan, typical, factor)
            sibling = self.siblings.found.get(plan.name) if plan.predicted else None
            base = decode_tensor(ready[sibling.base], bank, self.alignment, self.matrices) if sibling else None
            return self._encode_coded(plan, *choices[plan.name], bank, base)

        total, done = sum(plan.nbytes for plan in self.plans), 0

        def finished(plan: Plan) -> None:
            nonlocal done
            done += plan.nbytes
            if self.progress:
                self.progress(done, total, f"compress {plan.name}")

        ready: dict[str, EncodedTensor] = {}
        for later in (False, True):  # those that others foretell come after these
            plans = [plan for plan in self.plans if (plan.predicted and plan.name in self.siblings.found) == later]
            done_now = self.workers.map(work, plans, [plan.spec.numel for plan in plans], finished)
            ready |= {plan.name: e for plan, e in zip(plans, done_now)}
        encoded = [ready[plan.name] for plan in self.plans]
        self.fixed.update({e.record.name: e for e, plan in zip(encoded, self.plans) if plan.treatment in FIXED})
        if not any(e.record.kind == "coded" and e.record.coding.model >= SHAPES for e in encoded):
            bank = ModelBank()  # no tensor took to the explicit tables
        static = self._assemble(encoded, bank)
        if self.asked.entropy == "static":
            return static
        return take_smaller(static, self._assemble(*self._learn(encoded, bank)))

    def _assemble(self, encoded: list[EncodedTensor], bank: ModelBank) -> Assembly:
        targets = {plan.name: plan.target for plan in self.plans if plan.treatment == "alias"}
        entry = self.alignment and ReferenceEntry(self.alignment.hint, tuple(self.alignment.permutations))
        return assemble_files(encoded, targets, bank, self.checkpoint.origin.to_json(), self.limit, entry, self.matrices)

    def _learn(self, encoded: list[EncodedTensor], bank: ModelBank) -> tuple[list[EncodedTensor], ModelBank]:
        """The same levels with tables that networks choose, where that makes the file smaller; networks of the file's own are trained at the
        first factor that is tried."""
        if not self.candidates:
            tensors = levels_of(encoded, bank, self.matrices)
            self.candidates.append(Candidates.find(tensors, self.asked.entropy))
        run = self.workers.pool.map if self.workers.pool else map
        encoded, bank = choose_networks(encoded, bank, self.matrices, self.candidates[0], run)
        explicit = any(e.record.coding and SHAPES <= e.record.coding.model < NETWORKS for e in encoded)
        return encoded, bank if explicit else replace(bank, sets=())

    def _encode_coded(self, plan: Plan, step: float, search: Search, bank: ModelBank, base: torch.Tensor | None = None) -> EncodedTensor:
        """A quantized tensor, in the way that costs least of those that may be tried.  base: the earlier tensor that foretells it, as it is decoded."""
        tensor, pool = self.checkpoint.read(plan.name), self.workers.within(plan.spec.numel, self.elements)
        predicted = self._predicted(plan) if base is None else self.siblings.predicted(plan.name, base)
        follow = self.asked.follow and not predicted
        price = step**2 / 2 * search.lagrangian if plan.sensitivity else None

        def encode(layout: Layout, sensitivity: Sensitivity | None, outliers: Outlying | None = None) -> EncodedTensor:
            if not sensitivity:
                how = step, search, bank, pool, follow, None, predicted, layout, outliers
                return encode_coded(plan.name, tensor, plan.powers, *how)
            how = step, search, bank, pool, self.asked.substitution, predicted, self.relief, layout, outliers
            return encode_calibrated(plan.name, tensor, sensitivity, *how)

        other = plan.remembered and encode(plan.remembered.layout, plan.remembered.sensitivity)
        if other and plan.remembered.layout.basis is plan.layout.basis and surely_saves(other.saved, plan.spec.numel):
            best = other
        else:
            best = encode(plan.layout, plan.sensitivity)
            best = min(best, other, key=lambda encoded: encoded.cost(price)) if other else best
        if base is not None and not self.siblings.surely_saves(plan.name):
            best = min(best, self._encode_alone(plan, tensor, step, search, bank, pool), key=lambda encoded: encoded.cost(price))
        tools = set() if plan.layout.strips and self.asked.access == "rows" else self.asked.chosen_tools  # these join rows
        if tools & {"outliers", "codebook"}:
            base = predicted.plane if predicted else None
            plain = not plan.layout.basis and best.record.kind == "coded" and best.record.coding.tools == NO_TOOLS
            request = Request(
                plan.name,
                tensor,
                lambda outliers: encode(PLAIN, plan.sensitivity, outliers) if outliers else best,
                plan.powers,
                step,
                search,
                price,
                base,
                follow,
                "outliers" in tools and plain,
                "codebook" in tools,
            )
            best = encode_best(request)
        if "tiles" in tools and not (plan.sensitivity or predicted):
            best = encode_alternative(plan.name, tensor, best, step, search.lagrangian)
        return best

    def _encode_alone(
        self, plan: Plan, tensor: torch.Tensor, step: float, search: Search, bank: ModelBank, pool: Executor | None
    ) -> EncodedTensor:
        """A tensor that another one might foretell, without that."""
        if plan.sensitivity:
            how = step, search, bank, pool, self.asked.substitution, None, self.relief, plan.layout
            return encode_calibrated(plan.name, tensor, plan.sensitivity, *how)
        powers = measure_powers(make_plane(tensor)[1])
        return encode_coded(plan.name, tensor, powers, step, search, bank, pool, self.asked.follow, layout=plan.layout)

    def _predicted(self, plan: Plan) -> Predicted | None:
        return self.alignment.predicted(plan.name) if plan.predicted else None

    def _choose(self, plan: Plan, factor: float) -> tuple[float, Search]:
        """Step and search of a coded tensor."""
        search = self.search
        if self.asked.target[0] == "step":
            step = factor * plan.factor
        else:
            step = short_step(plan.sample.step(factor, search.states, self.relief))
        if self.asked.labelling == "auto":
            return step, replace(search, labelling=choose_labelling(plan.sample, step, search))
        return step, replace(search, labelling=LABELLINGS.id(self.asked.labelling))

    def _fit_bank(self, choices: dict[str, tuple[float, Search]]) -> ModelBank:
        """Explicit tables for the plain labelling, fitted to the samples."""
        plans = [plan for plan in self.coded if choices[plan.name][1].labelling == 0]
        trials = self.workers.map(lambda plan: try_step(plan.sample, *choices[plan.name]), plans, [0] * len(plans))
        return fit_bank([(trial, plan.sample) for trial, plan in zip(trials, plans)])

    def _encode_other(self, plan: Plan, typical: float, factor: float) -> EncodedTensor:
        """A tensor that is not quantized, or only finely; `typical`: step / rms of those that are, `factor`: of their steps."""
        if plan.treatment == "alias":
            return EncodedTensor(Record(plan.name, plan.spec.dtype, plan.spec.shape, "alias", tied=plan.tied), b"", (), 0)
        if plan.name in self.fixed:
            return self.fixed[plan.name]
        tensor = self.checkpoint.read(plan.name)
        if plan.treatment == "same":
            return encode_same(plan.name, tensor, self.alignment.matches[plan.name].digest)
        if plan.treatment == "exact":
            return encode_exact(plan.name, tensor, *self._counterpart(plan))
        if plan.treatment == "plain":
            return encode_plain(plan.name, tensor)
        predicted = self._predicted(plan)
        if plan.sensitivity:
            return encode_vector(plan.name, tensor, plan.powers, plan.sensitivity, factor, self.search, predicted)
        step = short_step(plan.factor * vector_step(plan.rms, typical))
        return encode_fine(plan.name, tensor, step, self.search, 0 if plan.factor == 1 else None, predicted=predicted)

    def _counterpart(self, plan: Plan) -> tuple[torch.Tensor | None, bytes, str]:
        """The tensor that a difference without loss can be taken to: of the reference, with its digest, or an earlier one, with its name."""
        sibling = self.siblings.found.get(plan.name)
        if sibling and self.asked.lossless:
            return self.checkpoint.read(sibling.base), b"", sibling.base
        match = self.alignment.matches.get(plan.name) if self.alignment else None
        if match is None or self.alignment.reader.specs[plan.name][0] != plan.spec.dtype:
            return None, b"", ""
        return self.alignment.reader.read(plan.name), match.digest, ""
