"""Stage "predict": what the decoder adds to the coded differences.  One file per source of predictions."""
