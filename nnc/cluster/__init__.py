"""Clustering-based quantization, encoder only: which weights are outliers, codebooks, and when either pays (US20220261616A1)."""
