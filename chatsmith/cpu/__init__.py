"""Kernels for CPUs: faster ways to the same numbers, of which the mathematics does not know."""
