"""Tseng's forward-backward-forward splitting: a monotone operator without a potential."""

from collections.abc import Callable
from typing import Any

import jax

from jaxiter import trees
from jaxiter.operators.steps import largest_gain, step_for, with_step
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any

#: The default step, in units of 1 / L.
SHARE = 0.9


def tseng(operator: Callable, resolvent: Callable, *, step_size: Any = None) -> Splitting:
    """Solve `0 in F(z) + A(z)`, F monotone and Lipschitz, A with a resolvent.

        y = J(z - step F(z), step),    J = (I + step A)^-1
        T(z) = y - step (F(y) - F(z)),    step in (0, 1 / L)

    Where forward-backward needs a gradient, or another cocoercive F, this takes any monotone one:
    saddle points, variational inequalities. Two evaluations of F a step. T comes nearer to every
    solution, but is not averaged: `anderson()` is guarded, `halpern()` has no theorem here.

    Args:
      operator: `F(z, *args)`.
      resolvent: `J(v, step, *args)`; of a normal cone the projection.
      step_size: positive scalar; default 0.9 / L, L by power iteration on the Jacobian at z0,
        which is right for affine F. A step above 1 / L may cycle, and the status says so.

    Returns:
      A `Splitting`; the value is y, which the resolvent made; there is no dual. Its problem keeps
      the step as memory.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.

    Reference: Tseng, "A modified forward-backward splitting method for maximal monotone
    mappings", SIAM J. Control Optim. 38, 2000.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import prox_box, tseng
    >>> turned = lambda z, b: jnp.stack([z[1], -z[0]]) - b  # a saddle: min over x, max over y
    >>> split = tseng(turned, lambda v, step, b: prox_box(v, step, lower=0.0))
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(2), jnp.array([1.0, -2.0]))
    >>> out.value.round(3).tolist(), bool(out.converged)
    ([2.0, 1.0], True)
    """
    def forward(z: PyTree, size: jax.Array, args: tuple) -> tuple[PyTree, PyTree]:
        """`F(z)` and y."""
        slope = operator(z, *args)
        return slope, resolvent(trees.axpy(-size, slope, z), size, *args)

    def residual(z: PyTree, size: jax.Array, *args: PyTree) -> tuple[PyTree, jax.Array]:
        slope, y = forward(z, size, args)
        change = trees.subtract(operator(y, *args), slope)
        return trees.subtract(trees.axpy(-size, change, y), z), size

    def default(z: PyTree, args: tuple) -> jax.Array:
        return step_for(largest_gain(operator, z, args), z, SHARE)

    return Splitting(
        with_step(Problem(residual=residual), step_size, default),
        start=lambda x0, *args: x0,
        extract=lambda z, size, *args: (forward(z, size, args)[1], None))
