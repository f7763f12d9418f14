"""The denoising autoencoder (Vincent et al., 2010): the code is of a corrupted input, what comes back is the clean one.

python -m experiments.train --config=experiments/configs/denoising.py:mnist --workdir=runs/denoising
"""

from ml_collections import ConfigDict

from experiments.configs import deep


def get_config(dataset: str = "digits") -> ConfigDict:
    config = deep.get_config(dataset)
    config.data.update({"corruption": "masking", "corruption_level": 0.3})
    config.model.update({"hidden": (), "latent_dim": 1024, "code": "relu"})
    return config
