"""Quantizers: from weights to levels and from levels to values."""
