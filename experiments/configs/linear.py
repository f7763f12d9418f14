"""The linear autoencoder, whose best is PCA (Baldi & Hornik, 1989): a linear code, a linear decoder, squared error.

python -m experiments.train --config=experiments/configs/linear.py:mnist --workdir=runs/linear
"""

from ml_collections import ConfigDict

from experiments.configs import deep


def get_config(dataset: str = "digits") -> ConfigDict:
    config = deep.get_config(dataset)
    config.model.hidden = ()
    config.optimizer.update({"schedule": "cosine", "learning_rate": 1e-2})
    return config
