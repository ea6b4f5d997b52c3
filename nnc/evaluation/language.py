"""Language modelling: windows of tokens, mean cross-entropy of the next token in nats.

A window is `window` tokens of input, and each one predicts the token after it, so a window needs window + 1 tokens and
neighbouring windows of a stream share one token: every token but the first is predicted exactly once.  What is left at the
end of the stream is not used.
"""
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from nnc.errors import InsufficientData, InvalidArgument
from nnc.evaluation.data import check_whole, pick, read_arrays, read_text, whole_option
from nnc.evaluation.pretrained import is_pretrained, read_tokenizer, tokenize
from nnc.evaluation.task import Batches, Task

CHUNK = 1 << 22  # logits that are widened to float64 at a time


def perplexity(tokens: np.ndarray, *, window: int | str = 512, batch: int | str = 8, limit: int | str | None = None,
               name: str = "perplexity") -> Task:
    """Cross-entropy of a network that maps (n, t) int64 token ids to (n, t, vocabulary) logits, or of a Hugging Face causal LM.

    tokens   integers: a stream (n,), cut into windows of `window` + 1; or ready windows (n, t), from which the first t - 1
             tokens are the input, and `window` has no part in it
    batch    windows at a time
    limit    use only the first so many windows

    Raises InvalidArgument for wrong dtypes and shapes, InsufficientData for less than one window.
    """
    tokens = check_whole(tokens, f"{name}: tokens", (1, 2))
    span = whole_option("window", window)
    if tokens.ndim == 1:
        if len(tokens) < span + 1:
            raise InsufficientData(f"{name}: {len(tokens)} tokens, a window needs {span + 1}; lower the option window")
        tokens = np.lib.stride_tricks.sliding_window_view(tokens, span + 1)[::span]
    elif tokens.shape[1] < 2:
        raise InsufficientData(f"{name}: windows of {tokens.shape[1]} token, must have at least 2")
    size = whole_option("batch", batch)
    tokens = tokens[:None if limit is None else whole_option("limit", limit)]

    def make(index: int) -> tuple:
        return (torch.from_numpy(np.array(tokens[index * size:(index + 1) * size, :-1])),)

    def surprise(index: int, output: Tensor) -> Tensor:
        truth = torch.from_numpy(np.array(tokens[index * size:(index + 1) * size, 1:]))
        if output.ndim != 3 or output.shape[:2] != truth.shape:
            raise InvalidArgument(f"{name}: the model returned shape {tuple(output.shape)}, "
                                  f"must be ({len(truth)}, {truth.shape[1]}, vocabulary)")
        if int(truth.max()) >= output.shape[2]:
            raise InvalidArgument(f"{name}: a token is {int(truth.max())}, the model's vocabulary has only {output.shape[2]}")
        rows, wanted = output.flatten(0, 1), truth.flatten().to(output.device)
        step = max(1, CHUNK // rows.shape[1])
        total = sum(float(nn.functional.cross_entropy(r.double(), w, reduction="sum"))
                    for r, w in zip(rows.split(step), wanted.split(step)))
        return torch.tensor(total, dtype=torch.float64)

    def mean(parts: list[Tensor]) -> float:
        return math.fsum(map(float, parts)) / (len(tokens) * (tokens.shape[1] - 1))

    return Task(name, "logits", "CE nats", False, lambda: Batches(-(-len(tokens) // size), make), mean, _causal, surprise)


def read_perplexity(data: str | os.PathLike, *, window: int | str = 512, batch: int | str = 8, limit: int | str | None = None,
                    tokenizer: str | os.PathLike | None = None) -> Task:
    """The task of token ids (.npy; .npz with `tokens`, `input_ids` or `ids`) or of a text, which needs a `tokenizer` folder."""
    if Path(data).suffix.lower() in (".npy", ".npz"):
        if tokenizer is not None:
            raise InvalidArgument(f"option tokenizer: {data} holds token ids already; leave the option out")
        arrays = read_arrays(data)
        tokens = arrays[""] if "" in arrays else pick(arrays, ("tokens", "input_ids", "ids"), data)
    else:
        text = read_text(data)
        if tokenizer is None:
            raise InvalidArgument(f"data file {data}: text needs the option tokenizer, the folder of the model")
        tokens = np.array(tokenize(read_tokenizer(tokenizer), text), dtype=np.int64)
    return perplexity(tokens, window=window, batch=batch, limit=limit)


def _causal(module: nn.Module) -> Callable[..., Any]:
    if not is_pretrained(module):
        return module

    def logits(ids: Tensor) -> Tensor:
        output = module(input_ids=ids, use_cache=False)
        if getattr(output, "logits", None) is None:
            raise InvalidArgument(f"{type(module).__name__} has no head for the next token; perplexity needs a causal LM")
        return output.logits

    return logits
