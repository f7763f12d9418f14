"""Learning rates of digits, drawn over three decades; what is behind the best third is stopped early.

python -m launch.sweep --sweep=launch/sweeps/learning_rate.py --workdir=runs/learning_rate
"""

from launch.definition import Budget, LogUniform, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="experiments/configs/vae.py:digits",
        overrides={"train.log_every_steps": 50, "train.eval_every_steps": 50},
        distributions={"optimizer.learning_rate": LogUniform(1e-4, 1e-1)},
        metric="validation elbo",
        budget=Budget(num_epochs=270, num_trials=16, grace_epochs=10, reduction=3),
    )
