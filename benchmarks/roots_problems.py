"""Systems of equations on which root finders are compared, from their authors' definitions.

Source: More, Garbow and Hillstrom, "Testing unconstrained optimization software", ACM Trans. Math.
Softw. 7, 1981: the square systems, numbered as there, each from its standard start and from ten and
a hundred times it. One definition for numpy and jax: `f(xp, x)`, with `xp` one of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class System(NamedTuple):
    """`f(xp, x)`, `[n] -> [n]`, its standard start, and whether it has a root."""

    f: Callable
    start: np.ndarray
    rooted: bool = True


def rosenbrock(xp: Any, x: Any) -> Any:
    return xp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(xp: Any, x: Any) -> Any:
    return xp.stack([-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
                     -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])


def powell_badly_scaled(xp: Any, x: Any) -> Any:
    return xp.stack([1e4 * x[0] * x[1] - 1, xp.exp(-x[0]) + xp.exp(-x[1]) - 1.0001])


def helical_valley(xp: Any, x: Any) -> Any:
    angle = xp.arctan2(x[1], x[0]) / (2 * np.pi)
    turn = xp.where((x[0] < 0) & (x[1] < 0), angle + 1, angle)  # arctan(x2 / x1), half a turn more
    return xp.stack([10 * (x[2] - 10 * turn), 10 * (xp.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])


def powell_singular(xp: Any, x: Any) -> Any:
    return xp.stack([x[0] + 10 * x[1], np.sqrt(5).item() * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2,
                     np.sqrt(10).item() * (x[0] - x[3]) ** 2])


def wood(xp: Any, x: Any) -> Any:
    """The gradient of Wood's function, as in MINPACK's tests of systems."""
    first, second = x[1] - x[0] ** 2, x[3] - x[2] ** 2
    return xp.stack([
        -200 * x[0] * first - (1 - x[0]), 200 * first + 20.2 * (x[1] - 1) + 19.8 * (x[3] - 1),
        -180 * x[2] * second - (1 - x[2]), 180 * second + 20.2 * (x[3] - 1) + 19.8 * (x[1] - 1)])


def watson(xp: Any, x: Any) -> Any:
    """The gradient of half the sum of squares of Watson's function, n = 6."""
    n, t = x.shape[0], np.arange(1, 30) / 29
    j = np.arange(n)
    powers = np.asarray(t[:, None] ** j, np.float64).astype(x.dtype)
    slopes = (j * t[:, None] ** np.maximum(j - 1, 0)).astype(x.dtype)
    inner = powers @ x
    r = slopes @ x - inner**2 - 1
    total = (slopes - 2 * inner[:, None] * powers).T @ r
    last = x[1] - x[0] ** 2 - 1
    first = xp.stack([x[0] - 2 * x[0] * last, last])
    return total + xp.concatenate([first, xp.zeros(n - 2, x.dtype)])


def chebyquad(xp: Any, x: Any) -> Any:
    n = x.shape[0]
    before, now, rows = xp.ones_like(x), 2 * x - 1, []
    twice = 2 * now
    for i in range(1, n + 1):
        integral = -1 / (i * i - 1) if i % 2 == 0 else 0.0
        rows.append(now.sum() / n - integral)
        before, now = now, twice * now - before
    return xp.stack(rows)


def brown_almost_linear(xp: Any, x: Any) -> Any:
    return xp.concatenate([(x + x.sum() - (x.shape[0] + 1))[:-1], (xp.prod(x) - 1)[None]])


def discrete_boundary_value(xp: Any, x: Any) -> Any:
    n = x.shape[0]
    h = 1 / (n + 1)
    t = (np.arange(1, n + 1) * h).astype(x.dtype)
    zero = xp.zeros(1, x.dtype)
    left, right = xp.concatenate([zero, x[:-1]]), xp.concatenate([x[1:], zero])
    return 2 * x - left - right + h * h * (x + t + 1) ** 3 / 2


def discrete_integral(xp: Any, x: Any) -> Any:
    n = x.shape[0]
    h = 1 / (n + 1)
    t = np.arange(1, n + 1) * h
    kernel = np.where(t[None] <= t[:, None], (1 - t[:, None]) * t[None], t[:, None] * (1 - t[None]))
    return x + (h / 2 * kernel).astype(x.dtype) @ (x + t.astype(x.dtype) + 1) ** 3


def trigonometric(xp: Any, x: Any) -> Any:
    n = x.shape[0]
    i = np.arange(1, n + 1).astype(x.dtype)
    return n - xp.cos(x).sum() + i * (1 - xp.cos(x)) - xp.sin(x)


