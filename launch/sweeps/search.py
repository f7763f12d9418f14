"""A search by Optuna over what matters most of the model of digits.

python -m launch.sweep --sweep=launch/sweeps/search.py --workdir=runs/search
"""

from launch.definition import Budget, Choice, LogUniform, Sweep, Uniform


def get_sweep() -> Sweep:
    return Sweep(
        config="experiments/configs/vae.py:digits",
        distributions={
            "optimizer.learning_rate": LogUniform(3e-4, 3e-2),
            "model.latent_dim": LogUniform(2, 32),
            "model.hidden": Choice(["(100,)", "(200,)", "(400,)"]),
            "bound.kl_weight": Uniform(0.5, 1.5),
        },
        search="optuna",
        metric="validation elbo",
        budget=Budget(num_epochs=100, num_trials=24),
    )
