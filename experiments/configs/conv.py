"""Strided convolutions to a Gaussian code and transposed convolutions back, for images of any size and colour.

python -m experiments.train --config=experiments/configs/conv.py:mnist --workdir=runs/conv
python -m experiments.train --config=experiments/configs/conv.py:folder --config.data.dir=photos/ --workdir=runs/photos
"""

from ml_collections import ConfigDict

from experiments.configs import vae


def get_config(dataset: str = "digits") -> ConfigDict:
    config = vae.get_config(dataset)
    config.model.update({"network": "conv", "channels": (16, 32), "hidden": (256,), "activation": "relu"})
    if dataset in ("mnist", "binarized_mnist", "fashion_mnist"):
        config.train.num_epochs = 100.0
    return config