def variably_dimensioned(xp: Any, x: Any) -> Any:
    """The gradient of half its sum of squares, as in MINPACK's tests of systems."""
    j = np.arange(1, x.shape[0] + 1).astype(x.dtype)
    total = (j * (x - 1)).sum()
    return x - 1 + j * total * (1 + 2 * total**2)


def broyden_tridiagonal(xp: Any, x: Any) -> Any:
    zero = xp.zeros(1, x.dtype)
    left, right = xp.concatenate([zero, x[:-1]]), xp.concatenate([x[1:], zero])
    return (3 - 2 * x) * x - left - 2 * right + 1


def broyden_banded(xp: Any, x: Any) -> Any:
    n = x.shape[0]
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    near = ((j != i) & (j >= i - 5) & (j <= i + 1)).astype(x.dtype)
    return x * (2 + 5 * x**2) + 1 - near @ (x * (1 + x))


def _grid(n: int) -> np.ndarray:
    return np.arange(1, n + 1) / (n + 1)


#: By the numbers of the source.
MGH = {
    "1 Rosenbrock": System(rosenbrock, np.array([-1.2, 1])),
    "2 Freudenstein and Roth": System(freudenstein_roth, np.array([0.5, -2])),
    "3 Powell badly scaled": System(powell_badly_scaled, np.array([0.0, 1])),
    "7 helical valley": System(helical_valley, np.array([-1.0, 0, 0])),
    "13 Powell singular": System(powell_singular, np.array([3.0, -1, 0, 1])),
    "14 Wood": System(wood, np.array([-3.0, -1, -3, -1])),
    "20 Watson, n = 6": System(watson, np.zeros(6)),
    "25 variably dimensioned": System(variably_dimensioned, 1 - np.arange(1, 11) / 10),
    "26 trigonometric": System(trigonometric, np.full(10, 0.1)),
    "27 Brown almost linear": System(brown_almost_linear, np.full(10, 0.5)),
    "28 discrete boundary value": System(discrete_boundary_value, _grid(10) * (_grid(10) - 1)),
    "29 discrete integral": System(discrete_integral, _grid(10) * (_grid(10) - 1)),
    "30 Broyden tridiagonal": System(broyden_tridiagonal, np.full(10, -1.0)),
    "31 Broyden banded": System(broyden_banded, np.full(10, -1.0)),
    **{f"35 Chebyquad, n = {n}": System(chebyquad, _grid(n)) for n in (5, 6, 7, 9)},
    "35 Chebyquad, n = 8": System(chebyquad, _grid(8), rooted=False),
}
#: Units of x and of F that differ by up to so much from entry to entry.
SPREADS = (1e3, 1e6)


def badly_scaled(system: System, spread: float) -> System:
    """The same system in other units: `D F(x / d)`, entries of both from 1 to `spread`."""
    n = len(system.start)
    units = spread ** (np.arange(n) / max(n - 1, 1))

    def f(xp: Any, x: Any) -> Any:
        return units[::-1].astype(x.dtype) * system.f(xp, x / units.astype(x.dtype))

    return System(f, system.start * units, system.rooted)


def problems() -> dict[str, System]:
    """All of them: standard starts and ten and a hundred times those, and other units."""
    table = {}
    for name, system in MGH.items():
        for far in (1, 10, 100):
            if far == 1 or system.start.any():
                table[f"{name}, {far} x"] = system._replace(start=far * system.start)
        for spread in SPREADS:
            table[f"{name}, units to {spread:.0e}"] = badly_scaled(system, spread)
    return table


def solved(system: System, x: np.ndarray, digits: float = 1e-5) -> bool:
    """Whether x is within a relative `digits` of a root, by Newton's step of numpy in float64.

    A root of higher order is one where |F| is what rounding makes of it.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        value = system.f(np, x)
        step = 1e-7 * np.maximum(np.abs(x), 1e-3 * max(np.linalg.norm(x), 1e-3))
        moves = np.diag(step)
        jacobian = np.stack([(system.f(np, x + m) - system.f(np, x - m)) / (2 * h)
                             for m, h in zip(moves, step, strict=True)], 1)
        if not (np.isfinite(value).all() and np.isfinite(jacobian).all()):
            return False
        columns = np.linalg.norm(jacobian, axis=0)
        scaled = jacobian / np.where(columns > 0, columns, 1)
        rows = np.linalg.norm(scaled, axis=1)
        scaled /= np.where(rows > 0, rows, 1)[:, None]
        if np.linalg.cond(scaled) < 1e13:
            newton = np.linalg.solve(jacobian, value)
        else:
            newton = np.full_like(x, np.inf)
        near = np.linalg.norm(newton) <= digits * max(np.linalg.norm(x), 1e-3)
        terms = np.abs(jacobian) @ np.abs(x)
        return bool(near or np.linalg.norm(value) <= 1e-13 * np.linalg.norm(terms))
