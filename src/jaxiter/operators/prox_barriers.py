"""Proximal maps of logarithms and entropies, which keep their argument positive."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.line_search import monotone_root
from jaxiter.numerics import on_own_mesh, real_dtype, stop_gradient
from jaxiter.operators.domain import positive, real
from jaxiter.operators.spectra import hermitian, of_hermitian
from jaxiter.reuse import reused

PyTree = Any


def prox_log_barrier(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """The proximal map of `-weight * sum log u`.

        u = (v + sqrt(v^2 + 4 step weight)) / 2

    by the other root of the same quadratic where v < 0, so that no digit is lost.

    Args:
      v: a tree of real arrays. step: positive scalar.
      weight: positive; a scalar, or an array that broadcasts with every leaf.

    Raises:
      ValueError: a step or weight that is not positive, where they are known.
      TypeError: complex v.

    Reference: Combettes and Pesquet, "Proximal splitting methods in signal processing", 2011.

    >>> import jax.numpy as jnp
    >>> prox_log_barrier(jnp.array([0.0, 3.0]), 1.0, 4.0).tolist()
    [2.0, 4.0]
    """
    def leaf(v: jax.Array) -> jax.Array:
        size = positive("step", step, v.dtype) * positive("weight", weight, v.dtype)
        return _positive_root(v, size)

    return jax.tree.map(leaf, real("prox_log_barrier", v))


def _positive_root(v: jax.Array, size: jax.Array) -> jax.Array:
    """The positive u with `u - size / u = v`."""
    root = (jnp.abs(v) + _width(v, size)) / 2
    return jnp.where(v >= 0, root, size / root)


def _width(v: jax.Array, size: jax.Array) -> jax.Array:
    """`sqrt(v^2 + 4 size)`, whose square may leave the float range."""
    return jnp.hypot(v, 2 * jnp.sqrt(size))


@reused
@on_own_mesh
def prox_entropy(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """The proximal map of `weight * sum u log u`.

        u + step weight (log u + 1) = v

    The logarithm of u is found to the last digit by `monotone_root`, and u by one step of
    Newton's method from there, which the derivatives, of any order, go through.

    Args:
      v: a tree of real arrays. step: positive scalar.
      weight: positive; a scalar, or an array that broadcasts with every leaf.

    Raises:
      ValueError: a step or weight that is not positive, where they are known.
      TypeError: complex v.

    Reference: Combettes and Pesquet, "Proximal splitting methods in signal processing", 2011.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in prox_entropy(jnp.array([2.0, 1.0]), 1.0)]
    [1.0, 0.5671]
    """
    def leaf(v: jax.Array) -> jax.Array:
        size = positive("step", step, v.dtype) * positive("weight", weight, v.dtype)
        size = jnp.broadcast_to(size, v.shape)
        log_u = monotone_root(
            lambda r: jnp.exp(r) + size * (r + 1) - v, *stop_gradient(_bounds(v, size)))
        u = jnp.exp(log_u)
        return (v - size * log_u) * (u / (u + size))  # their product may leave the float range

    return jax.tree.map(leaf, real("prox_entropy", v))


def _bounds(v: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two that enclose the root of `e^r + size (r + 1) = v`, and closely: each from the other.

    What is rounded in a point between them is the size of the bracket.
    """
    info = jnp.finfo(v.dtype)
    upper = jnp.where(v > 0, jnp.maximum(jnp.log(jnp.maximum(v, info.tiny)), -1), v / size - 1)
    upper = upper + 0.01 + 8 * info.eps * jnp.abs(upper)
    rest = v - size * (upper + 1)
    lower = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1)),
                      (v - jnp.exp(upper)) / size - 1)
    return lower - 0.01 - 8 * info.eps * jnp.abs(lower), upper


def prox_log_det(v: jax.Array, step: Any, weight: Any = 1.0) -> jax.Array:
    """The proximal map of `-weight * log det u` over symmetric matrices.

        v = U l U^H,    u = U (l + sqrt(l^2 + 4 step weight)) / 2 U^H

    Args:
      v: `[..., n, n]`, of which the Hermitian part is taken. step, weight: positive scalars.

    Raises:
      ValueError: a step or weight that is not positive, where they are known; matrices that are
        not square.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> prox_log_det(jnp.diag(jnp.array([0.0, 3.0])), 1.0, 4.0).round(4).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    kind = real_dtype(v.dtype)
    size = positive("step", step, kind) * positive("weight", weight, kind)
    return of_hermitian(_positive_root, _root_quotients, hermitian(v), size)


def _root_quotients(a: jax.Array, b: jax.Array, size: jax.Array) -> jax.Array:
    """`(1 + (a + b) / (r_a + r_b)) / 2` with `r = sqrt(l^2 + 4 size)`."""
    return (1 + (a + b) / (_width(a, size) + _width(b, size))) / 2
