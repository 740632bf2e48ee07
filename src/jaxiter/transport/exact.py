"""Sums and products of floats together with what rounding took from them.

A potential in units of the cost is judged in units of epsilon, which may be a millionth of it:
here `f + g - C` keeps the digits that a plain sum loses. The parts lost are constants: nothing
is differentiated through them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import stop_gradient


class Exact(NamedTuple):
    """A number in two floats, `high + low`; high is the nearest float."""

    high: jax.Array
    low: jax.Array


def two_sum(a: Any, b: Any) -> Exact:
    """`a + b` and what rounding took; 0 where the sum is not finite.

    Reference: Knuth, "The art of computer programming, volume 2: seminumerical algorithms", 1969.

    >>> import jax.numpy as jnp
    >>> [float(part) for part in two_sum(jnp.float32(1e8), jnp.float32(1.0))]
    [100000000.0, 1.0]
    """
    total = a + b
    a, b, s = stop_gradient((a, b, total))
    shadow = s - a
    low = (a - (s - shadow)) + (b - shadow)
    return Exact(total, jnp.where(jnp.isfinite(s), low, 0))


def exact_sum(*parts: Any) -> Exact:
    """The sum of several arrays, rounded once."""
    high, low = parts[0], jnp.zeros_like(parts[0])
    for part in parts[1:]:
        high, lost = two_sum(high, part)
        low = low + lost
    return two_sum(high, low)


def exponent(f: jax.Array, g: jax.Array, cost: jax.Array, tails: Any = None) -> jax.Array:
    """`f_i + g_j - C_ij` `[n, m]`, rounded once; `tails` are the low parts of (f, g)."""
    total, lost = two_sum(f[:, None], g[None, :])
    total, more = two_sum(total, -cost)
    lost = lost + more
    if tails is not None:
        lost = lost + (tails[0][:, None] + tails[1][None, :])
    return total + lost


def _halves(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two parts with half of the digits each: products of such parts are not rounded."""
    info = jnp.finfo(a.dtype)
    high = lax.reduce_precision(a, info.nexp, (info.nmant - 1) // 2)
    return high, a - high


def exact_dot(x: jax.Array, d: jax.Array) -> Exact:
    """`x @ d` `[n]` for x `[n, k]` and d `[k]`, as if summed in twice the digits; a constant.

    No product is rounded: one that were could still go into a sum unrounded, when a compiler
    makes one instruction of both.
    """
    x, d = stop_gradient((x, d))
    products = jnp.concatenate([p * q for p in _halves(x) for q in _halves(d)], axis=-1)

    def add(one: tuple, other: tuple) -> tuple:
        high, low = two_sum(one[0], other[0])
        return high, low + one[1] + other[1]

    zero = jnp.zeros((), products.dtype)
    return two_sum(*lax.reduce(
        (products, jnp.zeros_like(products)), (zero, zero), add, (products.ndim - 1,)))


def with_derivative(value: jax.Array, function: jax.Array) -> jax.Array:
    """The value, exactly, with the derivatives of `function`, which is nearly equal to it."""
    value, change = lax.stop_gradient(value), function - lax.stop_gradient(function)
    return jnp.where(jnp.isfinite(value), value + change, value)
