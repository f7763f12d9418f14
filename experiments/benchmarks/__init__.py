"""Measurements: each is one command that prints ratios against something measured in the same run."""
