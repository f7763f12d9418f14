"""The sparse autoencoder: more elements in the code than the data needs, and an L1 penalty that leaves few of them on.

python -m experiments.train --config=experiments/configs/sparse.py:mnist --workdir=runs/sparse
python -m experiments.generate --workdir=runs/sparse --what=filters

Smaller codes with a larger decoder say the same at a smaller penalty, so weight decay holds the decoder. The learning
rate starts low, because before the decoder has learned anything every element only errs, and Adam turns them off for
good: of 1024, 393 were dead after 6 epochs at a penalty of 0.1 without a warm-up, 104 with one of 1000 steps.

--config.model.code=top_k --config.model.code_k=25 --config.learner.l1_weight=0 keeps the 25 largest instead (Makhzani &
Frey, 1312.5663).

MNIST, seeds 0 to 2, squared error a pixel of the test images: 0.0030 with 13 % of the code active and 458 of 1024
elements dead; 0.0079 with the 25 largest, and 821 dead. 3 to 5 minutes of training on one core of an AMD EPYC, Python
3.11, JAX 0.10.2.
"""

from ml_collections import ConfigDict

from experiments.configs import deep


def get_config(dataset: str = "digits") -> ConfigDict:
    config = deep.get_config(dataset)
    config.model.update({"hidden": (), "latent_dim": 1024, "code": "relu"})
    config.learner.l1_weight = 0.2
    config.optimizer.update({"name": "adamw", "weight_decay": 0.1, "warmup_steps": 2000})
    return config
