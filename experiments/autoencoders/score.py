"""What a denoising autoencoder learns: the score of the noisy density. A figure and the errors, of a known mixture.

    python -m experiments.autoencoders.score --out=experiments/results/autoencoders

With gaussian noise of standard deviation s the best reconstruction is the posterior mean of the clean input, so that
`(reconstruction - input) / s^2 = grad log p_s(input)`, where p_s is the density of the noisy input (Vincent, 2011;
Alain & Bengio, 2014). The mixture of three Gaussians in the plane is known, and so is p_s: its covariances are s^2 I
larger. Writes `score.png` and `score.csv`.
"""

import collections
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from absl import flags
from etils import epath

from aevb import data, training
from experiments import build, cli, numbers, settings, workdir

CENTRES = np.float32([[-1.5, -0.8], [1.5, -0.8], [0.0, 1.4]])
COVARIANCES = np.float32([[[0.30, 0.15], [0.15, 0.20]], [[0.15, 0.0], [0.0, 0.4]], [[0.5, 0.0], [0.0, 0.08]]])
NOISES = (0.2, 0.4, 0.8)  # standard deviations
DRAWN = 0.4  # the one in the figure
CONFIG = "experiments/configs/denoising.py:arrays"
OVERRIDES = (
    "data.corruption=gaussian",
    "model.hidden=(128, 128)",
    "model.code=linear",
    "model.latent_dim=64",
    "optimizer.schedule=cosine",
    "train.num_epochs=50",
    "train.batch_size=250",
)
NUM, HELD_OUT = 50_000, 5_000
POINTS, NOISY_POINTS = 1000, 2000  # added to the seed, whose own key is that of the training
COLUMNS = ("noise", "relative_error", "stderr", "num_train", "num_test", "seed")
Score = Callable[[np.ndarray], np.ndarray]  # [N, 2] to [N, 2]


def mixture(noise: float) -> dist.Distribution:
    """The density of a noisy point of the plane."""
    widened = COVARIANCES + noise**2 * np.eye(2, dtype=np.float32)
    return dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.ones(len(CENTRES)) / len(CENTRES)), dist.MultivariateNormal(CENTRES, widened)
    )


def true_score(noise: float) -> Score:
    """The gradient of the log density of a noisy point."""
    return jax.jit(jax.vmap(jax.grad(mixture(noise).log_prob)))


def points(num: int, key: jax.Array) -> np.ndarray:
    """Clean points, `[num, 2]`."""
    return np.asarray(jax.vmap(mixture(0.0).sample)(jax.random.split(key, num)))


def learned_score(noise: float, seed: int) -> Score:
    """That of a denoising autoencoder trained on clean points with this noise."""
    overrides = [f"--config.{each}" for each in (*OVERRIDES, f"data.corruption_level={noise}", f"seed={seed}")]
    train, empty = (data.Split(points(num, jax.random.key(seed + POINTS)), None) for num in (NUM, 0))
    known = data.Dataset("mixture", (2,), train, empty, empty, "drawn from the density that is known")
    run = build.build(settings.load(CONFIG, overrides), known)
    steps = training.train(run.learner, run.init_state(), run.feed, run.preprocess["train"], num_steps=run.num_steps)
    ((ended, _),) = collections.deque(steps, maxlen=1)
    model = run.model.bind({"params": training.unreplicate(ended).params})
    return jax.jit(jax.vmap(lambda x: (model.decode(model.encode(x).mean).mean - x) / noise**2))


def relative_error(score: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """`sqrt(mean |score - truth|^2 / mean |truth|^2)` over noisy points, of which a score of 0 has 1; standard error.

    The latter is that of the ratio of the two means (delta method), halved as the root has it.
    """
    errors, sizes = (np.square(each).sum(axis=1, dtype=np.float64) for each in (score - truth, truth))
    ratio = errors.mean() / sizes.mean()
    stderr = numbers.standard_error(errors - ratio * sizes) / sizes.mean()
    return float(np.sqrt(ratio)), float(stderr / (2 * np.sqrt(ratio))) if ratio else 0.0


def main(argv: list[str]) -> None:
    from aevb import figures
    from experiments.autoencoders import draw

    cli.refuse(argv)
    folder, seed = epath.Path(flags.FLAGS.out), flags.FLAGS.seed
    rows, drawn = [], None
    for noise in NOISES:
        clean_key, noise_key = jax.random.split(jax.random.key(seed + NOISY_POINTS))
        noisy = points(HELD_OUT, clean_key) + noise * np.asarray(jax.random.normal(noise_key, (HELD_OUT, 2)))
        learned, truth = learned_score(noise, seed), true_score(noise)
        error, stderr = relative_error(np.asarray(learned(noisy)), np.asarray(truth(noisy)))
        rows.append([noise, round(error, 4), round(stderr, 4), NUM, HELD_OUT, seed])
        print(f"noise {noise:g}: relative error of the score {error:.3f}", flush=True)
        if noise == DRAWN:
            drawn = learned, truth
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_csv(folder / "score.csv", COLUMNS, rows)
    figures.save(draw.score(*drawn, mixture(DRAWN).log_prob), folder / "score.png")
    print(f"wrote {folder / 'score.png'} and score.csv")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/autoencoders", "Where the figure and the errors go.")
    flags.DEFINE_integer("seed", 0, "Of the points, the noise and the training.", lower_bound=0)
    cli.run(main)
