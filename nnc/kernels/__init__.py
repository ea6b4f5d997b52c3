"""Numba kernels: the inner loops of quantizer and coder, bit-identical to the definitions in FORMAT.md.

Every kernel is compiled on first use, cached on disk and releases the interpreter lock, so threads scale.
"""
