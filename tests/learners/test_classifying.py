"""Classifiers: loss and gradient by hand, softmax regression by scikit-learn, and what they start from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from quick_jit import quick_jit
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from aevb import models, training
from aevb.data import LabelContext, Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.errors import InputError
from aevb.learners import Batch, classifying, full_vb
from aevb.networks import MLP

SIZE, CODE, CLASSES, NUM = 5, 3, 4, 60
RNG = np.random.default_rng(0)
LABELS = np.arange(NUM) % CLASSES
XS = RNG.normal(size=(NUM, SIZE)) + 1.5 * np.eye(CLASSES, SIZE)[LABELS]
CLASS = np.eye(CLASSES)[LABELS]


def model_of(posterior=None, **options):
    return models.vae((SIZE,), CODE, network=functools.partial(MLP, hidden=()), posterior=posterior, **options)


def batch_of(xs, classes=CLASS, corrupted=None):
    places = jnp.arange(len(xs), dtype=jnp.int32)
    return Batch(jnp.float32(xs), None if classes is None else jnp.float32(classes), places, places, corrupted)


def somewhere(state, seed=1):
    """The state with random weights, the head's too."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.float32(0.5 * rng.normal(size=leaf.shape)), state.params)
    return state.replace(params=params)


@pytest.mark.parametrize("seen", ["x", "corrupted"])
@pytest.mark.parametrize("posterior", [None, models.PointMass(nn.relu)], ids=["posterior mean", "code of a ReLU"])
def test_loss_and_gradient_by_hand(posterior, seen):
    """`d loss / d logits = (p - y) / M`; the encoder's log variances, which no mean depends on, have no gradient."""
    learner = classifying.learner(model_of(posterior), optax.sgd(1.0), num_classes=CLASSES)
    state = somewhere(quick_jit(learner.init)(jax.random.key(0)))
    batch = batch_of(XS) if seen == "x" else batch_of(np.zeros_like(XS), corrupted=jnp.float32(XS))
    after, metrics = jax.jit(learner.update)(state, batch, jax.random.key(1))
    got = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, after.params)
    params = jax.tree.map(np.float64, state.params)
    encoder, head = params["encoder"]["output"], params["head"]
    outputs = XS @ encoder["kernel"] + encoder["bias"]
    open_ = np.ones_like(outputs[:, :CODE]) if posterior is None else outputs > 0
    codes = outputs[:, :CODE] * open_
    told = log_softmax(codes @ head["kernel"] + head["bias"], axis=1)
    np.testing.assert_allclose(metrics["loss"], -told[np.arange(NUM), LABELS].mean(), rtol=1e-5)
    assert metrics["accuracy"] == np.float32((told.argmax(axis=1) == LABELS).mean())
    slope = (np.exp(told) - CLASS) / NUM
    back = (slope @ head["kernel"].T) * open_
    expected = {
        "encoder": {"output": {"kernel": XS.T @ back, "bias": back.sum(axis=0)}},
        "head": {"kernel": codes.T @ slope, "bias": slope.sum(axis=0)},
    }
    if posterior is None:
        assert (got["encoder"]["output"]["kernel"][:, CODE:] == 0).all()
        got["encoder"]["output"] = jax.tree.map(lambda leaf: leaf[..., :CODE], got["encoder"]["output"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, expected)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(after.step) == 1


def test_the_head_on_fixed_codes_is_softmax_regression():
    """Without a penalty, by scikit-learn: the classes overlap, so that there is an optimum."""
    xs = XS + RNG.normal(size=XS.shape)
    labels = {"encoder": "fixed", "head": "trained"}
    optimizer = optax.multi_transform({"fixed": optax.set_to_zero(), "trained": optax.sgd(0.5)}, labels)
    learner = classifying.learner(model_of(models.PointMass()), optimizer, num_classes=CLASSES)
    state = quick_jit(learner.init)(jax.random.key(3))
    codes = xs @ np.float64(state.params["encoder"]["output"]["kernel"])

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, key: learner.update(state, batch_of(xs), key), state, jnp.arange(4000))

    after, metrics = run(state)
    regression = LogisticRegression(C=1e8, tol=1e-8, max_iter=10_000).fit(codes, LABELS)
    head = jax.tree.map(np.float64, after.params["head"])
    told = softmax(codes @ head["kernel"] + head["bias"], axis=1)
    np.testing.assert_allclose(told, regression.predict_proba(codes), atol=2e-3)
    np.testing.assert_allclose(metrics["accuracy"][-1], regression.score(codes, LABELS), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], state.params["encoder"])


