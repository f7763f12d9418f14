"""Inference: what needs many draws of z. Functions of one datapoint, in nats."""
