"""From the bytes of a tiled tensor to the pixels of its plane, and their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coder import unpack_words
from ..entropy.scales import decode_codes
from ..errors import Corruption
from ..kernels.tiles import decode_tiles, scale_pixels
from ..partition.planes import plane_shape
from .coding import Predictor, TileCoding
from .layout import Layout
from .tables import FLAG, HIGHEST, LOWEST, TABLES, zero_frequencies
from .transforms import TRANSFORMS, all_bases

CONTEXTS = (LOWEST, HIGHEST, FLAG)


@dataclass(frozen=True, eq=False)
class Decoded:
    """values: float32 (rows, columns); pixels: int32, the same in 1/64 step and without the mean; digest: of the pixels; hashes: uint64,
    of the context of every tile, empty if they were not asked for."""

    values: np.ndarray
    pixels: np.ndarray
    digest: int
    hashes: np.ndarray


def build_network(predictor: Predictor | None, layout: Layout | None, codes: np.ndarray) -> tuple:
    """What `predict_tile` takes; codes: int, all weights in the order of the file."""
    if predictor is None:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing, 0, np.zeros((0, 0), np.int64), nothing, np.zeros((0, 0), np.int64), 0
    codes = codes.astype(np.int64)
    counts = layout.linear, predictor.units * layout.context, predictor.units
    linear, inner, biases, outer = np.split(codes, np.cumsum(counts))
    live = np.flatnonzero(linear)
    order = live[np.argsort(layout.joins[live, 0], kind="stable")]
    pixel, index = layout.joins[order].T
    start = np.searchsorted(pixel, np.arange(layout.pixels + 1))
    return (
        start,
        np.ascontiguousarray(index),
        np.ascontiguousarray(linear[order]),
        predictor.shift,
        inner.reshape(predictor.units, layout.context),
        biases << predictor.bias,
        outer.reshape(predictor.units, layout.pixels),
        predictor.hidden_shift,
    )


def decode_plane(coding: TileCoding, shape: tuple[int, ...], data: memoryview, hashed: bool = False) -> Decoded:
    """Decode the bytes of a tiled tensor; Corruption if they do not end where they should or a value is beyond float32."""
    rows, columns = plane_shape(shape, coding.split)
    layout, predictor = coding.layout, coding.predictor
    parts, at = [], 0
    area = coding.height * coding.width
    fields = [(coding.scales, (2 if predictor else 1) * area), (coding.tables, TABLES)]
    if predictor:
        fields.append((predictor.codes, sum(coding.weights)))
    for codes, number in fields:
        parts.append(decode_codes(codes.mode, codes.spread, bytes(data[at : at + codes.length]), number))
        at += codes.length
    words = unpack_words(data[at:])
    scales = np.zeros((2, coding.height, coding.width), np.int64)
    scales.reshape(-1)[: len(parts[0])] = parts[0]
    offsets = layout.offsets if layout else np.zeros((0, 2), np.int64)
    network = build_network(predictor, layout, parts[2] if predictor else np.zeros(0))
    pixels = np.zeros((rows, columns), np.int32)
    count = -(-rows // coding.height) * -(-columns // coding.width)
    hashes = np.zeros(count if hashed else 0, np.uint64)
    state, left, digest = decode_tiles(
        words,
        zero_frequencies(parts[1]),
        CONTEXTS,
        coding.height,
        coding.width,
        coding.steps,
        coding.offset,
        (TRANSFORMS.id(coding.plain), TRANSFORMS.id(coding.predicted)),
        all_bases(),
        scales,
        predictor is not None,
        offsets,
        network,
        pixels,
        hashes,
    )
    if state or left:
        raise Corruption("a stream of tiles does not end where it should: the file is damaged")
    values = np.empty((rows, columns), np.float32)
    scale_pixels(pixels, coding.mean, np.float32(coding.step), values)
    if not np.isfinite([values.min(), values.max()]).all():
        raise Corruption("a value of a tile is beyond float32: the file is damaged")
    return Decoded(values, pixels, int(digest), hashes)
