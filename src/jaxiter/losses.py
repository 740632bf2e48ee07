"""Losses of a fit: how much a residual counts, so that outliers pull less."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxiter.known import check_positive
from jaxiter.values import as_value

#: `loss(z) -> rho`, elementwise, of squared residuals z: rho(0) = 0, slope 1 there, concave.
Loss = Callable[[jax.Array], jax.Array]

#: Of the curvature that the weights alone stand for, at least this share is kept: what an outlier
#: of a concave loss really has is less than nothing.
LEAST_CURVATURE = 0.1


def _scaled(scale: Any, rho: Callable) -> Loss:
    def loss(z: jax.Array) -> jax.Array:
        unit = jnp.asarray(scale, z.dtype) ** 2
        return unit * rho(z / unit)

    return loss


@as_value
def huber(scale: Any = 1.0) -> Loss:
    """`rho(z) = z` for z <= 1, else `2 sqrt(z) - 1`: beyond `scale` a residual counts linearly.

    As every loss here it is applied as `scale^2 rho((r / scale)^2)`, like scipy's `f_scale`.

    Reference: Huber, "Robust estimation of a location parameter", Ann. Math. Stat. 35, 1964.

    >>> huber()(jnp.array([0.25, 4.0])).tolist()
    [0.25, 3.0]
    """
    check_positive(scale=scale)
    return _scaled(scale, lambda z: jnp.where(
        z <= 1, z, 2 * jnp.sqrt(jnp.where(z <= 1, 1, z)) - 1))


@as_value
def soft_l1(scale: Any = 1.0) -> Loss:
    """`rho(z) = 2 (sqrt(1 + z) - 1)`: smooth, and about linear in the residual beyond `scale`.

    >>> soft_l1()(jnp.array([0.0, 3.0])).tolist()
    [0.0, 2.0]
    """
    check_positive(scale=scale)
    return _scaled(scale, lambda z: 2 * z / (1 + jnp.sqrt(1 + z)))


@as_value
def cauchy(scale: Any = 1.0) -> Loss:
    """`rho(z) = log(1 + z)`: what is far beyond `scale` hardly pulls at all.

    Not convex: a fit may have several minima.

    >>> round(float(cauchy(2.0)(jnp.array(4.0))), 4)
    2.7726
    """
    check_positive(scale=scale)
    return _scaled(scale, jnp.log1p)


def slopes(loss: Loss, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first two derivatives of the loss at squared residuals."""
    def slope(z: jax.Array) -> jax.Array:
        return jax.jvp(loss, (z,), (jnp.ones_like(z),))[1]

    return jax.jvp(slope, (z,), (jnp.ones_like(z),))


def weighted(loss: Loss, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(a, b)` such that `b r` and the rows `a J` have the gradient of the loss, and about its
    curvature: `a^2 = rho' + 2 rho'' z`, but no less than a share of rho', and `a b = rho'`.

    Source: Triggs et al., "Bundle adjustment: a modern synthesis", 2000, section 4.3.
    """
    z = r**2
    first, second = slopes(loss, z)
    curvature = jnp.sqrt(jnp.maximum(first + 2 * second * z, LEAST_CURVATURE * first))
    return curvature, first / jnp.where(curvature > 0, curvature, 1)


LOSSES: dict[str, Callable[[], Loss | None]] = {
    "linear": lambda: None, "huber": huber, "soft_l1": soft_l1, "cauchy": cauchy}


def as_loss(loss: Any) -> Loss | None:
    """The loss of a name, or as given; None for the plain squares.

    Raises:
      ValueError: an unknown name. TypeError: what cannot be called.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, or an object "
                             f"such as huber(0.1), got {loss!r}.")
        return LOSSES[loss]()
    if not callable(loss):
        raise TypeError(f"loss must be a name or a function of squared residuals, got {loss!r}.")
    return cast(Loss, loss)
