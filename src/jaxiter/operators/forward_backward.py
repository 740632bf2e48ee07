"""Forward-backward splitting: a gradient step on one function, a proximal step on the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxiter import trees
from jaxiter.operators.steps import step_by_curvature, with_step
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any


def forward_backward(
    gradient: Callable, prox: Callable, *, step_size: Any = None
) -> Splitting:
    """Minimise `f(x) + g(x)`, f smooth and g with a proximal map; proximal gradient, ISTA.

        T(x) = prox(x - step gradient(x), step),    step in (0, 2 / L)

    The governing point is x itself; there is no dual. With `anderson()` far fewer steps.

    Args:
      gradient: `gradient(x, *args)`, L-Lipschitz (of a complex x: `A^H (A x - b)`, the conjugate
        of what `jax.grad` returns).
      prox: `prox(v, step, *args)`, such as `lambda v, step, a, b, w: prox_l1(v, step, w)`.
      step_size: positive scalar; default 1 / L, L by power iteration on the Hessian at x0, which
        is right for quadratic f. Where f is more curved elsewhere, give a step: one above 2 / L
        does not converge, and the status says so. In lanes too: the power iteration is paid for
        at every refill.

    Returns:
      A `Splitting`, averaged with 2 / 3 for the default step. Its problem keeps the step as memory.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.

    Reference: Combettes and Wajs, "Signal recovery by proximal forward-backward splitting",
    Multiscale Model. Simul. 4, 2005.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import prox_l1
    >>> lasso = forward_backward(lambda x, b: 2.0 * (x - b), lambda v, step, b: prox_l1(v, step))
    >>> out = jaxiter.solve_splitting(lasso, jnp.zeros(2), jnp.array([3.0, 0.2]))
    >>> [round(float(x), 4) for x in out.value], out.dual
    ([2.5, 0.0], None)
    """
    def step(x: PyTree, size: jax.Array, *args: PyTree) -> tuple[PyTree, jax.Array]:
        return prox(trees.axpy(-size, gradient(x, *args), x), size, *args), size

    return Splitting(
        with_step(Problem(step=step), step_size, partial(step_by_curvature, gradient)),
        start=lambda x0, *args: x0,
        extract=lambda x, size, *args: (x, None),
        averaged=2 / 3 if step_size is None else None)
