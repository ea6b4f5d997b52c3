"""Run a network straight from its compressed checkpoint: weights stay coded and are decoded when a module uses them."""

from .attach import attach, detach
from .weights import Runtime

__all__ = ["Runtime", "attach", "detach"]
