"""Proximal maps of penalties that are not convex: l0, SCAD and MCP.

They are not nonexpansive, so the theory of splittings does not hold for them: forward-backward
with a step below 1 / L still descends, Douglas-Rachford may cycle.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import known
from jaxiter.numerics import real_dtype
from jaxiter.operators.domain import not_negative, positive, real

PyTree = Any


def prox_l0(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """Hard threshold, a proximal map of `weight * (number of non-zeros)`.

        u = v where |v| > sqrt(2 step weight), else 0

    At the threshold both are minimisers; 0 is returned.

    Args:
      v: a tree, real or complex. step: positive scalar.
      weight: at least 0; a scalar, or an array that broadcasts with every leaf.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Blumensath and Davies, "Iterative thresholding for sparse approximations",
    J. Fourier Anal. Appl. 14, 2008.

    >>> import jax.numpy as jnp
    >>> prox_l0(jnp.array([3.0, -1.0]), 1.0, 2.0).tolist()
    [3.0, 0.0]
    """
    def leaf(v: jax.Array) -> jax.Array:
        kind = real_dtype(v.dtype)
        size = positive("step", step, kind) * not_negative("weight", weight, kind)
        kept = jnp.where(jnp.abs(v) > jnp.sqrt(2 * size), v, 0)
        return jnp.where(jnp.isnan(size) | jnp.isnan(v), jnp.nan, kept)

    return jax.tree.map(leaf, v)


def prox_scad(v: PyTree, step: Any, weight: Any = 1.0, a: Any = 3.7) -> PyTree:
    """The proximal map of the SCAD penalty: like `weight |u|` near 0, constant far from it.

        |v| <= w (1 + step):  u = prox_l1(v, step, w)
        |v| <= a w:           u = ((a - 1) v - sign(v) a step w) / (a - 1 - step)
        else:                 u = v

    Args:
      v: a tree of real arrays. step: positive scalar below a - 1; above, the map is not single
        valued. weight: w, at least 0; a scalar, or an array that broadcasts with every leaf.
      a: above 2, where the penalty turns constant, in units of w.

    Raises:
      ValueError: numbers out of these ranges, where they are known; else the answer is NaN.
      TypeError: complex v.

    Reference: Fan and Li, "Variable selection via nonconcave penalized likelihood and its oracle
    properties", J. Am. Stat. Assoc. 96, 2001.

    >>> import jax.numpy as jnp
    >>> prox_scad(jnp.array([1.5, 3.0, 9.0]), 1.0, 1.0, a=4.0).tolist()
    [0.5, 2.5, 9.0]
    """
    known(partial(_above, "a", 2), a)
    known(partial(_single_valued, "prox_scad", "a - 1", 1), step, a)

    def leaf(v: jax.Array) -> jax.Array:
        w = not_negative("weight", weight, v.dtype)
        t, wide = positive("step", step, v.dtype), jnp.asarray(a, v.dtype)
        t = jnp.where((wide > 2) & (t < wide - 1), t, jnp.nan)
        soft = v - jnp.clip(v, -t * w, t * w)
        between = ((wide - 1) * v - jnp.sign(v) * wide * t * w) / (wide - 1 - t)
        size = jnp.abs(v)
        out = jnp.where(size <= w * (1 + t), soft, jnp.where(size <= wide * w, between, v))
        return jnp.where(jnp.isnan(t * w), jnp.nan, out)

    return jax.tree.map(leaf, real("prox_scad", v))


def prox_mcp(v: PyTree, step: Any, weight: Any = 1.0, gamma: Any = 3.0) -> PyTree:
    """The proximal map of the minimax concave penalty: `weight |u|` that flattens out.

        |v| <= gamma w:  u = prox_l1(v, step, w) / (1 - step / gamma)
        else:            u = v

    Args:
      v: a tree of real arrays. step: positive scalar below gamma; above, the map is not single
        valued. weight: w, at least 0; a scalar, or an array that broadcasts with every leaf.
      gamma: above 1, where the penalty turns constant, in units of w.

    Raises:
      ValueError: numbers out of these ranges, where they are known; else the answer is NaN.
      TypeError: complex v.

    Reference: Zhang, "Nearly unbiased variable selection under minimax concave penalty",
    Ann. Stat. 38, 2010.

    >>> import jax.numpy as jnp
    >>> prox_mcp(jnp.array([1.5, 9.0]), 1.0, 1.0, gamma=2.0).tolist()
    [1.0, 9.0]
    """
    known(partial(_above, "gamma", 1), gamma)
    known(partial(_single_valued, "prox_mcp", "gamma", 0), step, gamma)

    def leaf(v: jax.Array) -> jax.Array:
        w = not_negative("weight", weight, v.dtype)
        t, wide = positive("step", step, v.dtype), jnp.asarray(gamma, v.dtype)
        t = jnp.where((wide > 1) & (t < wide), t, jnp.nan)
        soft = (v - jnp.clip(v, -t * w, t * w)) / (1 - t / wide)
        out = jnp.where(jnp.abs(v) <= wide * w, soft, v)
        return jnp.where(jnp.isnan(t * w), jnp.nan, out)

    return jax.tree.map(leaf, real("prox_mcp", v))


def _above(name: str, bound: float, number: Any) -> None:
    if not np.all(np.asarray(number) > bound):
        raise ValueError(f"{name} must be above {bound}, got {number}.")


def _single_valued(name: str, bound: str, less: int, step: Any, shape: Any) -> None:
    limit = np.asarray(shape) - less
    if not np.all(np.asarray(step) < limit):
        raise ValueError(f"{name} is not single valued for step >= {bound}: step {step}, "
                         f"{bound} = {limit}. Shorten the step.")
