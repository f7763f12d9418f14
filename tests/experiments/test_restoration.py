"""Errors and decibels by hand, PCA against its eigenvalues, and masks that hide what they should and nothing else."""

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA as SklearnPCA

from aevb.errors import InputError
from experiments import restoration


def images(num, *event, seed=0):
    return np.float32(np.random.default_rng(seed).uniform(size=(num, *event)))


def same(x, indices):
    return x


def mse(x, pca):
    return restoration.reconstructing(x, pca.reconstruct, 1)["reconstruction_mse"]


def test_psnr_by_hand():
    x = images(3, 4, 5, 1)
    levels = np.array([[10, 250]], np.uint8)
    found = restoration.reconstructing(levels, lambda x, indices: x[:, ::-1], 255)
    assert found["reconstruction_mse"] == 240**2  # bytes do not wrap
    assert found["reconstruction_psnr"] == pytest.approx(20 * np.log10(255 / 240))
    assert found["reconstruction_mse_stderr"] == 0  # of one example there is none
    # Of two images with errors 0.1 and 0.3 it is that of the mean square, 0.05.
    both = x[:2] + np.float32([0.1, 0.3])[:, None, None, None]
    found = restoration.reconstructing(x[:2], lambda x, indices: both, 1)
    expected = {"mse": 0.05, "mse_stderr": 0.04, "psnr": 10 * np.log10(20)}
    assert found == pytest.approx({f"reconstruction_{name}": value for name, value in expected.items()}, rel=1e-4)
    assert restoration.reconstructing(x, same, 1)["reconstruction_psnr"] is None


def test_noise_and_what_is_left_of_it():
    """A model that leaves a quarter of the noise gains 20 log10 4 decibels on one that leaves it all."""
    x = images(1203, 5, 3, 1)
    noise, sizes = np.float32(np.random.default_rng(1).normal(0, 0.2, x.shape)), []

    def corrupt(batch, indices):
        sizes.append(len(batch))
        return batch + noise[indices]

    def quarter(batch, indices):
        np.testing.assert_allclose(batch, x[indices] + noise[indices])
        return batch - 0.75 * noise[indices]

    found = restoration.denoising(x, corrupt, quarter, 1)
    assert sizes == [500, 500, 203]
    assert found["noisy_psnr"] == pytest.approx(10 * np.log10(1 / np.square(noise).mean()), abs=1e-3)
    assert found["denoising_psnr"] == pytest.approx(found["noisy_psnr"] + 20 * np.log10(4), abs=1e-3)
    each = np.square(noise / 4).mean(axis=(1, 2, 3))
    assert found["denoising_mse"] == pytest.approx(each.mean(), rel=1e-4)
    assert found["denoising_mse_stderr"] == pytest.approx(each.std(ddof=1) / np.sqrt(1203), rel=1e-3)
    assert restoration.denoising(x, same, same, 1)["noisy_psnr"] is None


def test_the_rectangle_is_centred_and_of_its_share():
    mask = restoration.centred_rectangle(28, 28, 0.25)
    assert mask[7:21, 7:21].all() and mask.sum() == 14 * 14
    odd = restoration.centred_rectangle(105, 20, 0.1)
    assert odd.sum() == 33 * 6 and odd[36:69, 7:13].all()
    assert restoration.centred_rectangle(3, 3, 1e-6).sum() == 1


