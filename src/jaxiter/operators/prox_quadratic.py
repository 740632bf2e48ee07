"""Proximal maps of quadratic functions: linear solves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.implicit import attach_implicit, implicit
from jaxiter.linear import cg
from jaxiter.linear.factor import solve_positive
from jaxiter.numerics import hoist, product, stop_gradient, typed_by
from jaxiter.operators.domain import not_negative, positive

PyTree = Any


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
    step = positive("step", step, trees.norm_dtype(v))
    right = v if linear is None else trees.axpy(-step, linear, v)
    if callable(matrix):
        return _by_products(right, step, matrix)
    n = matrix.shape[-1]
    if matrix.shape != (n, n) or jnp.shape(v) != (n,):
        raise ValueError(f"a matrix [n, n] goes with a vector [n]; got {matrix.shape} and "
                         f"{jnp.shape(v)}. Give a function for anything else.")
    shifted = jnp.eye(n, dtype=matrix.dtype) + step.astype(matrix.dtype) * matrix
    return solve_positive(shifted, right[:, None])[:, 0]


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


def prox_least_squares(
    v: jax.Array, step: Any, matrix: jax.Array, target: jax.Array, weight: Any = 1.0
) -> jax.Array:
    """The proximal map of `weight / 2 * |A u - b|^2`: one solve of the smaller of two systems.

        u = v + t (I + t A^T A)^-1 A^T (b - A v),    t = step weight,    or with fewer rows
        u = v + t A^T (I + t A A^T)^-1 (b - A v)

    The system is factorised anew at every call; where A and the step stay, factorise once,
    outside.

    Args:
      v: `[n]`, real. step: positive scalar. weight: at least 0, a scalar.
      matrix: A, `[m, n]`. target: b, `[m]`.

    Raises:
      ValueError: a step that is not positive or a negative weight, where they are known; shapes
        that do not match.

    Reference: Parikh and Boyd, "Proximal algorithms", 2014.

    >>> import jax.numpy as jnp
    >>> out = prox_least_squares(jnp.zeros(2), 1.0, jnp.array([[1.0, 0.0]]), jnp.array([4.0]))
    >>> [round(float(x), 4) for x in out]
    [2.0, 0.0]
    """
    if jnp.ndim(matrix) != 2 or jnp.shape(v) != matrix.shape[1:] or (
            jnp.shape(target) != matrix.shape[:1]):
        raise ValueError(f"A [m, n] goes with v [n] and b [m]; got {jnp.shape(matrix)}, "
                         f"{jnp.shape(v)} and {jnp.shape(target)}.")
    m, n = matrix.shape
    size = positive("step", step, v.dtype) * not_negative("weight", weight, v.dtype)
    wide, error = m < n, target - product(matrix, v)
    gram = product(matrix, matrix.T) if wide else product(matrix.T, matrix)
    system = jnp.eye(min(m, n), dtype=v.dtype) + size * gram
    if wide:
        return v + size * product(solve_positive(system, error[:, None])[:, 0], matrix)
    return v + size * solve_positive(system, product(error, matrix)[:, None])[:, 0]
