"""Projections that `optax.projections` does not have."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def projection_sparse_simplex(x: jax.Array, k: int, scale: Any = 1.0) -> jax.Array:
    """Project onto `{p : p >= 0, sum p = scale, at most k non-zeros}`, along the last axis.

    The k largest entries are projected onto the simplex, the others become 0. Ties
    are broken by position. For k = n use `optax.projections.projection_simplex`.

    Args:
      x: `[..., n]`. k: static, 1 <= k <= n. scale: positive; may be traced.

    Raises:
      ValueError: k outside 1..n.

    Reference: Kyrillidis, Becker, Cevher and Koch, "Sparse projections onto the simplex", 2013.

    >>> import jax.numpy as jnp
    >>> projection_sparse_simplex(jnp.array([0.5, 2.0, 1.5]), 2).tolist()
    [0.0, 0.75, 0.25]
    """
    n = x.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the length {n} of the last axis, got {k}.")
    top, index = lax.top_k(x, k)
    counts = jnp.arange(1, k + 1, dtype=x.dtype)
    thresholds = (jnp.cumsum(top, axis=-1) - scale) / counts
    support = jnp.sum(top > thresholds, axis=-1, keepdims=True)
    theta = jnp.take_along_axis(thresholds, jnp.maximum(support - 1, 0), axis=-1)
    values = jnp.maximum(top - theta, 0)
    return jnp.put_along_axis(jnp.zeros_like(x), index, values, axis=-1, inplace=False)
