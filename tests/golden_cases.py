"""The checkpoints of the golden files, and how each is compressed; `make_golden.py` writes them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import reference_decoder as decoder
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
STATES = (1, 4, 8, 16, 32, 64, 128, 256)
Source = dict[str, Tensor] | nn.Module


@dataclass(frozen=True)
class Case:
    """A golden file: `source` makes the checkpoint from a seeded generator; `folder`: with shards; `calibrated`: with made-up
    statistics of the loss; `unit`: of all step codes, whatever the encoder would choose; `reference`: name of an earlier case
    that it is a difference to; `tiles`: how matrices are tiled, whatever the encoder would choose; forced: tensors use what FORCED says
    for their names, whether it pays or not; latents: how they are coded, whatever would be shorter, None: as the encoder chooses; networks: the
    kind of networks (`network_cases.NETWORKS_OF`) that choose all tables, whether it pays or not; centres: how many foretell columns, 0: as the
    encoder chooses."""
    name: str
    source: Callable[[torch.Generator], Source]
    options: dict = field(default_factory=dict)
    seed: int = 1
    folder: bool = False
    calibrated: bool = False
    unit: int | None = None
    reference: str = ""
    tiles: dict = field(default_factory=dict)
    forced: bool = False
    latents: str | None = "static"
    networks: str = ""
    centres: int = 0

    @property
    def path(self) -> Path:
        return GOLDEN / (self.name if self.folder else f"{self.name}.safetensors")

    @property
    def reference_path(self) -> Path | None:
        return next(case.path for case in CASES if case.name == self.reference) if self.reference else None

    @property
    def note(self) -> Path:
        return GOLDEN / f"{self.name}.json"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def layers(g: torch.Generator) -> Source:
    return {"linear.weight": normal(g, 24, 20), "conv.weight": normal(g, 6, 4, 3, 3) * 0.5, "linear.bias": normal(g, 24)}


def table(g: torch.Generator) -> Source:
    """Rows of clusters, so many that they are cut into strips."""
    return {"w": 2 * normal(g, 5, 8)[torch.randint(0, 5, (4200,), generator=g)] + normal(g, 4200, 8)}


def siblings(g: torch.Generator) -> Source:
    """Averages of weights, whole and in some rows, in float16 and as kernels; one that is the same."""
    w, k = normal(g, 80, 60), normal(g, 24, 20, 3, 3)
    part = torch.where(torch.arange(80)[:, None] < 40, w, normal(g, 80, 60))
    return {"w": w, "k": k, "b": normal(g, 60), "of.w": 0.9 * w + 0.1 * normal(g, 80, 60), "of.k": k + 0.2 * normal(g, 24, 20, 3, 3), "same.w": w.clone(),
            "half.w": (w + 0.05 * normal(g, 80, 60)).half(), "part.w": part + 0.1 * normal(g, 80, 60), "alone": normal(g, 80, 60),
            "half": w.half(), "of.half": (w + 0.001 * normal(g, 80, 60)).half()}


def outliers(g: torch.Generator) -> Source:
    w = normal(g, 50, 40)
    w[3, 4], w[20, 7], w[20, 8], w[31, 0] = 1e6, -1e6, 3e3, -40.0
    return {"w": w}


def uneven(g: torch.Generator) -> Source:
    return {"rows": normal(g, 64, 16) * torch.exp(2 * normal(g, 64, 1)),
            "columns": normal(g, 16, 64) * torch.exp(2 * normal(g, 64)),
            "both": normal(g, 40, 40) * torch.exp(normal(g, 40, 1)) * torch.exp(normal(g, 40))}


def smooth(g: torch.Generator) -> Source:
    return {"rows": normal(g, 150, 12) * torch.logspace(-2, 2, 150)[:, None],
            "columns": normal(g, 12, 150) * torch.logspace(-2, 2, 150)}


def dead(g: torch.Generator) -> Source:
    return {"rows": normal(g, 500, 8) * (torch.arange(500) % 10 == 0)[:, None],
            "columns": normal(g, 8, 500) * (torch.arange(500) % 10 == 0)}


def positive(g: torch.Generator) -> Source:
    return {"gain": torch.rand(100, generator=g) + 0.5, "wide": torch.exp(3 * normal(g, 80)),
            "narrow": 1 + 0.01 * torch.rand(70, generator=g),
            "half": (torch.rand(50, generator=g) + 0.5).half(), "brain": (torch.rand(50, generator=g) + 0.5).bfloat16()}


def lattice(g: torch.Generator) -> Source:
    return {"ternary": torch.randint(-1, 2, (90, 90), generator=g).float(),
            "five": torch.randint(-2, 3, (30, 40), generator=g) * 1.5}


def parametric(g: torch.Generator) -> Source:
    """Weights drawn from each parametric shape: scale index 29 is a deviation of 8 levels, so theirs is 1."""
    def draw(shape: int) -> Tensor:
        weights = torch.tensor(decoder.level_weights(shape, 29, 0, -128, 128), dtype=torch.float64)
        level = torch.multinomial(weights / weights.sum(), 40 * 50, replacement=True, generator=g) - 128
        return ((level + torch.rand(40 * 50, generator=g) - 0.5) / 8).reshape(40, 50)
    return {f"shape.{shape}": draw(shape) for shape in range(8)}


def tiles(g: torch.Generator) -> Source:
    rows, columns, grid = torch.zeros(40000, 4), torch.zeros(4, 40000), torch.zeros(600, 640)
    rows[::999], columns[:, ::999], grid[::40] = normal(g, 41, 4), normal(g, 4, 41), normal(g, 15, 640)
    return {"rows": rows, "columns": columns, "grid": grid}


def blocks(g: torch.Generator) -> Source:
    """Scales that change from block to block; the block of zeros is skipped, the wide plane has several CTUs."""
    def scale(rows: int, columns: int) -> Tensor:
        coarse = torch.exp(1.5 * normal(g, -(-rows // 24), -(-columns // 24)))
        return coarse.repeat_interleave(24, 0).repeat_interleave(24, 1)[:rows, :columns]

    middle = normal(g, 100, 116) * scale(100, 116)
    middle[24:72, 48:96] = 0
    return {"ragged": middle, "wide": normal(g, 270, 260) * scale(270, 260), "half": (normal(g, 90, 96) * scale(90, 96)).half()}


def waves(g: torch.Generator) -> Source:
    """Scales that no product of a row and a column has."""
    scale = torch.exp(2 * torch.sin(torch.arange(160) / 9)[:, None] * torch.cos(torch.arange(120) / 7))
    return {"w": normal(g, 160, 120) * scale, "v": normal(g, 120, 160) * scale.T}


def halves(g: torch.Generator) -> Source:
    return {"half": normal(g, 30, 20).half(), "brain": normal(g, 30, 20).bfloat16(), "tiny": (normal(g, 30, 20) * 2e-6).half(),
            "large": (normal(g, 30, 20) * 25000).clamp(-65504, 65504).half()}


def exact(g: torch.Generator) -> Source:
    """Every dtype, and data for which each filter is the best."""
    small = torch.randint(0, 9, (100,), generator=g)
    return {"float32.near": normal(g, 100) + 100, "float32.noise": torch.randint(0, 256, (80,), generator=g,
                                                                                 dtype=torch.uint8).view(torch.float32)[1:],
            "float32.special": torch.tensor([1.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45]),
            "float64": normal(g, 60).double(),
            "float16": normal(g, 60).half() + 3, "bfloat16": normal(g, 60).bfloat16() + 3, "int64": torch.arange(300) - 5,
            "int32": small.cumsum(0).int(),
            "int16": (torch.arange(300) * 37).short(), "int8": small.to(torch.int8) - 4,
            "uint8": torch.randint(0, 256, (90,), generator=g, dtype=torch.uint8),
            "bool": torch.arange(300) % 3 == 0, "float8_e4m3fn": normal(g, 40).to(torch.float8_e4m3fn),
            "float8_e5m2": normal(g, 40).to(torch.float8_e5m2),
            "float8_e4m3fnuz": normal(g, 40).to(torch.float8_e4m3fnuz),
            "float8_e5m2fnuz": normal(g, 40).to(torch.float8_e5m2fnuz),
            "complex64": torch.complex(normal(g, 30), normal(g, 30)),
            "complex128": torch.complex(normal(g, 30), normal(g, 30)).to(torch.complex128),
            "uint16": torch.arange(200).to(torch.uint16), "uint32": small.to(torch.uint32),
            "uint64": torch.arange(100).to(torch.uint64)}


def constants(g: torch.Generator) -> Source:
    return {"zero": torch.zeros(7, 5), "minus zero": torch.full((3,), -0.0), "one": torch.ones(9, dtype=torch.float16),
            "nan": torch.full((4,), float("nan")),
            "true": torch.ones(5, dtype=torch.bool), "wide": torch.full((2, 2), 1 + 2j, dtype=torch.complex128),
            "number": torch.tensor(12345),
            "large": torch.full((300, 300), 0.1)}


def shapes(g: torch.Generator) -> Source:
    return {"scalar": torch.tensor(3.14159), "scalar.int": torch.tensor(-7, dtype=torch.int32), "empty": torch.zeros(0),
            "empty.rows": torch.zeros(0, 3), "empty.columns": torch.zeros(3, 0, dtype=torch.int16),
            "empty.wide": torch.zeros(2, 0, dtype=torch.complex128), "one": normal(g, 1), "ones": normal(g, 1, 1, 1, 1),
            "many": normal(g, 2, 1, 3, 1, 2, 1, 2, 2), "row": normal(g, 1, 60), "column": normal(g, 60, 1),
            "vector": normal(g, 61)}


class Tied(nn.Module):
    """Weights that are shared, and one that is merely equal."""

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        self.embedding, self.head, self.copy = nn.Embedding(20, 12), nn.Linear(12, 20, bias=False), nn.Linear(12, 20, bias=False)
        self.embedding.weight.data = normal(g, 20, 12)
        self.head.weight = self.embedding.weight
        self.copy.weight.data = self.embedding.weight.data.clone()
        self.register_buffer("steps", torch.arange(40))
        self.register_buffer("same", torch.arange(40))


def names(g: torch.Generator) -> Source:
    """Names that would clash with the keys of the container, and others that are unusual."""
    unusual = ("nnc", "nnc#", "nnc_gain", "__metadata__", "__metadata__#", "", "größe/Ω\n", "a" * 500)
    return {name: normal(g, 5) for name in unusual}


def plain(g: torch.Generator) -> Source:
    return names(g) | {"half": normal(g, 3, 4).half(), "brain": normal(g, 3).bfloat16(), "flags": torch.arange(9) % 2 == 0,
                       "numbers": torch.arange(6), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 2),
                       "coded": normal(g, 12, 12)}


def several(g: torch.Generator) -> Source:
    others = {"lattice": torch.randint(-1, 2, (60, 60), generator=g).float(), "steps": torch.arange(50)}
    return {f"layer.{i}.weight": normal(g, 40, 50) for i in range(4)} | others


def uneven_losses(g: torch.Generator) -> Source:
    return {"w": normal(g, 60, 50), "few rows": normal(g, 9, 70), "conv": normal(g, 8, 6, 3, 3).half(),
            "few columns": normal(g, 70, 9).bfloat16(), "bias": normal(g, 40)}


def insensitive_gains(g: torch.Generator) -> Source:
    return {"w": normal(g, 40, 30)} | {f"gain.{n}": torch.exp(normal(g, 90)) for n in range(10)}



def original(g: torch.Generator) -> Source:
    """What `tuned` and `retuned` are differences to."""
    return {"first.weight": normal(g, 24, 20), "first.bias": normal(g, 24), "second.weight": normal(g, 16, 24),
            "conv.weight": normal(g, 10, 24, 3, 3), "wide.weight": normal(g, 300, 6), "half": normal(g, 18, 16).half(),
            "brain": normal(g, 18, 16).bfloat16(), "mixed": normal(g, 18, 16), "few rows": normal(g, 9, 70),
            "few columns": normal(g, 70, 9), "same": normal(g, 9, 7), "other shape": normal(g, 12, 11),
            "only there": normal(g, 6), "steps": torch.arange(40), "flags": torch.arange(60) % 7 == 0,
            "double": normal(g, 30).double(), "small": torch.randint(0, 200, (90,), generator=g, dtype=torch.uint8)}


def near(g: torch.Generator, tensor: Tensor, noise: float = 0.05) -> Tensor:
    return (tensor.float() + noise * normal(g, *tensor.shape)).to(tensor.dtype)


def tuned(g: torch.Generator) -> Source:
    """Rows in another order, with the columns of the next layers; some rows unrelated, others of less weight."""
    base = original(torch.Generator().manual_seed(1))
    hidden, wide = torch.randperm(24, generator=g), torch.randperm(300, generator=g)
    first = near(g, base["first.weight"][hidden])
    first[:5], first[5:9] = normal(g, 5, 20), first[5:9] * 0.6
    few = near(g, base["few rows"])
    few[::3] = normal(g, 3, 70)
    moved = {"first.weight": first, "first.bias": base["first.bias"][hidden] + 0.01 * normal(g, 24),
             "second.weight": near(g, base["second.weight"][:, hidden]),
             "conv.weight": near(g, base["conv.weight"][:, hidden]) * torch.linspace(0.3, 1, 10)[:, None, None, None],
             "wide.weight": near(g, base["wide.weight"][wide])}
    near_ones = {name: near(g, base[name]) for name in ("half", "brain", "few columns")}
    counted = {"steps": torch.arange(40) + torch.randint(0, 2, (40,), generator=g), "same": base["same"].clone(),
               "twin": base["same"].clone(), "flags": base["flags"]}
    others = {"other shape": normal(g, 11, 12), "only here": normal(g, 15), "few rows": few,
              "mixed": near(g, base["mixed"]).bfloat16()}
    return moved | near_ones | counted | others


def retuned(g: torch.Generator) -> Source:
    """Without loss: a few numbers of each tensor changed a little."""
    base = original(torch.Generator().manual_seed(1))

    def stepped(tensor: Tensor, kind: torch.dtype) -> Tensor:
        return (tensor.view(kind) + torch.randint(-1, 2, tensor.shape, generator=g).to(kind)).view(tensor.dtype)

    return {"steps": base["steps"], "half": stepped(base["half"], torch.int16), "brain": stepped(base["brain"], torch.int16),
            "same": stepped(base["same"], torch.int32), "double": stepped(base["double"], torch.int64),
            "small": stepped(base["small"], torch.uint8), "flags": base["flags"] ^ (torch.arange(60) == 20)}


def later_tiles(g: torch.Generator) -> Source:
    return {name: torch.where(plane == 0, plane, near(g, plane, 0.2)) for name, plane in
            tiles(torch.Generator().manual_seed(1)).items()}


def later_weight(g: torch.Generator) -> Source:
    base = torch.randn(120, 140, generator=torch.Generator().manual_seed(1))
    return {"nnc_weight": near(g, base, 0.3)}


def kernels(g: torch.Generator) -> Source:
    """Smooth kernels of one, two and three axes, and channels that are alike in groups of eight."""
    def smooth_taps(*shape: int) -> Tensor:
        w = normal(g, *shape)
        for axis in range(2, len(shape)):
            w = w.cumsum(axis)
        return w
    alike = normal(g, 64, 8, 1).expand(64, 8, 8).reshape(64, 64) + 0.2 * normal(g, 64, 64)
    return {"conv1": smooth_taps(16, 12, 5), "conv2": smooth_taps(24, 16, 3, 3), "conv3": smooth_taps(8, 6, 2, 3, 4),
            "alike": alike, "half": smooth_taps(16, 16, 3, 3).half()}


def alike(g: torch.Generator) -> Source:
    """Columns and rows that foretell each other: near to those before, in clusters, one per tap."""
    walk = normal(g, 60, 40)
    for j in range(1, 40):
        walk[:, j] = 0.95 * walk[:, j - 1] + 0.3 * walk[:, j]
    clusters = normal(g, 5, 48)[torch.randint(0, 5, (200,), generator=g)] + 0.2 * normal(g, 200, 48)
    taps = (normal(g, 64, 1, 3, 3) + 0.3 * normal(g, 64, 24, 3, 3)).bfloat16()
    return {"walk": walk, "down": walk.T.contiguous(), "clusters": clusters, "taps": taps, "wide": clusters.T.contiguous()}


def clusters(g: torch.Generator) -> Source:
    """Columns of a few clusters, also with rows that are zero but for a centre's error, half in bfloat16."""
    found = normal(g, 6, 40)[torch.randint(0, 6, (300,), generator=g)] + 0.4 * normal(g, 300, 40)
    holes = found.clone()
    holes[:, ::7] = 0
    uneven = found * torch.exp(normal(g, 40))
    return {"rows": found, "columns": found.T.contiguous(), "holes": holes, "short": uneven.bfloat16()}


