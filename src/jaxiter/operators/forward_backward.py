"""Forward-backward splitting: a gradient step on one function, a proximal step on the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.numerics import stop_gradient, typed_by
from jaxiter.problem import Problem
from jaxiter.spectral import largest_eigenvalue
from jaxiter.splitting import Splitting

PyTree = Any

#: The power iteration ends at most 0.9 per cent short of the curvature.
MARGIN = 1.02


def step_by_curvature(gradient: Callable, x: PyTree, args: tuple) -> jax.Array:
    """1 / L, L the largest curvature at x, from above; 1 where there is none."""
    at, fixed = stop_gradient((x, args))
    at = typed_by(lambda x: gradient(x, *fixed), (at,), at)
    _, product = jax.linearize(lambda x: gradient(x, *fixed), at)
    curvature = MARGIN * jnp.abs(largest_eigenvalue(product, at).value)
    # Where f is linear any step will do.
    return (1 / jnp.where(curvature == 0, 1, curvature)).astype(trees.norm_dtype(x))


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
    check_positive(**({} if step_size is None else {"step_size": step_size}))

    def memory(x: PyTree, *args: PyTree) -> jax.Array:
        if step_size is not None:
            return jnp.asarray(step_size, trees.norm_dtype(x))
        return step_by_curvature(gradient, x, args)

    def step(x: PyTree, size: jax.Array, *args: PyTree) -> tuple[PyTree, jax.Array]:
        return prox(trees.axpy(-size, gradient(x, *args), x), size, *args), size

    def valid(x: PyTree, *args: PyTree) -> jax.Array:
        return jnp.asarray(step_size) > 0

    return Splitting(
        Problem(step=step, memory=memory, valid=None if step_size is None else valid),
        start=lambda x0, *args: x0,
        extract=lambda x, size, *args: (x, None),
        averaged=2 / 3 if step_size is None else None)
