"""Bias and variance of the gradient of each estimator of the bound, against the exact gradient.

    python -m experiments.paper.gradients

The model is a VAE that is solved in closed form: p(z) = N(0, I), p(x | z) = N(W z + b, I) over 100 numbers, an affine
encoder for the mean and log-variance. So the gradient of its bound is known, and with it the error of an estimate. What
is estimated is the gradient of the mean bound of one minibatch of 100 datapoints, always the same, so that all noise is
that of z; SGVB-A, SGVB-B and the score function (sections 2.2 and 2.3) see the same draws. It is measured at
random first weights, and near the optimum: the true decoder, and the exact posterior moved by a tenth of its standard
deviation and widened by a tenth.

It writes gradients.csv and gradients.png and prints a table. In the CSV, for a parameter group, `bias_norm` is the
length of the mean error of `num_keys` gradients, and `bias_stderr` the length that noise alone gives it; `bias_along`
is the mean error's part along the exact gradient, with its standard error; `variance` is that of one gradient, summed
over the group's parameters; `exact_norm` is the length of the exact gradient. All are of nats per datapoint.
"""

import csv
import functools
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from aevb import bounds, figures, models
from aevb.data import Datapoint
from aevb.figures import BLUE, DPI, FONT, GREY, INK, ORANGE, WIDTH
from aevb.learners import aevb
from aevb.networks import MLP
from experiments import cli, workdir

LATENT_DIMS = (2, 10, 50)
NUM_KEYS = {1: 1000, 10: 200, 100: 50}  # gradients measured with each number of draws L
EVENT_DIM, BATCH = 100, 100
INIT_SCALE = 0.1  # standard deviation of the first weights and biases; at the paper's 0.01 SGVB-B has next to no noise
PRECISIONS = (10.0, 2.0)  # of the exact posterior, from its first latent dimension to its last; the prior's is 1
SHIFT, STRETCH = 0.1, 1.1  # of the posterior near the optimum, in its standard deviations
POINTS = ("initialisation", "near optimum")
ENCODER = ("encoder mean", "encoder log-variance")
GROUPS = (*ENCODER, "decoder")
ESTIMATORS = {"score_function": bounds.score_function, "sgvb_a": bounds.sgvb_a, "sgvb_b": bounds.sgvb_b}
LOOKS = {  # label and colour, of Okabe and Ito's
    "score_function": ("score function", ORANGE),
    "sgvb_a": ("SGVB-A", "#009E73"),
    "sgvb_b": ("SGVB-B", BLUE),
}
SHOWN_DIM = 10  # latents in the figure
DASHES = (0, (4, 3))
SMALL = {"fontsize": FONT - 1, "color": INK}

Row = dict[str, Any]
Groups = dict[str, jax.Array]


class Problem(NamedTuple):
    """A solved VAE, a minibatch of its own data `[M, x]`, and its parameters at each point."""

    model: models.VAE
    xs: jax.Array
    params: dict[str, Any]


def make_problem(key: jax.Array, latent_dim: int, event_dim: int = EVENT_DIM, batch: int = BATCH) -> Problem:
    """A model whose W has orthogonal columns: its exact posterior is diagonal, and an affine encoder can hold it."""
    model = models.vae(
        (event_dim,),
        latent_dim,
        network=functools.partial(MLP, hidden=(), init_scale=INIT_SCALE),
        likelihood=models.Gaussian(scale=1.0),
    )

    @jax.jit
    def arrays(key: jax.Array) -> tuple[jax.Array, Any, Any]:
        w_key, z_key, noise_key, init_key = jax.random.split(key, 4)
        precisions = jnp.geomspace(*PRECISIONS, latent_dim)
        directions, _ = jnp.linalg.qr(jax.random.normal(w_key, (event_dim, latent_dim)))
        w = directions * jnp.sqrt(precisions - 1)[None]
        xs = jax.random.normal(z_key, (batch, latent_dim)) @ w.T + jax.random.normal(noise_key, (batch, event_dim))
        kernel = jnp.concatenate([w / precisions[None], jnp.zeros_like(w)], axis=1)
        bias = jnp.concatenate([SHIFT * precisions**-0.5, 2 * jnp.log(STRETCH * precisions**-0.5)])
        encoder, decoder = {"kernel": kernel, "bias": bias}, {"kernel": w.T, "bias": jnp.zeros(event_dim)}
        return xs, models.init(model, init_key), {"encoder": {"output": encoder}, "decoder": {"output": decoder}}

    xs, first, near = arrays(key)
    return Problem(model, xs, dict(zip(POINTS, (first, near), strict=True)))


