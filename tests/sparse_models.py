"""Regressions with sparse solutions, for tests and benchmarks."""

import jax.numpy as jnp
import numpy as np


def sparse_regression(seed, rho, n=100):
    """The scaled probe of the paper's set-up: groups of four, fifty zeros apart, SNR 3."""
    rng = np.random.default_rng(seed)
    groups = [rng.normal(mean, spread, 4) for mean, spread in ((0.5, 1), (5, 2), (10, 3), (20, 4))]
    beta = np.concatenate([part for group in groups for part in (group, np.zeros(50))])[:-50]
    gram = rho ** np.abs(np.subtract.outer(np.arange(len(beta)), np.arange(len(beta))))
    x = rng.normal(size=(n, len(beta))) @ np.linalg.cholesky(gram).T
    y = x @ beta
    y += rng.normal(size=n) * np.sqrt(beta @ gram @ beta) / 3
    x, y = (x - x.mean(0)) / x.std(0), y - y.mean()
    return x, y, 0.1 * np.abs(x.T @ y).max() / n


def positive_lasso(seed, m=30, n=8):
    """A, b and the penalty."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, n))
    return a, a @ np.maximum(rng.normal(size=n), 0) + 0.1 * rng.normal(size=m), 2.0


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]
