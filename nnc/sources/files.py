"""Inputs from a data file; what is in it is told by its ending, the names of its arrays and their dtype.

| file | inputs | options |
|---|---|---|
| .npz with `images` or `x`, or one floating-point or uint8 array; .npy of one | samples, in an order drawn from the seed | batch, mean, std |
| .npz with `tokens`, `input_ids` or `ids`, or one integer array; .npy of one | windows of token ids | batch, window |
| .npz with `a_ids`; .tsv and .csv of sentence, sentence, score | sentences, pooled to vectors | batch, tokenizer, length |
| any other file | text: windows for a model of the next token, else a sentence a line | batch, window or length, tokenizer |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.data import check_whole, pick, read_arrays, read_text, whole_option
from nnc.evaluation.images import classification
from nnc.evaluation.language import perplexity
from nnc.evaluation.pretrained import is_pretrained, read_tokenizer, tokenize
from nnc.evaluation.sentences import read_similarity
from nnc.evaluation.task import Batches
from nnc.sources.inputs import Draft
from nnc.sources.language import TOKENS, find_context, find_vocabulary, is_causal, windows_at_a_time

IMAGES, IDS = ("images", "x"), ("tokens", "input_ids", "ids")
SAMPLES, SENTENCES = 1024, 512  # used where nothing else is asked for
BATCH, SENTENCE_BATCH = 32, 16
SENTENCE = 256  # tokens after which a sentence is cut
LETTERS = 16  # of text that are read per token that is needed: a token has fewer


def read_file(
    path: str | os.PathLike,
    network: nn.Module,
    folder: str | os.PathLike | None,
    samples: int | None,
    seed: int,
    options: Mapping[str, Any],
) -> Draft:
    """The inputs of a file; folder: where the tokenizer is if no option says so."""
    name, suffix = Path(path).name, Path(path).suffix.lower()
    if suffix in (".npy", ".npz"):
        arrays = read_arrays(path)
        if "a_ids" in arrays:
            _check_options(name, options, ("batch", "length"))
            task = read_similarity(path, limit=_pairs(samples), **options)
            return Draft(name, task.batches(), task.prepare, task.kind)
        return arrays_draft(arrays, path, network, samples, seed, options)
    if suffix in (".tsv", ".csv"):
        _check_options(name, options, ("batch", "length", "tokenizer"))
        given = {"tokenizer": folder, **options}
        task = read_similarity(path, limit=_pairs(samples), **given)
        return Draft(name, task.batches(), task.prepare, task.kind)
    return _text_draft(path, network, folder, samples, options)


def arrays_draft(
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    network: nn.Module,
    samples: int | None,
    seed: int,
    options: Mapping[str, Any],
) -> Draft:
    """Inputs in arrays by name; path: what they are called in messages."""
    name = Path(path).name
    ids = next((key for key in IDS if key in arrays), None)
    whole = [key for key in arrays if arrays[key].dtype.kind in "iu" and arrays[key].dtype != np.uint8]
    if not any(key in arrays for key in IMAGES) and (ids is not None or len(arrays) == 1 and whole):
        _check_options(name, options, ("batch", "window"))
        return tokens_draft(arrays[ids if ids is not None else whole[0]], name, network, samples, options)
    _check_options(name, options, ("batch", "mean", "std"))
    images = next(iter(arrays.values())) if len(arrays) == 1 else pick(arrays, IMAGES, path)
    if not images.ndim:
        raise InvalidArgument(f"data file {name}: a single number is no sample; the first axis must be that of the samples")
    with np.errstate(over="ignore"):
        finite = np.isfinite(images.astype(np.float32, copy=False)) if images.dtype.kind == "f" else np.ones(1, bool)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(images), -1).all(1)))
        raise InvalidArgument(f"data file {name}: sample {row} holds NaN or Inf, as float32; remove it")
    # samples are often sorted by class: the first ones, and those held back, would be of one class each
    order = np.random.default_rng(seed).permutation(len(images))[: SAMPLES if samples is None else samples]
    task = classification(images[order], None, **{"batch": BATCH, **options}, name=name)
    return Draft(name, task.batches())


def tokens_draft(tokens: np.ndarray, name: str, network: nn.Module, samples: int | None, options: Mapping[str, Any]) -> Draft:
    """Windows of token ids (n,), or ready windows (n, t)."""
    tokens = check_whole(tokens, f"data file {name}: token ids", (1, 2))
    vocabulary = find_vocabulary(network)
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise InvalidArgument(
            f"data file {name}: a token id is {int(tokens.max())}, the model's table has {vocabulary} rows; "
            "take the tokenizer that belongs to the model"
        )
    if tokens.ndim == 2:
        # every column is input, since no next token is predicted here; windows for that task may be one token too long
        with suppress(InvalidArgument):
            tokens = tokens[:, : find_context(network)]
        size = whole_option("batch", options.get("batch", windows_at_a_time(vocabulary, tokens.shape[1])))
        tokens = tokens[: max(1, TOKENS // tokens.shape[1]) if samples is None else samples]
        return Draft(name, _rows(tokens, size))
    window = options.get("window", None)
    window = min(find_context(network), max(1, len(tokens) - 1)) if window is None else whole_option("window", window)
    count = max(1, TOKENS // window) if samples is None else samples
    size = options.get("batch", windows_at_a_time(vocabulary, window))
    return Draft(name, perplexity(tokens, window=window, batch=size, limit=count, name=f"data file {name}").batches())


def _text_draft(
    path: str | os.PathLike,
    network: nn.Module,
    folder: str | os.PathLike | None,
    samples: int | None,
    options: Mapping[str, Any],
) -> Draft:
    name = Path(path).name
    sentences = is_pretrained(network) and not is_causal(network)
    _check_options(name, options, ("batch", "tokenizer", "length" if sentences else "window"))
    text = read_text(path)
    place = options.get("tokenizer", folder)
    if place is None:
        raise InvalidArgument(f"data file {name}: text needs the option tokenizer, the folder of the model")
    coder = read_tokenizer(place)
    if sentences:
        return _sentences_draft(text, coder, name, network, samples, options)
    window = whole_option("window", options.get("window", find_context(network)))
    count = max(1, TOKENS // window) if samples is None else samples
    ids = np.array(tokenize(coder, text[: LETTERS * (count * window + 1)]), np.int64)
    return tokens_draft(ids, name, network, samples, {key: value for key, value in options.items() if key != "tokenizer"})


def _sentences_draft(
    text: str, coder: Any, name: str, network: nn.Module, samples: int | None, options: Mapping[str, Any]
) -> Draft:
    longest = whole_option("length", options.get("length", min(SENTENCE, find_context(network))))
    size = whole_option("batch", options.get("batch", SENTENCE_BATCH))
    lines = [line.strip() for line in text.splitlines() if line.strip()][: SENTENCES if samples is None else samples]
    coded = [tokens for line in lines if (tokens := tokenize(coder, line, longest))]
    if not coded:
        raise InsufficientData(f"data file {name}: no line has a token")
    vocabulary = find_vocabulary(network)
    largest = max(map(max, coded))
    if vocabulary is not None and largest >= vocabulary:
        raise InvalidArgument(
            f"data file {name}: the tokenizer gives the id {largest}, the model's table has {vocabulary} rows; take its own tokenizer"
        )
    padding = coder.pad_token_id or 0

    def make(index: int) -> tuple:
        rows = coded[index * size : (index + 1) * size]
        ids = torch.full((len(rows), max(map(len, rows))), padding)
        mask = torch.zeros_like(ids)
        for number, tokens in enumerate(rows):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            mask[number, : len(tokens)] = 1
        return ({"input_ids": ids, "attention_mask": mask},)

    return Draft(name, Batches(-(-len(coded) // size), make))


def _rows(array: np.ndarray, size: int) -> Batches:
    return Batches(-(-len(array) // size), lambda index: (torch.from_numpy(np.array(array[index * size : (index + 1) * size])),))


def _pairs(samples: int | None) -> int:
    return SENTENCES if samples is None else samples


def _check_options(name: str, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = next((key for key in options if key not in known), None)
    if unknown is not None:
        raise InvalidArgument(f"data {name}: unknown option {unknown}, must be one of {', '.join(known)}")
