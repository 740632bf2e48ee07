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


class Selection(NamedTuple):
    """B3: one log-penalty per feature of a logistic regression, judged on validation rows.

    train, validation: pairs of standardised features and labels -1 or 1.
    """

    train: tuple
    validation: tuple

    @staticmethod
    def inner(x: Any, y: Any, batch: tuple) -> Any:
        """Mean logistic loss and penalties `exp(x_j) y_j^2 / 2`."""
        return Selection.outer(x, y, batch) + jnp.sum(jnp.exp(x) * y * y) / 2

    @staticmethod
    def outer(x: Any, y: Any, batch: tuple) -> Any:
        """Mean logistic loss."""
        del x
        features, labels = batch
        return jnp.mean(jnp.logaddexp(0.0, -labels * (features @ y)))

    def solve(self, x: Any) -> tuple[float, np.ndarray]:
        """F(x) and its gradient, by Newton's method and a dense solve in numpy."""
        (a, s), (c, t) = ([np.asarray(part, float) for part in pair]
                          for pair in (self.train, self.validation))
        penalty = np.exp(np.asarray(x, float))
        y = np.zeros(a.shape[1])

        def share(a: np.ndarray, s: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(np.clip(s * (a @ y), -500, 500)))

        for _ in range(100):
            p = share(a, s)
            slope = -a.T @ (s * p) / len(s) + penalty * y
            hessian = (a.T * (p * (1 - p))) @ a / len(s) + np.diag(penalty)
            y = y - np.linalg.solve(hessian, slope)
            if np.linalg.norm(slope) < 1e-13:
                break
        v = np.linalg.solve(hessian, -c.T @ (t * share(c, t)) / len(t))
        return float(np.mean(np.logaddexp(0, -t * (c @ y)))), -penalty * y * v


def regularisation(rows: int | None = None, seed: int = 0) -> Selection:
    """B3 on breast_cancer (284 and 285 rows of 30), or on data of ijcnn1's shape, `rows` by 22.

    >>> value, slope = regularisation().solve(np.full(30, -2.0))
    >>> round(value, 4), round(float(slope @ slope) * 1e4, 2)
    (0.1399, 1.44)
    """
    rng = np.random.default_rng(seed)
    if rows is None:
        from sklearn.datasets import load_breast_cancer

        features, labels = (np.asarray(part) for part in load_breast_cancer(return_X_y=True))
        order = rng.permutation(len(labels))
        features, labels, cut = features[order], 2.0 * labels[order] - 1, 284
    else:
        features = rng.normal(size=(2 * rows, 22))
        weight = rng.normal(size=22) * np.logspace(0, -2, 22)
        labels, cut = np.sign(features @ weight + rng.logistic(size=2 * rows)), rows
    mean, std = features[:cut].mean(0), features[:cut].std(0)
    features = (features - mean) / std
    parts = [(jnp.asarray(features[rows], jnp.float32), jnp.asarray(labels[rows], jnp.float32))
             for rows in (slice(None, cut), slice(cut, None))]
    return Selection(*parts)


def penalty_path() -> Bilevel:
    """B6: inner blind to y[1]; the penalised objective is `(x - 1)^2 / (2 (1 + sigma))` exactly.

    >>> penalty_path().optimum.tolist()
    [1.0]
    """
    def outer(x: Any, y: Any) -> Any:
        return ((x[0] - y[1]) ** 2 + (y[0] - 1) ** 2) / 2

    def inner(x: Any, y: Any) -> Any:
        return (y[0] - x[0]) ** 2 / 2

    return Bilevel(outer, inner, lambda x: np.array([x[0], x[0]]),
                   lambda x: np.array([x[0] - 1]), np.full(1, 3.0), np.ones(1), 2)


class Constrained(NamedTuple):
    """A bilevel problem with inner constraints `constraint(x, y) = 0`.

    project: `(x, y) -> (x, y)` onto them. x, y: the solution. multiplier: at it, or None.
    """

    outer: Callable
    inner: Callable
    constraint: Callable
    project: Callable
    x: np.ndarray
    y: np.ndarray
    multiplier: np.ndarray | None


def coupled(size: int = 100) -> Constrained:
    """B7: one constraint couples x and y, y[1] is not determined by the inner problem.

    >>> coupled(2).y.tolist()
    [[0.7, 0.7], [-0.4, -0.4]]
    """
    norm = np.sqrt(3.0 * size)

    def outer(x: Any, y: Any) -> Any:
        return jnp.sum((x - y[1]) ** 2) / 2 + jnp.sum((y[0] - 1) ** 2) / 2

    def inner(x: Any, y: Any) -> Any:
        return jnp.sum(y[0] ** 2) / 2 - x @ y[0] + jnp.sum(y[1])

    def project(x: Any, y: Any) -> Any:
        shift = (jnp.sum(x) + jnp.sum(y)) / (3 * size)
        return x - shift, y - shift

    return Constrained(outer, inner, lambda x, y: (jnp.sum(x) + jnp.sum(y))[None] / norm, project,
                       np.full(size, -0.3), np.full((2, size), [[0.7], [-0.4]]),
                       np.array([-norm]))


def equality(p: int = 6, q: int = 6, rows: int = 2, seed: int = 0) -> Constrained:
    """B8: `A y + H x = 0` couples; the closed form is `y = M x`.

    >>> equality().x.shape
    (6,)
    """
    rng = np.random.default_rng(seed)
    a, h = rng.normal(size=(rows, p)), rng.normal(size=(rows, q))
    scale = np.linalg.norm(np.concatenate([a, h], 1), axis=1, keepdims=True)
    a, h = a / scale, h / scale
    u, w = rng.normal(size=q), rng.normal(size=p)
    m = np.eye(p) - np.linalg.pinv(a) @ (a + h)
    best = np.linalg.solve(np.eye(q) + m.T @ m, u + m.T @ w)
    joint = np.concatenate([h, a], 1)
    onto = np.eye(p + q) - np.linalg.pinv(joint) @ joint

    def project(x: Any, y: Any) -> Any:
        both = jnp.asarray(onto, y.dtype) @ jnp.concatenate([x, y])
        return both[:q], both[q:]

    return Constrained(
        lambda x, y: jnp.sum((x - jnp.asarray(u, x.dtype)) ** 2) / 2
        + jnp.sum((y - jnp.asarray(w, y.dtype)) ** 2) / 2,
        lambda x, y: jnp.sum((y - x) ** 2) / 2,
        lambda x, y: jnp.asarray(a, y.dtype) @ y + jnp.asarray(h, x.dtype) @ x,
        project, best, m @ best, None)


def wavy() -> Bilevel:
    """B9: x in [0, 3], inner minimum at y = -x among others; F has several local minima.

    >>> wavy().dim
    1
    """
    def outer(x: Any, y: Any) -> Any:
        return jnp.sum(jnp.cos(4 * y + 2) / (1 + jnp.exp(2 - 4 * x))
                       + jnp.log((4 * x - 2) ** 2 + 1) / 2)

    def inner(x: Any, y: Any) -> Any:
        return jnp.sum((y + x) ** 2 + x * jnp.sin(x + y) ** 2)

    def gradient(x: np.ndarray) -> np.ndarray:
        e = np.exp(2 - 4 * x)
        return (4 * np.sin(2 - 4 * x) / (1 + e) + 4 * np.cos(2 - 4 * x) * e / (1 + e) ** 2
                + 4 * (4 * x - 2) / ((4 * x - 2) ** 2 + 1))

    return Bilevel(outer, inner, lambda x: -x, gradient, np.ones(1), None, 1)
