"""Tiled coding with spatial context prediction, the encoder's part: learning predictors, choosing tiles, writing codes."""
