"""Linen modules from one array to one array; they know no distribution and no batch."""

from aevb.networks.mlp import MLP

__all__ = ["MLP"]
