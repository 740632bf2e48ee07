"""Roots: systems with known roots, multiplied by any constant, and functions without a root."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.roots import root
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    TOLERANCES,
    Verdict,
    cast,
    exactly,
    half_ulp,
    lengths,
    name,
    smallest,
    verdict,
)

#: A root is believed within so many relative tolerances of its size, times the condition there:
#: a residual that passes proves no more. Sizes below a tenth of the start's, or of 0.1, are that.
NEAR, SMALL = 10, 0.1
#: Without a root, |F| may pass `4 rtol |J| |x|` where x stayed within so many sizes of its start.
STAYED = 100
#: |F| below this many roundings of its own terms cannot be told from zero.
ROUNDINGS = 8


class System(NamedTuple):
    """`f(xp, x, p)` for x `[..., 2]` and p `[..., 6]`, parameters, roots `[count, k, 2]` or None.

    terms: the sum of the magnitudes that f adds.
    """

    f: Callable
    draw: Callable
    roots: Callable | None
    terms: Callable | None = None


def _pair(xp: Any, first: Any, second: Any) -> Any:
    return xp.stack([first, second], -1)


def _circle(xp: Any, x: Any, p: Any) -> Any:
    return _pair(xp, x[..., 0] ** 2 + x[..., 1] ** 2 - p[..., 0],
                 x[..., 0] - p[..., 1] * x[..., 1])


def _coupled(xp: Any, x: Any, p: Any) -> Any:
    first = xp.exp(p[..., 2] - x[..., 0] - x[..., 1] + p[..., 0]) - xp.exp(p[..., 0])
    return _pair(xp, first, xp.exp(p[..., 3] - x[..., 1] + p[..., 1]) - xp.exp(p[..., 1]))


def _coupled_terms(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    exponent = np.stack([p[:, 2] - x[:, 0] - x[:, 1] + p[:, 0], p[:, 3] - x[:, 1] + p[:, 1]], 1)
    inside = np.abs(p[:, :4]).sum(1) + np.abs(x).sum(1)  # what exponents round by
    return (np.exp(exponent) + np.exp(p[:, :2])) * (1 + inside[:, None])


def _linear(xp: Any, x: Any, p: Any) -> Any:
    return _pair(xp, p[..., 0] * x[..., 0] + p[..., 1] * x[..., 1] - p[..., 4],
                 p[..., 2] * x[..., 0] + p[..., 3] * x[..., 1] - p[..., 5])


def _linear_draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two by two systems of condition up to 30 and of every scale."""
    left, right = (np.linalg.qr(rng.normal(size=(count, 2, 2)))[0] for _ in range(2))
    values = np.stack([np.ones(count), 10.0 ** rng.uniform(-1.5, 0, count)], 1)
    a = (left * values[:, None]) @ right * 10.0 ** rng.uniform(-9, 9, (count, 1, 1))
    b = rng.normal(size=(count, 2)) * 10.0 ** rng.uniform(-9, 9, (count, 1))
    return np.concatenate([a.reshape(count, 4), b], 1)


def _linear_roots(p: np.ndarray) -> np.ndarray:
    return np.linalg.solve(p[:, :4].reshape(-1, 2, 2), p[:, 4:, None])[..., 0][:, None]


def _spread(low: float, high: float, power: bool = False) -> Callable:
    """Parameters drawn evenly, or evenly in the logarithm."""
    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        p = rng.uniform(low, high, (count, 6))
        return 10.0**p if power else p

    return draw


