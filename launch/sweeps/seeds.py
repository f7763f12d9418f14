"""What the seed does: the model of digits eight times, for an error bar; with --packed they train as one program.

python -m launch.sweep --sweep=launch/sweeps/seeds.py --workdir=runs/seeds --packed
"""

from launch.definition import Budget, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="experiments/configs/vae.py:digits",
        grid={"seed": list(range(8))},
        metric="test nll",
        budget=Budget(num_epochs=300),
    )
