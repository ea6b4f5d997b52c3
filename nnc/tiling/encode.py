"""Encode a tensor as tiles: passes of learning and searching in the closed loop, then its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..coder import checksum, pack_words
from ..directory import MAX_EXPANSION
from ..encoded import EncodedTensor, tensor_bytes
from ..encoder import FINEST, LARGEST_STEP, MAX_EMPTY, SMALLEST_STEP, count_noise, make_plane
from ..entropy.scales import encode_codes
from ..errors import InvalidArgument
from ..fields import Codes
from ..kernels.planes import error_and_energy
from ..kernels.tiles import FRACTION, scale_pixels
from ..kernels.tiling import list_codes, push_codes, search_tiles
from ..tiles.coding import MAX_MEAN, MAX_OFFSET, MAX_STEPS, Predictor, TileCoding
from ..tiles.decode import CONTEXTS, build_network
from ..tiles.layout import MAX_SIDE
from ..tiles.tables import FLAG, MORE, SAME, TABLES, zero_frequencies
from ..tiles.transforms import TRANSFORMS, all_bases
from ..unit import Record
from .learning import Learned
from .models import LOWEST_SCALE, bits_of, codes_of, first_codes, fit_scales, level_costs
from .network import learn_predictors

PASSES = 3
LAGRANGIAN = 0.12  # steps squared per bit


@dataclass(frozen=True)
class Asked:
    """How a tensor is to be tiled.  height, width: of a tile; predictor: "none", "linear", "hidden" (the shortest of these up to
    that one is taken); plain, predicted: transforms; most_steps: of a tile, None for all that its largest level needs; trained: whether
    codes are entropy coded with fitted tables, or are raw bits; lagrangian: steps squared per bit."""

    height: int = 8
    width: int = 8
    predictor: str = "hidden"
    plain: str = "cosine"
    predicted: str = "sine"
    most_steps: int | None = None
    trained: bool = True
    lagrangian: float = LAGRANGIAN

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if not 1 <= side <= MAX_SIDE:
                raise InvalidArgument(f"tiles of {self.height} x {self.width}: sides are 1 to {MAX_SIDE}")


@dataclass(frozen=True, eq=False)
class Choice:
    """What a search chose: see `search_tiles`; steps: most of a tile; error: squared, in steps squared."""

    levels: np.ndarray
    flags: np.ndarray
    skips: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray
    squares: np.ndarray
    steps: int
    digest: int
    error: float


@dataclass(frozen=True, eq=False)
class Model:
    """What the file says beside the codes: scales int64 (2, height, width), table codes, offset of magnitudes, predictor."""

    scales: np.ndarray
    tables: np.ndarray
    offset: int
    learned: Learned | None

    def predictor(self, codes: Codes | None = None) -> Predictor | None:
        p = self.learned
        codes = codes or Codes("none", 0, 0)
        return p and Predictor(p.layout.depth, p.layout.reach, p.shift, p.units, p.hidden_shift, p.bias, codes)

    def network(self) -> tuple:
        return build_network(
            self.predictor(), self.learned and self.learned.layout, self.learned.codes if self.learned else np.zeros(0)
        )


def encode_tiled(name: str, tensor: torch.Tensor, step: float, asked: Asked = Asked()) -> EncodedTensor | None:
    """Code a tensor of finite values as tiles; None if the step is too fine for its largest weight, or too few bytes remain.

    step: distance of neighbouring coefficients."""
    split, plane = make_plane(tensor)
    step = float(np.float32(step))
    if not SMALLEST_STEP < step < LARGEST_STEP or not np.abs(plane).max(initial=0.0) < step * FINEST / MAX_SIDE:
        return None
    coding, data, choice = encode_plane(plane, split, step, asked)
    values = np.empty(plane.shape, np.float32)
    scale_pixels(choice.pixels, coding.mean, np.float32(step), values)
    if not np.isfinite(values).all() or tensor.nelement() * tensor.dtype.itemsize > MAX_EMPTY + MAX_EXPANSION * len(data):
        return None
    error, energy = error_and_energy(plane, values)
    coding = replace(coding, noise=count_noise(error, energy))
    record = Record(name, tensor.dtype, tuple(tensor.shape), "tiled", tiles=coding)
    largest = torch.finfo(tensor.dtype).max
    final = torch.from_numpy(values if tensor.dtype == torch.float32 else np.clip(values, -largest, largest)).to(tensor.dtype)
    return EncodedTensor(record, data, (choice.digest,), checksum(tensor_bytes(final)), error, energy)


def encode_plane(plane: np.ndarray, split: int, step: float, asked: Asked) -> tuple[TileCoding, bytes, Choice]:
    """Code a float32 plane with the cheapest predictor, all side information included.

    Predictors that explain no more than they cost are not tried: what two ways to code a tile gain by being two is no prediction.
    """
    mean = int(np.clip(np.round(float(plane.mean(dtype=np.float64)) / step * (1 << FRACTION)), -MAX_MEAN, MAX_MEAN))
    target = plane.astype(np.float64) / step - mean / (1 << FRACTION)
    best = _encode(target, split, step, mean, asked, None)
    for learned in learn_predictors(target, best[2].pixels, asked.height, asked.width, asked.predictor):
        other = _encode(target, split, step, mean, asked, learned)
        best = min(best, other, key=lambda found: found[2].error + asked.lagrangian * 8 * len(found[1]))
    return best


def _encode(
    target: np.ndarray, split: int, step: float, mean: int, asked: Asked, learned: Learned | None
) -> tuple[TileCoding, bytes, Choice]:
    area = asked.height * asked.width
    first = 2 * np.log2(max(float(np.square(target).mean()), 1e-6)) * np.ones((2, asked.height, asked.width))
    model = Model(np.clip(first, -63, 64).astype(np.int64), first_codes(), 0, learned)
    steps, fewest = MAX_STEPS, 0
    for number in range(PASSES):
        choice = _search(target, asked, model, steps, fewest)
        if number == 0 or steps == MAX_STEPS:
            skipped = choice.skips.astype(np.int64)[:, None]
            steps = int((np.abs(choice.levels.astype(np.int64)) << np.minimum(skipped, 30)).max(initial=0)).bit_length()
            fewest = max(0, steps - asked.most_steps) if asked.most_steps is not None else 0
        if number < PASSES - 1:
            model = _refit(model, choice, asked, target.shape, area, trim(choice.skips, steps))
    skips = trim(choice.skips, steps)
    codes = _list(target.shape, asked, model, choice.levels, choice.flags, skips, steps)
    tables = _count_tables(codes) if asked.trained else np.zeros(TABLES, np.int64)
    zero = zero_frequencies(tables)
    bits = np.bincount(codes, minlength=2 * len(zero)) @ (
        24 - np.log2(np.stack([zero, (1 << 24) - zero.astype(np.int64)], 1))
    ).reshape(-1)
    words = np.empty(int(bits / 32 * 1.05) + 1024, np.uint32)
    stream = pack_words(words[: push_codes(codes, zero, words)])
    parts = [model.scales.reshape(-1)[: (2 if learned else 1) * area], tables, *([learned.codes] if learned else [])]
    coded = [encode_codes(part) for part in parts]
    fields = [Codes(mode, spread, len(data)) for mode, spread, data in coded]
    coding = TileCoding(
        split,
        asked.height,
        asked.width,
        step,
        steps,
        mean,
        model.offset,
        asked.plain,
        asked.predicted if learned else "none",
        0,
        fields[0],
        fields[1],
        model.predictor(fields[2]) if learned else None,
        len(stream),
    )
    return coding, b"".join([*(data for _, _, data in coded), stream]), replace(choice, skips=skips)


def trim(skips: np.ndarray, steps: int) -> np.ndarray:
    """Steps left out, where no tile has more than `steps`."""
    return np.minimum(skips, steps).astype(np.uint8)


def _search(target: np.ndarray, asked: Asked, model: Model, steps: int, fewest: int) -> Choice:
    rows, columns = target.shape
    count, area = -(-rows // asked.height) * -(-columns // asked.width), asked.height * asked.width
    layout = model.learned and model.learned.layout
    levels, flags, skips = np.zeros((count, area), np.int32), np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    pixels, hashes = np.zeros((rows, columns), np.int32), np.zeros(count, np.uint64)
    squares = np.zeros((2, area + 1, 2))
    of_bit = bits_of(model.tables)
    digest, error = search_tiles(
        target,
        asked.height,
        asked.width,
        steps,
        fewest,
        model.offset,
        (TRANSFORMS.id(asked.plain), TRANSFORMS.id(asked.predicted)),
        all_bases(),
        model.scales,
        layout is not None,
        layout.offsets if layout else np.zeros((0, 2), np.int64),
        model.network(),
        level_costs(model.tables),
        LOWEST_SCALE,
        np.ascontiguousarray(of_bit[FLAG : FLAG + 3]),
        np.array([of_bit[SAME, 1], of_bit[SAME, 0] + 2 * of_bit[MORE, 0]]),
        asked.lagrangian,
        levels,
        flags,
        skips,
        pixels,
        hashes,
        squares,
    )
    return Choice(levels, flags, skips, pixels, hashes, squares, steps, int(digest), float(error))


def _list(
    shape: tuple[int, int], asked: Asked, model: Model, levels: np.ndarray, flags: np.ndarray, skips: np.ndarray, steps: int
) -> np.ndarray:
    codes = np.empty(shape[0] * shape[1] * (steps + 1) + len(flags) * (steps + 3), np.uint8)
    predicted = model.learned is not None
    number = list_codes(
        *shape, asked.height, asked.width, steps, CONTEXTS, model.scales, predicted, levels, flags, skips, codes
    )  # fmt: skip
    return codes[:number]


def _count_tables(codes: np.ndarray) -> np.ndarray:
    counts = np.bincount(codes, minlength=2 * TABLES + 2)[: 2 * TABLES].reshape(TABLES, 2)
    return codes_of(counts[:, 0], counts[:, 1])


def _refit(model: Model, choice: Choice, asked: Asked, shape: tuple[int, int], area: int, skips: np.ndarray) -> Model:
    """Scales, tables and offset for what was chosen."""
    scales = fit_scales(choice.squares, area).reshape(2, asked.height, asked.width)
    model = replace(model, scales=scales)
    steps = int(
        np.abs(choice.levels.astype(np.int64) << np.minimum(skips, 30).astype(np.int64)[:, None]).max(initial=0)
    ).bit_length()
    tables = _count_tables(_list(shape, asked, model, choice.levels, choice.flags, np.minimum(skips, steps), steps))
    total, number = choice.squares[:, area].sum(0)
    offset = int(np.clip(np.round(-(1 << FRACTION) * total / number), -MAX_OFFSET, MAX_OFFSET)) if number else 0
    return replace(model, tables=tables, offset=offset)
