"""One stochastic layer of "Importance Weighted Autoencoders" (Burda et al., 1509.00519): 784-200-200-50-200-200-784.

python -m experiments.train --config=experiments/configs/burda.py:mnist,iwae,5 --workdir=runs/iwae5

After the colon: `mnist` or, for the fixed binarization, `binarized_mnist`; the bound, `sgvb_b` for their VAE or `iwae`;
and k, the draws of z. Theirs are 3,280 epochs of batches of 20, the learning rate 10^(-i/7) of a thousandth for 3^i
epochs, i = 0 to 7, Adam's epsilon 1e-4. These are the first five of their eight learning rates, 121 epochs;
--config.train.num_epochs=3280 goes on to their end, from where a run stopped, too. Epsilon is Adam's own 1e-8. The
weights are those of the last step, as theirs, which needs no validation images.

As measured with seed 0 on one core of an AMD EPYC (Python 3.11, JAX 0.10.2), 5,000 importance samples, all 10,000 test
images; nats, examples/s on both cores, and GiB at most:

| run | NLL after 121 epochs | published, after 3,280 | examples/s | memory |
| --- | --- | --- | --- | --- |
| mnist,sgvb_b,1 | 89.72 +- 0.24 | 86.76 | 23,500 | 0.66 |
| mnist,sgvb_b,5 | 89.12 +- 0.24 | 86.47 | | 0.73 |
| mnist,iwae,5 | 88.56 +- 0.23 | 85.54 | 7,400 | 0.73 |
| binarized_mnist,sgvb_b,1 | 90.90 +- 0.24 | 88.71 | | 0.71 |
| binarized_mnist,iwae,5 | 89.64 +- 0.24 | 87.63 | | 0.78 |
"""

from ml_collections import ConfigDict

from aevb.errors import InputError
from experiments.configs import base

STAGES = 8  # of the learning rate, each three times as long as the one before
NUM_TRAIN = {"mnist": 60_000, "binarized_mnist": 50_000}


def get_config(argument: str = "mnist,sgvb_b,1") -> ConfigDict:
    dataset, bound, num_samples = (*argument.split(","), "", "")[:3]
    if dataset not in NUM_TRAIN or bound not in ("sgvb_b", "iwae") or not num_samples.isdecimal():
        raise InputError(f"burda.py:{argument} names no run of this file: give for example burda.py:mnist,iwae,5")
    config = base.get_config()
    config.dataset = dataset
    config.data.update({"binarization": "dynamic" if dataset == "mnist" else "none", "validation_size": 0.0})
    config.model.update({"hidden": (200, 200), "latent_dim": 50})
    config.bound.update({"name": bound, "num_samples": int(num_samples)})
    config.train.update({"num_epochs": 121.0, "batch_size": 20, "log_every_steps": 500})
    config.train.update({"eval_every_steps": 12_500, "checkpoint_every_steps": 12_500})
    epoch = NUM_TRAIN[dataset] // config.train.batch_size
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries = tuple(epoch * (3**i - 1) // 2 for i in range(1, STAGES))
    config.optimizer.scales = (10 ** (-1 / 7),) * (STAGES - 1)
    config.eval.num_samples = 5000
    return config
