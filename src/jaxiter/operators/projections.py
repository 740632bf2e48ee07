"""Projections that `optax.projections` does not have, or not for the rows of an array.

They take the point first. Where a splitting wants a proximal map, `lambda v, step: ...` drops
the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.known import check_count, check_floating
from jaxiter.line_search import monotone_root
from jaxiter.numerics import on_own_mesh, product, real_dtype
from jaxiter.operators.domain import lengths, positive, real
from jaxiter.operators.spectra import excess
from jaxiter.reuse import reused


@reused
@on_own_mesh
def projection_simplex(v: jax.Array, scale: Any = 1.0) -> jax.Array:
    """Project every row onto `{p : p >= 0, sum p = scale}`.

        p = max(v - tau, 0),    tau = (sum_S v - scale) / |S|,    S = {i : v_i > tau}

    S is found by a sort, on CPUs by `monotone_root`; then tau is taken from it, relative to the
    largest entry, which keeps the digits of float32 in rows of 1e5 entries. The derivative is
    `I_S - 1_S 1_S^T / |S|`. Entries of -inf get 0.

    Args:
      v: `[..., n]`, real. scale: positive; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a scale that is not positive, where it is known; else NaN.

    Reference: Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball
    for learning in high dimensions", 2008.

    >>> import jax.numpy as jnp
    >>> projection_simplex(jnp.array([[1.0, 1.5, -3.0], [0.0, 0.0, 4.0]])).tolist()
    [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    """
    v = jnp.asarray(real("projection_simplex", v))
    mass = positive("scale", scale, v.dtype)[..., None]
    below = v - lax.stop_gradient(jnp.max(v, axis=-1, keepdims=True))
    tau = simplex_threshold(below, mass)
    return jnp.where(jnp.isnan(tau), jnp.nan, jnp.where(below > tau, below - tau, 0))


def simplex_threshold(below: jax.Array, mass: jax.Array) -> jax.Array:
    """tau with `sum max(below - tau, 0) = mass` along the last axis, which is kept.

    The largest entry must be 0, for the sake of float32, and the mass positive.
    """
    fixed = lax.stop_gradient(below)
    level = jnp.broadcast_to(lax.stop_gradient(mass), (*below.shape[:-1], 1))
    guess = lax.platform_dependent(fixed, level, cpu=_by_root, default=_by_sort)
    # Once more from the support that was found: exact, and what derivatives go through.
    support = fixed > guess
    count = jnp.sum(support, axis=-1, keepdims=True).astype(mass.dtype)
    over = jnp.sum(jnp.where(support, below, 0), axis=-1, keepdims=True) - mass
    return jnp.where(count == 0, jnp.nan, over / count)  # none: a NaN in the row


def _by_sort(below: jax.Array, mass: jax.Array) -> jax.Array:
    falling = jnp.sort(below, axis=-1, descending=True)
    counts = jnp.arange(1, below.shape[-1] + 1).astype(below.dtype)
    return jnp.max((jnp.cumsum(falling, axis=-1) - mass) / counts, axis=-1, keepdims=True)


def _by_root(below: jax.Array, mass: jax.Array) -> jax.Array:
    """On CPUs, where a sort takes 400 ns a number, in a twentieth of its time."""
    def over(tau: jax.Array) -> jax.Array:
        return jnp.sum(jnp.maximum(below - tau, 0), axis=-1, keepdims=True) - mass

    return monotone_root(over, -mass, jnp.zeros_like(mass))


@reused
@on_own_mesh
def projection_l1_ball(v: jax.Array, scale: Any = 1.0) -> jax.Array:
    """Project every row onto `{p : |p|_1 <= scale}`.

        p = sign(v) projection_simplex(|v|, scale) where |v|_1 > scale, else v

    Args:
      v: `[..., n]`, real. scale: positive; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a scale that is not positive, where it is known; else NaN.

    Reference: Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball
    for learning in high dimensions", 2008.

    >>> import jax.numpy as jnp
    >>> projection_l1_ball(jnp.array([[1.0, -1.5], [0.5, 0.25]])).tolist()
    [[0.25, -0.75], [0.5, 0.25]]
    """
    v = jnp.asarray(real("projection_l1_ball", v))
    size = jnp.abs(v)
    mass = positive("scale", scale, v.dtype)[..., None]
    inside = jnp.sum(size, axis=-1, keepdims=True) <= mass
    return jnp.where(inside, v, jnp.sign(v) * projection_simplex(size, scale))


def projection_sparse_simplex(x: jax.Array, k: int, scale: Any = 1.0) -> jax.Array:
    """Project onto `{p : p >= 0, sum p = scale, at most k non-zeros}`, along the last axis.

    The k largest entries are projected onto the simplex, the others become 0. Ties
    are broken by position. For k = n use `projection_simplex`.

    Args:
      x: `[..., n]`, real. k: static, 1 <= k <= n.
      scale: positive; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: k outside 1..n; a scale that is not positive, where it is known; else NaN.

    Reference: Kyrillidis, Becker, Cevher and Koch, "Sparse projections onto the simplex", 2013.

    >>> import jax.numpy as jnp
    >>> projection_sparse_simplex(jnp.array([0.5, 2.0, 1.5]), 2).tolist()
    [0.0, 0.75, 0.25]
    """
    n = x.shape[-1]
    check_count(k=k)
    if k > n:
        raise ValueError(f"k must be between 1 and the length {n} of the last axis, got {k}.")
    top, index = lax.top_k(real("projection_sparse_simplex", x), k)
    values = projection_simplex(top, scale)
    return jnp.put_along_axis(jnp.zeros_like(x), index, values, axis=-1, inplace=False)


def projection_affine(v: jax.Array, matrix: jax.Array, target: jax.Array) -> jax.Array:
    """Project every row onto `{p : A p = b}`.

        p = v - A^+ (A v - b)

    The pseudo-inverse is computed anew at every call; where A stays, compute it once, outside.
    Redundant rows of A do no harm; where no point solves A p = b, to half the digits, the answer
    is NaN.

    Args:
      v: `[..., n]`, real or complex. matrix: A, `[m, n]`. target: b, `[m]` or `[..., m]`.

    Raises:
      ValueError: shapes that do not match.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> plane = jnp.array([[1.0, 1.0]]), jnp.array([2.0])
    >>> [abs(round(float(x), 4)) for x in projection_affine(jnp.array([3.0, 1.0]), *plane)]
    [2.0, 0.0]
    """
    if jnp.ndim(matrix) != 2 or v.shape[-1:] != matrix.shape[1:] or (
            jnp.shape(target)[-1:] != matrix.shape[:1]):
        raise ValueError(f"A [m, n] goes with v [..., n] and b [..., m]; got {jnp.shape(matrix)}, "
                         f"{jnp.shape(v)} and {jnp.shape(target)}.")
    check_floating(jnp.inexact, v=v, matrix=matrix)
    with jax.default_matmul_precision("highest"):
        inverse = jnp.linalg.pinv(matrix)

    def nearer(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = product(p, matrix.T) - target
        return p - product(error, inverse.T), error

    # Twice: the second time removes what was rounded in the first.
    p, _ = nearer(nearer(v)[0])
    error = lax.stop_gradient(nearer(p)[1])
    size = lengths(target) + lengths(product(jnp.abs(p), jnp.abs(matrix.T)))
    half = float(jnp.finfo(real_dtype(v.dtype)).eps) ** 0.5
    return jnp.where(lengths(error) <= half * size, p, jnp.nan)


def projection_spectral_ball(v: jax.Array, radius: Any = 1.0) -> jax.Array:
    """Project matrices onto those whose singular values are at most the radius.

        v = U s V^H,    p = U min(s, radius) V^H

    The derivative exists, and is returned, where singular values coincide or vanish.

    Args:
      v: `[..., m, n]`, real or complex. radius: a positive scalar.

    Raises:
      ValueError: a radius that is not positive, where it is known; else NaN.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> projection_spectral_ball(jnp.diag(jnp.array([3.0, 0.5]))).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    return excess(v, positive("radius", radius, real_dtype(v.dtype)))[1]
