"""Token ids without data: a language model writes its own text, token by token at temperature 1 from the start token.

Calibration on such text comes close to that on real text (LLM-QAT, Liu et al., "Data-Free Quantization Aware Training for Large
Language Models", 2023).  Without a start token the first token is drawn evenly from the vocabulary; a text that ends is followed by
another.  Networks that read token ids but predict none get ids drawn evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument
from nnc.evaluation.data import whole_option
from nnc.evaluation.pretrained import is_pretrained
from nnc.evaluation.runner import evaluating
from nnc.evaluation.task import Batches
from nnc.sources.calls import device_of, prepare
from nnc.sources.inputs import Draft
from nnc.sources.language import find_context, is_language_model, next_logits, windows_at_a_time

OPTIONS = ("batch", "window")
WRITTEN = 16384  # tokens that are written where nothing else is asked for
PLAIN_WRITTEN, PLAIN_WINDOW = (
    8192,
    256,
)  # of networks that keep no state from one token to the next: each token costs a whole window
RANDOM_WINDOW = 64

Progress = Callable[[int, int, str], None]


def write_text(
    network: nn.Module, vocabulary: int, samples: int | None, seed: int, options: Mapping[str, Any], progress: Progress | None
) -> Draft:
    """Windows (n, t) of ids; samples: windows."""
    speaks = is_language_model(network, vocabulary)
    longest = find_context(network)
    default = min(longest, RANDOM_WINDOW if not speaks else longest if is_pretrained(network) else PLAIN_WINDOW)
    window = whole_option("window", options.get("window", default), 2)
    written = WRITTEN if is_pretrained(network) or not speaks else PLAIN_WRITTEN
    count = max(8, written // window) if samples is None else samples
    size = whole_option("batch", options.get("batch", windows_at_a_time(vocabulary, window)))
    source = torch.Generator().manual_seed(seed)
    if speaks:
        with evaluating(network), torch.inference_mode():
            ids = torch.cat([_write(network, vocabulary, n, window, source, progress, done, count) for done, n in _groups(count)])
        name, note = "text of its own", f"{count} windows of {window} tokens that the network wrote itself"
    else:
        ids = torch.randint(0, vocabulary, (count, window), generator=source)
        name, note = "random tokens", f"{count} windows of {window} random tokens: the network predicts none itself"
    ids = ids.clone()
    return Draft(name, Batches(-(-count // size), lambda index: (ids[index * size : (index + 1) * size],)), notes=(note,))


def _groups(count: int) -> list[tuple[int, int]]:
    """(windows before, windows) that are written side by side."""
    return [(start, min(32, count - start)) for start in range(0, count, 32)]


def _write(
    network: nn.Module,
    vocabulary: int,
    count: int,
    window: int,
    source: torch.Generator,
    progress: Progress | None,
    done: int,
    total: int,
) -> Tensor:
    start, end = _marks(network, vocabulary)
    place = device_of(network)
    ids = torch.empty(count, window, dtype=torch.int64)
    ids[:, 0] = torch.randint(0, vocabulary, (count,), generator=source) if start is None else start
    step = _stepper(network)
    for position in range(1, window):
        logits = step(ids[:, :position].to(place)).float().cpu()[:, :vocabulary]
        if not bool(logits.amax(-1).isfinite().all()):
            raise InvalidArgument(
                "the network's scores of the next token are not finite: it cannot write its own data; check the weights"
            )
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=source)[:, 0]
        if start is not None and end is not None and start != end:
            drawn = torch.where(ids[:, position - 1] == end, start, drawn)
        ids[:, position] = drawn
        if progress is not None and (position + 1) % 16 == 0:
            progress(done * window + count * (position + 1), total * window, "writing text")
    return ids


def _stepper(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """From the ids so far to the scores of the next one; with the state of the ids before where the network keeps one."""
    call = prepare(network)
    if not is_pretrained(network):
        return lambda ids: next_logits(call(ids))
    past: list[Any] = []
    state = _name_of_state(network)

    def step(ids: Tensor) -> Tensor:
        if not past and ids.shape[1] > 1:
            return next_logits(call(ids))
        output = network(input_ids=ids[:, -1:], use_cache=True, **{state: past[0] if past else None})
        kept = getattr(output, state, None)
        if kept is not None:
            past[:] = [kept]
        return next_logits(output.logits)

    return step


def _name_of_state(network: nn.Module) -> str:
    """What transformers calls the keys and values of the ids before: another name since 5.24."""
    return "cache" if "cache" in signature(network.forward).parameters else "past_key_values"


def _marks(network: nn.Module, vocabulary: int) -> tuple[int | None, int | None]:
    """Ids of the start and of the end of a text."""
    config = getattr(network, "config", None)

    def mark(name: str) -> int | None:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        return value if isinstance(value, int) and 0 <= value < vocabulary else None

    return mark("bos_token_id"), mark("eos_token_id")