@pytest.mark.parametrize("event", [(8, 6, 3), (9, 7)])
def test_inpainting_is_judged_where_nothing_is_seen(event):
    x, other = images(20, *event), images(20, *event, seed=1)
    mask = restoration.centred_rectangle(*event[:2], 0.25)

    def fill(batch, indices, outside=0.0):
        np.testing.assert_array_equal(batch[:, mask], 0)
        np.testing.assert_array_equal(batch[:, ~mask], seen[indices][:, ~mask])
        filled = other[indices] + np.float32(outside)
        filled[:, mask] = other[indices][:, mask]
        return filled

    seen, mean = x, images(1, *event, seed=3)[0]
    found = restoration.inpainting(x, fill, 0.25, 1, mean)
    errors = np.square(np.float64(x[:, mask]) - other[:, mask])
    assert found["inpainting_mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert found["inpainting_psnr"] == pytest.approx(-10 * np.log10(errors.mean()), rel=1e-6)
    assert found["inpainting_share"] == mask.mean()
    assert found["mean_image_mse"] == pytest.approx(np.square(x - mean)[:, mask].mean(), rel=1e-5)
    # Neither what is made of the visible pixels changes a number, nor these themselves.
    assert restoration.inpainting(x, functools.partial(fill, outside=1e3), 0.25, 1, mean) == found
    seen = np.where(mask.reshape(*mask.shape, *(1,) * (len(event) - 2)), x, images(20, *event, seed=2))
    assert restoration.inpainting(seen, fill, 0.25, 1, mean) == found
    np.testing.assert_array_equal(x, images(20, *event))  # the caller's are as they were


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_what_pca_loses_is_the_tail_of_the_eigenvalues(dtype):
    x = load_digits().images.astype(dtype)
    train, test = x[:1200], x[1200:]
    flat = np.float64(train.reshape(1200, -1))
    eigenvalues = np.linalg.eigvalsh(np.cov(flat, rowvar=False, ddof=0))[::-1]
    pca = restoration.PCA.fit(train, 10, seed=0)
    assert pca.encode(train).shape == (1200, 10) and pca.encode(test).shape == (597, 10)
    np.testing.assert_allclose(mse(train, pca) * 64, eigenvalues[10:].sum(), rtol=1e-9)
    np.testing.assert_allclose(pca.encode(train).var(axis=0), eigenvalues[:10], rtol=1e-9)
    direct = SklearnPCA(10, svd_solver="full").fit(flat)
    expected = direct.inverse_transform(direct.transform(test.reshape(597, -1))).reshape(test.shape)
    np.testing.assert_allclose(pca.reconstruct(test), expected, atol=1e-9)
    np.testing.assert_allclose(mse(test, pca), np.square(expected - test).mean(), rtol=1e-9)


def test_pca_of_more_than_there_is_loses_nothing():
    train, test = images(30, 5, 5, 1), images(9, 5, 5, 1, seed=1)
    pca = restoration.PCA.fit(train, 1024, seed=0)
    assert pca.encode(train).shape == (30, 25)
    assert mse(train, pca) < 1e-20 and mse(test, pca) < 1e-20


def test_pca_of_few_images_is_exact():
    """With fewer than 10 images a pixel scikit-learn's own choice errs by up to a hundredth of the tail."""
    rng = np.random.default_rng(1)
    x = np.float32(rng.normal(size=(700, 600)) * 0.995 ** np.arange(600))
    tail = np.linalg.eigvalsh(np.cov(np.float64(x), rowvar=False, ddof=0))[:-50].sum() / 600
    np.testing.assert_allclose(mse(x, restoration.PCA.fit(x, 50, seed=0)), tail, rtol=1e-9)


def test_pca_of_large_images_is_near_the_best_and_repeats_itself():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(600, 30)) * 0.8 ** np.arange(30) @ rng.normal(size=(30, 1200)))
    first, again = (restoration.PCA.fit(x, 8, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.encode(x), again.encode(x))
    tail = np.linalg.svd(np.float64(x) - x.mean(axis=0, dtype=np.float64), compute_uv=False)[8:]
    np.testing.assert_allclose(mse(x, first), np.square(tail).sum() / x.size, rtol=1e-3)


X = images(4, 6, 6, 1)
NAN = X * np.float32([1, 1, np.nan, 1])[:, None, None, None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda: restoration.reconstructing(X, lambda x, indices: x[:3], 1),
            r"of images \(4, 6, 6, 1\) came images \(3, 6, 6, 1\)",
        ),
        (lambda: restoration.reconstructing(X[:0], same, 1), "give some"),
        (lambda: restoration.reconstructing(X, same, 0), "data_range is 0"),
        (lambda: restoration.reconstructing(X, lambda x, indices: NAN, 1), "1 of 4 reconstructions are not finite"),
        (lambda: restoration.reconstructing(np.inf * X, same, 1), "4 of 4 images are not finite"),
        (
            lambda: restoration.reconstructing(X, lambda x, i: x[..., 0], 1),
            r"of images \(4, 6, 6, 1\) came images \(4, 6,",
        ),
        (lambda: restoration.denoising(X, lambda x, i: x[:1], same, 1), r"came images \(1, 6, 6, 1\)"),
        (lambda: restoration.inpainting(X, same, 1.0, 1, X[0]), r"the share of the area to mask is 1\.0"),
        (
            lambda: restoration.inpainting(X[:, :, 0, 0], same, 0.5, 1, X[0, :, 0, 0]),
            r"datapoints of shape \(6,\) have no rectangle",
        ),
        (lambda: restoration.PCA.fit(X, 0, 0), "0 components were asked"),
        (lambda: restoration.PCA.fit(np.nan * X, 2, 0), "4 of 4 images are not finite"),
    ],
)
def test_wrong_calls(function, message):
    with pytest.raises(InputError, match=message):
        function()
