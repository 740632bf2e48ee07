"""Proximal maps of norms that couple entries: along the last axis, or of matrices.

A group lasso is `prox_l2` of an array with one group a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import on_own_mesh, real_dtype, safe_divide
from jaxiter.operators.domain import lengths, not_negative, positive, real
from jaxiter.operators.projections import simplex_threshold
from jaxiter.operators.spectra import excess
from jaxiter.reuse import reused


def prox_l2(v: jax.Array, step: Any, weight: Any = 1.0) -> jax.Array:
    """The proximal map of `weight * |u|`, the l2 norm of every row: the group lasso.

        u = v max(1 - step weight / |v|, 0)

    Args:
      v: `[..., n]`, real or complex. step: positive scalar.
      weight: at least 0; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Yuan and Lin, "Model selection and estimation in regression with grouped
    variables", J. R. Stat. Soc. B 68, 2006.

    >>> import jax.numpy as jnp
    >>> prox_l2(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0, 2.5).tolist()
    [[1.5, 2.0], [0.0, 0.0]]
    """
    threshold = _threshold(v, step, weight)
    size = lengths(v)
    kept = jnp.maximum(1 - safe_divide(threshold, size), 0)
    return jnp.where(jnp.isnan(threshold), jnp.nan, v * kept.astype(v.dtype))


@reused
@on_own_mesh
def prox_linf(v: jax.Array, step: Any, weight: Any = 1.0) -> jax.Array:
    """The proximal map of `weight * max |u|` of every row.

        u = clip(v, -tau, tau),    sum max(|v| - tau, 0) = step weight;    0 where |v|_1 is below

    Args:
      v: `[..., n]`, real. step: positive scalar.
      weight: at least 0; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.
      TypeError: complex v.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> prox_linf(jnp.array([3.0, -1.0, 2.0]), 1.0, 3.0).tolist()
    [1.0, -1.0, 1.0]
    """
    mass = _threshold(real("prox_linf", v), step, weight)
    size = jnp.abs(v)
    all_of_it = jnp.sum(size, axis=-1, keepdims=True) <= mass
    top = lax.stop_gradient(jnp.max(size, axis=-1, keepdims=True))
    tau = jnp.maximum(top + simplex_threshold(size - top, jnp.where(mass > 0, mass, 1)), 0)
    clipped = jnp.where(mass == 0, v, jnp.where(size > tau, jnp.sign(v) * tau, v))
    return jnp.where(jnp.isnan(mass), jnp.nan, jnp.where(all_of_it, 0, clipped))


def prox_pair(
    v: tuple[jax.Array, jax.Array], step: Any, weight: Any = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The proximal map of `weight * |a - b|`, a sum over the rows of a pair: both move together.

        d = a - b,    c = min(step weight / |d|, 1 / 2),    (a - c d, b + c d)

    Args:
      v: (a, b), both `[..., n]`, real or complex. step: positive scalar.
      weight: at least 0; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Hocking, Joulin, Bach and Vert, "Clusterpath: an algorithm for clustering using
    convex fusion penalties", 2011.

    >>> import jax.numpy as jnp
    >>> a, b = prox_pair((jnp.array([5.0, 0.0]), jnp.array([0.0, 0.0])), 1.0)
    >>> a.tolist(), b.tolist()
    ([4.0, 0.0], [1.0, 0.0])
    """
    a, b = v
    difference = a - b
    threshold = _threshold(difference, step, weight)
    size = lengths(difference)
    share = jnp.where(size == 0, 0, jnp.minimum(safe_divide(threshold, size), 0.5))
    moved = jnp.where(jnp.isnan(threshold), jnp.nan, share).astype(a.dtype) * difference
    return a - moved, b + moved


def prox_nuclear(v: jax.Array, step: Any, weight: Any = 1.0) -> jax.Array:
    """Singular values thresholded, the proximal map of `weight * (their sum)`.

        v = U s V^H,    u = U max(s - step weight, 0) V^H

    The derivative exists, and is returned, where singular values coincide or vanish.

    Args:
      v: `[..., m, n]`, real or complex. step: positive scalar. weight: at least 0, a scalar.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Cai, Candes and Shen, "A singular value thresholding algorithm for matrix
    completion", SIAM J. Optim. 20, 2010.

    >>> import jax.numpy as jnp
    >>> prox_nuclear(jnp.diag(jnp.array([3.0, 1.0])), 1.0, 2.0).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    kind = real_dtype(v.dtype)
    level = positive("step", step, kind) * not_negative("weight", weight, kind)
    return excess(v, level)[0]


def _threshold(v: jax.Array, step: Any, weight: Any) -> jax.Array:
    """`step * weight`, one for every row: broadcasts with `[..., 1]`."""
    kind = real_dtype(v.dtype)
    return positive("step", step, kind) * not_negative("weight", weight, kind)[..., None]
