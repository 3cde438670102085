"""Gradient flow in double-double arithmetic (32 digits), by Taylor series.

Shares nothing with factorflow: NumPy and Numba only, another formula for every quantity.
"""
