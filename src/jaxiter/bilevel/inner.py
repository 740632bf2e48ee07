"""The argmin of an inner objective as a differentiable fixed point."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.inverse import POWER_STEPS
from jaxiter.driver import fixed_point
from jaxiter.implicit import implicit
from jaxiter.linear import cg
from jaxiter.numerics import stop_gradient
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution
from jaxiter.solvers import anderson
from jaxiter.spectral import derivative, largest_eigenvalue

PyTree = Any


@reused
def solve_inner(
    inner: Callable, y0: PyTree, x: PyTree, *, step_size: Any = None, has_aux: bool = False,
    **options: Unpack[SolveOptions],
) -> Solution:
    """`argmin_y inner(x, y)` from y0: accelerated gradient descent, differentiable in x.

    Args:
      inner: scalar of (x, y), smooth; strongly convex in y near the answer.
      y0: the start, such as the last answer. The derivative by y0 is exactly zero: the
        argmin does not depend on it.
      x: what the derivatives are taken by.
      step_size: default 1 / L, L by power iterations on the Hessian at y0.
      has_aux: inner returns `(value, aux)`; aux at the answer is returned in `Solution.aux`.
      **options: all of `fixed_point`'s; solver is `anderson()` by default, and adjoint
        `implicit(cg())`, for the Hessian is symmetric.

    Returns:
      A `Solution`; the merit is the norm of the inner gradient times the step size.

    >>> import jax, jax.numpy as jnp
    >>> ridge = lambda x, y: jnp.sum((y - 2.0) ** 2) + x * jnp.sum(y**2)
    >>> best = lambda x: solve_inner(ridge, jnp.zeros(3), x).value[0]
    >>> round(float(best(1.0)), 4), round(float(jax.grad(best)(1.0)), 4)
    (1.0, -0.5)
    """
    chosen = choose("solve_inner", options, {}, solver=anderson(), adjoint=implicit(cg()))

    def slope(y: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        out = jax.grad(inner, 1, has_aux=has_aux)(x, y)
        return out if has_aux else (out, None)

    y0 = jax.tree.map(jnp.asarray, y0)
    if step_size is None:
        product, at = derivative(lambda y, x: slope(y, x)[0], y0, (x,))
        # So few power iterations fall a little short of the largest eigenvalue.
        top = jnp.abs(largest_eigenvalue(product, at, max_steps=POWER_STEPS).value)
        step_size = 0.9 / jnp.where(top == 0, 1, top)  # flat there, as |y|^4 is at 0

    def step(y: PyTree, x: PyTree, size: jax.Array) -> Any:
        down, aux = slope(y, x)
        new = trees.axpy(-size, down, y)
        return (new, aux) if has_aux else new

    # The descent, for minus its derivative is the Hessian: a `ridge` of the adjoint goes on top.
    problem = Problem(
        step=step, equations=lambda y, x, size: trees.negative(slope(y, x)[0]))
    return fixed_point(problem, y0, x, stop_gradient(jnp.asarray(step_size)), has_aux=has_aux,
                       **chosen._asdict())
