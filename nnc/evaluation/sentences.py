"""Sentence similarity: rank correlation (Spearman x 100) of the cosine of two embeddings with the score of a human.

An encoder of Hugging Face is pooled here: the mean of the last hidden states over the tokens of the sentence, scaled to
norm 1.  Any other network is called as `model(ids, lengths)` and returns vectors of norm 1.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.data import check_whole, pick, read_arrays, read_pairs, whole_option
from nnc.evaluation.pretrained import is_pretrained, read_tokenizer, tokenize
from nnc.evaluation.task import Batches, Task


def similarity(ids: np.ndarray, lengths: np.ndarray, scores: np.ndarray, *, batch: int | str = 64,
               name: str = "similarity") -> Task:
    """Spearman x 100 over pairs of sentences; (n, t) int64 ids and (n,) int64 lengths go in, (n, d) float unit vectors come out.

    ids      integers (2 n, t): the first sentences of the n pairs, then the second ones; the padding may be any id
    lengths  integers (2 n,), 1..t
    scores   (n,), finite, not all equal
    batch    sentences at a time, sorted by length so that little padding is computed

    Raises InvalidArgument for wrong dtypes, shapes and values, InsufficientData for fewer than 2 pairs or equal scores.
    """
    ids, lengths = check_whole(ids, f"{name}: ids", 2), check_whole(lengths, f"{name}: lengths", 1)
    count = len(scores)
    if scores.ndim != 1 or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise InvalidArgument(f"{name}: scores of dtype {scores.dtype} and shape {scores.shape}, must be finite numbers (n,)")
    if len(ids) != 2 * count or len(lengths) != 2 * count:
        raise InvalidArgument(f"{name}: {len(ids)} sentences and {len(lengths)} lengths, must be {2 * count} for {count} scores")
    if int(lengths.min()) < 1 or int(lengths.max()) > ids.shape[1]:
        raise InvalidArgument(f"{name}: lengths are {lengths.min()}..{lengths.max()}, must be in 1..{ids.shape[1]}")
    if count < 2 or (scores == scores[0]).all():
        raise InsufficientData(f"{name}: {count} pair(s), needs at least 2 with different scores")
    size = whole_option("batch", batch)
    order = np.argsort(lengths, kind="stable")

    def make(index: int) -> tuple:
        rows = order[index * size:(index + 1) * size]
        longest = int(lengths[rows].max())
        return torch.from_numpy(ids[rows, :longest]), torch.from_numpy(lengths[rows])

    def vectors(index: int, output: Tensor) -> Tensor:
        rows = len(order[index * size:(index + 1) * size])
        if output.ndim != 2 or len(output) != rows:
            raise InvalidArgument(f"{name}: the model returned shape {tuple(output.shape)}, must be ({rows}, dimensions)")
        return output.cpu()

    def correlation(parts: list[Tensor]) -> float:
        found = torch.cat(parts).double().numpy()
        embedding = np.empty_like(found)
        embedding[order] = found
        return 100.0 * spearman((embedding[:count] * embedding[count:]).sum(1), scores)

    return Task(name, "unit", "Spearman x 100", True, lambda: Batches(-(-2 * count // size), make), correlation, _pooled, vectors)


def read_similarity(data: str | os.PathLike, *, batch: int | str = 64, limit: int | str | None = None,
                    tokenizer: str | os.PathLike | None = None, length: int | str = 256) -> Task:
    """The task of an .npz file (`a_ids`, `a_len`, `b_ids`, `b_len`, `score`) or of a .tsv/.csv file of sentence, sentence, score.

    limit    use only the first so many pairs
    tokenizer, length   for sentences: the folder of the model, and the tokens after which a sentence is cut
    """
    count = None if limit is None else whole_option("limit", limit)
    longest = whole_option("length", length)
    if Path(data).suffix.lower() == ".npz":
        if tokenizer is not None:
            raise InvalidArgument(f"option tokenizer: {data} holds token ids already; leave the option out")
        arrays = read_arrays(data)

        def part(key: str, ndim: int) -> np.ndarray:
            return check_whole(pick(arrays, (key,), data), f"data file {data}: {key}", ndim)[:count]

        sides = [part("a_ids", 2), part("b_ids", 2)]
        lengths = np.concatenate([part("a_len", 1), part("b_len", 1)])
        width = max(side.shape[1] for side in sides)
        ids = np.concatenate([np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in sides])
        if len(sides[0]) != len(sides[1]):
            raise InvalidArgument(f"data file {data}: {len(sides[0])} a_ids and {len(sides[1])} b_ids, must be as many")
        return similarity(ids, lengths, pick(arrays, ("score",), data)[:count], batch=batch)
    first, second, scores = read_pairs(data)
    if tokenizer is None:
        raise InvalidArgument(f"data file {data}: sentences need the option tokenizer, the folder of the model")
    coder = read_tokenizer(tokenizer)
    coded = [tokenize(coder, text, longest) for text in first[:count] + second[:count]]
    empty = next((row for row, tokens in enumerate(coded) if not tokens), None)
    if empty is not None:
        raise InvalidArgument(f"data file {data}: a sentence of pair {empty % len(scores[:count]) + 1} has no tokens")
    lengths = np.array([len(tokens) for tokens in coded])
    ids = np.zeros((len(coded), int(lengths.max())), np.int64)
    for row, tokens in zip(ids, coded):
        row[:len(tokens)] = tokens
    return similarity(ids, lengths, scores[:count], batch=batch)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks, ties at their mean rank; 0 where one side is constant, since it then orders nothing."""
    x, y = (rank - rank.mean() for rank in (_ranks(a), _ranks(b)))
    power = float((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / power**0.5 if power > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(ties)
    return (last - (ties - 1) / 2)[place]


def _pooled(module: nn.Module) -> Callable[..., Any]:
    if not is_pretrained(module):
        return module
    encoder = module.base_model

    def embed(ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hidden = encoder(input_ids=ids * mask, attention_mask=mask.long()).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        return nn.functional.normalize(mean, dim=-1)

    return embed
