"""Sweeps and clusters: what starts many runs, or one on many machines; it holds no training code."""
