"""Linen modules from one array, and a context if there is one, to one array; they know no distribution and no batch."""

from aevb.networks.conv import ConvDecoder, ConvEncoder
from aevb.networks.gated import GatedMLP
from aevb.networks.mlp import MLP
from aevb.networks.residual import ResidualDecoder, ResidualEncoder

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "ResidualDecoder", "ResidualEncoder"]
