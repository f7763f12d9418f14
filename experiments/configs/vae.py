"""The variational autoencoder of Kingma & Welling: one hidden layer of tanh units on either side of a Gaussian code.

python -m experiments.train --config=experiments/configs/vae.py:DATASET --workdir=runs/DATASET

As measured on 2 cores of an AMD EPYC, Python 3.11, JAX 0.10.2, seed 0; nats per test image at beta = 1, the NLL from
1000 importance samples; training time, and time in all:

| data set | binarization | latents | test ELBO | test NLL | training | in all |
| --- | --- | --- | --- | --- | --- | --- |
| digits (8x8, 359 test images) | dynamic | 2 | -24.28 +- 0.22 | 23.71 +- 0.21 | 5 s | 18 s |
| mnist (10,000) | dynamic | 20 | -98.38 +- 0.25 | 93.99 +- 0.24 | 67 s | 171 s |
| frey_face (393, density of values in [0, 1]) | none | 2 | 847.8 +- 15.7 | -865.8 +- 14.9 | 20 s | 38 s |
"""

from ml_collections import ConfigDict

from experiments.configs import base

_MNIST = {
    "data": {"binarization": "dynamic", "validation_size": 10000.0},
    "train": {
        "num_epochs": 30.0,
        "log_every_steps": 250,
        "eval_every_steps": 500,
        "checkpoint_every_steps": 2500,
        "ema_decay": 0.999,
    },
}

# Grey images of unknown content: a Gaussian that learns each pixel's scale, with means in (0, 1).
_IMAGES = {"model": {"likelihood": "gaussian", "sigmoid_mean": True}}
_OWN = {"train": {"eval_every_steps": 100}}  # a person's own examples are often few

# What each data set changes in the base; a set that is not named changes nothing but its name.
DATASETS = {
    "digits": {
        "data": {"binarization": "dynamic"},
        "model": {"hidden": (200,), "latent_dim": 2},
        "optimizer": {"learning_rate": 4e-3},
        "train": {"num_epochs": 300.0, "eval_every_steps": 100},
    },
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "binarized_mnist": {**_MNIST, "data": {"binarization": "none"}},
    "frey_face": {
        **_IMAGES,
        "model": {**_IMAGES["model"], "hidden": (200,), "latent_dim": 2},
        "train": {"num_epochs": 500.0},
    },
    "swiss_roll": {"model": {"likelihood": "gaussian", "latent_dim": 2}},
    "folder": _IMAGES | _OWN,
    "arrays": {"model": {"likelihood": "gaussian"}} | _OWN,
}


def get_config(dataset: str = "digits") -> ConfigDict:
    config = base.get_config()
    config.dataset = dataset
    config.update(DATASETS.get(dataset, _IMAGES if dataset.startswith("tfds:") else {}))
    return config
