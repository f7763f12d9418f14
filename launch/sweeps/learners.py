"""Learners side by side on digits: each with the same model and optimizer, three seeds, judged by the same estimator.

    python -m launch.sweep --sweep=launch/sweeps/learners.py --workdir=runs/learners

Monte Carlo EM trains no encoder, so log p(x) is estimated by the paper's appendix D for all of them.
"""

from launch.definition import Budget, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="experiments/configs/vae.py:digits",
        overrides={
            "eval.estimator": "hmc",
            "eval.curve_measure": "marginal",
            "eval.curve_examples": 100,
            "train.eval_every_steps": 500,
        },
        trials=[{"learner.name": name} for name in ("aevb", "wake_sleep", "mcem", "full_vb")],
        grid={"seed": [0, 1, 2]},
        metric="test nll",
        budget=Budget(num_epochs=200),
    )
