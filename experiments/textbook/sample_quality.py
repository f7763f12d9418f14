"""How near samples are to data: the Fréchet distance of Heusel et al. (1706.08500), with features of the data itself.

FID takes its features from a network trained on photographs, which says little of digits. Here they are the hidden
units of a small classifier of the training images, and the distance of the training images from the test images is
what a perfect model would have.
"""

import warnings
from typing import NamedTuple, Self

import numpy as np
from scipy import linalg

from aevb import data

HIDDEN = 128  # units of the classifier
EPOCHS = 10


class Features(NamedTuple):
    """A classifier's hidden layer, and the mean and covariance of its units over the test images."""

    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def learn(cls, train: data.Split, test: data.Split, seed: int = 0) -> Self:
        """Train the classifier on the labels of one split and look at the other."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        classifier = MLPClassifier((HIDDEN,), max_iter=EPOCHS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # features need no minimum
            classifier.fit(flat(train.examples), train.labels)
        kernel, bias = classifier.coefs_[0], classifier.intercepts_[0]
        return cls(kernel, bias, *moments(hidden(flat(test.examples), kernel, bias)))

    def distance(self, images: np.ndarray) -> float:
        """Of images `[N, *event]`, with values in [0, 1] or uint8, from the test images; at least 0."""
        return frechet_distance(self.mean, self.covariance, *moments(hidden(flat(images), self.kernel, self.bias)))


def flat(images: np.ndarray) -> np.ndarray:
    """`[N, pixels]` in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return images.reshape(len(images), -1) / scale


def hidden(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.maximum(x @ kernel + bias, 0.0)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """`|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`: the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is that of `(R S_2 R)^(1/2)` with R the symmetric root of S_1, whose eigenvalues are real.
    """
    values, vectors = linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    between = np.sqrt(np.maximum(linalg.eigvalsh(root @ other_covariance @ root), 0.0)).sum()
    shift = np.square(mean - other_mean).sum()
    return max(float(shift + np.trace(covariance) + np.trace(other_covariance) - 2 * between), 0.0)
