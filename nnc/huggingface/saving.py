"""Saving a model that came from compressed files: the files again, byte for byte, while its weights are still theirs.

Compressing again would take time and lose more.  Whether the weights changed is told by loading the files a second time, into a
second model of the class, and comparing all tensors bit by bit: dense memory for a moment, and nothing to do while loading.

transformers asks for a state dict and metadata, sorts and renames the tensors, and hands both to its function that writes a file.
The state dict is one byte here, and the metadata a Ticket, by which that function knows to copy (dispatch.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import atomic_output
from ..container import FILE_NAME, INDEX_NAME
from ..errors import InvalidArgument, NncError
from .original import Original, measure
from .quiet import quiet
from .reading import CompressedFile

REMEDY = "call model.dequantize() to save dense weights, which nnc compress compresses"


class Ticket(dict):
    """Metadata of a file that is not written but copied: the files, open, so that they may be replaced meanwhile."""

    def __init__(self, files: dict[str, BufferedReader], index: bytes | None, closing: ExitStack) -> None:
        super().__init__()
        self._files, self._index, self._closing = files, index, closing

    def __del__(self) -> None:  # transformers may fail before it writes
        self._closing.close()

    def write_copies(self, destination: Path) -> None:
        """Write the file, or the shards and their index into its folder.  InvalidArgument for shards under another name."""
        folder = destination.parent
        if self._index is None:
            (file,) = self._files.values()
            _copy(file, destination)
            (folder / INDEX_NAME).unlink(missing_ok=True)  # of shards that were here before
            return
        if destination.name != FILE_NAME:
            raise InvalidArgument(f"{destination}: shards of a compressed checkpoint have no variants: leave out variant")
        for name, file in self._files.items():
            _copy(file, folder / name)
        with atomic_output(folder / INDEX_NAME, folder=False, overwrite=True) as temporary:
            temporary.write_bytes(self._index)
        destination.unlink(missing_ok=True)  # transformers would read it before the index


def _copy(file: BufferedReader, destination: Path) -> None:
    file.seek(0)
    with atomic_output(destination, folder=False, overwrite=True) as temporary, open(temporary, "wb") as out:
        shutil.copyfileobj(file, out)


def make_ticket(model: Any, originals: tuple[Original, ...]) -> tuple[dict[str, torch.Tensor], Ticket]:
    """State dict and metadata for `save_pretrained`.  Raises InvalidArgument if the files are gone or others, or the model has changed."""
    if not originals:
        raise InvalidArgument(f"the weights were given as a state dict, there are no compressed files to save: {REMEDY}")
    with ExitStack() as opened:
        files = {original.path.name: opened.enter_context(_open_again(original)) for original in originals}
        index = originals[0].path.parent / INDEX_NAME
        try:
            content = index.read_bytes() if len(files) > 1 else None
        except OSError as problem:
            raise InvalidArgument(f"{index}: {problem.strerror}, so the model cannot be saved as it was: {REMEDY}") from None
        _check_unchanged(model, originals)
        return {"ticket": torch.zeros(1, dtype=torch.uint8)}, Ticket(files, content, opened.pop_all())


def _open_again(original: Original) -> BufferedReader:
    try:
        file = open(original.path, "rb")
    except OSError as problem:
        raise InvalidArgument(f"{original.path}: {problem.strerror}, so the model cannot be saved as it was: {REMEDY}") from None
    if measure(file) != (original.size, original.head):
        file.close()
        raise InvalidArgument(f"{original.path}: is another file than when the model was loaded: {REMEDY}")
    return file


def _check_unchanged(model: Any, originals: tuple[Original, ...]) -> None:
    label = originals[0].path if len(originals) == 1 else originals[0].path.parent
    try:
        fresh, found = _load_again(model, originals)
    except NncError:
        raise
    except Exception as problem:  # a config that was changed may fail in any way
        reason = str(problem).strip().split("\n")[0]
        raise InvalidArgument(f"the model does not fit {label} any more ({reason[:200]}): {REMEDY}") from problem
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    expected = {name: value for name, value in fresh.state_dict().items() if isinstance(value, torch.Tensor)}
    # the second model may have more parts, of which a keyword of from_pretrained left out some
    if missing := sorted(own.keys() - (expected.keys() - set(found["missing_keys"]))):
        raise InvalidArgument(f"{len(missing)} tensors of the model are not in {label}, the first is {missing[0]!r}: {REMEDY}")
    changed = [name for name in own if not _same(_present(model, name, own[name]), expected[name])]
    if changed:
        raise InvalidArgument(f"{len(changed)} tensors are not those of {label} any more, the first is {changed[0]!r}: {REMEDY}")


def _load_again(model: Any, originals: tuple[Original, ...]) -> tuple[Any, dict]:
    """A second model of this class, from the files alone; random numbers stay as they were."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with _open_all(originals) as state, quiet(), torch.random.fork_rng(devices=[]):
        return type(model).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=model.config.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=False,
        )


@contextmanager
def _open_all(originals: tuple[Original, ...]) -> Iterator[dict[str, Any]]:
    """All tensors as a state dict of slices, which transformers decodes one by one."""
    files = [CompressedFile(original.path) for original in originals]
    try:
        yield {name: file.get_slice(name) for file in files for name in file.keys()}
    finally:
        for file in files:
            file.__exit__()


def _present(model: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """The values of a tensor, also if accelerate keeps them on the disk."""
    if value.device.type != "meta":
        return value
    from transformers.integrations.accelerate import load_offloaded_parameter

    return load_offloaded_parameter(model, name)


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes: NaN is like itself."""
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    return torch.equal(*(tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (one, two)))
