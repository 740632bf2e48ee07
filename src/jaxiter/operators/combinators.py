"""Proximal maps made of proximal maps: each takes `prox(v, step, *args)` and returns another.

The numbers and trees that they are given may be traced; args go through untouched.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import known
from jaxiter.operators.domain import not_negative, positive
from jaxiter.operators.linear_map import LinearMap, linear_map

PyTree = Any


def conjugate(prox: Callable) -> Callable:
    """The proximal map of the convex conjugate `g*(y) = max_u <u, y> - g(u)`, by Moreau.

        prox*(v, step) = v - step prox(v / step, 1 / step)

    Of a norm it is the projection onto the ball of the dual norm, of a cone's indicator that onto
    its polar.

    Args:
      prox: of a convex g.

    Reference: Moreau, "Proximite et dualite dans un espace hilbertien", 1965.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> conjugate(prox_l1)(jnp.array([3.0, 0.5]), 2.0).tolist()
    [1.0, 0.5]
    """
    def mapped(v: PyTree, step: Any, *args: PyTree) -> PyTree:
        step = positive("step", step, trees.norm_dtype(v))
        return trees.axpy(-step, prox(trees.scale(1 / step, v), 1 / step, *args), v)

    return mapped


def translate(prox: Callable, shift: PyTree) -> Callable:
    """The proximal map of `g(u - shift)`.

        u = shift + prox(v - shift, step)

    Args:
      prox: of g. shift: a tree like v, of arrays that broadcast with its leaves.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> translate(prox_l1, jnp.array([1.0, 1.0]))(jnp.array([4.0, 1.5]), 1.0).tolist()
    [3.0, 1.0]
    """
    def mapped(v: PyTree, step: Any, *args: PyTree) -> PyTree:
        by = jax.tree.map(lambda x, s: jnp.broadcast_to(jnp.asarray(s, x.dtype), x.shape), v, shift)
        return trees.add(by, prox(trees.subtract(v, by), step, *args))

    return mapped


def scale(prox: Callable, factor: Any) -> Callable:
    """The proximal map of `g(factor u)`.

        u = prox(factor v, factor^2 step) / factor

    For `weight g(u)` give the weight to prox itself, or `step * weight` as its step.

    Args:
      prox: of g. factor: a scalar other than 0.

    Raises:
      ValueError: a factor of 0, where it is known, else NaN; an array of several.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> scale(prox_l1, 2.0)(jnp.array([3.0, 0.5]), 1.0).tolist()
    [1.0, 0.0]
    """
    known(_not_zero, factor)

    def mapped(v: PyTree, step: Any, *args: PyTree) -> PyTree:
        by = jnp.asarray(factor, trees.norm_dtype(v))
        by = jnp.where(by == 0, jnp.nan, by)
        size = by**2 * jnp.asarray(step, by.dtype)
        return trees.scale(1 / by, prox(trees.scale(by, v), size, *args))

    return mapped


def _not_zero(factor: Any) -> None:
    if np.ndim(factor) or not factor:
        raise ValueError(f"factor must not be 0, and a scalar, got {factor}.")


def add_quadratic(prox: Callable, weight: Any, center: PyTree = None) -> Callable:
    """The proximal map of `g(u) + weight / 2 * |u - center|^2`.

        u = prox((v + step weight center) / (1 + step weight), step / (1 + step weight))

    Args:
      prox: of g. weight: at least 0, a scalar. center: a tree like v; None for 0.

    Raises:
      ValueError: a negative weight, where it is known; else NaN.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> add_quadratic(prox_l1, 1.0)(jnp.array([3.0, 0.5]), 1.0).tolist()
    [1.0, 0.0]
    """
    def mapped(v: PyTree, step: Any, *args: PyTree) -> PyTree:
        kind = trees.norm_dtype(v)
        step = positive("step", step, kind)
        factor = step * not_negative("weight", weight, kind)
        moved = v if center is None else trees.axpy(factor, center, v)
        return prox(trees.scale(1 / (1 + factor), moved), step / (1 + factor), *args)

    return mapped


def rotate(prox: Callable, rotation: LinearMap) -> Callable:
    """The proximal map of `g(Q u)` for Q with `Q Q^H = I`, such as a wavelet or cosine transform.

        u = v + Q^H (prox(Q v, step) - Q v)

    Args:
      prox: of g. rotation: Q, as a matrix `[m, n]` with orthonormal rows, a pair
        (matvec, rmatvec), or one function; that its rows are orthonormal is not checked.

    Reference: Combettes and Pesquet, "Proximal splitting methods in signal processing", 2011.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> mean = jnp.array([[0.5**0.5, 0.5**0.5]])
    >>> [abs(round(float(x), 4)) for x in rotate(prox_l1, mean)(jnp.array([3.0, 1.0]), 2**0.5)]
    [2.0, 0.0]
    """
    def mapped(v: PyTree, step: Any, *args: PyTree) -> PyTree:
        forward, back = linear_map(rotation, like=v)
        turned = forward(v)
        return trees.add(v, back(trees.subtract(prox(turned, step, *args), turned)))

    return mapped
