"""Proximal maps, `prox(v, step, ...) = argmin_u g(u) + |u - v|^2 / (2 step)`.

All take the point and the step first, whether or not the step matters, so that any of them
stands where a splitting wants one. A step or weight out of its domain raises where it is known
and gives NaN where it is traced, which a solve reports as NONFINITE.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.implicit import attach_implicit, implicit
from jaxiter.linear import cg
from jaxiter.numerics import hoist, is_concrete, real_dtype, stop_gradient, typed_by

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
    _require("step must be positive", step, lambda t: t > 0)
    _require("weight must be at least 0", weight, lambda w: w >= 0)

    def leaf(v: jax.Array) -> jax.Array:
        t, w = (jnp.asarray(x, real_dtype(v.dtype)) for x in (step, weight))
        threshold = jnp.where((t > 0) & (w >= 0), t * w, jnp.nan)
        if not jnp.iscomplexobj(v):
            return v - jnp.clip(v, -threshold, threshold)
        # |v| has no derivative at 0, so it is not asked for there.
        zero = v == 0
        size = jnp.abs(jnp.where(zero, 1, v))
        return jnp.where(zero, 0, v * jnp.maximum(1 - threshold / size, 0).astype(v.dtype))

    return jax.tree.map(leaf, v)


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
        if jnp.iscomplexobj(v):
            raise TypeError("prox_box needs real arrays: complex numbers have no order.")
        if low is not None and high is not None:
            if is_concrete(low, high) and np.any(np.asarray(low) > np.asarray(high)):
                raise ValueError("empty box: lower is above upper in some entry.")
        low, high = (None if x is None else jnp.asarray(x, v.dtype) for x in (low, high))
        inside = jnp.clip(v, low, high)
        if low is None or high is None:
            return inside
        return jnp.where(low > high, jnp.nan, inside)

    bounds = [_like(bound, v) for bound in (lower, upper)]
    leaves, treedef = jax.tree.flatten(v)
    return jax.tree.unflatten(treedef, [
        leaf(*entry) for entry in zip(leaves, *bounds, strict=True)])


def _like(bound: PyTree, v: PyTree) -> list:
    """One bound for every leaf of v."""
    known = jax.tree.structure(v)
    if bound is not None and jax.tree.structure(bound) == known:
        return jax.tree.leaves(bound)
    return [bound] * known.num_leaves


def prox_quadratic(
    v: PyTree, step: Any, matrix: jax.Array | Callable[[PyTree], PyTree], linear: PyTree = None
) -> PyTree:
    """The proximal map of `u^H Q u / 2 + Re <q, u>`: one linear solve.

        u = (I + step Q)^-1 (v - step q)

    Least squares `|A u - b|^2 / 2` is Q = A^H A, q = -A^H b. A matrix is factorised anew at every
    call; where the step stays, factorise `I + step Q` once, outside, and write the two
    triangular solves as the proximal map.

    Args:
      v: a vector `[n]` for a matrix, any tree for a function. step: positive scalar.
      matrix: Q, Hermitian, `I + step Q` positive definite: an array `[n, n]` (Cholesky), or a
        linear function of trees like v (conjugate gradients, with their derivative by another
        such solve). Elsewhere the answer is NaN.
      linear: q, like v; None for 0.

    Raises:
      ValueError: a step that is not positive, where it is known; shapes that do not match.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> prox_quadratic(jnp.array([2.0, 8.0]), 1.0, jnp.diag(jnp.array([0.0, 3.0]))).tolist()
    [2.0, 2.0]
    """
    _require("step must be positive", step, lambda t: t > 0)
    step = jnp.where(jnp.asarray(step) > 0, step, jnp.nan)
    right = v if linear is None else trees.axpy(-step, linear, v)
    if callable(matrix):
        return _by_products(right, step, matrix)
    n = matrix.shape[-1]
    if matrix.shape != (n, n) or jnp.shape(v) != (n,):
        raise ValueError(f"a matrix [n, n] goes with a vector [n]; got {matrix.shape} and "
                         f"{jnp.shape(v)}. Give a function for anything else.")
    shifted = jnp.eye(n, dtype=matrix.dtype) + step.astype(matrix.dtype) * matrix
    with jax.default_matmul_precision("highest"):
        factor = jax.scipy.linalg.cho_factor(shifted, lower=True)
        return jax.scipy.linalg.cho_solve(factor, right)


def _by_products(right: PyTree, step: jax.Array, matrix: Callable) -> PyTree:
    def product(u: PyTree) -> PyTree:
        return trees.axpy(step, matrix(u), u)

    right = typed_by(product, (right,), right)
    pure, constants, _ = hoist(product, right)
    fixed = stop_gradient(constants)
    found = cg()(lambda u: pure(fixed, u), stop_gradient(right))
    # A solve that failed must not pass for a proximal map.
    unit = jnp.where(found.residual <= 1e-2, 1.0, jnp.nan)
    return attach_implicit(
        lambda u: trees.subtract(product(u), right), trees.scale(unit, found.value),
        adjoint=implicit(cg()))


def _require(rule: str, number: Any, holds: Callable) -> None:
    if is_concrete(number) and not np.all(holds(np.asarray(number))):
        raise ValueError(f"{rule}, got {number}.")
