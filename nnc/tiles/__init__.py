"""Tiled coding with spatial context prediction, the decoder's part (US11250595B2; FORMAT.md, "Tiled tensors")."""
