"""Hypergradients by linear solves and by unrolling, and inner solves, on quadratics."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.bilevel import hypergradient, solve_inner, unrolled_hypergradient
from jaxiter.linear import LinearSolver
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    lengths,
    magnitudes,
    offsets,
    rounding,
    smallest,
    threshold,
    verdict,
    wrong_gradients,
)

SIZE = 4
#: The relative residual that a hypergradient's default solve promises in float32.
PROMISED = 1e-5


def curvatures(
    rng: np.random.Generator, count: int, odd: float, largest: float = 4.0
) -> np.ndarray:
    """Symmetric matrices of condition up to 10^largest; shares `odd` singular, or indefinite."""
    basis = np.linalg.qr(rng.normal(size=(count, SIZE, SIZE)))[0]
    values = 10.0 ** -rng.uniform(0, largest, (count, SIZE))
    values[rng.random(count) < odd, 0] = 0.0
    values[rng.random(count) < odd, 0] *= -1
    return (basis * values[:, None]) @ np.swapaxes(basis, 1, 2)


@cache
def _hyper(solve: LinearSolver | None) -> Callable:
    def one(h: jax.Array, c: jax.Array) -> tuple:
        out = hypergradient(lambda x, y: c @ y, lambda x, y: y @ (h @ y) / 2 - x @ y,
                            jnp.ones(SIZE), jnp.ones(SIZE), solve=solve)
        return out.v, out.grad, out.status

    return jax.jit(jax.vmap(one))


def audit_hypergradient(
    seed: int, count: int, solve: LinearSolver | None, solve_name: str, kind: str = "odd"
) -> Verdict:
    """Quadratic inner problems; the adjoint's residual, and the gradient where it is determined.

    Args:
      kind: "odd" (some singular, indefinite, not finite) or "conditioned" (conditions up to
        1e8, curvatures and slopes of every scale).
    """
    rng = np.random.default_rng(seed)
    if kind == "odd":
        h = curvatures(rng, count, odd=0.15)
        c = rng.normal(size=(count, SIZE)) * 10.0 ** rng.integers(-10, 10, (count, 1))
        c[rng.random(count) < 0.1, 0] = np.nan
    else:
        h = curvatures(rng, count, 0.0, 8) * magnitudes(rng, count, 6)[:, None, None]
        c = rng.normal(size=(count, SIZE)) * magnitudes(rng, count, 9)[:, None]
    arrays = cast(jnp.float32, h, c)
    v, grad, status = _hyper(solve)(*arrays)
    h, c, v, grad = exactly(*arrays, v, grad)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        room = rounding(h, v, c, jnp.float32) + SIZE * smallest(jnp.float32)
        false = good & ~(lengths(apply(h, v) - c) <= 1.05 * PROMISED * lengths(c) + room)
        regular = good & (np.linalg.cond(h) < 1e3)
    exact = np.full_like(grad, np.nan)  # the gradient by x is v itself
    exact[regular] = np.linalg.solve(h[regular], c[regular, :, None])[..., 0]
    silent, lost = wrong_gradients(grad, exact, regular)
    return verdict(f"hypergradient, {solve_name}, {kind} problems", status, false, silent=silent,
                   lost=lost)


@cache
def _unrolled(mode: str, steps: int) -> Callable:
    def one(h: jax.Array, c: jax.Array, x: jax.Array, size: jax.Array) -> tuple:
        out = unrolled_hypergradient(
            lambda x, y: c @ y, lambda x, y: y - size * (h @ y - x), x, jnp.zeros(SIZE),
            steps=steps, mode=mode)
        return out.grad, out.status

    return jax.jit(jax.vmap(one))


def audit_unrolled(seed: int, count: int, mode: str, steps: int = 120) -> Verdict:
    """Gradient descent on quadratics, of which so many steps are or are not enough.

    CONVERGED is false where the last point still moves by more than the default tolerance, or
    diverges. silent: CONVERGED, well conditioned, and not the gradient of the minimum.
    """
    rng = np.random.default_rng(seed)
    h = curvatures(rng, count, odd=0.05, largest=0.7)
    x, c = rng.normal(size=(2, count, SIZE)) * 10.0 ** rng.uniform(-3, 3, (2, count, 1))
    size = rng.choice([0.01, 0.3, 1.0, 1.8, 2.5], count)
    arrays = cast(jnp.float32, h, c, x, size)
    grad, status = _unrolled(mode, steps)(*arrays)
    h, c, x, size, grad = exactly(*arrays, grad)
    good = np.asarray(status) == Status.CONVERGED

    def step(y: np.ndarray) -> np.ndarray:
        return y - size[:, None] * (apply(h, y) - x)

    y = np.zeros_like(x)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            y = step(y)
        moved, first = lengths(step(y) - y), lengths(size[:, None] * x)
        limit = threshold(jnp.float32, np.maximum(lengths(y), lengths(step(y))), first)
        room = size * rounding(h, y, x, jnp.float32)
        # In float32 the steps end elsewhere than here: twice the limit is within their rounding.
        false = good & ~(moved <= 2 * limit + room)
        regular = good & ~false & (np.linalg.cond(h) < 1e2)
    exact = np.full_like(grad, np.nan)
    exact[regular] = np.linalg.solve(h[regular], c[regular, :, None])[..., 0]
    silent, lost = wrong_gradients(grad, exact, regular)
    return verdict(f"unrolled_hypergradient, {mode}, {steps} steps", status, false,
                   silent=silent, lost=lost)


@cache
def _inner() -> Callable:
    def solve(h: jax.Array, c: jax.Array) -> tuple:
        out = solve_inner(lambda c, y: y @ (h @ y) / 2 - c @ y, jnp.zeros(SIZE), c,
                          max_steps=300)
        return out.value, out.status

    return jax.jit(jax.vmap(solve))


def audit_inner(seed: int, count: int, kind: str = "odd") -> Verdict:
    """Quadratics of condition 1 to 10,000, flat or falling ones, odd sides; or of every scale."""
    rng = np.random.default_rng(seed)
    h = curvatures(rng, count, odd=0.1)
    if kind == "scaled":
        h = curvatures(rng, count, 0.0, 2) * magnitudes(rng, count, 9)[:, None, None]
        c = rng.normal(size=(count, SIZE)) * magnitudes(rng, count, 9)[:, None]
    else:
        c = offsets(rng, count, SIZE)
    arrays = cast(jnp.float32, h, c)
    y, status = _inner()(*arrays)
    h, c, y = exactly(*arrays, y)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        step = 1 / np.abs(np.linalg.eigvalsh(h)).max(1)  # at most 1.3 times the one used
        gap = step * lengths(apply(h, y) - c)
        limit = threshold(jnp.float32, lengths(y), 1.3 * step * lengths(c))
        room = step * rounding(h, y, c, jnp.float32) + SIZE * smallest(jnp.float32)
        false = good & ~(gap <= 1.4 * limit + room)
    return verdict(f"solve_inner, {kind} problems", status, false,
                   unsolved=~good & (kind == "scaled"))
