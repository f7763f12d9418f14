"""How many latent dimensions digits need: six numbers of them, three seeds each.

python -m launch.sweep --sweep=launch/sweeps/latent_dim.py --workdir=runs/latent_dim
"""

from launch.definition import Budget, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="experiments/configs/vae.py:digits",
        grid={"model.latent_dim": [1, 2, 4, 8, 16, 32], "seed": [0, 1, 2]},
        metric="validation elbo",
        budget=Budget(num_epochs=300),
    )
