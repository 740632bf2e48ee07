"""Reference problems whose answers come from outside the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.problem import Problem

PyTree = Any


def heat(u: jax.Array, source: jax.Array) -> jax.Array:
    """Jacobi's step for `(c - Laplace) u = source` on a grid, zero outside, c = 0.2.

    Shifts are pads that keep the shape: where the rows are spread over devices XLA then
    exchanges just their edges.
    """
    def shifted(*by: int) -> jax.Array:
        return lax.pad(u, jnp.zeros((), u.dtype), [(k, -k, 0) for k in by])

    return (shifted(1, 0) + shifted(-1, 0) + shifted(0, 1) + shifted(0, -1) + source) / 4.2


#: Deaths a day among women over 80 in London, 1910 to 1912 (Hasselblad 1969): days with 0 ... 9.
DEATHS = np.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1.0])


def poisson_mixture(x: Any, counts: Any, xp: Any = jnp) -> Any:
    """A step of EM for two Poisson distributions, by numpy or jax; x: `[3]`, the weight of the
    first and both means. counts: how often 0, 1, ... were seen.
    """
    y, counts = xp.arange(len(counts)).astype(x.dtype), xp.asarray(counts, x.dtype)
    p = x[0] * xp.exp(-x[1]) * x[1] ** y
    q = (1 - x[0]) * xp.exp(-x[2]) * x[2] ** y
    first = counts * p / (p + q)
    second = counts - first
    return xp.stack([xp.sum(first) / xp.sum(counts), xp.sum(first * y) / xp.sum(first),
                     xp.sum(second * y) / xp.sum(second)])


class ReferenceProblem(NamedTuple):
    """A map with a known answer.

    Attributes:
      name: for messages. problem: a map or Problem. x0, args: what it is called with.
      answer: the fixed point, or None when it is not unique or does not exist.
      contracts: picard converges. regular: I - dT/dx is invertible at the answer.
    """

    name: str
    problem: Problem | Callable
    x0: PyTree
    args: tuple
    answer: PyTree
    contracts: bool = True
    regular: bool = True

    def map(self, x: PyTree, *args: PyTree) -> PyTree:
        """T(x)."""
        step = self.problem.step if isinstance(self.problem, Problem) else self.problem
        assert step is not None
        return step(x, *args)


def linear(name: str, matrix: np.ndarray, offset: np.ndarray, dtype: Any) -> ReferenceProblem:
    """`T(x) = M x + c`, solved by numpy."""
    answer = np.linalg.solve(np.eye(len(offset)) - matrix, offset)
    args = (jnp.asarray(matrix, dtype), jnp.asarray(offset, dtype))
    return ReferenceProblem(
        name, lambda x, m, c: m @ x + c, jnp.zeros(len(offset), dtype), args, answer)


def reference_problems(dtype: Any = jnp.float32) -> dict[str, ReferenceProblem]:
    """All reference problems in one floating dtype.

    >>> sorted(reference_problems())[:3]
    ['complex-spectrum', 'cosine', 'lasso']
    """
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    symmetric = basis @ np.diag(np.linspace(-0.8, 0.8, 6)) @ basis.T
    non_normal = np.diag(np.linspace(0.1, 0.6, 6)) + np.triu(np.full((6, 6), 0.4), 1)
    angles = np.array([0.5, 1.5, 2.5])
    spiral = np.zeros((6, 6))
    for i, angle in enumerate(angles):
        c, s = 0.85 * np.cos(angle), 0.85 * np.sin(angle)
        spiral[2 * i:2 * i + 2, 2 * i:2 * i + 2] = [[c, -s], [s, c]]
    offset = rng.normal(size=6)
    problems = [
        linear("symmetric", symmetric, offset, dtype),
        linear("non-normal", non_normal, offset, dtype),
        linear("complex-spectrum", spiral, offset, dtype),
        cosine(dtype), pytree(dtype), rotation(dtype), line(dtype), lasso(dtype), sinkhorn(dtype),
    ]
    return {problem.name: problem for problem in problems}


def cosine(dtype: Any) -> ReferenceProblem:
    """`T(x) = cos(a x)`; the answer by bisection."""
    def root(a: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.cos(a * middle) > middle else (low, middle)
        return low

    a = np.array([0.6, 0.9, 1.1])
    answer = np.array([root(value) for value in a])
    return ReferenceProblem(
        "cosine", lambda x, a: jnp.cos(a * x), jnp.full(3, 0.5, dtype), (jnp.asarray(a, dtype),),
        answer)


def pytree(dtype: Any) -> ReferenceProblem:
    """A coupled map on a dictionary with a scalar, a matrix and an empty subtree."""
    def step(x: PyTree, c: Any) -> PyTree:
        return {"s": 0.25 * x["s"] + 0.1 * jnp.sum(x["m"]) + c,
                "m": 0.5 * x["m"] + 0.1 * x["s"] + 1, "none": None}

    # For a 2 x 2 matrix of equal entries m: 0.75 s = 0.4 m + c and 0.5 m = 0.1 s + 1.
    s, m = np.linalg.solve([[0.75, -0.4], [-0.1, 0.5]], [0.3, 1.0])
    x0 = {"s": jnp.zeros((), dtype), "m": jnp.zeros((2, 2), dtype), "none": None}
    answer = {"s": s, "m": np.full((2, 2), m), "none": None}
    return ReferenceProblem("pytree", step, x0, (jnp.asarray(0.3, dtype),), answer)


def rotation(dtype: Any) -> ReferenceProblem:
    """A rotation about c: nonexpansive, its only fixed point is c, picard circles for ever."""
    centre = np.array([0.5, -0.25])
    turn = np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])

    def step(x: Any, c: Any) -> Any:
        return jnp.asarray(turn, dtype) @ (x - c) + c

    return ReferenceProblem("rotation", step, jnp.ones(2, dtype), (jnp.asarray(centre, dtype),),
                            centre, contracts=False)


def line(dtype: Any) -> ReferenceProblem:
    """Every (t, t) is fixed: the answer depends on x0 and the adjoint system is singular."""
    def step(x: Any) -> Any:
        return jnp.stack([0.5 * x[0] + 0.5 * x[1], 0.5 * x[0] + 0.5 * x[1]])

    return ReferenceProblem("line", step, jnp.asarray([1.0, 3.0], dtype), (), None, regular=False)


def lasso(dtype: Any) -> ReferenceProblem:
    """Proximal gradient on an orthogonal design, where soft thresholding is the answer."""
    scale = np.array([1.0, 0.8, 1.2, 0.9])
    target = np.array([2.0, -0.3, 0.1, -1.5])
    weight = 0.4

    def step(x: Any, y: Any) -> Any:
        d = jnp.asarray(scale, dtype)
        z = x - 0.6 * d * (d * x - y)
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.6 * weight, 0)

    answer = np.sign(target) * np.maximum(np.abs(scale * target) - weight, 0) / scale**2
    return ReferenceProblem(
        "lasso", step, jnp.zeros(4, dtype), (jnp.asarray(target, dtype),), answer)


def sinkhorn(dtype: Any) -> ReferenceProblem:
    """Potentials of a 2 x 2 transport problem, whose plan solves a quadratic equation."""
    a, b, epsilon = np.array([0.3, 0.7]), np.array([0.6, 0.4]), 0.5
    cost = np.array([[0.0, 1.0], [0.5, 0.2]])
    # P11 P22 / (P12 P21) = exp(-(C11 + C22 - C12 - C21) / epsilon), and the marginals.
    ratio = np.exp(-(cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]) / epsilon)
    roots = np.roots([1 - ratio, a[1] - b[0] + ratio * (a[0] + b[0]), -ratio * a[0] * b[0]])
    p = next(r.real for r in roots if 0 < r.real < min(a[0], b[0]))
    plan = np.array([[p, a[0] - p], [b[0] - p, a[1] - b[0] + p]])
    log_kernel = np.log(plan) + cost / epsilon
    g = epsilon * (log_kernel[0] - np.log(b))

    def step(g: Any, cost: Any) -> Any:
        a_, b_ = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        f = -epsilon * jnp.log(jnp.sum(b_ * jnp.exp((g[None, :] - cost) / epsilon), axis=1))
        g = -epsilon * jnp.log(
            jnp.sum(a_[:, None] * jnp.exp((f[:, None] - cost) / epsilon), axis=0))
        return g - jnp.mean(g)

    return ReferenceProblem(
        "sinkhorn", step, jnp.zeros(2, dtype), (jnp.asarray(cost, dtype),), g - g.mean())
