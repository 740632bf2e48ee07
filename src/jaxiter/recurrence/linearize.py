"""What linear recurrences are made of: Jacobians and secants of rows, in O(log T) depth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import HIGHEST, safe_divide

#: Newton holds and multiplies d x d Jacobians; above this size it is refused.
LARGEST_DENSE = 64


def scan_matrix(a: jax.Array, r: jax.Array) -> jax.Array:
    """`D_{t+1} = a_t D_t + r_t`, D_0 = 0, with matrices a `[W, d, d]` and vectors r `[W, d]`.

    Returns D_0 .. D_{W-1}, the changes of the rows' inputs.
    """
    def combine(left: tuple, right: tuple) -> tuple:
        product = jnp.matmul(right[0], left[0], precision=HIGHEST)
        return product, apply(right[0], left[1]) + right[1]

    return trees.before(lax.associative_scan(combine, (a, r))[1])


def apply(a: jax.Array, v: jax.Array) -> jax.Array:
    """Products of matrices `[W, d, d]` and vectors `[W, d]`."""
    return jnp.einsum("tij,tj->ti", a, v, precision=HIGHEST)


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
