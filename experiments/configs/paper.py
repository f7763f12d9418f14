"""The protocol of Kingma & Welling's section 5, one hidden layer, Adagrad, MAP: what `experiments.paper` runs.

python -m experiments.train --config=experiments/configs/paper.py:mnist,wake_sleep --workdir=runs/wake_sleep
"""

from ml_collections import ConfigDict

from experiments.configs import base

# What each data set changes; the reasons for what the paper leaves open are in experiments/paper/README.md.
DATASETS = {
    "mnist": {
        "data": {"binarization": "grey", "validation_size": 10000.0},
        "model": {"hidden": (500,)},
    },
    "frey_face": {
        "data": {"validation_size": 0.0},
        "model": {"hidden": (200,), "likelihood": "gaussian", "sigmoid_mean": True, "min_scale": 0.001},
    },
}
# What an algorithm changes beside its name.
LEARNERS = {
    "aevb": {},
    "wake_sleep": {},
    "mcem": {
        "model": {"latent_dim": 3},  # its marginal likelihood is measured by HMC
        "eval": {"curve_measure": "marginal", "curve_examples": 1000, "estimator": "hmc", "num_samples": 0},
    },
    "full_vb": {"bound": {"weight_prior": False}},  # its prior on weights is in its own bound
}


def get_config(argument: str = "mnist") -> ConfigDict:
    dataset, _, learner = argument.partition(",")
    config = base.get_config()
    config.dataset = dataset
    config.model.init_scale = 0.01
    config.bound.weight_prior = True
    config.optimizer.update({"name": "adagrad", "learning_rate": 0.01, "initial_accumulator": 0.0, "hold_steps": 100})
    config.train.update({"num_epochs": 200.0, "eval_every_steps": 5000, "eval_growth": 1.2})
    config.train.update({"checkpoint_every_steps": 5000, "keep_checkpoints": 1})
    config.eval.update({"curve_split": "test", "num_samples": 100, "batch_size": 500})
    config.update(DATASETS.get(dataset, {}))
    config.learner.name = learner or "aevb"
    config.update(LEARNERS.get(config.learner.name, {}))
    return config
