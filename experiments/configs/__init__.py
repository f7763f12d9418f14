"""Configs: one file a model family, which states only its differences from `base`."""
