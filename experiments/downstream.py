"""What codes are good for: a linear probe, neighbours, clusters, few labels, anomalies.

Pure functions of NumPy arrays; scikit-learn learns, and every random choice comes from the seed given. Codes are
float `[N, code]`, classes int `[N]`. No number stands alone: `table` judges the codes of a model beside raw pixels,
PCA and the encoder before training, on the same examples and the same draws of labels. What reconstructions are good
for is in restoration.py.

Codes are centred and scaled by the statistics of the training codes, in one of two ways. The probe, which has labels
enough to find its own weights, takes every feature at unit variance. Distances and probes of few labels take one
scale for the whole code, for the geometry is the code's own: a unit variance each would make the dimensions that carry
nothing, of a VAE or of PCA, as loud as the rest (5 neighbours in all 784 components of 3000 MNIST digits find 45 %, not
95 %).
"""

import hashlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epath

from aevb.errors import InputError
from experiments import numbers

# Of the probe: lambda of `mean cross-entropy + lambda / 2 |W|^2`, strongest first. With 60,000 MNIST pixels, random
# features or components, 1 and 0.00001 gain nothing; with 10 to 1000 labels 0.01 is within 1.5 points of the best.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
PENALTY_OF_FEW = 1e-2
MAX_ITERATIONS = 1000  # of L-BFGS; MNIST takes some 100 until no entry of the gradient is above 1e-4
NEIGHBOURS = 5
RESTARTS = 10  # of k-means, the one with the smallest inertia counts
LABELS = (10, 100, 1000)
DRAWS = 10  # of the labelled examples
CONSTANT = 1e-6  # a feature that varies less, beside its mean and the widest feature, is float32's rounding


class Labelled(NamedTuple):
    """Codes, float `[N, code]`, and their classes, int `[N]`."""

    codes: np.ndarray
    labels: np.ndarray | None


