"""What is known of a network that reads token ids: its vocabulary, its longest window, whether it predicts the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnc.errors import InvalidArgument
from nnc.evaluation.pretrained import first_line, is_pretrained
from nnc.evaluation.runner import FAILURES
from nnc.sources.calls import device_of, prepare

LONGEST = 512  # tokens in a window
CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
TOKENS = 65536  # of text that are used where nothing else is asked for
LOGITS = 1 << 26  # of one batch


def find_vocabulary(network: nn.Module) -> int | None:
    """Rows of the table of the token embeddings, None if the network has no table."""
    if is_pretrained(network):
        try:
            return network.get_input_embeddings().num_embeddings
        except (NotImplementedError, AttributeError):
            pass
    return next((module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding)), None)


def is_causal(network: nn.Module) -> bool:
    """Whether a network of Hugging Face predicts the next token."""
    return is_pretrained(network) and type(network).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def find_context(network: nn.Module) -> int:
    """Tokens that the network takes at a time, at most LONGEST: what its config says, else the longest of 512, 256, ... that runs."""
    config = getattr(network, "config", None)
    told = [value for name in CONTEXTS if isinstance(value := getattr(config, name, None), int) and value > 0]
    if told:
        return min(LONGEST, *told)
    call, length, reason = prepare(network), LONGEST, ""
    while length >= 2:
        try:
            with torch.inference_mode():
                call(torch.zeros(1, length, dtype=torch.int64))
            return length
        except FAILURES as error:
            reason = first_line(error)
            length //= 2
    raise InvalidArgument(
        f"{type(network).__name__} does not run on token ids of shape (1, 2) ({reason}); check that data and model belong together"
    )


def windows_at_a_time(vocabulary: int | None, window: int) -> int:
    """Windows in a batch, such that their logits stay small."""
    return max(1, min(8, LOGITS // (window * (vocabulary or 1))))


def next_logits(output: Tensor) -> Tensor:
    """Scores (n, vocabulary) of the token that follows a window."""
    return output[:, -1] if output.ndim == 3 else output


def is_language_model(network: nn.Module, vocabulary: int) -> bool:
    """Whether token ids (n, t) give scores of tokens of the same vocabulary, (n, t, vocabulary) or (n, vocabulary)."""
    if is_pretrained(network):
        return is_causal(network)
    call: Callable[..., Any] = prepare(network)
    try:
        with torch.inference_mode():
            output = call(torch.zeros(1, 4, dtype=torch.int64, device=device_of(network)))
    except FAILURES:
        try:
            with torch.inference_mode():
                output = call(torch.zeros(1, find_context(network), dtype=torch.int64))
        except (*FAILURES, InvalidArgument):
            return False
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim not in (2, 3):
        return False
    # a table may be padded to a round number of rows
    return 0.9 * vocabulary <= output.shape[-1] <= 1.1 * vocabulary + 64 and output.shape[-1] > 1
