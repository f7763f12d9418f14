"""The conditional VAE: encoder and decoder are told the label (Sohn et al., 2015), so that z is left with the style.

python -m experiments.train --config=experiments/configs/cvae.py:mnist --workdir=runs/cvae
python -m experiments.generate --workdir=runs/cvae --what=classes --num=10
"""

from ml_collections import ConfigDict

from experiments.configs import vae


def get_config(dataset: str = "digits") -> ConfigDict:
    config = vae.get_config(dataset)
    config.model.context = "label"
    return config