def _grid(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """All pairs of a coordinate's roots, `[count, k]` each."""
    k = first.shape[1]
    return np.stack([np.repeat(first, k, 1), np.tile(second, (1, k))], -1)


def _signs(p: np.ndarray) -> np.ndarray:
    size = np.sqrt(p)
    both = np.stack([size, -size], 1)
    return _grid(both[..., 0], both[..., 1])


def _circle_roots(p: np.ndarray) -> np.ndarray:
    second = np.sqrt(p[:, 0] / (1 + p[:, 1] ** 2))
    first = np.stack([p[:, 1] * second, second], -1)
    return np.stack([first, -first], 1)


def _waves(p: np.ndarray) -> np.ndarray:
    """All roots of sin(x) = p within a million of 0 would be too many: those of one turn."""
    inside = np.arcsin(p[:, :2])
    both = np.stack([inside, np.pi - inside], 1)
    return _grid(both[..., 0], both[..., 1])


def _increasing(f: Callable, reach: float) -> Callable:
    """The only root of a function that increases coordinate by coordinate, by bisection."""
    def find(p: np.ndarray) -> np.ndarray:
        low, high = np.full((len(p), 2), -reach), np.full((len(p), 2), reach)
        for _ in range(200):
            middle = 0.5 * (low + high)
            above = f(np, middle, p) > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return low[:, None]

    return find


def _kepler(xp: Any, x: Any, p: Any) -> Any:
    return x - p[..., :2] * xp.sin(x) - 6 * p[..., 2:4]


def _cubes(xp: Any, x: Any, p: Any) -> Any:
    return x**3 + x - p[..., :2]


SYSTEMS = {
    "squares": System(lambda xp, x, p: x**2 - p[..., :2], _spread(-9, 9, power=True),
                      lambda p: _signs(p[:, :2]), lambda x, p: x**2 + p[:, :2]),
    "circle": System(_circle, _spread(-2, 2, power=True), _circle_roots, lambda x, p: np.stack(
        [(x**2).sum(1) + p[:, 0], np.abs(x[:, 0]) + np.abs(p[:, 1] * x[:, 1])], 1)),
    "sines": System(lambda xp, x, p: xp.sin(x) - p[..., :2], _spread(-0.95, 0.95), _waves,
                    lambda x, p: np.abs(np.sin(x)) + np.abs(p[:, :2])),
    "kepler": System(_kepler, _spread(0, 0.9), _increasing(_kepler, 10.0),
                     lambda x, p: np.abs(x) + np.abs(p[:, :2]) + 6 * np.abs(p[:, 2:4])),
    "exponentials": System(lambda xp, x, p: xp.exp(x) - p[..., :2], _spread(-3, 3, power=True),
                           lambda p: np.log(p[:, None, :2]), lambda x, p: np.exp(x) + p[:, :2]),
    "coupled": System(_coupled, _spread(-5, 5),
                      lambda p: np.stack([p[:, 2] - p[:, 3], p[:, 3]], -1)[:, None],
                      _coupled_terms),
    "linear": System(_linear, _linear_draw, _linear_roots,
                     lambda x, p: np.abs(_linear(np, np.abs(x), np.concatenate(
                         [np.abs(p[:, :4]), -np.abs(p[:, 4:])], 1)))),
    "cubes": System(_cubes, _spread(-50, 50), _increasing(_cubes, 10.0),
                    lambda x, p: np.abs(x) ** 3 + np.abs(x) + np.abs(p[:, :2])),
    "arctans": System(lambda xp, x, p: xp.arctan(x) - p[..., :2], _spread(-1.3, 1.3),
                      lambda p: np.tan(p[:, None, :2]),
                      lambda x, p: np.abs(np.arctan(x)) + np.abs(p[:, :2])),
}

_ANY = _spread(0.1, 2)
#: Without a root, some of them with the value 0 at infinity.
ROOTLESS = {
    "exp(x)": System(lambda xp, x, p: xp.exp(x), _ANY, None),
    "x^2 + 1": System(lambda xp, x, p: x**2 + p[..., :2], _ANY, None),
    "cos(x) + 1.5": System(lambda xp, x, p: xp.cos(x) + 1.5, _ANY, None),
    "1/x": System(lambda xp, x, p: 1 / x, _ANY, None),
    "|x| + 1": System(lambda xp, x, p: xp.abs(x) + p[..., :2], _ANY, None),
    "x y = 1, y = 0": System(lambda xp, x, p: _pair(
        xp, x[..., 0] * x[..., 1] - 1, p[..., 0] * x[..., 1]), _ANY, None),
    "log(1 + exp(x))": System(lambda xp, x, p: xp.logaddexp(x, 0 * x), _ANY, None),
    "1/(1 + x^2)": System(lambda xp, x, p: 1 / (1 + x**2), _ANY, None),
    "exp(x), y^2 = p": System(lambda xp, x, p: _pair(
        xp, xp.exp(x[..., 0]), x[..., 1] ** 2 - p[..., 0]), _ANY, None),
}
ALL = {**SYSTEMS, **ROOTLESS}


@cache
def _program(solver: Any, method: str | None) -> Callable:
    """One program for all systems: which of them it is, is data."""
    def function(x: jax.Array, which: jax.Array, p: jax.Array, factor: jax.Array) -> jax.Array:
        branches = [lambda x, p, f=system.f: f(jnp, x, p) for system in ALL.values()]
        return factor * lax.switch(which, branches, x, p)

    def solve(x0: jax.Array, *args: jax.Array) -> tuple:
        out = root(function, x0, *args, solver=solver, method=method, max_steps=300)
        return out.value, out.status

    return jax.jit(jax.vmap(solve, (0, None, 0, 0)))


def _starts(rng: np.random.Generator, count: int, far: float) -> np.ndarray:
    """Zeros, ones, and points up to 10^far away."""
    x0 = rng.normal(size=(count, 2)) * 10.0 ** rng.uniform(0, far, (count, 1))
    kind = rng.random((count, 1))
    return np.where(kind < 0.2, 0.0, np.where(kind < 0.4, 1.0, x0))


def audit_root(
    seed: int, count: int, system: str, solver: Any, solver_name: str, dtype: Any = jnp.float32,
    free: bool = False, method: str | None = None,
) -> Verdict:
    """One system with many parameters, starts and factors, each problem also with factor 1.

    CONVERGED is false far from every root, unless F is zero as far as its own terms can tell;
    where there is no root it is always false. free: the solver's steps do not depend on the
    unit of F; then what is solved with factor 1 and not with a positive one is unsolved.
    """
    rng = np.random.default_rng(seed)
    chosen = ALL[system]
    x0, p = _starts(rng, count, 1.5 if chosen.roots else 6), chosen.draw(rng, count)
    factor = 2.0 ** rng.integers(-30, 31, count) * rng.choice([1, -1], count, p=[0.7, 0.3])
    x0, p, factor, plain = cast(dtype, x0, p, factor, np.ones(count))
    which = jnp.int32(list(ALL).index(system))
    answers = [_program(solver, method)(x0, which, p, scale) for scale in (factor, plain)]
    start, exact_p, *scales = exactly(x0, p, factor, plain)
    honest, says = [], []
    for (x, status), scale in zip(answers, scales, strict=True):
        good = np.asarray(status) == Status.CONVERGED
        with np.errstate(all="ignore"):
            honest.append(good & believable(chosen, exactly(x)[0], start, exact_p, dtype, scale))
        says.append(good)
    false = np.concatenate([says[0] & ~honest[0], says[1] & ~honest[1]])
    unsolved = honest[1] & ~says[0] & free & (exactly(factor)[0] > 0)
    statuses = np.concatenate([np.asarray(status) for _, status in answers])
    return verdict(f"root, {solver_name}, {system}, {name(dtype)}", statuses, false,
                   unsolved=unsolved)


def _slopes(system: System, x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The Jacobian `[count, 2, 2]` by central differences."""
    step = 1e-6 * np.maximum(np.abs(x), 1e-3 * lengths(x)[:, None] + 1e-30)
    columns = []
    for j in range(2):
        move = np.where(np.arange(2) == j, step, 0)
        change = system.f(np, x + move, p) - system.f(np, x - move, p)
        columns.append(change / (2 * step[:, j, None]))
    return np.stack(columns, -1)


def stretch(system: System, x: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest and smallest singular value of the Jacobian `[count]`; infinite where it is not."""
    slopes = _slopes(system, x, p)
    finite = np.asarray(np.isfinite(slopes).all((1, 2)))
    values = np.linalg.svd(np.where(finite[:, None, None], slopes, 0), compute_uv=False)
    return np.where(finite, values[:, 0], np.inf), np.where(finite, values[:, 1], 0)


def believable(
    system: System, x: np.ndarray, start: np.ndarray, p: np.ndarray, dtype: Any,
    factor: Any = 1.0,
) -> np.ndarray:
    """Whether x is near a root, or `factor * F` there is nothing but rounding."""
    value, rtol = np.abs(system.f(np, x, p)), TOLERANCES[name(dtype)][0]
    if system.roots is None:
        least = np.minimum(np.abs(np.asarray(factor, float)), 1)
        zero = (value * least[..., None] <= smallest(dtype)).all(1)
        stayed = lengths(x) <= STAYED * np.maximum(lengths(start), 1)
        limit = 4 * rtol * stretch(system, x, p)[0] * lengths(x)
        return zero | (stayed & (lengths(value) <= limit))
    roots = system.roots(p)
    if system.roots is _waves:  # in the turn that x is in
        turn = 2 * np.pi * np.round((x[:, None] - roots) / (2 * np.pi))
        roots = roots + turn
    close = np.zeros(len(x), bool)
    for one in np.moveaxis(roots, 1, 0):
        largest, least = stretch(system, one, p)
        begun = np.maximum(lengths(start), lengths(one - start))
        size = np.maximum(lengths(one), SMALL * np.minimum(begun, 1))
        close |= lengths(x - one) <= NEAR * rtol * largest / least * size
    if system.terms is None:
        return close
    return close | (value <= ROUNDINGS * half_ulp(dtype) * system.terms(x, p)).all(1)
