"""The deep autoencoder (Hinton & Salakhutdinov, 2006): a deterministic code between two networks, squared error.

python -m experiments.train --config=experiments/configs/deep.py:mnist --workdir=runs/deep

The objective is the log-likelihood of a Gaussian of standard deviation sqrt(1/2) around what is decoded, nats summed
over elements: minus the sum of squared errors, but for a constant.
"""

from ml_collections import ConfigDict

from experiments.configs import vae

HALF = 0.5**0.5


def get_config(dataset: str = "digits") -> ConfigDict:
    config = vae.get_config(dataset)
    config.data.binarization = "none"
    config.model.update({"posterior": "point_mass", "likelihood": "gaussian", "scale": "fixed", "fixed_scale": HALF})
    config.model.update({"hidden": (500, 250), "activation": "relu", "sigmoid_mean": False, "latent_dim": 30})
    if dataset == "swiss_roll":
        config.model.update({"hidden": (128, 128), "latent_dim": 2})
        config.optimizer.schedule, config.train.num_epochs = "cosine", 300.0
    config.learner.name = "autoencoding"
    config.eval.update({"curve_measure": "reconstruction", "estimator": "none"})
    return config