def test_what_it_starts_from():
    """The encoder's weights as they are given, nothing else of them, and a head that knows nothing: `loss = log K`."""
    model = model_of()
    start = quick_jit(full_vb.learner(model, optax.sgd(1.0), num_examples=NUM).init)(jax.random.key(5)).params
    assert set(start) == {"encoder", "decoder", full_vb.LOG_VARIANCE}
    learner = classifying.learner(model, optax.adam(0.1), num_classes=CLASSES, start=start)
    state = quick_jit(learner.init)(jax.random.key(6))
    assert set(state.params) == {"encoder", "head"}
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], start["encoder"])
    assert jax.tree.map(jnp.shape, state.params["head"]) == {"kernel": (CODE, CLASSES), "bias": (CLASSES,)}
    after, metrics = jax.jit(learner.update)(state, batch_of(XS), jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], np.log(CLASSES), rtol=1e-6)
    # At W = 0 no gradient reaches the encoder, and the head's tells the codes: d loss / d W = codes^T (1/K - y) / M.
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], start["encoder"])
    layer = jax.tree.map(np.float64, start["encoder"]["output"])
    codes = (XS @ layer["kernel"] + layer["bias"])[:, :CODE]
    gradient = codes.T @ (1 / CLASSES - CLASS) / NUM
    both = np.sqrt((gradient**2).sum() + ((1 / CLASSES - CLASS).mean(axis=0) ** 2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], both, rtol=1e-4)
    np.testing.assert_array_equal(np.sign(after.params["head"]["kernel"]), -np.sign(gradient))
    fresh = [
        quick_jit(classifying.learner(model, optax.adam(0.1), num_classes=CLASSES).init)(jax.random.key(k))
        for k in (6, 7)
    ]
    kernels = [np.asarray(each.params["encoder"]["output"]["kernel"]) for each in (state, *fresh)]
    assert all((kernels[i] != kernels[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_masked_autoencoder_is_asked_with_nothing_masked():
    model = models.masked_autoencoder((8, 8, 1), width=8, depth=1, num_heads=2, decoder_width=8, decoder_depth=1)
    learner = classifying.learner(model, optax.sgd(0.1), num_classes=CLASSES)
    state = somewhere(quick_jit(learner.init)(jax.random.key(0)))
    assert set(state.params) == {"encoder", "head"}
    x = jnp.float32(RNG.uniform(size=(8, 8, 1)))
    got = quick_jit(classifying.logits(model))(state.params, x)
    tokens = quick_jit(lambda x: model.bind({"params": state.params}).encoder(model.patches(x)))(x)
    assert len(tokens) == 1 + 4
    code = np.asarray(tokens)[1:].mean(axis=0)
    head = jax.tree.map(np.asarray, state.params["head"])
    np.testing.assert_allclose(got, code @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_any_number_of_devices_trains_the_same_classifier():
    """On data that are drawn afresh at each sight; and labels that come with the feed are those that are learned."""
    examples = np.uint8(20 + 220 * np.eye(CLASSES, SIZE)[LABELS])
    feed = InMemory(Split(examples, LABELS.astype(np.int32)), 8, jax.random.key(2))
    preprocess = make_preprocess("dynamic", context=LabelContext(CLASSES, classes=True))
    learner = classifying.learner(model_of(), optax.adam(0.05), num_classes=CLASSES)
    ended = []
    for devices in (1, 2):
        steps = training.train(
            learner,
            quick_jit(learner.init)(jax.random.key(4)),
            feed,
            preprocess,
            num_steps=100,
            devices=jax.devices()[:devices],
        )
        *_, (state, metrics) = steps
        ended.append((jax.device_get(training.unreplicate(state).params), metrics))
    (one, of_one), (two, of_two) = ended
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), one, two)
    for name in ("loss", "accuracy", "grad_norm"):
        np.testing.assert_allclose(of_one[name], of_two[name], rtol=1e-3, atol=1e-4)
    assert of_one["loss"][-20:].mean() < 0.7 * np.log(CLASSES)


@pytest.mark.parametrize(
    ("classes", "words"),
    [(None, "context of shape None"), (CLASS[:, :1], r"shape \(1,\): give its class, as one of 4"), (LABELS, r"\(\)")],
)
def test_a_batch_without_classes_is_refused(classes, words):
    learner = classifying.learner(model_of(), optax.sgd(1.0), num_classes=CLASSES)
    state = quick_jit(learner.init)(jax.random.key(0))
    with pytest.raises(InputError, match=words):
        learner.update(state, batch_of(XS, classes), jax.random.key(1))


def test_what_cannot_be_a_classifier_is_refused():
    with pytest.raises(InputError, match="num_classes is 1"):
        classifying.learner(model_of(), optax.sgd(1.0), num_classes=1)
    with pytest.raises(InputError, match="told a context of 4 numbers"):
        classifying.learner(model_of(context_dim=4), optax.sgd(1.0), num_classes=CLASSES)