def exact_elbo(params: Any, x: jax.Array) -> jax.Array:
    """E_q log p(x | z) - KL(q || p) in nats of one datapoint x, for any affine encoder and decoder, in closed form."""
    encoder, decoder = params["encoder"]["output"], params["decoder"]["output"]
    mean, log_variance = jnp.split(x @ encoder["kernel"] + encoder["bias"], 2)
    variance = jnp.exp(log_variance)
    residual = x - mean @ decoder["kernel"] - decoder["bias"]
    expected_square = residual @ residual + variance @ (decoder["kernel"] ** 2).sum(1)
    log_likelihood = -0.5 * (expected_square + len(x) * math.log(2 * math.pi))
    return log_likelihood - 0.5 * (variance + mean**2 - 1 - log_variance).sum()


@jax.jit
def exact_gradient(params: Any, xs: jax.Array) -> Groups:
    """The gradient of the mean bound of datapoints xs `[M, x]`."""
    return groups(jax.grad(lambda params: jax.vmap(exact_elbo, (None, 0))(params, xs).mean())(params))


def groups(gradient: Any) -> Groups:
    """A gradient as one vector for each parameter group."""
    encoder, decoder = gradient["encoder"]["output"], gradient["decoder"]["output"]
    means, log_variances = zip(*(jnp.split(leaf, 2, axis=-1) for leaf in encoder.values()), strict=True)
    parts = dict(zip(GROUPS, (means, log_variances, decoder.values()), strict=True))
    return {name: jnp.concatenate([leaf.ravel() for leaf in leaves]) for name, leaves in parts.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def errors(
    model: models.VAE,
    estimators: tuple[bounds.BoundFn, ...],
    num_samples: int,
    params: Any,
    xs: jax.Array,
    exact: Groups,
    keys: jax.Array,
) -> list[tuple[Groups, Groups, Groups]]:
    """Errors of each estimator's gradient of the mean bound of xs from `num_samples` draws, one for each of K keys.

    Returns:
      For each estimator the sum of its errors, and of each error its square length and its part along the exact
      gradient, `[K]`; each for every parameter group.
    """

    def error(bound: bounds.BoundFn, key: jax.Array) -> Groups:
        one_bound = aevb.datapoint_bound(model, bound, num_samples)

        def mean_bound(params: Any) -> jax.Array:
            return jax.vmap(one_bound, (None, 0, 0))(params, Datapoint(xs), jax.random.split(key, len(xs))).elbo.mean()

        return jax.tree.map(jnp.subtract, groups(jax.grad(mean_bound)(params)), exact)

    def add(sums: list[Groups], key: jax.Array) -> tuple[list[Groups], tuple[list[Groups], list[Groups]]]:
        each = [error(bound, key) for bound in estimators]
        squares = [jax.tree.map(lambda e: e @ e, parts) for parts in each]
        along = [jax.tree.map(jnp.dot, parts, unit) for parts in each]
        return jax.tree.map(jnp.add, sums, each), (squares, along)

    unit = jax.tree.map(lambda g: g / jnp.linalg.norm(g), exact)
    # A scan and not a vmap over keys: it compiles in half the time, and a minibatch fills the cache already.
    sums, (squares, along) = jax.lax.scan(add, [jax.tree.map(jnp.zeros_like, exact) for _ in estimators], keys)
    return list(zip(sums, squares, along, strict=True))


def measure(
    problem: Problem,
    point: str,
    num_samples: int,
    keys: jax.Array,
    estimators: Mapping[str, bounds.BoundFn] = ESTIMATORS,
) -> list[Row]:
    """The rows of the estimators at one point, from a gradient for each key of keys `[K]`, K at least 2."""
    params, xs, count = problem.params[point], problem.xs, len(keys)
    exact = exact_gradient(params, xs)
    measured = errors(problem.model, tuple(estimators.values()), num_samples, params, xs, exact, keys)
    rows = []
    for (estimator, parts), group in itertools.product(zip(estimators, measured, strict=True), GROUPS):
        sums, squares, along = (np.asarray(part[group], np.float64) for part in parts)
        bias = np.linalg.norm(sums) / count
        variance = (squares.mean() - bias**2) * count / (count - 1)
        rows.append({
            "latent_dim": problem.model.latent_dim,
            "num_samples": num_samples,
            "point": point,
            "estimator": estimator,
            "parameter_group": group,
            "bias_norm": bias,
            "bias_stderr": math.sqrt(variance / count),
            "bias_along": along.mean(),
            "bias_along_stderr": along.std(ddof=1) / math.sqrt(count),
            "variance": variance,
            "exact_norm": float(jnp.linalg.norm(exact[group])),
            "num_keys": count,
        })  # fmt: skip
    return rows


def measure_all(seed: int) -> list[Row]:
    """Every latent size, point and number of draws."""
    rows = []
    cells = list(itertools.product(NUM_KEYS, POINTS))
    for latent_dim, key in zip(LATENT_DIMS, jax.random.split(jax.random.key(seed), len(LATENT_DIMS)), strict=True):
        problem_key, draw_key = jax.random.split(key)
        problem = make_problem(problem_key, latent_dim)
        for (num_samples, point), cell_key in zip(cells, jax.random.split(draw_key, len(cells)), strict=True):
            keys = jax.random.split(cell_key, NUM_KEYS[num_samples])
            rows += [row | {"seed": seed} for row in measure(problem, point, num_samples, keys)]
    return rows


# --- What is shown ------------------------------------------------------------------------------------------


def cell(rows: Sequence[Row], *group_names: str, **fields: object) -> tuple[float, float]:
    """Variance and exact norm of these parameter groups together, in the one cell that has these fields."""
    found = [row for row in rows if row["parameter_group"] in group_names and fields.items() <= row.items()]
    return sum(row["variance"] for row in found), math.hypot(*(row["exact_norm"] for row in found))


def table(rows: Sequence[Row]) -> str:
    """The variances with one draw, and the largest bias anywhere in its standard errors."""
    lines = ["one draw of z    |gradient|   encoder: variance, times SGVB-B's             decoder: variance"]
    lines += ["latents, at                     SGVB-B     SGVB-A   score function      SGVB-B   SGVB-A   score f."]
    for latent_dim, point in itertools.product(LATENT_DIMS, POINTS):
        at = {"latent_dim": latent_dim, "point": point, "num_samples": 1}
        encoder, decoder = (
            [cell(rows, *names, estimator=name, **at) for name in ("sgvb_b", "sgvb_a", "score_function")]
            for names in (ENCODER, ("decoder",))
        )
        (b, norm), (a, _), (score, _) = encoder
        lines.append(
            f"{latent_dim:3} {point:14} {norm:9.3g} {b:10.4g} {a / b:9.2f}x {score / b:14,.0f}x"
            + "".join(f"{variance:12.4g}" for variance, _ in decoder)
        )
    scores = [row["bias_along"] / row["bias_along_stderr"] for row in rows]
    inside = np.mean(np.abs(scores) < 2)
    lines.append(
        f"bias: {len(rows)} cells, {inside:.0%} within 2 standard errors, the largest {max(map(abs, scores)):.1f}"
    )
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> Figure:
    """Noise over signal against the number of draws, and the bias below it, in a column a point; of one latent size."""
    figure = Figure(figsize=(WIDTH, 6.0), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    noise, bias = figure.subplots(2, 2, sharex="row", sharey="row", height_ratios=[1.5, 1])
    for column, (point, title) in enumerate(zip(POINTS, ("at the first weights", "near the optimum"), strict=True)):
        shown = [row for row in rows if row["point"] == point and row["latent_dim"] == SHOWN_DIM]
        noise[column].set_title(title, fontsize=FONT + 1, color=INK)
        draw_noise(noise[column], shown)
        draw_bias(bias[column], shown)
    noise[0].set_ylabel("noise / signal of the\nencoder’s gradient", fontsize=FONT, color=INK)
    noise[0].annotate("noise = signal", (100, 1), (4, 3), "data", "offset points", ha="right", **SMALL)
    label = "bias of the encoder mean’s gradient along the exact one\n(% of it, ± 2 standard errors, $L$ = 1)"
    figure.supxlabel(label, fontsize=FONT, color=INK)
    return figure


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.9g}".replace("-", "−")


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def draw_noise(axes: Axes, rows: Sequence[Row]) -> None:
    """The standard deviation of the encoder's gradient over its exact length, against the number of draws."""
    _style(axes)
    axes.set_xlabel(f"draws $L$ of $z$ ({SHOWN_DIM} latents)", fontsize=FONT, color=INK)
    axes.set(xscale="log", yscale="log", xlim=(0.8, 125))
    axes.set_xticks(list(NUM_KEYS), [f"{x}" for x in NUM_KEYS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.9g}"))
    axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
    axes.axhline(1, color=INK, linewidth=1, linestyle=DASHES)
    first = {}
    for estimator, (label, colour) in LOOKS.items():
        cells = [cell(rows, *ENCODER, num_samples=num_samples, estimator=estimator) for num_samples in NUM_KEYS]
        ratios = [math.sqrt(variance) / norm for variance, norm in cells]
        first[estimator] = ratios[0], cells[0][0]
        axes.plot(list(NUM_KEYS), ratios, "o-", color=colour, markersize=5, linewidth=1.8)
        style = {"textcoords": "offset points", "fontsize": FONT, "color": colour}
        if estimator == "sgvb_b":
            axes.annotate(label, (1, ratios[0]), (-4, -14), va="top", **style)
        else:
            axes.annotate(label, (10, ratios[1]), (4, 5), **style)
    (low, reference), (high, variance) = first["sgvb_b"], first["score_function"]
    arrow = {"arrowstyle": "<->", "color": INK, "shrinkA": 4, "shrinkB": 4, "zorder": 1}
    axes.annotate("", (1, high), (1, low), arrowprops=arrow)
    text = f"variance × {_two_digits(variance / reference)}"
    axes.annotate(text, (1, math.sqrt(low * high)), (6, 0), textcoords="offset points", va="center", **SMALL)


def draw_bias(axes: Axes, rows: Sequence[Row]) -> None:
    """The bias of the encoder mean's gradient along the exact one, in percent of it, with 2 standard errors."""
    _style(axes)
    axes.axvline(0, color=INK, linewidth=1, linestyle=DASHES)
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = (-100, -1, 0, 1, 100)
    axes.set_xticks(ticks, [f"{tick}".replace("-", "−") for tick in ticks])
    axes.set_yticks(range(len(LOOKS)), [label for label, _ in LOOKS.values()])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(LOOKS) - 0.5, -0.8)
    for y, (estimator, (_, colour)) in enumerate(LOOKS.items()):
        fields = {"num_samples": 1, "estimator": estimator, "parameter_group": ENCODER[0]}
        (row,) = (row for row in rows if fields.items() <= row.items())
        value, error = (100 * row[name] / row["exact_norm"] for name in ("bias_along", "bias_along_stderr"))
        axes.errorbar(value, y, xerr=2 * error, fmt="o", color=colour, markersize=5, capsize=4, linewidth=1.8)
        text = f"{_two_digits(value)} ± {_two_digits(2 * error)}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a gap in the dashed line
        style = SMALL | {"color": colour, "bbox": box}
        axes.annotate(text, (0, y), (0, 7), textcoords="offset points", ha="center", **style)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with 6 digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    return text.getvalue()


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    out = epath.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = measure_all(flags.FLAGS.seed)
    workdir.write_text(out / "gradients.csv", to_csv(rows))
    figures.save(draw(rows), out / "gradients.png")
    print(table(rows))


if __name__ == "__main__":
    flags.DEFINE_string("out", "experiments/paper/results", "Folder for gradients.csv and gradients.png.")
    flags.DEFINE_integer("seed", 0, "Of model, data and draws.", lower_bound=0, upper_bound=2**32 - 1)
    cli.run(main)
