"""Bilevel test problems with closed forms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Bilevel(NamedTuple):
    """outer, inner: scalars of (x, y). argmin: `y*(x)` in numpy. gradient: of F in numpy.

    x: a start. optimum: the best x, or None where it has no closed form. dim: size of y.
    """

    outer: Callable
    inner: Callable
    argmin: Callable
    gradient: Callable
    x: np.ndarray
    optimum: np.ndarray | None
    dim: int


def quadratic(p: int = 10, q: int = 5, seed: int = 0) -> Bilevel:
    """B1: quadratic inner and outer problems, condition number 4.

    >>> quadratic().dim
    10
    """
    rng = np.random.default_rng(seed)

    def symmetric(values: np.ndarray) -> np.ndarray:
        basis = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
        return (basis * values) @ basis.T

    a, d = symmetric(np.linspace(0.5, 2, p)), symmetric(np.linspace(0.1, 1, p))
    b = rng.normal(size=(p, q)) / np.sqrt(q)
    c, e = rng.normal(size=(2, p))

    def inner(x: Any, y: Any) -> Any:
        return y @ (jnp.asarray(a, y.dtype) @ y) / 2 - y @ (
            jnp.asarray(b, y.dtype) @ x + jnp.asarray(c, y.dtype))

    def outer(x: Any, y: Any) -> Any:
        return (y @ (jnp.asarray(d, y.dtype) @ y) / 2 - jnp.asarray(e, y.dtype) @ y
                + 0.05 * x @ x)

    def argmin(x: np.ndarray) -> np.ndarray:
        return np.linalg.solve(a, b @ x + c)

    def gradient(x: np.ndarray) -> np.ndarray:
        return 0.1 * x + b.T @ np.linalg.solve(a, d @ argmin(x) - e)

    inverse = np.linalg.inv(a)
    system = 0.1 * np.eye(q) + b.T @ inverse @ d @ inverse @ b
    optimum = np.linalg.solve(system, b.T @ inverse @ (e - d @ inverse @ c))
    return Bilevel(outer, inner, argmin, gradient, np.full(q, 2.0), optimum, p)


def ridge() -> Bilevel:
    """B2: ridge regression with one log-penalty per feature, judged on other data; kappa 24.9.

    >>> ridge().x[:2].tolist()
    [-3.0, -3.0]
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.PRNGKey(0), 6)
        scale = np.logspace(0, -1, 20)
        shapes = ((200, 20), (20,), (200,), (100, 20), (100,))
        a, w, noise, c, other = (np.asarray(jax.random.normal(key, shape, jnp.float64))
                                 for key, shape in zip(keys, shapes, strict=False))
    a, c = a * scale, c * scale
    b, d = a @ w + 0.5 * noise, c @ w + 0.5 * other

    def inner(x: Any, y: Any) -> Any:
        rest = jnp.asarray(a, y.dtype) @ y - jnp.asarray(b, y.dtype)
        return rest @ rest / (2 * len(b)) + jnp.sum(jnp.exp(x) * y * y) / 2

    def outer(x: Any, y: Any) -> Any:
        rest = jnp.asarray(c, y.dtype) @ y - jnp.asarray(d, y.dtype)
        return rest @ rest / (2 * len(d))

    def hessian(x: np.ndarray) -> np.ndarray:
        return a.T @ a / len(b) + np.diag(np.exp(x))

    def argmin(x: np.ndarray) -> np.ndarray:
        return np.linalg.solve(hessian(x), a.T @ b / len(b))

    def gradient(x: np.ndarray) -> np.ndarray:
        y = argmin(x)
        v = np.linalg.solve(hessian(x), c.T @ (c @ y - d) / len(d))
        return -np.exp(x) * y * v

    return Bilevel(outer, inner, argmin, gradient, np.full(20, -3.0), None, 20)


def many_minimisers() -> Bilevel:
    """B5: the inner problem does not see y[1]; the optimistic optimum is x = 1, y = (1, 1).

    Differentiating descent on the inner objective alone ends at x = 1 / 2.

    >>> many_minimisers().optimum.tolist()
    [1.0]
    """
    def outer(x: Any, y: Any) -> Any:
        return ((x[0] - y[1]) ** 2 + (y[0] - 1) ** 2) / 2

    def inner(x: Any, y: Any) -> Any:
        return y[0] ** 2 / 2 - x[0] * y[0]

    return Bilevel(outer, inner, lambda x: np.array([x[0], x[0]]),
                   lambda x: np.array([x[0] - 1]), np.zeros(1), np.ones(1), 2)


class Cleaning(NamedTuple):
    """B4: weights of training rows, some with wrong labels, judged on clean validation rows.

    train, validation, test: pairs of features `[., 65]` and labels; train has a third entry, the
    index of each row. wrong: which labels are wrong, `[1000]`.
    """

    train: tuple
    validation: tuple
    test: tuple
    wrong: np.ndarray

    @staticmethod
    def inner(x: Any, y: Any, batch: tuple) -> Any:
        """Cross-entropy of a softmax regression y `[65, 10]`, rows weighted by sigmoid(x)."""
        features, labels, rows = batch
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(features @ y), labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.sigmoid(x[rows]) * losses) + 1e-3 * jnp.sum(y * y)

    @staticmethod
    def outer(x: Any, y: Any, batch: tuple) -> Any:
        """Mean cross-entropy on clean rows."""
        del x
        features, labels = batch
        return -jnp.mean(jnp.take_along_axis(
            jax.nn.log_softmax(features @ y), labels[:, None], axis=1))

    def accuracy(self, y: Any) -> float:
        """Share of test rows that y names."""
        features, labels = self.test
        return float(jnp.mean(jnp.argmax(features @ y, axis=1) == labels))

    def detection(self, x: Any) -> float:
        """Area under the ROC curve of sigmoid(x) as a detector of right labels."""
        weight = np.asarray(x)
        right, wrong = weight[~self.wrong], weight[self.wrong]
        return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))


def hyper_cleaning(corruption: float = 0.5, seed: int = 0) -> Cleaning:
    """Digits with labels replaced by random ones with the given probability.

    >>> bool(0.4 < hyper_cleaning().wrong.mean() < 0.5)
    True
    """
    from sklearn.datasets import load_digits

    features, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    features = np.concatenate([features[order] / 16, np.ones((len(labels), 1))], axis=1)
    labels = labels[order]
    noisy = labels[:1000].copy()
    replaced = rng.random(1000) < corruption
    noisy[replaced] = rng.integers(0, 10, replaced.sum())
    parts = [(jnp.asarray(features[a:b], jnp.float32), jnp.asarray(labels[a:b], jnp.int32))
             for a, b in ((0, 1000), (1000, 1200), (1200, len(labels)))]
    train = (parts[0][0], jnp.asarray(noisy, jnp.int32), jnp.arange(1000, dtype=jnp.int32))
    return Cleaning(train, parts[1], parts[2], noisy != labels[:1000])
