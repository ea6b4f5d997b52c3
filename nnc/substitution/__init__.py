"""Replacement weights W' found by gradients: coding W' instead of W makes `loss + price * bits` smaller (METHODS S8, JP7604631B2).

The codec stays as it is (grid, steps, scales, tables, trellis): only what is put into it changes, so decoders do not know.  Gradients go
through a soft copy of it (soft_trellis.py), ever sharper; after every few of them the real codec codes W' and its true cost is taken,
and the best of all that were seen is kept, the weights as given and the start among them.

Straight-through gradients, which take the trellis for the identity, gain little or make things worse: the error of a decoded weight is
that of a whole path, and a small move of the weights draws another path (examples/benchmarks/substitution.py).

Where the loss is a PredictedLoss, feedback finds better substitutes in a hundredth of the time; gradients after it gain a few tenths of a
percent on some layers.  They are for losses that have no closed form, and for a second opinion.

An encoder that has chosen scales, steps and a model for a plane calls

    codec = FrozenCodec(grid, scales, step, level_bits(bank, model), search)
    found = measure_loss(plane, statistics, damping)          # of the transposed plane: statistics.transposed
    price = factor**2 / 2 * search.lagrangian                 # a squared step costs factor^2 / 2 (sensitivity.py)
    best = substitute(plane, found, codec, price, start=find_levels_with_feedback(...))
    levels, replaced = best.levels, best.plane                # what find_levels_with_feedback returns

and goes on with these as with feedback's: refit the scales to `replaced`, code `levels`.
"""

from .codec import FrozenCodec
from .descent import Options, Progress, Substitute, substitute
from .losses import PredictedLoss, measure_loss, squared_loss

__all__ = ["FrozenCodec", "Options", "PredictedLoss", "Progress", "Substitute", "measure_loss", "squared_loss", "substitute"]
