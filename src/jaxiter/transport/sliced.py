"""Transport on the line, where sorting solves it, and along random lines."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import check_count, known
from jaxiter.numerics import floating, product
from jaxiter.transport.checks import check_signs


def exact_1d(
    x: jax.Array, y: jax.Array, a: jax.Array | None = None, b: jax.Array | None = None, *,
    p: float = 2.0,
) -> jax.Array:
    """`W_p^p` between weighted points on the line, exactly: `int_0^1 |F^-1(q) - G^-1(q)|^p dq`.

    Args:
      x, y: points `[n]`, `[m]`.
      a, b: weights `[n]`, `[m]`, at least 0; default uniform. Each is divided by its sum. Integers
        are read as floats, in points and weights.
      p: the power of the distance, at least 1.

    Returns:
      A scalar in units of the distance to the p; differentiable, in weights as in points, where
      no two points change places. NaN where a point is not finite, also one of weight 0, and
      where weights that cannot be read are no weights.

    Raises:
      ValueError: points that are no vectors, weights of other shapes, p < 1; for concrete input
        negative or NaN weights, and such that sum to 0.

    Reference: Rachev and Rueschendorf, "Mass transportation problems", 1998.

    >>> import jax.numpy as jnp
    >>> float(exact_1d(jnp.array([0.0, 1.0]), jnp.array([3.0, 2.0])))
    4.0
    """
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}.")
    sides, sound = [], jnp.bool_(True)
    for name, points, weights in (("x", x, a), ("y", y, b)):
        points = floating(points)
        if points.ndim != 1 or not points.size:
            raise ValueError(f"{name} must be points [n] on the line, got shape {points.shape}.")
        known(partial(_check_weights, f"the weights of {name}"), weights)
        weights = jnp.ones_like(points) if weights is None else floating(weights)
        if weights.shape != points.shape:
            raise ValueError(f"the weights of {name} must have shape {points.shape}, got "
                             f"{weights.shape}.")
        sound &= jnp.all(jnp.isfinite(points)) & jnp.all(weights >= 0)
        order = jnp.argsort(points)
        sides.append((points[order], jnp.cumsum(weights[order]) / jnp.sum(weights)))
    (x, below_x), (y, below_y) = sides
    # Between two levels of either distribution both quantiles stand still.
    levels = jnp.sort(jnp.concatenate([below_x, below_y]))
    widths = jnp.diff(levels, prepend=jnp.zeros_like(levels[:1]))
    middles = jax.lax.stop_gradient(levels - widths / 2)
    at_x, at_y = (points[jnp.minimum(jnp.searchsorted(below, middles), points.size - 1)]
                  for points, below in ((x, below_x), (y, below_y)))
    gap = jnp.abs(at_x - at_y)
    total = jnp.sum(widths * jnp.where(gap > 0, jnp.where(gap > 0, gap, 1) ** p, 0))
    # A factor, so that the derivatives are NaN as well.
    return total * jnp.where(sound, 1.0, jnp.nan)


def _check_weights(name: str, weights: Any) -> None:
    if weights is None:
        return
    host = np.asarray(weights)
    check_signs(name, host)
    if host.size and not host.sum() > 0:
        raise ValueError(f"{name} sum to 0; give them some mass.")


def sliced_distance(
    x: jax.Array, y: jax.Array, key: jax.Array, projections: int = 100, *,
    a: jax.Array | None = None, b: jax.Array | None = None, p: float = 2.0,
) -> jax.Array:
    """The sliced Wasserstein distance: `(mean_k W_p^p(x u_k, y u_k))^(1/p)` over directions u_k.

    Args:
      x, y: points `[n, d]`, `[m, d]`.
      key: a random key for the directions, uniform on the sphere.
      projections: how many; the error falls like `projections ** -0.5`.
      a, b, p: as in `exact_1d`.

    Returns:
      A scalar in units of the distance, NaN where `exact_1d` is. Its gradient at equal measures
      is 0.

    Raises:
      ValueError: points of different widths, no projections; what `exact_1d` refuses.

    Reference: Bonneel, Rabin, Peyre and Pfister, "Sliced and Radon Wasserstein barycenters of
    measures", J. Math. Imaging Vis. 51, 2015.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0]])
    >>> round(float(sliced_distance(x, x + 2, jax.random.key(0))), 5)
    2.0
    """
    check_count(projections=projections)
    x, y = floating(x), floating(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be points [n, d] and [m, d], got {np.shape(x)} and "
                         f"{np.shape(y)}.")
    normal: Any = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    lines = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    mean = jnp.mean(jax.vmap(lambda x, y: exact_1d(x, y, a, b, p=p))(
        product(lines, x.T), product(lines, y.T)))
    return jnp.where(mean > 0, jnp.where(mean > 0, mean, 1) ** (1 / p), mean)
