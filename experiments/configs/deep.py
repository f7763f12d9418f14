"""The deep autoencoder (Hinton & Salakhutdinov, 2006): a deterministic code between two networks, squared error.

python -m experiments.train --config=experiments/configs/deep.py:mnist --workdir=runs/deep

The objective is the log-likelihood of a Gaussian of standard deviation sqrt(1/2) around what is decoded, nats summed
over elements: minus the sum of squared errors, but for a constant.

MNIST, seeds 0 to 2, squared error a pixel of the test images: 0.0071 with 30 codes (PCA 0.0177), 0.0345 with
`--config.model.latent_dim=2` (PCA 0.0557); 0.0045 with 30 codes and `--config.model.sigmoid_mean=True` (seed 0). 140 s
of training and 160 s in all on one core of an AMD EPYC, Python 3.11, JAX 0.10.2.
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
