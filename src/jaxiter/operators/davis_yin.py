"""Davis-Yin splitting: two proximal maps and a gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxiter import trees
from jaxiter.operators.steps import step_by_curvature, with_step
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any


def davis_yin(
    prox_f: Callable, prox_g: Callable, gradient: Callable, *, step_size: Any = None
) -> Splitting:
    """Minimise `f(x) + g(x) + h(x)`, f and g with proximal maps and h smooth.

        x = prox_g(z, step)
        y = prox_f(2 x - z - step gradient(x), step)
        T(z) = z + y - x,    step in (0, 2 / L)

    The governing point is z; the answer is x = prox_g(z), the dual (z - x) / step, a subgradient
    of g at x. Without g it is `forward_backward`, without h `douglas_rachford` of g and f.

    Args:
      prox_f, prox_g: `prox(v, step, *args)`, such as those of `jaxiter.operators`. x obeys
        constraints that are in g exactly, those in f to the tolerance.
      gradient: `gradient(x, *args)` of h, L-Lipschitz.
      step_size: positive scalar; default 1 / L, L by power iteration on the Hessian at x0, which
        is right for quadratic h.

    Returns:
      A `Splitting`, averaged with 2 / 3 for the default step. Its problem keeps the step as memory.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.

    Reference: Davis and Yin, "A three-operator splitting scheme and its optimization
    applications", Set-Valued Var. Anal. 25, 2017.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import davis_yin, prox_box, prox_l1
    >>> split = davis_yin(lambda v, step, b: prox_l1(v, step),
    ...                   lambda v, step, b: prox_box(v, step, lower=0.0), lambda x, b: x - b)
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(3), jnp.array([3.0, 0.5, -4.0]))
    >>> out.value.round(3).tolist(), bool(out.converged)
    ([2.0, 0.0, 0.0], True)
    """
    def residual(z: PyTree, size: jax.Array, *args: PyTree) -> tuple[PyTree, jax.Array]:
        x = prox_g(z, size, *args)
        mirrored = jax.tree.map(lambda x, z: 2 * x - z, x, z)
        y = prox_f(trees.axpy(-size, gradient(x, *args), mirrored), size, *args)
        return trees.subtract(y, x), size

    def extract(z: PyTree, size: jax.Array, *args: PyTree) -> tuple[PyTree, PyTree]:
        x = prox_g(z, size, *args)
        return x, trees.scale(1 / size, trees.subtract(z, x))

    return Splitting(
        with_step(Problem(residual=residual), step_size, partial(step_by_curvature, gradient)),
        start=lambda x0, *args: x0, extract=extract,
        averaged=2 / 3 if step_size is None else None)
