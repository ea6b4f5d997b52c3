"""What a user asks for: target, effort, rules per tensor; from keyword arguments or a TOML file into frozen dataclasses."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from math import isfinite

from .errors import InvalidArgument
from .quantize.trellis import LABELLINGS, STATES

TARGETS = ("bits", "size", "snr", "step", "kl")
TOOLS = {  # name: whether it pays on trained networks, so that it is among the default ones
    "transform": True,
    "memory": True,
    "inter": True,
    "tree": False,
    "outliers": False,
    "codebook": False,
    "tiles": False,
}
SUBSTITUTIONS = ("feedback", "gradient", "none")
ACCESS = ("tensor", "rows")
ENTROPIES = ("static", "hyper", "context")
ACTIONS = ("exact", "skip", "finer", "coarser")
DEFAULT_SNR = 25.0  # dB: about four bits per weight


@dataclass(frozen=True)
class Effort:
    """states of the trellis; lagrangian: step^2 per bit in the search; passes: searches with re-fitted tables."""

    states: int
    lagrangian: float
    passes: int


# The Lagrangian is 2 ln 2 times the distortion that the quantizer reaches, in step^2: it barely depends on the rate above one
# bit.
EFFORTS = {"fast": Effort(1, 0.14, 1), "default": Effort(8, 0.38, 1), "high": Effort(64, 0.36, 2), "max": Effort(256, 0.35, 2)}


@dataclass(frozen=True)
class Rule:
    """For tensors whose name matches `match` (a glob): `exact` keeps the values without loss, `skip` leaves the tensor
    uncompressed in an entry of its own, `finer` and `coarser` divide and multiply the step by `factor` (default 2).  A rule must
    match some tensor unless it is `optional`."""

    match: str
    action: str
    factor: float | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise InvalidArgument(f"rule {self.match!r}: action {self.action!r} must be one of {', '.join(ACTIONS)}")
        if self.factor is not None and self.action in ("exact", "skip"):
            raise InvalidArgument(f"rule {self.match!r}: action {self.action} takes no factor")
        if self.factor is not None and not (isinstance(self.factor, (int, float)) and isfinite(self.factor) and self.factor >= 1):
            raise InvalidArgument(f"rule {self.match!r}: factor {self.factor!r} must be a number of at least 1")
        if not isinstance(self.match, str) or not isinstance(self.optional, bool):
            raise InvalidArgument(f"rule {self.match!r}: match must be text, optional true or false")

    @property
    def step_factor(self) -> float:
        """What the step is multiplied by."""
        factor = 2.0 if self.factor is None else self.factor
        return {"coarser": factor, "finer": 1 / factor}.get(self.action, 1.0)

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.match)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`GLOB=ACTION` or `GLOB=finer:3`."""
        match, found, action = text.rpartition("=")
        action, _, factor = action.partition(":")
        try:
            number = float(factor) if factor else None
        except ValueError:
            found = ""
        if not (found and match):
            raise InvalidArgument(f"rule {text!r}: write GLOB=exact, GLOB=skip, GLOB=finer:2 or GLOB=coarser:2")
        return cls(match, action, number)


