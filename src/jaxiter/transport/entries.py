"""What is computed of the entries of a cost: plans and softmins, with their derivatives."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.numerics import HIGHEST, largest_exponent, slightness
from jaxiter.transport.exact import exponent


def gibbs(
    f: jax.Array, g: jax.Array, cost: jax.Array, epsilon: Any, tails: Any = None
) -> jax.Array:
    """`exp((f_i + g_j - C_ij) / epsilon)`; 0 at -inf potentials and +inf costs, with gradients.

    The exponent is rounded once, after the sum: `tails` are the low parts of (f, g).
    """
    allowed = (cost < jnp.inf) & jnp.isfinite(f)[:, None] & jnp.isfinite(g)[None, :]
    # Cleaned before they are combined: inf - inf would make the derivatives NaN.
    f, g = jnp.where(jnp.isfinite(f), f, 0), jnp.where(jnp.isfinite(g), g, 0)
    z = exponent(f, g, finite(cost), tails)
    return jnp.where(allowed, jnp.exp(jnp.where(allowed, z, 0) / epsilon), 0)


def finite(cost: jax.Array) -> jax.Array:
    """The cost with 0 at forbidden pairs, which are masked: inf times 0 would be NaN."""
    return jnp.where(cost < jnp.inf, cost, 0)


@jax.custom_jvp
def softmin(cost: jax.Array, h: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    """`-epsilon log sum_j weights_j exp((h_j - C_ij) / epsilon)`; 0 where no j is admissible."""
    # Nothing is masked entry by entry: inf costs and weights of 0 drop out by themselves.
    held = jnp.where(weights > 0, h, -jnp.inf)
    reduced = held - cost
    peak = jnp.max((held + epsilon * slightness(weights)) - cost, axis=1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    inverse = 1 / epsilon
    total = jnp.sum(weights * jnp.exp((reduced - peak[:, None]) * inverse), axis=1)
    empty = total == 0
    return jnp.where(empty, 0, -peak - epsilon * jnp.log(jnp.where(empty, 1, total)))


@softmin.defjvp
def _softmin_rule(primals: tuple, tangents: tuple) -> tuple:
    """With conditional weights p: `sum_j p_ij (dC_ij - dh_j)`, and the terms of w and epsilon."""
    cost, h, weights, epsilon = primals
    d_cost, d_h, d_weights, d_epsilon = tangents
    out = softmin(*primals)
    allowed = cost < jnp.inf
    # A weight of 0 has a derivative of its own; there alone the exponent has no bound.
    exponent = (h - finite(cost) + out[:, None]) / epsilon
    exponent = jnp.minimum(exponent, largest_exponent(cost.dtype))
    density = jnp.where(allowed, jnp.exp(jnp.where(allowed, exponent, 0)), 0)
    p = density * weights
    d_cost = jnp.where(allowed, d_cost, 0)
    entropy = jnp.sum(p * jnp.where(allowed, exponent, 0), axis=1)
    tangent = (jnp.sum(p * d_cost, axis=1)
               - jnp.matmul(p, d_h, precision=HIGHEST)
               - epsilon * jnp.matmul(density, d_weights, precision=HIGHEST)
               + d_epsilon * entropy)
    return out, tangent
