"""Projections onto convex cones: the nearest points, and radial ones, which are cheaper.

The dual of a cone K needs no function of its own: by Moreau, `v = P_K(v) - P_K*(-v)`, so
`P_K*(v) = v + P_K(-v)`. The first two cones here are their own duals, and so is the rotated one.
"""

import jax
import jax.numpy as jnp

from jaxiter.numerics import product, safe_divide
from jaxiter.operators.domain import lengths, real
from jaxiter.operators.spectra import hermitian, of_hermitian


def projection_psd(v: jax.Array) -> jax.Array:
    """Project matrices onto the positive semidefinite ones.

        (v + v^H) / 2 = U l U^H,    p = U max(l, 0) U^H

    The derivative exists, and is returned, where eigenvalues coincide:
    `U (G o (U^H dv U)) U^H`, `G_ij = (max(l_i, 0) + max(l_j, 0)) / (|l_i| + |l_j|)`.

    Args:
      v: `[..., n, n]`, real or complex.

    Raises:
      ValueError: matrices that are not square.

    Reference: Higham, "Computing a nearest symmetric positive semidefinite matrix", 1988.

    >>> import jax.numpy as jnp
    >>> projection_psd(jnp.array([[0.0, 1.0], [1.0, 0.0]])).round(4).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    v = hermitian(v)
    return of_hermitian(_positive_part, _positive_quotients, v, jnp.zeros((), v.real.dtype))


def _positive_part(values: jax.Array, number: jax.Array) -> jax.Array:
    return jnp.maximum(values, 0) + 0 * number


def _positive_quotients(a: jax.Array, b: jax.Array, number: jax.Array) -> jax.Array:
    del number
    return safe_divide(jnp.maximum(a, 0) + jnp.maximum(b, 0), jnp.abs(a) + jnp.abs(b))


def projection_second_order_cone(v: jax.Array) -> jax.Array:
    """Project every row (t, x) onto `{(t, x) : |x| <= t}`.

        (t, x) where |x| <= t;    0 where |x| <= -t;    else (1, x / |x|) (t + |x|) / 2

    Args:
      v: `[..., 1 + n]`, real, t first.

    Reference: Boyd and Vandenberghe, "Convex optimization", 2004.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in projection_second_order_cone(jnp.array([1.0, 3.0, 4.0]))]
    [3.0, 1.8, 2.4]
    """
    v = jnp.asarray(real("projection_second_order_cone", v))
    t, x = v[..., :1], v[..., 1:]
    size = lengths(x)
    half = (t + size) / 2
    edge = jnp.concatenate([half, half * safe_divide(x, size)], -1)
    out = jnp.where(size <= t, v, jnp.where(size <= -t, 0, edge))
    return jnp.where(jnp.isnan(half), jnp.nan, out)


def projection_rotated_cone(v: jax.Array) -> jax.Array:
    """Project every row (a, b, x) onto `{(a, b, x) : |x|^2 <= 2 a b, a >= 0, b >= 0}`.

    The second-order cone of `((a + b) / sqrt 2, (a - b) / sqrt 2, x)`.

    Args:
      v: `[..., 2 + n]`, real, a and b first.

    Reference: Boyd and Vandenberghe, "Convex optimization", 2004.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in projection_rotated_cone(jnp.array([1.0, 1.0, 4.0]))]
    [1.9142, 1.9142, 2.7071]
    """
    return _rotated(projection_second_order_cone(_rotated(v)))


def radial_psd(v: jax.Array) -> jax.Array:
    """Move matrices along the identity until they are positive semidefinite, and no further.

        (v + v^H) / 2 + max(-l_min, 0) I

    Radial projections make a point of the cone out of any by one number: what a predicted
    multiplier wants (`complete_dual`). Where the smallest eigenvalue is a multiple one the
    derivative is that of one of its eigenvectors.

    Args:
      v: `[..., n, n]`, real or complex.

    Raises:
      ValueError: matrices that are not square.

    Reference: Tanneau and Van Hentenryck, "Dual Lagrangian learning for conic optimization",
    NeurIPS, 2024.

    >>> import jax.numpy as jnp
    >>> radial_psd(jnp.array([[0.0, 1.0], [1.0, 0.0]])).round(4).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    v = hermitian(v)
    vectors = jax.lax.stop_gradient(jnp.linalg.eigh(v, symmetrize_input=False)[1][..., :1])
    # The derivative of a simple eigenvalue is that of this quotient with its vector held.
    least = jnp.sum(jnp.conj(vectors) * product(v, vectors), axis=-2, keepdims=True).real
    return v + jnp.maximum(-least, 0).astype(v.dtype) * jnp.eye(v.shape[-1], dtype=v.dtype)


def radial_second_order_cone(v: jax.Array) -> jax.Array:
    """Raise t in every row (t, x) until `|x| <= t`.

        (max(t, |x|), x)

    Args:
      v: `[..., 1 + n]`, real, t first.

    Reference: Tanneau and Van Hentenryck, "Dual Lagrangian learning for conic optimization",
    NeurIPS, 2024.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in radial_second_order_cone(jnp.array([1.0, 3.0, 4.0]))]
    [5.0, 3.0, 4.0]
    """
    v = jnp.asarray(real("radial_second_order_cone", v))
    t, x = v[..., :1], v[..., 1:]
    return jnp.concatenate([jnp.maximum(t, lengths(x)), x], -1)


def radial_rotated_cone(v: jax.Array) -> jax.Array:
    """Raise a and b in every row (a, b, x) by the same until `|x|^2 <= 2 a b`, a, b >= 0.

    The second-order cone of `((a + b) / sqrt 2, (a - b) / sqrt 2, x)`.

    Args:
      v: `[..., 2 + n]`, real, a and b first.

    Reference: Tanneau and Van Hentenryck, "Dual Lagrangian learning for conic optimization",
    NeurIPS, 2024.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in radial_rotated_cone(jnp.array([0.0, 0.0, 2.0]))]
    [1.4142, 1.4142, 2.0]
    """
    return _rotated(radial_second_order_cone(_rotated(v)))


def _rotated(v: jax.Array) -> jax.Array:
    """Its own inverse."""
    a, b = v[..., :1], v[..., 1:2]
    return jnp.concatenate([(a + b) * 0.5**0.5, (a - b) * 0.5**0.5, v[..., 2:]], -1)
