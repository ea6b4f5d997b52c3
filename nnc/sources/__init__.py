"""Inputs for calibration, without labels: from files, from Python objects, from a task, or made by the network itself.

inputs = make_inputs(network, "images.npz")
inputs.calibration.batches(), inputs.held_back, inputs.kind
"""

from nnc.sources.inputs import Inputs
from nnc.sources.make import make_inputs

__all__ = ["Inputs", "make_inputs"]