@dataclass(frozen=True)
class Config:
    """The whole request.  Exactly one target: bits per parameter of the whole file, size in bytes, snr in dB over all coded
    weights, one absolute step, or with calibration kl, the predicted divergence from the original network (KL in nats, 1 - cosine or
    mean squared error, whatever the kind of its output).

    effort: name of an Effort, whose states and Lagrangian (step^2 per bit) may be set on their own; labelling: auto, plain or
    sign-symmetric; substitution: with calibration, what is coded in place of the weights: feedback of errors, a gradient search after
    that (slow), or none; shard_bytes: of the files
    in a folder, default 5e9; lossless: keep every value, in place of a target; tools: that may be used where they pay, their names with commas between, or default,
    all, none; access: "tensor", or "rows" for tables (embeddings) of
    which single rows are read with still fewer bytes, which then use no memory but centres, no other tensor, no outliers, codebook or tiles; entropy: "static" tables, or networks that
    choose a table for every level where that saves bytes, from scales ("hyper") or also from the levels before ("context", slow to load); rules: the last that matches a tensor counts.
    """

    bits: float | None = None
    size: int | None = None
    snr: float | None = None
    step: float | None = None
    kl: float | None = None
    effort: str = "default"
    states: int | None = None
    labelling: str = "auto"
    substitution: str = "feedback"
    lagrangian: float | None = None
    shard_bytes: int | None = None
    lossless: bool = False
    tools: str = "default"
    access: str = "tensor"
    entropy: str = "static"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidArgument(f"{' and '.join(given)} are different targets: give one")
        if not isinstance(self.lossless, bool):
            raise InvalidArgument(f"lossless = {self.lossless!r}: must be true or false")
        if self.lossless and given:
            raise InvalidArgument(f"lossless keeps every value, {given[0]} asks for a loss: give one")
        for name in (*TARGETS, "lagrangian", "shard_bytes"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0
            ):
                raise InvalidArgument(f"{name} = {value!r}: must be a positive number")
        if self.size is not None and self.size != int(self.size):
            raise InvalidArgument(f"size = {self.size!r}: must be a whole number of bytes")
        if self.effort not in EFFORTS:
            raise InvalidArgument(f"effort {self.effort!r}: must be one of {', '.join(EFFORTS)}")
        if self.states is not None:
            STATES.id(self.states)
        if self.labelling == "sign-symmetric" and self.chosen_effort.states == 1:
            raise InvalidArgument(
                "labelling sign-symmetric needs more than one state: raise the effort or leave the labelling to auto"
            )
        barred = self.named_tools & {"transform", "tiles"} if self.target[0] == "step" else set()
        if barred:
            raise InvalidArgument(f"tools {min(barred)} spreads errors, step bounds each: leave one of the two out")
        if "memory" in self.named_tools and self.substitution == "gradient":
            raise InvalidArgument("tools memory does not go with substitution gradient: leave one of the two out")
        if self.substitution not in SUBSTITUTIONS:
            raise InvalidArgument(f"substitution {self.substitution!r}: must be one of {', '.join(SUBSTITUTIONS)}")
        if self.access not in ACCESS:
            raise InvalidArgument(f"access {self.access!r}: must be one of {', '.join(ACCESS)}")
        if self.entropy not in ENTROPIES:
            raise InvalidArgument(f"entropy {self.entropy!r}: must be one of {', '.join(ENTROPIES)}")
        if self.labelling not in ("auto", *LABELLINGS.values()):
            raise InvalidArgument(f"labelling {self.labelling!r}: must be auto, plain or sign-symmetric")

    @property
    def target(self) -> tuple[str, float]:
        """Name and value of the target; a signal to noise ratio of 25 dB if none was given."""
        for name in TARGETS:
            if getattr(self, name) is not None:
                return name, float(getattr(self, name))
        return "snr", DEFAULT_SNR

    @property
    def follow(self) -> bool:
        """Whether steps of rows follow their scales: not where one absolute step is asked for."""
        return self.step is None

    @property
    def named_tools(self) -> frozenset[str]:
        """Tools that were asked for by their names, not as one of a set."""
        return self.asked_tools if self.tools not in ("default", "all", "none") else frozenset()

    @property
    def chosen_tools(self) -> frozenset[str]:
        """Tools that may be used; none that change the basis where one absolute step is asked for, as that bounds the error of each weight."""
        return self.asked_tools - ({"transform", "tiles"} if self.target[0] == "step" else set())

    @property
    def asked_tools(self) -> frozenset[str]:
        """Tools that were asked for, whether they go with the target or not."""
        default = [name for name, pays in TOOLS.items() if pays and not (name == "memory" and self.effort == "fast")]
        sets = {"default": default, "all": list(TOOLS), "none": []}
        names = sets.get(self.tools) if isinstance(self.tools, str) else None
        if names is None:
            names = [name.strip() for name in self.tools.split(",")] if isinstance(self.tools, str) else [None]
        unknown = [name for name in names if name not in TOOLS]
        if unknown:
            raise InvalidArgument(f"tools {self.tools!r}: must be {', '.join(sets)}, or some of {', '.join(TOOLS)} with commas between")
        return frozenset(names)

    @property
    def chosen_effort(self) -> Effort:
        """The effort with states and Lagrangian as asked for."""
        effort = EFFORTS[self.effort]
        if self.states is not None and self.states != effort.states:
            effort = replace(
                effort, states=self.states, lagrangian=0.14 if self.states == 1 else 0.38 if self.states < 32 else 0.36
            )
        return effort if self.lagrangian is None else replace(effort, lagrangian=self.lagrangian)

    def rule_for(self, name: str) -> Rule | None:
        """The last rule that matches a tensor name."""
        return next((rule for rule in reversed(self.rules) if rule.matches(name)), None)


def make_config(config: str | os.PathLike | Config | None = None, rules: tuple[Rule | str, ...] = (), **options) -> Config:
    """A Config from another one or a TOML file, and keyword arguments, which win; `rules` are added after its own."""
    if isinstance(config, Config):
        asked = {field.name: getattr(config, field.name) for field in fields(Config)}
    else:
        asked = read_config(config) if config is not None else {}
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - _FIELDS)
    if unknown:
        raise InvalidArgument(f"option {unknown[0]!r} is unknown: use one of {', '.join(sorted(_FIELDS))}")
    if any(name in given for name in TARGETS):
        asked = {name: value for name, value in asked.items() if name not in TARGETS}
    parsed = tuple(rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules)
    return Config(**{**asked, **given, "rules": asked.get("rules", ()) + parsed})


_FIELDS = {field.name for field in fields(Config)} - {"rules"}


def read_config(path: str | os.PathLike) -> dict:
    """Keyword arguments of Config in a TOML file: the fields by name and `[[rules]]` with match, action and factor."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as problem:
        raise InvalidArgument(f"{path}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidArgument(f"{path}: {problem}") from None
    unknown = sorted(table.keys() - _FIELDS - {"rules"})
    if unknown:
        raise InvalidArgument(f"{path}: option {unknown[0]!r} is unknown: use one of {', '.join(sorted(_FIELDS))} or [[rules]]")
    rules = table.pop("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidArgument(f"{path}: rules must be a list of tables, [[rules]]")
    for rule in rules:
        if rule.keys() - {"factor", "optional"} != {"match", "action"}:
            raise InvalidArgument(
                f"{path}: a rule has match, action, perhaps factor and optional; this one has {', '.join(sorted(rule)) or 'nothing'}"
            )
    return {**table, "rules": tuple(Rule(**rule) for rule in rules)}
