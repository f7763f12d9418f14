"""Wake-sleep (Hinton et al., 1995): the decoder learns from the encoder's codes, the encoder from its dreams."""

import functools

import jax
import jax.numpy as jnp
import optax

from aevb import bounds, models
from aevb.data import Datapoint
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state, map_loss


def learner(
    model: models.VAE,
    optimizer: optax.GradientTransformation,
    *,
    bound: bounds.BoundFn = bounds.sgvb_b,
    num_samples: int = 1,
    weight_prior_examples: int | None = None,
) -> Learner:
    """Two losses that share no gradient, one optimizer, the same encoder and decoder as AEVB.

    Wake: `z_i ~ q(z | x_i)`, and theta climbs `log p(x_i, z_i)` (with `log p(theta)` for MAP); no gradient passes
    through the draw. Sleep: `z ~ p(z)`, `x ~ p(x | z)`, and phi climbs `log q(z | x)`. The sleep phase minimises
    KL(p(z | x) || q(z | x)) under the model's own x, not the KL of the bound, so no single bound goes up.

    Args:
      model: a VAE.
      optimizer: any Optax transformation.
      bound: what is measured of each minibatch; it is not what is climbed.
      num_samples: L, draws of z a datapoint in the wake phase, and dreams a datapoint in the sleep phase.
      weight_prior_examples: N, the size of the training set, to add the paper's prior p(theta) = N(0, I); None leaves
        it out.

    Returns:
      A `Learner` whose metrics are `elbo`, `log_likelihood`, `kl` (nats per datapoint, on the wake phase's draws),
      `wake_loss`, `sleep_loss`, their sum `loss`, and `grad_norm`.
    """

    def wake(params: dict, point: Datapoint, key: jax.Array) -> tuple[jax.Array, bounds.Bound]:
        """log p(x, z) in nats, differentiable in theta alone, and the bound."""
        awake = {"params": jax.lax.stop_gradient(params) | models.generative(params)}
        vae = model.bind(awake).given(point.context)
        posterior, prior = vae.encode(point.x), vae.prior()
        samples = bounds.draw(key, point.x, posterior, prior, vae.decode, num_samples)
        return (samples.log_likelihood + samples.log_prior).mean(), bound(samples, posterior, prior)

    def sleep(params: dict, context: jax.Array | None, key: jax.Array) -> jax.Array:
        """log q(z | x) in nats of dreams (z, x), in the context of a datapoint, differentiable in phi alone."""

        def dream(key: jax.Array) -> jax.Array:
            z_key, x_key = jax.random.split(key)
            asleep = model.bind({"params": jax.lax.stop_gradient(params)}).given(context)
            z = asleep.prior().sample(z_key)
            x = asleep.decode(z).sample(x_key)
            return model.bind({"params": params}).encode(x, context).log_prob(z)

        if num_samples == 1:  # as in bounds.draw
            return dream(key)
        return jax.vmap(dream)(jax.random.split(key, num_samples)).mean()

    def loss_fn(params: dict, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        wake_keys, sleep_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        log_joint, per_datapoint = jax.vmap(wake, in_axes=(None, 0, 0))(params, batch.points, wake_keys)
        wake_loss = map_loss(log_joint, models.generative(params), weight_prior_examples)
        sleep_loss = -jax.vmap(sleep, in_axes=(None, 0, 0))(params, batch.context, sleep_keys).mean()
        mean = jax.tree.map(jnp.mean, per_datapoint)
        metrics = {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl}
        return wake_loss + sleep_loss, metrics | {"wake_loss": wake_loss, "sleep_loss": sleep_loss}

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss = functools.partial(loss_fn, batch=batch, keys=example_keys(step_key, batch.index))
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Learner(
        lambda key: first_state(key, functools.partial(models.init, model), optimizer.init),
        update,
        model.likelihood.support,
    )
