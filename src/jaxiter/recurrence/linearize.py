"""One linear recurrence per round: what the methods of `solve_recurrence` differ in.

Given inputs p_t, outputs f_t = step(p_t, x_t) and residuals r_t = f_t - s_t of a window,
each method models how row t answers a change D_t of its input by a linear map A_t,
solves `D_{t+1} = A_t D_t + r_t` in O(log T) depth and proposes `s_t <- f_t + A_t D_t`. So a
row whose input does not move is reproduced exactly, whatever A is; only the number of
rounds depends on A: 0 is Jacobi, 1 Picard, the Jacobian Newton (DEER).

A method takes `Rows` and returns `lift(r) -> A D` for any residuals r, and the secant's slopes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import HIGHEST, machine_epsilon, safe_divide

#: Entries of Jacobians are clipped here: a chaotic guess must not overflow the scan.
LARGEST_SLOPE = 1e8
#: Newton holds and multiplies d x d Jacobians; above this size it is refused.
LARGEST_DENSE = 64


class Rows(NamedTuple):
    """A window of W rows: step of one row, inputs `[W, d]`, drivers, outputs."""

    step: Callable
    p: jax.Array
    x: Any
    f: jax.Array
    past: Any  # a Past for the secant, else None


class Past(NamedTuple):
    """Of the previous round, for the secant: inputs and outputs `[W, d]`, slopes `[W]`, seen."""

    p: jax.Array
    f: jax.Array
    slope: jax.Array
    seen: jax.Array


def scan_scalar(a: jax.Array, r: jax.Array) -> jax.Array:
    """`D_{t+1} = a_t D_t + r_t`, D_0 = 0, elementwise; all `[W, d]` (a may be `[W, 1]`).

    Returns D_0 .. D_{W-1}, the changes of the rows' inputs.

    >>> import jax.numpy as jnp
    >>> scan_scalar(jnp.full((3, 1), 2.0), jnp.ones((3, 1)))[:, 0].tolist()
    [0.0, 1.0, 3.0]
    """
    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], right[0] * left[1] + right[1]

    d = lax.associative_scan(combine, (jnp.broadcast_to(a, r.shape), r))[1]
    return jnp.concatenate([jnp.zeros_like(d[:1]), d[:-1]])


def scan_matrix(a: jax.Array, r: jax.Array) -> jax.Array:
    """The same with matrices a `[W, d, d]` and vectors r `[W, d]`."""
    def combine(left: tuple, right: tuple) -> tuple:
        product = jnp.matmul(right[0], left[0], precision=HIGHEST)
        return product, _apply(right[0], left[1]) + right[1]

    d = lax.associative_scan(combine, (a, r))[1]
    return jnp.concatenate([jnp.zeros_like(d[:1]), d[:-1]])


def _apply(a: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("tij,tj->ti", a, v, precision=HIGHEST)


def _tame(slopes: jax.Array) -> jax.Array:
    return jnp.clip(jnp.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0),
                    -LARGEST_SLOPE, LARGEST_SLOPE)


def dense_jacobians(step: Callable, p: jax.Array, x: Any) -> jax.Array:
    """`d step(p_t, x_t) / d p_t`, `[W, d, d]`.

    Raises:
      ValueError: d above 64.
    """
    d = p.shape[1]
    if d > LARGEST_DENSE:
        raise ValueError(f"the state has {d} numbers, and method 'newton' multiplies {d} x {d} "
                         "matrices; use method='diagonal' or 'secant'.")
    return jax.vmap(jax.jacfwd(step))(p, x)


def jacobi(rows: Rows) -> tuple[Callable, jax.Array | None]:
    """A = 0: every row from the last round's values."""
    del rows
    return jnp.zeros_like, None


def picard(rows: Rows) -> tuple[Callable, jax.Array | None]:
    """A = 1: the increments are summed up, as for an integral."""
    del rows
    return lambda r: jnp.cumsum(r, axis=0) - r, None


