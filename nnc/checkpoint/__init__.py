"""Checkpoints of trained networks, in and out: Hugging Face folders, `.safetensors`, torch files, live modules.

Nothing here knows about compression. `open_checkpoint` reads tensors one at a time, `write_checkpoint` writes them in the
form of the destination, `atomic_output` makes any output appear complete or not at all.
"""

from nnc.checkpoint.output import atomic_output
from nnc.checkpoint.paths import check_destination, check_parent, check_side_name
from nnc.checkpoint.read import Checkpoint, open_checkpoint
from nnc.checkpoint.spec import Origin, TensorSpec
from nnc.checkpoint.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "Origin",
    "TensorSpec",
    "atomic_output",
    "check_destination",
    "check_parent",
    "check_side_name",
    "open_checkpoint",
    "write_checkpoint",
]
