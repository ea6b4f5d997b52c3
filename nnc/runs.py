"""Compress a training run: checkpoints of one network, each as the difference to the one before, with key frames between.

    nnc.compress_run(["epoch-1.pt", "epoch-2.pt", "epoch-3.pt"], "run/", snr=40)
    nnc.load("run/epoch-3.safetensors")

Every member is an ordinary compressed checkpoint whose reference lies beside it.  References are the decoded members, not the
originals, so that errors do not add up; reading one decodes those back to its key frame, `key_every - 1` at most.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .calibrated import compress
from .checkpoint import atomic_output, check_destination
from .compression import Progress, Summary
from .errors import InvalidArgument

KEY_EVERY = 8
NOT_FOR_RUNS = ("reference", "statistics", "weights_key")


@dataclass(frozen=True)
class RunSummary:
    """names: of the members, in order; keys: of those that need no other; members: their summaries."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    members: tuple[Summary, ...]

    @property
    def file_bytes(self) -> int:
        return sum(member.file_bytes for member in self.members)

    @property
    def original_bytes(self) -> int:
        return sum(member.original_bytes for member in self.members)


def compress_run(
    sources: Sequence[str | os.PathLike],
    destination: str | os.PathLike,
    *,
    key_every: int = KEY_EVERY,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options,
) -> RunSummary:
    """Compress checkpoints of one network into the new folder `destination`, one member each.

    sources    paths, in the order in which one is to be predicted from the other; in plain alphabetical order, as a shell gives them,
               they are sorted by the numbers in their names (epoch-9 before epoch-10).  A file becomes `name.safetensors`, a folder a
               folder of its name
    key_every  members from one that needs no other to the next
    options    as for `compress`, for every member; not reference, statistics or weights_key

    The folder appears whole or not at all.  Raises what `compress` raises, InvalidArgument for no source, two of one name, or an option
    that is for one checkpoint only.
    """
    for name in NOT_FOR_RUNS:
        if options.get(name) is not None:
            raise InvalidArgument(f"{name} is for one checkpoint, these are {len(sources)}: leave it out")
        options.pop(name, None)
    if not isinstance(key_every, int) or key_every < 1:
        raise InvalidArgument(f"key_every = {key_every!r}: must be a whole number, 1 or more")
    paths = sort_members([Path(source) for source in sources])
    names = [path.name if path.is_dir() else f"{path.stem}.safetensors" for path in paths]
    _check(paths, names)
    destination = Path(destination)
    if destination.suffix == ".safetensors":
        raise InvalidArgument(f"{destination}: {len(paths)} checkpoints become a folder: name one")
    for path in paths:
        check_destination(path, destination, overwrite)
    members: list[Summary] = []
    with atomic_output(destination, folder=True, overwrite=overwrite) as temporary:
        for number, (path, name) in enumerate(zip(paths, names)):
            before = None if number % key_every == 0 else temporary / names[number - 1]

            def report(done: int, total: int, what: str) -> None:
                if progress:
                    progress(number * total + done, len(paths) * total, f"{number + 1}/{len(paths)} {what}")

            summary = compress(path, temporary / name, reference=before, progress=report, **options)
            files = tuple(destination / file.relative_to(temporary) for file in summary.files)
            members.append(replace(summary, files=files))
    return RunSummary(tuple(names), tuple(names[::key_every]), tuple(members))


def sort_members(paths: list[Path]) -> list[Path]:
    """By the numbers in the names if they come in alphabetical order, else as they come."""
    if [str(path) for path in paths] != sorted(str(path) for path in paths):
        return paths

    def key(path: Path) -> list[tuple[bool, int, str]]:
        return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", str(path))]

    return sorted(paths, key=key)


def _check(paths: list[Path], names: list[str]) -> None:
    if not paths:
        raise InvalidArgument("no checkpoints to compress: name at least one")
    for number, (path, name) in enumerate(zip(paths, names)):
        if not path.exists():
            raise InvalidArgument(f"{path} does not exist")
        if name in names[:number]:
            raise InvalidArgument(f"{path}: two members would be called {name}: rename one")
