"""Sweeps that come with the house: each file has `get_sweep()`."""
