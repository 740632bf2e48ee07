"""Proximal maps, `prox(v, step, ...) = argmin_u g(u) + |u - v|^2 / (2 step)`, entry by entry.

All take the point and the step first, whether or not the step matters, so that any of them
stands where a splitting wants one. A step or weight out of its domain raises where it is known
and gives NaN where it is traced, which a solve reports as NONFINITE.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import is_concrete, real_dtype
from jaxiter.operators.domain import not_negative, positive, real

PyTree = Any


def prox_l1(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """Soft threshold, the proximal map of `weight * sum |u|`.

        u = v - clip(v, -step weight, step weight);    complex: u = v max(1 - step weight / |v|, 0)

    Args:
      v: a tree, real or complex. step: positive scalar.
      weight: at least 0; a scalar, or an array that broadcasts with every leaf.

    At the kinks |v| = step weight the derivative is the mean of both sides, one half.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Daubechies, Defrise and De Mol, "An iterative thresholding algorithm for linear
    inverse problems with a sparsity constraint", 2004.

    >>> import jax.numpy as jnp
    >>> prox_l1(jnp.array([3.0, -0.5, -2.0]), 1.0, 1.5).tolist()
    [1.5, 0.0, -0.5]
    """
    def leaf(v: jax.Array) -> jax.Array:
        kind = real_dtype(v.dtype)
        threshold = positive("step", step, kind) * not_negative("weight", weight, kind)
        if not jnp.iscomplexobj(v):
            return v - jnp.clip(v, -threshold, threshold)
        # |v| has no derivative at 0, so it is not asked for there.
        zero = v == 0
        size = jnp.abs(jnp.where(zero, 1, v))
        return jnp.where(zero, 0, v * jnp.maximum(1 - threshold / size, 0).astype(v.dtype))

    return jax.tree.map(leaf, v)


def prox_non_negative_l1(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """The proximal map of `weight * sum u` on u >= 0.

        u = max(v - step weight, 0)

    Args:
      v: a tree of real arrays. step: positive scalar.
      weight: at least 0; a scalar, or an array that broadcasts with every leaf.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.
      TypeError: complex v.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> prox_non_negative_l1(jnp.array([3.0, -2.0]), 1.0, 0.5).tolist()
    [2.5, 0.0]
    """
    def leaf(v: jax.Array) -> jax.Array:
        return jnp.maximum(v - positive("step", step, v.dtype) * not_negative(
            "weight", weight, v.dtype), 0)

    return jax.tree.map(leaf, real("prox_non_negative_l1", v))


def prox_squared_l2(v: PyTree, step: Any, weight: Any = 1.0) -> PyTree:
    """The proximal map of `weight / 2 * sum |u|^2`.

        u = v / (1 + step weight)

    Args:
      v: a tree, real or complex. step: positive scalar.
      weight: at least 0; a scalar, or an array that broadcasts with every leaf.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> prox_squared_l2(jnp.array([3.0, -6.0]), 1.0, 2.0).tolist()
    [1.0, -2.0]
    """
    def leaf(v: jax.Array) -> jax.Array:
        kind = real_dtype(v.dtype)
        factor = positive("step", step, kind) * not_negative("weight", weight, kind)
        return v / (1 + factor).astype(v.dtype)

    return jax.tree.map(leaf, v)


def prox_elastic_net(v: PyTree, step: Any, l1: Any = 1.0, l2: Any = 1.0) -> PyTree:
    """The proximal map of `l1 * sum |u| + l2 / 2 * sum |u|^2`.

        u = prox_l1(v, step, l1) / (1 + step l2)

    Args:
      v: a tree, real or complex. step: positive scalar.
      l1, l2: at least 0; scalars, or arrays that broadcast with every leaf.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known.

    Reference: Zou and Hastie, "Regularization and variable selection via the elastic net",
    J. R. Stat. Soc. B 67, 2005.

    >>> import jax.numpy as jnp
    >>> prox_elastic_net(jnp.array([3.0, -0.5]), 1.0, 1.0, 1.0).tolist()
    [1.0, 0.0]
    """
    return prox_squared_l2(prox_l1(v, step, l1), step, l2)


def prox_huber(v: PyTree, step: Any, delta: Any = 1.0, weight: Any = 1.0) -> PyTree:
    """The proximal map of `weight * sum huber(u)`: u^2 / 2 up to |u| = delta, then straight on.

        |v| <= (1 + step weight) delta:  u = v / (1 + step weight)
        else:                            u = v - sign(v) step weight delta

    Args:
      v: a tree of real arrays. step: positive scalar.
      delta: positive; weight: at least 0; scalars, or arrays that broadcast with every leaf.

    Raises:
      ValueError: a step or delta that is not positive or a negative weight, where they are known.
      TypeError: complex v.

    Reference: Combettes and Pesquet, "Proximal splitting methods in signal processing", 2011.

    >>> import jax.numpy as jnp
    >>> prox_huber(jnp.array([1.0, 5.0]), 1.0).tolist()
    [0.5, 4.0]
    """
    def leaf(v: jax.Array) -> jax.Array:
        factor = positive("step", step, v.dtype) * not_negative("weight", weight, v.dtype)
        bound = positive("delta", delta, v.dtype)
        inside = v / (1 + factor)
        return jnp.where(jnp.abs(inside) <= bound, inside, v - jnp.sign(v) * factor * bound)

    return jax.tree.map(leaf, real("prox_huber", v))


def prox_box(v: PyTree, step: Any, lower: PyTree = None, upper: PyTree = None) -> PyTree:
    """Projection onto `lower <= u <= upper`, the proximal map of the box's indicator.

    Args:
      v: a tree of real arrays. step: plays no part.
      lower, upper: bounds: numbers, arrays that broadcast with every leaf, or trees like v;
        None: no bound. `lower=0.0` is the projection onto what is not negative.

    At a bound the derivative is the mean of both sides, one half. Where traced bounds enclose
    nothing, so does the answer: NaN.

    Raises:
      ValueError: an empty box, where the bounds are known. TypeError: complex v.

    >>> import jax.numpy as jnp
    >>> prox_box(jnp.array([-1.0, 0.5, 3.0]), 1.0, lower=0.0, upper=2.0).tolist()
    [0.0, 0.5, 2.0]
    """
    del step

    def leaf(v: jax.Array, low: Any, high: Any) -> jax.Array:
        if low is not None and high is not None:
            if is_concrete(low, high) and np.any(np.asarray(low) > np.asarray(high)):
                raise ValueError("empty box: lower is above upper in some entry.")
        low, high = (None if x is None else jnp.asarray(x, v.dtype) for x in (low, high))
        inside = jnp.clip(v, low, high)
        if low is None or high is None:
            return inside
        return jnp.where(low > high, jnp.nan, inside)

    bounds = [_like(bound, v) for bound in (lower, upper)]
    leaves, treedef = jax.tree.flatten(real("prox_box", v))
    return jax.tree.unflatten(treedef, [
        leaf(*entry) for entry in zip(leaves, *bounds, strict=True)])


def _like(bound: PyTree, v: PyTree) -> list:
    """One bound for every leaf of v."""
    known = jax.tree.structure(v)
    if bound is not None and jax.tree.structure(bound) == known:
        return jax.tree.leaves(bound)
    return [bound] * known.num_leaves