def newton(rows: Rows) -> tuple[Callable, jax.Array | None]:
    """A = the Jacobian of each row (DEER: Lim et al. 2024)."""
    a = _tame(dense_jacobians(rows.step, rows.p, rows.x))
    return lambda r: _apply(a, scan_matrix(a, r)), None


def diagonal(rows: Rows) -> tuple[Callable, jax.Array | None]:
    """A = the diagonal of the Jacobian (quasi-DEER: Gonzalez et al. 2024), by d jvps a round."""
    a = _diagonals(rows)
    return lambda r: a * scan_scalar(a, r), None


def _diagonals(rows: Rows) -> jax.Array:
    """Diagonals of the rows' Jacobians `[W, d]`, one direction after the other: memory O(W d)."""
    def entry(direction: jax.Array) -> jax.Array:
        tangent = jnp.broadcast_to(direction, rows.p.shape)
        _, out = jax.jvp(lambda p: jax.vmap(rows.step)(p, rows.x), (rows.p,), (tangent,))
        return out * direction

    unit = jnp.eye(rows.p.shape[1], dtype=rows.p.dtype)
    return _tame(
        lax.scan(lambda total, e: (total + entry(e), None), jnp.zeros_like(rows.p), unit)[0])


def secant(rows: Rows) -> tuple[Callable, jax.Array | None]:
    """A = one number per row, `<dp, df> / <dp, dp>` between two rounds: no derivative at all."""
    past = rows.past
    dp, df = rows.p - past.p, rows.f - past.f
    square = jnp.sum(dp * dp, axis=1)
    tiny = 10 * machine_epsilon(rows.p) ** 2 * jnp.sum(rows.p * rows.p, axis=1)
    fresh = past.seen & (square > tiny)
    slope = jnp.where(fresh, safe_divide(jnp.sum(dp * df, axis=1), square), past.slope)
    slope = _tame(slope)
    a = slope[:, None]
    return lambda r: a * scan_scalar(a, r), slope


def elk(damping: float) -> Callable:
    """Diagonal Newton with a pull of strength `damping` towards the previous round (quasi-ELK).

    The damped linear recurrence is a Kalman filter, by coordinates, as an associative scan.

    Reference: Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
    parallelization of nonlinear RNNs", 2024; filter by scans: Sarkka and Garcia-Fernandez,
    "Temporal parallelization of Bayesian smoothers", 2021.
    """
    def method(rows: Rows) -> tuple[Callable, jax.Array | None]:
        slopes = _diagonals(rows)
        # In changes D: dynamics D' = a D + r with unit noise, observation D = 0 of variance
        # 1 / damping. The first input is exact: no dynamics into its row.
        gain = damping / (1 + damping)
        first = (jnp.arange(slopes.shape[0]) == 0)[:, None]
        a = jnp.where(first, 0, slopes)

        def lift(r: jax.Array) -> jax.Array:
            elements = ((1 - gain) * a, (1 - gain) * r, jnp.full_like(a, 1 - gain), -gain * a * r,
                        gain * a * a)
            mean = lax.associative_scan(_filter, elements)[1]
            return slopes * jnp.concatenate([jnp.zeros_like(mean[:1]), mean[:-1]])

        return lift, None

    return method


def _filter(left: tuple, right: tuple) -> tuple:
    """Combine two elements (A, b, C, eta, J) of the parallel Kalman filter, all scalars."""
    a1, b1, c1, e1, j1 = left
    a2, b2, c2, e2, j2 = right
    middle = 1 + c1 * j2
    forward, backward = a2 / middle, a1 / middle
    return (forward * a1, forward * (b1 + c1 * e2) + b2, forward * c1 * a2 + c2,
            backward * (e2 - j2 * b1) + e1, backward * j2 * a1 + j1)


METHODS: dict[str, Callable] = {
    "jacobi": jacobi, "picard": picard, "newton": newton, "diagonal": diagonal, "secant": secant}