def smooth_field(g: torch.Generator, rows: int, columns: int) -> Tensor:
    """Random, of first order along both axes."""
    plane = normal(g, rows, columns)
    for _ in range(2):
        for i in range(1, len(plane)):
            plane[i] = 0.95 * plane[i - 1] + 0.3 * plane[i]
        plane = plane.T.contiguous()
    return plane


def smooth_fields(g: torch.Generator) -> Source:
    return {"field": smooth_field(g, 60, 50), "conv": smooth_field(g, 40, 45).reshape(40, 5, 3, 3) + 2,
            "half": smooth_field(g, 41, 37).half(), "brain": smooth_field(g, 33, 48).bfloat16(), "noise": normal(g, 40, 30)}


def folded_fields(g: torch.Generator) -> Source:
    """Columns that follow from the one before by a map that folds."""
    def fold(rows: int, columns: int) -> Tensor:
        found = [normal(g, rows) * 0.3]
        for _ in range(columns - 1):
            found.append(1 - 1.5 * found[-1].abs() + 0.1 * normal(g, rows))
        return torch.stack(found, 1)
    return {"folded": fold(96, 60), "brain": fold(70, 43).bfloat16()}


def wave_fields(g: torch.Generator) -> Source:
    """One whose rows swing, so that two of them are needed, and one that runs along the diagonal."""
    rippled, slanted = normal(g, 90, 70), normal(g, 70, 90)
    for i in range(2, 90):
        rippled[i] = 1.5 * rippled[i - 1] - 0.9 * rippled[i - 2] + 0.1 * rippled[i]
    for i in range(1, 70):
        slanted[i, 1:] = 0.97 * slanted[i - 1, :-1] + 0.1 * slanted[i, 1:]
    return {"rippled": rippled, "slanted": slanted}


