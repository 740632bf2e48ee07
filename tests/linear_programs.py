"""Random linear programs in numpy: solvable, infeasible, unbounded, and in bad units."""

import numpy as np


def solvable(m, n, seed):
    """`min c'x, A x = b, x >= 0` with a known solution: A, b, c, x."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, n))
    x = np.maximum(rng.normal(size=n), 0)
    y = rng.normal(size=m)
    return a, a @ x, a.T @ y + np.where(x > 0, 0, rng.uniform(size=n)), x


def infeasible(m, n, seed):
    """A, b, c such that `A'y <= -0.1` and `b'y = 1` for some y."""
    rng = np.random.default_rng(seed)
    a, b, c = _feasible(m, n, rng)
    y = rng.normal(size=m)
    a = a - np.outer(y, np.maximum(a.T @ y, 0) + 0.1) / (y @ y)
    return a, b + y * (1 - b @ y) / (y @ y), c


def unbounded(m, n, seed):
    """A, b, c of a feasible program such that `A d = 0`, `c'd = -1` for some d >= 0."""
    rng = np.random.default_rng(seed)
    a, _, c = _feasible(m, n, rng)
    d = np.maximum(rng.normal(size=n), 0)
    a = a - np.outer(a @ d, d) / (d @ d)
    return a, a @ np.maximum(rng.normal(size=n), 0), c - d * (c @ d + 1) / (d @ d)


def contradicting(m, n, seed):
    """A, b, c of a feasible program, of which one row is made the sum of two others but for 1."""
    a, b, c, _ = solvable(m, n, seed)
    a[2], b[2] = a[0] + a[1], b[0] + b[1] + 1
    return a, b, c


def in_bad_units(a, b, c, seed, decades=3):
    """The same program with rows and columns in units of random powers of ten."""
    rng = np.random.default_rng(seed)
    rows = 10 ** rng.uniform(-decades, decades, size=a.shape[0])
    columns = 10 ** rng.uniform(-decades, decades, size=a.shape[1])
    return rows[:, None] * a * columns, rows * b, c * columns


def _feasible(m, n, rng):
    a = rng.normal(size=(m, n))
    b = a @ np.maximum(rng.normal(size=n), 0)
    return a, b, a.T @ rng.normal(size=m) + rng.uniform(size=n)
