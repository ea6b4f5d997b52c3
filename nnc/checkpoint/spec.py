"""What a checkpoint says about itself: one spec per tensor, and the origin needed to write it back in the same form.

The origin keeps what lies around the weights in the input: the entries of a `.safetensors` header, or, for a torch file,
the key under which the state dict stood and the plain entries beside it (epoch, best accuracy, ...). Those entries are JSON
text in the shape of the file with its tensors taken out, so that writing means: parse, walk down the key, put tensors in.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from nnc.errors import Corruption

KINDS = ("hf", "safetensors", "torch", "module")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; `tied_to` names an earlier tensor of the same checkpoint with the same memory."""
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    tied_to: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Origin:
    """The form of the input.

    kind      "hf" (folder), "safetensors", "torch" or "module" (a live module or mapping)
    metadata  the `__metadata__` entries of a .safetensors file, sorted by key
    wrapper   dotted key of the state dict in a torch file, "" when the file is the state dict
    extras    JSON text of the plain entries of the torch file (numbers, strings, booleans, None, lists and dictionaries of
              them; a tuple becomes a list), "" when there are none
    """
    kind: str
    metadata: tuple[tuple[str, str], ...] = ()
    wrapper: str = ""
    extras: str = ""

    def to_json(self) -> str:
        fields = {"kind": self.kind, "metadata": self.metadata, "wrapper": self.wrapper, "extras": self.extras}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """The inverse of `to_json`; the text may come from a foreign file. Errors: Corruption."""
        fields = _parse(text, "origin")
        if not isinstance(fields, dict) or set(fields) != {"kind", "metadata", "wrapper", "extras"}:
            raise Corruption("origin: expected an object with exactly kind, metadata, wrapper and extras")
        kind, metadata = fields["kind"], fields["metadata"]
        if kind not in KINDS:
            raise Corruption(f"origin: kind {kind!r} is none of {', '.join(KINDS)}")
        if not isinstance(metadata, list) or not all(_is_text_pair(pair) for pair in metadata):
            raise Corruption("origin: metadata must be a list of pairs of strings")
        if len({key for key, _ in metadata}) != len(metadata):
            raise Corruption("origin: metadata holds a key twice")
        for name in ("wrapper", "extras"):
            if not isinstance(fields[name], str):
                raise Corruption(f"origin: {name} must be a string, is {type(fields[name]).__name__}")
        origin = cls(kind, tuple((key, value) for key, value in metadata), fields["wrapper"], fields["extras"])
        origin.frame()
        return origin

    def frame(self) -> tuple[dict[str, object], dict[str, object]]:
        """Two dictionaries for a torch file: its root with the extras in place, and the one inside it for the tensors."""
        root = _parse(self.extras, "origin: extras") if self.extras else {}
        if not isinstance(root, dict):
            raise Corruption("origin: extras must be a JSON object")
        place = root
        for key in self.wrapper.split(".") if self.wrapper else ():
            if not key:
                raise Corruption(f"origin: wrapper {self.wrapper!r} has an empty part")
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise Corruption(f"origin: extras hold a plain value at {key!r} of wrapper {self.wrapper!r}")
        return root, place


def _is_text_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _parse(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise Corruption(f"{what} is not valid JSON") from error
