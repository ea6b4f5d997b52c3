"""Look-up networks: inference by index tables and integer additions, without products, floats or nonlinear functions on the data.

    network = nnc.lookup.convert(model, images, weights=100, activations=32)
    network(x)                        # float32, as the model
    network.logits(x)                 # the integers that come out
    print(network.report())           # layer by layer: tables or float, and why
    network.save("digits.safetensors")
    network = nnc.lookup.load("digits.safetensors")

Weights have few distinct values per layer, so have activations; a layer holds a table of all products of the two as integers.  An output
adds up the entries that its inputs and weights point at, shifts the sum and looks up the index that the next layer is given
(US20200234126A1, US20230186082A1, US12118466B2).
"""

from .convert import convert
from .network import LookupNetwork
from .report import Report, Row
from .storage import load

__all__ = ["LookupNetwork", "Report", "Row", "convert", "load"]
