"""Linear recurrences in O(log T) depth, and the Jacobians of the rows of a window."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import HIGHEST, safe_divide

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
    """Of the previous round, for the secant: inputs and outputs `[W, d]`, NaN before, slopes."""

    p: jax.Array
    f: jax.Array
    slope: jax.Array


def scan_scalar(a: jax.Array, r: jax.Array) -> jax.Array:
    """`D_{t+1} = a_t D_t + r_t`, D_0 = 0, elementwise; all `[W, d]` (a may be `[W, 1]`).

    Returns D_0 .. D_{W-1}, the changes of the rows' inputs.

    >>> import jax.numpy as jnp
    >>> scan_scalar(jnp.full((3, 1), 2.0), jnp.ones((3, 1)))[:, 0].tolist()
    [0.0, 1.0, 3.0]
    """
    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return trees.before(lax.associative_scan(combine, (jnp.broadcast_to(a, r.shape), r))[1])


def scan_matrix(a: jax.Array, r: jax.Array) -> jax.Array:
    """The same with matrices a `[W, d, d]` and vectors r `[W, d]`."""
    def combine(left: tuple, right: tuple) -> tuple:
        product = jnp.matmul(right[0], left[0], precision=HIGHEST)
        return product, apply(right[0], left[1]) + right[1]

    return trees.before(lax.associative_scan(combine, (a, r))[1])


def apply(a: jax.Array, v: jax.Array) -> jax.Array:
    """Products of matrices `[W, d, d]` and vectors `[W, d]`."""
    return jnp.einsum("tij,tj->ti", a, v, precision=HIGHEST)


def tame(slopes: jax.Array) -> jax.Array:
    """Entries within the largest slope; what is not finite becomes 0."""
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


def secant_slopes(dx: jax.Array, df: jax.Array, known: jax.Array, tiny: jax.Array) -> jax.Array:
    """`<dx, df> / <dx, dx>` by rows `[W, ...]`, those known before where dx is tiny or NaN."""
    square = dot(dx, dx)
    return jnp.where(square > tiny, safe_divide(dot(dx, df), square), known)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products by rows."""
    products = (a * b).reshape(a.shape[0], -1)
    if products.shape[1] == 2:
        # Fused with the slices of a window, a reduction of pairs segfaults on CPUs (jaxlib 0.10.2);
        # neighbours in one long vector do not.
        flat = products.reshape(-1)
        return (flat + jnp.roll(flat, -1))[::2]
    return jnp.sum(products, axis=1)


def diagonals(rows: Rows) -> jax.Array:
    """Diagonals of the rows' Jacobians `[W, d]`, one direction after the other: memory O(W d)."""
    def entry(direction: jax.Array) -> jax.Array:
        tangent = jnp.broadcast_to(direction, rows.p.shape)
        _, out = jax.jvp(lambda p: jax.vmap(rows.step)(p, rows.x), (rows.p,), (tangent,))
        return out * direction

    unit = jnp.eye(rows.p.shape[1], dtype=rows.p.dtype)
    return tame(
        lax.scan(lambda total, e: (total + entry(e), None), jnp.zeros_like(rows.p), unit)[0])


def filter_pair(left: tuple, right: tuple) -> tuple:
    """Combine two elements (A, b, C, eta, J) of the parallel Kalman filter, all scalars."""
    a1, b1, c1, e1, j1 = left
    a2, b2, c2, e2, j2 = right
    middle = 1 + c1 * j2
    forward, backward = a2 / middle, a1 / middle
    return (forward * a1, forward * (b1 + c1 * e2) + b2, forward * c1 * a2 + c2,
            backward * (e2 - j2 * b1) + e1, backward * j2 * a1 + j1)