def heavy(g: torch.Generator) -> Source:
    """A few weights far beyond the others."""
    scattered = normal(g, 60, 50)
    scattered.view(-1)[torch.randperm(3000, generator=g)[:12]] *= 1e4
    return {"single": scattered, "half": (scattered / 1e3).half(), "brain": scattered.bfloat16()}


def few(g: torch.Generator) -> Source:
    values = torch.tensor([0.0, 0.3, 1.1])[torch.randint(0, 3, (256, 130), generator=g)]
    return {"single": values, "half": values.half()}


@dataclass(frozen=True)
class Force:
    """clusters: fields of a codebook, None for levels as usual; where: the first and further numbers of a slice of outliers, none
    if empty; values: of these."""
    clusters: dict | None = None
    where: tuple[int, ...] = ()
    values: str = "half"


FORCED = {
    "mask": Force(where=tuple(n * (n + 1) // 2 + n % 3 for n in range(2, 53)), values="raw"), "gaps": Force(where=(5, 300, 301, 900), values="quantized"),
    "runs": Force(where=(*range(100, 160), *range(700, 790)), values="half"), "planes": Force(where=tuple(range(9, 1440, 36))),
    "scalar": Force({"mode": "scalar", "centroids": 9}), "wide": Force({"mode": "scalar", "centroids": 400, "halves": True}),
    "sub-vector": Force({"mode": "sub-vector", "size": 4, "centroids": 20, "across": 2, "along": 3}),
    "kernel": Force({"mode": "kernel", "centroids": 30, "rows": True}), "filter": Force({"mode": "filter", "centroids": 6, "along": 2}),
    "channel": Force({"mode": "channel", "centroids": 2, "along": 4}),
    "column sub-vector": Force({"mode": "column sub-vector", "size": 5, "centroids": 25, "halves": True}),
    "both": Force({"mode": "kernel", "centroids": 20}, tuple(range(0, 1440, 97)), "raw"),
    "half": Force({"mode": "sub-vector", "size": 2, "centroids": 60}, (0, 1439)),
    "brain": Force({"mode": "sub-vector", "size": 9, "centroids": 20, "rows": True}, (1, 2), "raw"),
}


def forced(g: torch.Generator) -> Source:
    tensors = {name: normal(g, 40, 4, 3, 3) * torch.linspace(0.2, 2, 40)[:, None, None, None] for name in FORCED}
    tensors["planes"].view(-1)[9::36] = 5
    return tensors | {"half": tensors["half"].half(), "brain": tensors["brain"].bfloat16()}


CASES = [
    *(Case(f"states-{n}", layers, {"step": 0.4, "states": n, "labelling": "plain"}, seed=n) for n in STATES),
    *(Case(f"states-{n}-sign-symmetric", layers, {"step": 0.8, "states": n, "labelling": "sign-symmetric"}, seed=n)
      for n in STATES[1:]),
    Case("bypass", layers, {"step": 3e-4}),
    Case("bypass-follow", uneven, {"snr": 60}),
    Case("bypass-one-state", layers, {"step": 1e-3, "states": 1}),
    Case("tools-outliers", heavy, {"step": 0.5, "tools": "outliers,codebook"}),
    Case("tools-codebooks", few, {"step": 0.5, "tools": "outliers,codebook"}),
    Case("tools-forced", forced, {"step": 0.3, "tools": "outliers,codebook"}, forced=True),
    Case("tools-ctus", lambda g: {"scalar": (normal(g, 300, 300) > 1.5).float()}, {"step": 0.3, "tools": "outliers,codebook"}, forced=True),
    *(Case(f"networks-{kind}", kernels, {"snr": 15, "entropy": "context"}, networks=kind) for kind in ("hyper", "context", "shipped")),
    Case("networks-bypass", uneven, {"snr": 60, "entropy": "context"}, networks="both"),
    Case("networks-one-state", layers, {"step": 0.6, "states": 1, "entropy": "context"}, networks="both"),
    Case("networks-sign-symmetric", heavy, {"step": 0.8, "labelling": "sign-symmetric", "entropy": "context"}, networks="both"),
    Case("networks-dead", dead, {"snr": 12, "entropy": "context"}, networks="both"),
    *(Case(f"networks-memory-{kind}", alike, {"snr": 14, "entropy": "context"}, networks=kind) for kind in ("hyper", "context")),
    Case("networks-ctus", lambda g: {name: normal(g, 260, 256) for name in "abc"}, {"step": 2.0, "entropy": "context"}, networks="both"),
    Case("networks-own", waves, {"step": 0.7, "labelling": "sign-symmetric", "entropy": "context"}),
    Case("escapes", outliers, {"step": 1.0}),
    Case("escapes-bypass", lambda g: {"w": outliers(g)["w"].clamp(-3e3, 3e3)}, {"step": 0.01}),
    Case("codes-uneven", uneven, {"step": 0.3}),
    Case("codes-uneven-follow", uneven, {"snr": 15}),
    Case("codes-smooth", smooth, {"step": 0.5}),
    Case("codes-smooth-follow", smooth, {"snr": 20}),
    Case("codes-dead", dead, {"step": 0.3}),
    Case("codes-dead-follow", dead, {"snr": 12}),
    *(Case(f"trees-{n}", blocks, {"step": 0.5, "states": n, "tools": "tree"}, seed=n) for n in (1, 8)),
    Case("trees-follow", blocks, {"snr": 14, "tools": "tree"}),
    Case("trees-bypass", blocks, {"snr": 45, "tools": "tree"}),
    Case("logarithmic", positive, {"snr": 20}),
    Case("parametric", parametric, {"step": 0.5}, seed=5),
    Case("explicit", lattice, {"step": 0.25}),
    Case("explicit-one-state", lattice, {"step": 0.5, "states": 1}),
    Case("ctus", tiles, {"snr": 10}),
    Case("ctus-dense", lambda g: {"w": normal(g, 300, 300)}, {"snr": 2}),
    Case("halves", halves, {"snr": 14}),
    Case("exact", exact, {"rules": ("*=exact",)}),
    Case("constants", constants),
    Case("shapes", shapes, {"snr": 20}),
    Case("ties", Tied, {"bits": 8}),
    Case("own-coded", lambda g: {"nnc_weight": normal(g, 120, 140), "small": normal(g, 30)}, {"snr": 48}),
    Case("own-exact", lambda g: {"noise": torch.randint(0, 256, (16400,), generator=g, dtype=torch.uint8),
                                 "small": normal(g, 9)}),
    Case("plain", plain, {"rules": ("*=skip", "coded=finer:4")}),
    Case("names", names, {"snr": 20}),
    Case("nothing", lambda g: {"nothing": torch.zeros(0)}),
    Case("effort-fast", several, {"bits": 2.5, "effort": "fast"}),
    Case("effort-max", several, {"bits": 2.5, "effort": "max"}),
    *(Case(f"calibrated-{n}", uneven_losses, {"bits": 4, "states": n}, seed=n, calibrated=True) for n in (1, 8, 64)),
    Case("calibrated-sign-symmetric", uneven_losses, {"bits": 2.5, "labelling": "sign-symmetric"}, calibrated=True),
    Case("calibrated-ctus", lambda g: {"w": normal(g, 300, 300)}, {"bits": 2}, calibrated=True),
    Case("calibrated-logarithmic", insensitive_gains, {"bits": 6}, calibrated=True),
    Case("trees-calibrated", blocks, {"bits": 3, "tools": "tree"}, calibrated=True),
    *(Case(f"step-unit-{unit}", uneven_losses, {"bits": 5}, seed=unit, calibrated=True, unit=unit)
      for unit in decoder.UNITS),
    Case("transform", kernels, {"snr": 15}),
    Case("transform-calibrated", kernels, {"bits": 3}, calibrated=True),
    Case("memory", alike, {"snr": 18}),
    Case("memory-fast", alike, {"snr": 30, "states": 1}, seed=2),
    Case("memory-calibrated", alike, {"bits": 3.5}, seed=3, calibrated=True),
    Case("centres", clusters, {"snr": 12}, centres=4),
    Case("centres-step", clusters, {"step": 0.4}, centres=8),
    Case("centres-one-state", clusters, {"step": 0.5, "states": 1}, centres=3),
    Case("centres-sign-symmetric", clusters, {"step": 0.7, "labelling": "sign-symmetric"}, centres=8),
    Case("centres-bypass", clusters, {"snr": 60}, centres=8),
    Case("centres-calibrated", clusters, {"bits": 3}, centres=8, calibrated=True),
    Case("centres-trees", clusters, {"step": 0.5, "tools": "memory,tree"}, centres=8),
    Case("centres-strips", table, {"step": 0.12}, centres=5),
    Case("centres-strips-learned", table, {"step": 0.3}, centres=7, latents="learned"),
    Case("centres-ctus", lambda g: {"w": normal(g, 8, 96)[torch.randint(0, 8, (900,), generator=g)] + normal(g, 900, 96)}, {"step": 1.0}, centres=8),
    Case("shards", several, {"snr": 18, "shard_bytes": 1800}, folder=True),
    Case("original", original, {"snr": 25, "rules": tuple(f"{name}=exact" for name in ("same", "half", "brain"))}),
    Case("siblings", siblings, {"snr": 20}),
    Case("siblings-learned", siblings, {"bits": 2}, latents=None),
    Case("siblings-calibrated", siblings, {"bits": 3}, calibrated=True),
    Case("siblings-lossless", siblings, {"lossless": True}),
    Case("siblings-shards", siblings, {"snr": 15, "shard_bytes": 5000}, folder=True),
    Case("predicted", tuned, {"snr": 20}, seed=2, reference="original"),
    Case("predicted-fine", tuned, {"snr": 50, "states": 1}, seed=3, reference="original"),
    Case("predicted-chain", tuned, {"step": 0.1, "labelling": "sign-symmetric"}, seed=2, reference="predicted"),
    Case("predicted-lossless", retuned, {"lossless": True}, reference="original"),
    Case("predicted-shards", tuned, {"snr": 20, "shard_bytes": 500}, seed=4, folder=True, reference="original"),
    Case("predicted-from-shards", lambda g: {name: near(g, w) for name, w in several(torch.Generator().manual_seed(1)).items()
                                             if w.is_floating_point()}, {"bits": 2}, seed=2, reference="shards"),
    Case("predicted-ctus", later_tiles, {"snr": 12}, seed=2, reference="ctus"),
    Case("predicted-own", later_weight, {"snr": 60}, seed=2, reference="own-coded"),
    *(Case(f"predicted-calibrated-{n}", tuned, {"bits": 4, "states": n}, seed=n, calibrated=True, reference="original")
      for n in (1, 8)),
    Case("tiled", smooth_fields, {"snr": 34, "tools": "tiles"}),
    Case("tiled-coarse", smooth_fields, {"snr": 8, "tools": "tiles"}, seed=2),
    Case("tiled-own", lambda g: {"nnc_field": smooth_field(g, 230, 210)}, {"snr": 42, "tools": "tiles"}, seed=3),
    Case("tiled-hidden", folded_fields, {"snr": 20, "tools": "tiles"}, tiles={"height": 8, "width": 1}),
    Case("tiled-deep", wave_fields, {"snr": 20, "tools": "tiles"}, tiles={"height": 4, "width": 4}),
    Case("tiled-steps", smooth_fields, {"snr": 20, "tools": "tiles"}, seed=4,
         tiles={"height": 5, "width": 3, "most_steps": 3, "predictor": "linear"}),
    Case("tiled-raw", smooth_fields, {"snr": 20, "tools": "tiles"}, seed=5, tiles={"trained": False, "predictor": "none"}),
    Case("tiled-plain", smooth_fields, {"snr": 20, "tools": "tiles"}, seed=6,
         tiles={"height": 4, "width": 4, "predictor": "linear", "plain": "sine", "predicted": "none"}),
    *(Case(f"joined-{name}", source, options, latents=None, **more) for name, source, options, more in (
        ("few", several, {"snr": 18}, {}),
        ("states-64", layers, {"step": 0.4, "states": 64}, {}),
        ("uneven", uneven, {"step": 0.3}, {}),
        ("dead-follow", dead, {"snr": 12}, {}),
        ("bypass", uneven, {"snr": 60}, {}),
        ("escapes", outliers, {"step": 1.0}, {}),
        ("ctus", lambda g: {"w": normal(g, 300, 300), "v": normal(g, 40, 30)}, {"snr": 2}, {}),
        ("logarithmic", positive, {"snr": 20}, {}),
        ("shapes", shapes, {"snr": 20}, {}),
        ("kernels", kernels, {"snr": 15}, {}),
        ("trees", blocks, {"step": 0.5, "tools": "tree"}, {}),
        ("outliers", heavy, {"step": 0.5, "tools": "outliers,codebook"}, {}),
        ("memory", alike, {"snr": 18}, {}),
        ("shards", several, {"snr": 18, "shard_bytes": 1800}, {"folder": True}),
        ("calibrated", uneven_losses, {"bits": 4}, {"calibrated": True}),
        ("memory-calibrated", alike, {"bits": 3.5}, {"seed": 3, "calibrated": True}),
        ("centres", clusters, {"snr": 12}, {"centres": 4}),
        ("kernels-calibrated", kernels, {"bits": 3}, {"calibrated": True}),
        ("predicted", tuned, {"snr": 20}, {"seed": 2, "reference": "original"}),
        ("predicted-calibrated", tuned, {"bits": 4}, {"seed": 8, "calibrated": True, "reference": "original"}),
        ("networks-hyper", uneven, {"step": 0.3, "entropy": "hyper"}, {"networks": "hyper"}),
        ("networks-context", kernels, {"snr": 15, "entropy": "context"}, {"networks": "context"}))),
    *(Case(f"learned-{name}", source, options, latents="learned", **more) for name, source, options, more in (
        ("calibrated", uneven_losses, {"bits": 4}, {"calibrated": True}),
        ("ctus", lambda g: {"w": normal(g, 300, 300) * torch.linspace(0.2, 4, 300)[:, None]}, {"snr": 2}, {}),
        ("memory", alike, {"snr": 18}, {}),
        ("centres", clusters, {"snr": 12}, {"centres": 8}),
        ("predicted", tuned, {"snr": 20}, {"seed": 2, "reference": "original"}))),
]
