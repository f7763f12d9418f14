"""Probes, neighbours, clusters, few labels and anomalies against scikit-learn called directly, and by hand.

What is random has fixed seeds, and comparisons with chance allow 4 standard errors.
"""

import functools

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aevb.errors import InputError
from experiments import downstream, numbers
from experiments.downstream import Labelled

# Said to scikit-learn 1.6 by a SciPy that is newer than it.
pytestmark = pytest.mark.filterwarnings("ignore:scipy.optimize.*L-BFGS-B:DeprecationWarning")


@functools.cache
def digits():
    """Real codes of different scales: (train codes, labels, test codes, labels); two pixels are constant."""
    x, y = load_digits(return_X_y=True)
    codes = np.float32(x * np.linspace(0.1, 3, 64))
    return codes[:1200], y[:1200], codes[1200:], y[1200:]


def blobs(seed, num=60, classes=3, apart=100.0, size=4):
    """Normal clouds of unit width whose centres are far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % classes
    return np.float32(apart * np.eye(classes, size)[labels] + rng.normal(size=(num, size))), labels


def noise(seed, num, size=5):
    """Codes and two classes that have nothing to do with one another."""
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(num, size))), rng.integers(0, 2, num)


def test_the_probe_is_scikit_learns_at_the_penalty_that_it_chose():
    train, train_labels, test, test_labels = digits()
    measured = downstream.linear_probe(*digits(), seed=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = []
    for penalty in downstream.PENALTIES:
        pipeline.set_params(logisticregression__C=1 / (penalty * len(train)))
        scores.append(pipeline.fit(train, train_labels).score(test, test_labels))
    assert np.abs(np.array(scores) - measured).min() < 1.5 / len(test)  # float32 may turn one example
    assert measured > max(scores) - 0.01 > min(scores)  # and the choice matters here


def test_codes_that_a_plane_parts_are_told_apart_without_fail():
    for classes in (2, 3):
        (train, labels), (test, test_labels) = (blobs(seed, classes=classes) for seed in (0, 1))
        assert downstream.linear_probe(train, labels, test, test_labels, seed=0) == 1.0
        assert downstream.knn_accuracy(train, labels, test, test_labels) == 1.0
        assert downstream.label_efficiency(train, labels, test, test_labels, 10, seed=0) == (1.0, 0.0)
        names = np.array([7, 3, 50])  # of classes are any integers
        assert downstream.linear_probe(train, names[labels], test, names[test_labels], seed=0) == 1.0
        assert downstream.knn_accuracy(train, names[labels], test, names[test_labels]) == 1.0


def test_random_labels_are_found_by_chance():
    train, test = noise(0, 1000), noise(1, 2000)
    found = downstream.evaluate_codes(Labelled(*train), Labelled(*test), seed=0)
    stderr = np.sqrt(0.25 / 2000)
    for name in ("probe_accuracy", "knn_accuracy"):
        assert abs(found[name] - 0.5) < 4 * stderr < 0.05, name
        np.testing.assert_allclose(found[f"{name}_stderr"], stderr, rtol=0.01)
    for num in (10, 100):
        assert abs(found[f"accuracy_{num}_labels"] - 0.5) < 4 * (stderr + found[f"accuracy_{num}_labels_stderr"])
    # The AUROC of m and n scores without order has variance (m + n + 1) / 12 m n (Mann & Whitney, 1947).
    assert abs(found["anomaly_auroc"] - 0.5) < 4 * np.sqrt(2001 / (12 * 1000**2)) < 0.06
    assert abs(found["kmeans_ari"]) < 0.01 and abs(found["kmeans_nmi"]) < 0.01
    assert "accuracy_1000_labels" not in found  # there are fewer than 500 of one class
    few = [Labelled(*noise(seed, 200)) for seed in (0, 1)]  # another tenth, another penalty
    probes = [downstream.linear_probe(*few[0], *few[1], seed) for seed in (0, 3)]
    assert [downstream.evaluate_codes(*few, seed)["probe_accuracy"] for seed in (0, 3)] == probes
    assert probes[0] != probes[1]


def test_standardising_looks_at_the_training_codes_alone():
    rng = np.random.default_rng(0)
    train, test = np.float32(rng.normal(3, [0.1, 10, 1], (50, 3))), np.float32(rng.normal(size=(7, 3)))
    train[:, 2] = 0.1  # constant, though not in test
    scaler = StandardScaler().fit(np.float64(train[:, :2]))
    each = downstream.standardise(train, test, each=True)
    for got, codes in zip(each, (train, test), strict=True):
        np.testing.assert_allclose(got[:, :2], scaler.transform(codes[:, :2]), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(got[:, 2], 0)
    whole = downstream.standardise(train, test, each=False)
    scale = np.sqrt(np.square(scaler.scale_).mean())
    np.testing.assert_allclose(whole[1][:, :2], (test[:, :2] - scaler.mean_) / scale, rtol=1e-4)
    np.testing.assert_array_equal(downstream.standardise(train, test[:3], each=True)[1], each[1][:3])
    rounding = np.float32(0.3 + 1e-7 * (np.arange(50) % 2)[:, None])
    train = np.concatenate([train[:, :2], rounding, 0 * rounding + 1e-9 * train[:, :1]], axis=1)
    hardly = downstream.standardise(train, train, each=True)[1][:, 2:]  # what varies by rounding alone
    np.testing.assert_array_equal(hardly, 0)
    constant = downstream.standardise(np.full((9, 2), 0.3, np.float32), test[:, :2], each=False)
    assert not constant[0].any() and not constant[1].any()


def test_one_scale_for_all_turns_with_the_codes():
    """Distances, clusters and few labels do not see a rotation; a unit variance for each feature would."""
    train, labels, test, test_labels = digits()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    codes, turned = (Labelled(train, labels), Labelled(test, test_labels)), (train @ rotation, test @ rotation)
    first = downstream.evaluate_codes(*codes, seed=0)
    second = downstream.evaluate_codes(Labelled(turned[0], labels), Labelled(turned[1], test_labels), seed=0)
    for name in ("knn_accuracy", "anomaly_auroc", "accuracy_100_labels"):
        np.testing.assert_allclose(first[name], second[name], atol=2e-3, err_msg=name)


def test_neighbours_vote_as_scikit_learns_do():
    train, labels, test, _ = digits()
    direct = KNeighborsClassifier(5, algorithm="kd_tree").fit(train, labels).predict(test)
    found = downstream.Neighbours.find(train, labels, test)
    assert np.mean(found.vote() == direct) > 0.997  # votes tied go to the smallest class in both; distances may not
    distances, _ = NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)
    ratio = found.distances[:, :5] / distances
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    line = np.float32([[0], [1], [2], [3], [4]])
    few = downstream.Neighbours.find(line, np.array([1, 1, 1, 0, 0]), np.float32([[9]]))
    assert few.vote() == [1] and few.distances.shape == (1, 5)


def test_the_score_of_a_held_out_class_is_the_mean_distance_to_the_other_classes():
    train, labels, test, test_labels = digits()
    found = downstream.Neighbours.find(train, labels, test)
    aurocs = []
    for out in range(10):
        search = NearestNeighbors(n_neighbors=5).fit(train[labels != out])
        scores = search.kneighbors(test)[0].mean(axis=1)
        ratio = found.scores_without(out) / scores
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
        aurocs.append(roc_auc_score(test_labels == out, scores))
    expected = np.mean(aurocs), np.std(aurocs, ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(downstream.held_out_auroc(*digits()), expected, rtol=1e-3)


def test_the_standard_error_of_an_auroc_is_that_of_many_draws():
    """Exponential scores, for which the formula is exact, 20 and 60 of a kind; the sd of 1000 draws errs by 2.2 %."""
    rng = np.random.default_rng(0)
    strange = np.arange(80) < 20
    draws = [numbers.auroc(rng.exponential(np.where(strange, 3.0, 1.0)), strange) for _ in range(1000)]
    assert np.mean(draws) == pytest.approx(0.75, abs=0.008)  # 3 / (3 + 1)
    assert numbers.auroc_stderr(0.75, 20, 60) == pytest.approx(np.std(draws), rel=0.08)
    assert numbers.auroc_stderr(1.0, 20, 60) == 0


def test_k_means_finds_far_blobs_whatever_they_are_called():
    codes, labels = blobs(2)
    assert downstream.clustering(codes, labels, seed=0) == pytest.approx((1, 1))
    assert downstream.clustering(codes, np.array([2, 0, 1])[labels], seed=0) == pytest.approx((1, 1))
    train, labels, _, _ = digits()
    scale = np.sqrt(train.var(axis=0)[train.var(axis=0) > 0].mean())
    clusters = KMeans(10, n_init=10, random_state=0).fit_predict((train - train.mean(axis=0)) / scale)
    expected = normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)
    assert downstream.clustering(train, labels, seed=0) == pytest.approx(expected, abs=1e-3)


def test_auroc_by_hand():
    # Of the pairs (one held out, one not), the held-out one is above in 4 of 6 and equal in one.
    scores, held_out = np.array([0.1, 0.5, 0.7, 0.5, 0.9]), np.array([False, False, False, True, True])
    assert numbers.auroc(scores, held_out) == pytest.approx((4 + 0.5) / 6)
    assert numbers.auroc(np.ones(5), held_out) == 0.5
    assert numbers.auroc(-scores, held_out) == pytest.approx(1 - 4.5 / 6)


def test_a_draw_has_as_many_labels_as_asked_and_as_many_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([5, 2, 9], [40, 100, 400]))
    for num in (3, 30, 60, 100):
        drawn = downstream.balanced_draw(labels, num, np.random.default_rng(num))
        _, counts = np.unique(labels[drawn], return_counts=True)
        assert len(set(drawn)) == num and len(counts) == 3 and np.ptp(counts) <= (num % 3 > 0)
    extra = [np.bincount(labels[downstream.balanced_draw(labels, 4, np.random.default_rng(i))]) for i in range(50)]
    assert {tuple(counts[[2, 5, 9]]) for counts in extra} == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}  # by lot


def test_a_probe_of_few_labels_sees_no_other(monkeypatch):
    train, labels, test, test_labels = digits()
    seen, probe = [], downstream._probe

    def watched(penalty, num):
        model = probe(penalty, num)
        fit = model.fit
        model.fit = lambda codes, labels: seen.append(labels) or fit(codes, labels)
        return model

    monkeypatch.setattr(downstream, "_probe", watched)
    mean, stderr = downstream.label_efficiency(train, labels, test, test_labels, 20, seed=3)
    assert len(seen) == 10
    for drawn in seen:
        np.testing.assert_array_equal(np.bincount(drawn), np.full(10, 2))
    monkeypatch.undo()
    # Again, by hand: the same draws, scikit-learn's own penalty C = 1 / (0.01 * 20) on codes of mean variance 1.
    scale = np.sqrt(train.var(axis=0)[train.var(axis=0) > 0].mean())
    accuracies = []
    for draw in range(10):
        chosen = downstream.balanced_draw(labels, 20, np.random.default_rng((3, 20, draw)))
        model = LogisticRegression(C=5, max_iter=1000).fit((train[chosen] - train.mean(axis=0)) / scale, labels[chosen])
        accuracies.append(model.score((test - train.mean(axis=0)) / scale, test_labels))
    np.testing.assert_allclose(
        [mean, stderr], [np.mean(accuracies), np.std(accuracies, ddof=1) / np.sqrt(10)], rtol=0.05
    )


def test_a_table_has_every_number_of_every_representation_and_a_seed_repeats_it():
    train, labels, test, test_labels = digits()
    codes = {"pixels": (train, test), "few": (train[:, 20:25], test[:, 20:25])}
    rows = downstream.table(codes, labels, test_labels, seed=4)
    assert rows == downstream.table(codes, labels, test_labels, seed=4)
    assert list(rows) == ["pixels", "few"] and [row["code_size"] for row in rows.values()] == [64, 5]
    names = "code_size num_train num_test probe_accuracy probe_accuracy_stderr knn_accuracy knn_accuracy_stderr "
    names += "kmeans_nmi kmeans_ari anomaly_auroc anomaly_auroc_stderr "
    names += " ".join(f"accuracy_{num}_labels accuracy_{num}_labels_stderr" for num in (10, 100, 1000))
    for row in rows.values():
        assert set(row) == set(names.split())
        assert all(type(value) in (int, float) and np.isfinite(value) for value in row.values())
    pixels, few = rows.values()
    assert pixels["probe_accuracy"] == downstream.linear_probe(*digits(), seed=4) > 0.9 > few["probe_accuracy"]
    assert pixels["knn_accuracy"] == downstream.knn_accuracy(*digits())
    assert (pixels["kmeans_nmi"], pixels["kmeans_ari"]) == downstream.clustering(test, test_labels, seed=4)
    assert (pixels["anomaly_auroc"], pixels["anomaly_auroc_stderr"]) == downstream.held_out_auroc(*digits())
    assert pixels["accuracy_10_labels"] < pixels["accuracy_100_labels"] < pixels["accuracy_1000_labels"]
    few_only = {"few": codes["few"]}
    assert downstream.table(few_only, labels, test_labels, seed=5)["few"] != few


def test_equal_codes_are_judged_once_where_there_is_a_cache(tmp_path, monkeypatch):
    train, labels, test, test_labels = digits()
    judged = []

    def count(train, test, seed):
        judged.append(train.codes.shape)
        return {"probe_accuracy": float(test.codes.mean() + train.labels.mean() + seed)}

    monkeypatch.setattr(downstream, "evaluate_codes", count)
    first = downstream.table({"a": (train, test)}, labels, test_labels, 4, str(tmp_path))
    assert downstream.table({"b": (train.copy(), test)}, labels, test_labels, 4, str(tmp_path))["b"] == first["a"]
    assert len(judged) == 1
    downstream.table({"a": (train, test)}, labels, test_labels, 5, str(tmp_path))  # another seed
    downstream.table({"a": (train, 2 * test)}, labels, test_labels, 4, str(tmp_path))  # other codes
    downstream.table({"a": (train, test)}, labels[::-1], test_labels, 4, str(tmp_path))  # other labels
    assert len(judged) == 4
    downstream.table({"a": (train, test)}, labels, test_labels, 4)  # no cache
    assert len(judged) == 5
    monkeypatch.setattr("sklearn.__version__", "another")  # as another version of this code would
    downstream.table({"a": (train, test)}, labels, test_labels, 4, str(tmp_path))
    assert len(judged) == 6


def test_a_collapsed_code_is_at_chance_everywhere():
    _, labels, _, test_labels = digits()
    constant = [Labelled(np.full((len(y), 3), 0.7, np.float32), y) for y in (labels, test_labels)]
    found = downstream.evaluate_codes(*constant, seed=0)
    shares = np.bincount(test_labels) / len(test_labels)
    assert min(shares) <= found["probe_accuracy"] <= max(shares)
    assert min(shares) <= found["knn_accuracy"] <= max(shares)
    assert (found["kmeans_nmi"], found["kmeans_ari"], found["anomaly_auroc"]) == (0, 0, 0.5)


CODES, CLASSES = np.float32(np.random.default_rng(0).normal(size=(12, 2))), np.arange(12) % 2
NAN = np.where(np.arange(24).reshape(12, 2) == 5, np.nan, CODES)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((CODES, None), (CODES, CLASSES), "the training examples have no labels"),
        ((CODES, CLASSES), (CODES, None), "the test examples have no labels"),
        ((CODES, 0 * CLASSES), (CODES, CLASSES), "the training labels are of 1 classes"),
        ((CODES, CLASSES), (CODES[:0], CLASSES[:0]), "the test labels are of 0 classes"),
        ((CODES, CLASSES), (CODES, CLASSES[:5]), r"the test labels are int64 of shape \(5,\) for 12 codes"),
        ((CODES, CODES), (CODES, CLASSES), r"the training labels are float32 of shape \(12, 2\) for 12 codes"),
        ((CODES, CLASSES), (CODES[:, :1], CLASSES), "the training codes have 2 features and the test codes 1"),
        ((CODES[:, 0], CLASSES), (CODES, CLASSES), r"the training codes are float32 of shape \(12,\)"),
        (
            (CODES, CLASSES),
            (CODES, CLASSES + 1),
            "the test labels hold 1 classes that the training labels lack, such as 2",
        ),
        ((NAN, CLASSES), (CODES, CLASSES), "1 of 12 training codes are not finite"),
        ((CODES, CLASSES), (np.inf * CODES, CLASSES), "12 of 12 test codes are not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_every_function(train, test, message):
    for function in (
        lambda: downstream.linear_probe(*train, *test, 0),
        lambda: downstream.knn_accuracy(*train, *test),
        lambda: downstream.label_efficiency(*train, *test, 2, 0),
        lambda: downstream.held_out_auroc(*train, *test),
        lambda: downstream.evaluate_codes(Labelled(*train), Labelled(*test), 0),
    ):
        with pytest.raises(InputError, match=message):
            function()
    with pytest.raises(InputError, match=f"^model: .*{message}"):
        downstream.table({"model": (train[0], test[0])}, train[1], test[1], 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: downstream.clustering(NAN, CLASSES, 0), "1 of 12 given codes are not finite"),
        (lambda: downstream.clustering(CODES, None, 0), "the given examples have no labels"),
        (lambda: downstream.balanced_draw(CLASSES, 1, np.random.default_rng(0)), "1 labels were asked of 2 classes"),
        (
            lambda: downstream.balanced_draw(np.array([0, 0, 0, 4, 4]), 5, np.random.default_rng(0)),
            "5 labels of 2 classes take 3 of each, and class 4 has 2 examples",
        ),
        (lambda: downstream.knn_accuracy(CODES[:4], CLASSES[:4], CODES, CLASSES), "there are 4 training codes"),
        (
            lambda: downstream.held_out_auroc(CODES, np.repeat([0, 1], [9, 3]), CODES, CLASSES),
            "without class 0 there are fewer than 5 training codes",
        ),
        (lambda: numbers.auroc(np.ones(3), np.ones(2, bool)), r"scores have shape \(3,\)"),
        (lambda: numbers.auroc(np.array([1, np.nan]), np.array([True, False])), "1 anomaly scores are not"),
        (lambda: numbers.auroc(np.ones(3), np.ones(3, bool)), "3 of 3 examples are held out"),
    ],
)
def test_other_wrong_calls(function, message):
    with pytest.raises(InputError, match=message):
        function()