def standardise(train_codes: np.ndarray, test_codes: np.ndarray, *, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """`(codes - mean) / sd` with the mean and sd of the training codes alone; float32, shapes as given.

    Args:
      train_codes, test_codes: `[N, code]` and `[M, code]`.
      each: a standard deviation for each feature; otherwise one for all, the root of their mean variance. Features that
        are constant over the training codes are 0 in both.
    """
    mean, sd = train_codes.mean(axis=0, dtype=np.float64), train_codes.std(axis=0, dtype=np.float64)
    varies = sd > CONSTANT * np.maximum(np.abs(mean), sd.max())
    scale = sd if each else np.full_like(sd, math.sqrt(np.square(sd[varies]).mean()) if varies.any() else 1.0)
    factor = np.divide(1.0, scale, out=np.zeros_like(sd), where=varies)

    def scaled(codes: np.ndarray) -> np.ndarray:
        codes = codes - mean.astype(np.result_type(codes, np.float32))
        return np.float32(codes) * np.float32(factor)

    return scaled(train_codes), scaled(test_codes)


def linear_probe(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray, seed: int
) -> float:
    """The share of test examples whose class a linear classifier of the codes finds, in [0, 1] (Alain & Bengio, 2016).

    Multinomial logistic regression on features of unit variance: it minimises `-1/N sum_n log softmax(W c_n + b)[y_n]
    + lambda / 2 |W|^2` by L-BFGS, at most 1000 steps. lambda is the one of 0.1, 0.01, 0.001 and 0.0001 that is the most
    accurate on a tenth of the training examples of each class, held out of a first fit (the strongest of equals; 0.01
    where no class has 10).

    Args:
      train_codes, test_codes: `[N, code]` and `[M, code]`, finite.
      train_labels, test_labels: classes, int `[N]` and `[M]`; at least 2, those of the test among the training's.
      seed: of the tenth.

    Raises:
      InputError: labels are missing, of one class or no classes; shapes differ; codes are not finite.
    """
    _check_pair(Labelled(train_codes, train_labels), Labelled(test_codes, test_labels))
    train, test = standardise(train_codes, test_codes, each=True)
    penalty = _choose_penalty(train, train_labels, seed)
    return float(_probe(penalty, len(train)).fit(train, train_labels).score(test, test_labels))


def _choose_penalty(codes: np.ndarray, labels: np.ndarray, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == each] for each in np.unique(labels)]
    held_out = np.concatenate([members[: len(members) // 10] for members in by_class])
    if not len(held_out):
        return PENALTY_OF_FEW
    rest = np.setdiff1d(order, held_out)
    fitted, judged = (codes[rest], labels[rest]), (codes[held_out], labels[held_out])
    probe = _probe(PENALTIES[0], len(rest)).set_params(warm_start=True)  # each starts where the one before it ended
    accuracies = [probe.set_params(C=1 / (penalty * len(rest))).fit(*fitted).score(*judged) for penalty in PENALTIES]
    return PENALTIES[int(np.argmax(accuracies))]


def _probe(penalty: float, num: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (penalty * num), max_iter=MAX_ITERATIONS)  # C weighs the sum over examples


class Neighbours(NamedTuple):
    """The nearest training codes of each test code, at most 5 of a class: enough to leave any one class out.

    Attributes:
      distances: ascending, at one scale for the whole code, `[M, 10]`, or fewer where there are no more.
      classes: of those neighbours, the same shape.
    """

    distances: np.ndarray
    classes: np.ndarray

    @classmethod
    def find(cls, train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray) -> Self:
        """Search the training codes `[N, code]` for those next to the test codes `[M, code]`, by brute force."""
        from sklearn.neighbors import NearestNeighbors

        if len(train_codes) < NEIGHBOURS:
            raise InputError(f"there are {len(train_codes)} training codes: give at least {NEIGHBOURS} neighbours")
        train, test = standardise(train_codes, test_codes, each=False)
        distances, classes = np.empty((len(test), 0)), np.empty((len(test), 0), train_labels.dtype)
        for each in np.unique(train_labels):
            members = train[train_labels == each]
            search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(members)), algorithm="brute").fit(members)
            found, _ = search.kneighbors(test)
            distances = np.concatenate([distances, found], axis=1)
            classes = np.concatenate([classes, np.full(found.shape, each, classes.dtype)], axis=1)
            order = distances.argsort(axis=1, kind="stable")[:, : 2 * NEIGHBOURS]
            distances, classes = (np.take_along_axis(part, order, axis=1) for part in (distances, classes))
        return cls(distances, classes)

    def vote(self) -> np.ndarray:
        """The commonest class among the 5 nearest of each, the smallest of equals, `[M]`."""
        known, nearest = np.unique(self.classes), self.classes[:, None, :NEIGHBOURS]
        return known[(nearest == known[:, None]).sum(axis=2).argmax(axis=1)]

    def scores_without(self, held_out: int) -> np.ndarray:
        """The mean distance to the 5 nearest of the other classes, `[M]` (Angiulli & Pizzuti, 2002)."""
        others = np.where(self.classes == held_out, np.inf, self.distances)
        scores = np.sort(others, axis=1)[:, :NEIGHBOURS].mean(axis=1)
        if np.isinf(scores).any():
            raise InputError(f"without class {held_out} there are fewer than {NEIGHBOURS} training codes: give more")
        return scores


def knn_accuracy(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> float:
    """The share of test examples whose class is the commonest among the 5 nearest training codes, in [0, 1].

    The distance is Euclidean, at one scale for the whole code. Arguments and errors are `linear_probe`'s; there is
    nothing random in it.
    """
    _check_pair(Labelled(train_codes, train_labels), Labelled(test_codes, test_labels))
    return float(np.mean(Neighbours.find(train_codes, train_labels, test_codes).vote() == test_labels))


def clustering(codes: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float, float]:
    """How well k-means, which knows no labels, finds the classes: `(NMI, ARI)`.

    As many clusters as classes, the best of 10 starts (k-means++), at one scale for the whole code. With clusters K
    and classes Y, `NMI = 2 I(K; Y) / (H(K) + H(Y))`, in [0, 1]; the adjusted Rand index (Hubert & Arabie, 1985) is the
    share of pairs on which both agree, shifted and scaled to 0 by chance and 1 at best, and may be negative.

    Args:
      codes: `[N, code]`, finite.
      labels: classes, int `[N]`, at least 2.
      seed: of the starts.

    Raises:
      InputError: as in `linear_probe`.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    _check(Labelled(codes, labels), "given")
    codes, _ = standardise(codes, codes[:0], each=False)
    with warnings.catch_warnings():
        # Of a collapsed code, which has fewer distinct values than there are classes: both scores tell.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(len(np.unique(labels)), n_init=RESTARTS, random_state=seed).fit_predict(codes)
    return float(normalized_mutual_info_score(labels, clusters)), float(adjusted_rand_score(labels, clusters))


def balanced_draw(labels: np.ndarray, num_labels: int, rng: np.random.Generator) -> np.ndarray:
    """The indices of so many examples without replacement, of each class equally many or, by lot, one more.

    Raises:
      InputError: there are fewer labels than classes, or a class has too few examples.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if num_labels < len(classes):
        raise InputError(f"{num_labels} labels were asked of {len(classes)} classes: ask for at least one each")
    most = -(-num_labels // len(classes))
    if counts.min() < most:
        raise InputError(
            f"{num_labels} labels of {len(classes)} classes take {most} of each, and class "
            f"{classes[counts.argmin()]} has {counts.min()} examples: ask for fewer labels"
        )
    extra = np.arange(len(classes)) < num_labels % len(classes)
    sizes = num_labels // len(classes) + rng.permutation(extra)
    drawn = [rng.choice(np.flatnonzero(labels == each), size, False) for each, size in zip(classes, sizes, strict=True)]
    return np.concatenate(drawn)


def label_efficiency(
    train_codes: np.ndarray,
    train_labels: np.ndarray,
    test_codes: np.ndarray,
    test_labels: np.ndarray,
    num_labels: int,
    seed: int,
) -> tuple[float, float]:
    """The accuracy on test of a linear probe of few labels: the mean of 10 draws, in [0, 1], and its standard error.

    As `linear_probe`, with lambda = 0.01 (there is nothing to choose it on) and one scale for the whole code, from all
    training codes, which cost no labels. The standard error, `sd / sqrt(10)`, is that of drawing the labels; a seed
    draws the same ones for every representation.

    Args:
      train_codes, train_labels, test_codes, test_labels: as in `linear_probe`.
      num_labels: drawn by `balanced_draw`, at least the number of classes.
      seed: of the draws.

    Raises:
      InputError: as in `linear_probe` and `balanced_draw`.
    """
    _check_pair(Labelled(train_codes, train_labels), Labelled(test_codes, test_labels))
    train, test = standardise(train_codes, test_codes, each=False)
    accuracies = []
    for draw in range(DRAWS):
        chosen = balanced_draw(train_labels, num_labels, np.random.default_rng((seed, num_labels, draw)))
        probe = _probe(PENALTY_OF_FEW, num_labels).fit(train[chosen], train_labels[chosen])
        accuracies.append(probe.score(test, test_labels))
    return float(np.mean(accuracies)), numbers.standard_error(np.array(accuracies))


def strangeness(train_codes: np.ndarray, test_codes: np.ndarray) -> np.ndarray:
    """The mean distance of each test code to the 5 nearest training codes, at one scale for the whole code, `[M]`."""
    return Neighbours.find(train_codes, np.zeros(len(train_codes), np.int32), test_codes).distances.mean(axis=1)


def held_out_auroc(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> tuple[float, float]:
    """How well the distance from the codes of the other classes tells a class apart: mean AUROC, its standard error.

    Each class of the test examples is held out in turn. The score of a test code is its mean Euclidean distance to the
    5 nearest training codes of the other classes, at one scale for the whole code; the mean and `sd / sqrt(classes)`
    are over the classes. It is the detector that never saw the class: the encoder did, without its label.

    Args: as in `linear_probe`.

    Raises:
      InputError: as in `linear_probe`, or the other classes have fewer than 5 training codes.
    """
    _check_pair(Labelled(train_codes, train_labels), Labelled(test_codes, test_labels))
    return _held_out_auroc(Neighbours.find(train_codes, train_labels, test_codes), test_labels)


def _held_out_auroc(neighbours: Neighbours, labels: np.ndarray) -> tuple[float, float]:
    each = [numbers.auroc(neighbours.scores_without(out), labels == out) for out in np.unique(labels)]
    return float(np.mean(each)), numbers.standard_error(np.array(each))


def evaluate_codes(train: Labelled, test: Labelled, seed: int) -> dict[str, Any]:
    """Everything that one representation is good for, as a flat dictionary of plain numbers.

    Clusters are of the test codes, which no encoder was trained on. Labels are drawn 10, 100 and 1000 at a time; the
    keys of a number that the training examples cannot give, every class alike, are absent.

    Raises:
      InputError: as in the functions above.
    """
    _check_pair(train, test)
    neighbours = Neighbours.find(train.codes, train.labels, test.codes)
    accuracies = {
        "probe_accuracy": linear_probe(*train, *test, seed),
        "knn_accuracy": float(np.mean(neighbours.vote() == test.labels)),
    }
    stderrs = {f"{name}_stderr": math.sqrt(p * (1 - p) / len(test.labels)) for name, p in accuracies.items()}
    nmi, ari = clustering(*test, seed)
    auroc, auroc_stderr = _held_out_auroc(neighbours, test.labels)
    _, counts = np.unique(train.labels, return_counts=True)
    few = {}
    for num in LABELS:
        if len(counts) <= num <= counts.min() * len(counts):
            found = label_efficiency(*train, *test, num, seed)
            few |= {f"accuracy_{num}_labels": found[0], f"accuracy_{num}_labels_stderr": found[1]}
    told = {"code_size": train.codes.shape[1], "num_train": len(train.codes), "num_test": len(test.codes)}
    rest = {"kmeans_nmi": nmi, "kmeans_ari": ari, "anomaly_auroc": auroc, "anomaly_auroc_stderr": auroc_stderr}
    return told | accuracies | stderrs | few | rest


def table(
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    seed: int,
    cache: str | None = None,
) -> dict[str, dict[str, Any]]:
    """`evaluate_codes` of several representations of the same examples, in the order given.

    Args:
      codes: the training and test codes of each by its name, such as the model, its encoder before training, raw pixels
        and PCA: `[N, code]` and `[M, code]`, where every representation may have its own size.
      train_labels, test_labels: classes, int `[N]` and `[M]`.
      seed: of every random choice, the same for all.
      cache: a folder that keeps what was found, by the values of codes and labels and by the code that judges them,
        for the next who gives the same.

    Raises:
      InputError: as in `evaluate_codes`; it names the representation.
    """
    from joblib import Memory

    rows, evaluate = {}, Memory(cache and _cache_of_this_code(cache), verbose=0).cache(evaluate_codes)
    for name, (train_codes, test_codes) in codes.items():
        try:
            rows[name] = evaluate(Labelled(train_codes, train_labels), Labelled(test_codes, test_labels), seed)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return rows


def _cache_of_this_code(cache: str) -> str:
    """A folder in the cache for this file as it is and this scikit-learn: joblib looks at one function alone."""
    import sklearn

    told = Path(__file__).read_bytes() + sklearn.__version__.encode()
    return str(epath.Path(cache) / hashlib.sha256(told).hexdigest()[:12])


def _check_pair(train: Labelled, test: Labelled) -> None:
    _check(train, "training")
    _check(test, "test")
    if train.codes.shape[1] != test.codes.shape[1]:
        raise InputError(
            f"the training codes have {train.codes.shape[1]} features and the test codes {test.codes.shape[1]}: give "
            "both from one encoder"
        )
    strange = np.setdiff1d(test.labels, train.labels)
    if len(strange):
        raise InputError(
            f"the test labels hold {len(strange)} classes that the training labels lack, such as {strange[0]}: no "
            "classifier can find them, so give splits of the same classes"
        )


def _check(given: Labelled, what: str) -> None:
    codes, labels = given
    if labels is None:
        raise InputError(f"the {what} examples have no labels, and codes are judged by them: use data with labels")
    if codes.ndim != 2 or not codes.shape[1] or codes.dtype.kind not in "iuf":
        raise InputError(f"the {what} codes are {codes.dtype} of shape {codes.shape}: give numbers, a row an example")
    if labels.shape != codes.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"the {what} labels are {labels.dtype} of shape {labels.shape} for {len(codes)} codes: give each one "
            "class, an integer"
        )
    if not np.isfinite(codes).all():
        raise InputError(
            f"{np.sum(~np.isfinite(codes).all(axis=1))} of {len(codes)} {what} codes are not finite: look at "
            "the encoder that made them"
        )
    if (num := len(np.unique(labels))) < 2:
        raise InputError(f"the {what} labels are of {num} classes: codes tell apart at least 2, so give more")
