"""The families of posteriors and priors in SciPy, float64, from the network's outputs on: the tests' oracle."""

import numpy as np
from scipy import stats
from scipy.special import beta, expit

NORMAL = "normal"  # the name here of DiagonalGaussian and StandardNormal


class _Kumaraswamy(stats.rv_continuous):
    """z^a is Beta(1, b); SciPy has no such family."""

    def _logpdf(self, z, a, b):
        return np.log(a * b) + (a - 1) * np.log(z) + (b - 1) * np.log(-np.expm1(a * np.log(z)))

    def _pdf(self, z, a, b):
        return np.exp(self._logpdf(z, a, b))

    def _cdf(self, z, a, b):
        return -np.expm1(b * np.log(-np.expm1(a * np.log(z))))

    def _ppf(self, q, a, b):
        return (-np.expm1(np.log1p(-q) / b)) ** (1 / a)

    def _isf(self, q, a, b):
        return (-np.expm1(np.log(q) / b)) ** (1 / a)

    def _munp(self, n, a, b):
        return b * beta(1 + n / a, b)


kumaraswamy = _Kumaraswamy(a=0.0, b=1.0, name="kumaraswamy")


def positive(output):
    return np.logaddexp(0, output) + 1e-4


def shape(output):
    return np.logaddexp(0, output) + 0.5


# From the outputs of the encoder, one array a parameter, to the posterior.
POSTERIORS = {
    NORMAL: lambda m, v: stats.norm(m, np.exp(v / 2)),
    "laplace": lambda m, s: stats.laplace(m, positive(s)),
    "logistic": lambda m, s: stats.logistic(m, positive(s)),
    "gumbel": lambda m, s: stats.gumbel_r(m, positive(s)),
    "student_t": lambda m, s: stats.t(5, m, positive(s)),
    "exponential": lambda r: stats.expon(scale=1 / positive(r)),
    "weibull": lambda s, c: stats.weibull_min(shape(c), scale=positive(s)),
    "log_normal": lambda m, s: stats.lognorm(
        1e-4 + 3 * expit(s - np.log(2)), scale=np.exp(10 * np.tanh(np.asarray(m) / 10))
    ),
    "gamma": lambda a, r: stats.gamma(shape(a), scale=1 / positive(r)),
    "beta": lambda a, b: stats.beta(shape(a), shape(b)),
    "kumaraswamy": lambda a, b: kumaraswamy(shape(a), shape(b)),
}
PRIORS = {
    NORMAL: stats.norm(),
    "laplace": stats.laplace(),
    "logistic": stats.logistic(),
    "gumbel": stats.gumbel_r(),
    "student_t": stats.t(5),
    "exponential": stats.expon(),
    "weibull": stats.weibull_min(2),
    "log_normal": stats.lognorm(1),
    "gamma": stats.gamma(2),
    "beta": stats.uniform(),
    "kumaraswamy": kumaraswamy(2, 2),
}
CLOSED_FORM = {(NORMAL, NORMAL), ("gamma", "gamma"), ("weibull", "gamma"), ("beta", "beta")}


def num_parameters(name):
    return POSTERIORS[name].__code__.co_argcount


def fitting_priors(posterior):
    """The priors of the posterior's support that leave the KL finite."""
    support = POSTERIORS[posterior](*np.zeros(num_parameters(posterior))).support()
    return [
        name
        for name, prior in PRIORS.items()
        if prior.support() == support and (posterior, name) != ("student_t", "gumbel")
    ]


def expectation(distribution, function):
    """E[function(z)] by the trapezoid rule in t, with `u = sigmoid(t)` and `z = F^-1(u)`; [...] of the parameters."""
    t = np.linspace(-25, 25, 2001)[:, None]
    z = np.where(t < 0, distribution.ppf(expit(t)), distribution.isf(expit(-t)))
    low, high = distribution.support()
    z = np.clip(z, np.nextafter(low, high), np.nextafter(high, low))
    return (function(z) * expit(t) * expit(-t)).sum(0) * (t[1] - t[0])
