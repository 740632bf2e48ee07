"""Input convex gradient networks: maps that are gradients of convex functions by construction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.known import check_count
from jaxiter.numerics import product


class ConvexGradient(NamedTuple):
    """Parameters of `icgn`.

    Attributes:
      weight: W `[hidden, D]`.
      bias: b `[hidden]`.
      linear: L `[D, D]`.
      shift: c `[D]`.
    """

    weight: jax.Array
    bias: jax.Array
    linear: jax.Array
    shift: jax.Array


def init_icgn(key: jax.Array, dimension: int, hidden: int, *, scale: Any = 1.0) -> ConvexGradient:
    """Parameters of a map near the identity.

    Args:
      key: a random key.
      dimension: D, static.
      hidden: units, static.
      scale: of weights and biases, in inverse units of the data.

    Raises:
      ValueError: sizes below 1.

    >>> import jax
    >>> init_icgn(jax.random.key(0), 2, 16).weight.shape
    (16, 2)
    """
    check_count(dimension=dimension, hidden=hidden)
    one, other = jax.random.split(key)
    weight = jax.random.normal(one, (hidden, dimension)) * scale / hidden**0.5
    bias, dtype = jax.random.normal(other, (hidden,)) * scale, weight.dtype
    linear = jnp.eye(dimension, dtype=dtype)
    return ConvexGradient(weight, bias, linear, jnp.zeros_like(linear[0]))


def icgn(params: ConvexGradient, x: jax.Array) -> jax.Array:
    """The gradient of a convex function, in closed form: a transport map for squared distances.

        N(x) = W' (p(W x + b) - p(b)) + L' L x + c,   p(u) = tanh(u) - tanh(u)^3 / 3

    It is `int_0^1 J(s x)' J(s x) x ds` for J the Jacobian of `tanh(W x + b)`, and of a linear map
    beside it: `p' = (tanh')^2`, so the Jacobian of N, `W' diag(p') W + L' L`, is symmetric and not
    negative, whatever the parameters. One hidden layer is all: a sum of such maps is one with the
    rows of all W, and a deeper J gives a gradient only by luck. So N is the gradient of a sum of
    convex functions of one direction each, and of a quadratic; not every convex function is one.

    Args:
      params: from `init_icgn`.
      x: points `[..., D]`.

    Returns:
      `[..., D]`.

    Reference: Richter-Powell, Lorraine and Amos, "Input convex gradient networks", 2021.

    >>> import jax, jax.numpy as jnp
    >>> params = init_icgn(jax.random.key(0), 2, 16)
    >>> slope = jax.jacobian(lambda x: icgn(params, x))(jnp.ones(2))
    >>> bool(jnp.allclose(slope, slope.T)), bool(jnp.linalg.eigvalsh(slope).min() > 0)
    (True, True)
    """
    weight, bias, linear, shift = params
    if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != weight.shape[1]:
        raise ValueError(f"the map is of {weight.shape[1]} dimensions, x has shape {jnp.shape(x)}.")
    inner = _squared(product(x, weight.T) + bias) - _squared(bias)
    return product(inner, weight) + product(product(x, linear.T), linear) + shift


def _squared(u: jax.Array) -> jax.Array:
    """The integral of the squared slope of tanh."""
    t = jnp.tanh(u)
    return t - t**3 / 3
