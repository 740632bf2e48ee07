"""The step of a splitting: given and kept, or found at the start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.numerics import machine_epsilon
from jaxiter.problem import Problem
from jaxiter.spectral import derivative, largest_eigenvalue, operator_norm
from jaxiter.stop import default_tolerances

PyTree = Any

#: The power iteration ends at most 0.9 per cent short of the largest gain.
MARGIN = 1.02
#: What holds a point, a bound or a dual, may be of any length, and says little of the point.
BESIDE = 10.0


def with_step(problem: Problem, step_size: Any, default: Callable) -> Problem:
    """The problem with its step as memory: the one given, or `default(x, args)`.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.
    """
    if step_size is None:
        return problem._replace(memory=lambda x, *args: default(x, args))
    check_positive(step_size=step_size)
    return problem._replace(
        memory=lambda x, *args: jnp.asarray(step_size, trees.norm_dtype(x)),
        valid=lambda x, *args: jnp.asarray(step_size) > 0)


def step_by_curvature(gradient: Callable, x: PyTree, args: tuple) -> jax.Array:
    """1 / L, L the largest curvature at x, from above; 1 where there is none."""
    product, at = derivative(gradient, x, args)
    return step_for(MARGIN * jnp.abs(largest_eigenvalue(product, at).value), x)


def largest_gain(operator: Callable, x: PyTree, args: tuple) -> jax.Array:
    """The largest gain of an operator's derivative at x, from above."""
    product, at = derivative(operator, x, args)
    return MARGIN * operator_norm(product, at).value


def step_for(constant: jax.Array, x: PyTree, share: float = 1.0) -> jax.Array:
    """share / L in the precision of x; any step will do where L is 0."""
    return moving((share / jnp.where(constant == 0, 1, constant)).astype(trees.norm_dtype(x)))


def beside(length: jax.Array, force: jax.Array, like: PyTree) -> jax.Array:
    """What moves are beside: the length of the point, or of a longer force up to ten times that.

    `force`: of a gradient's step, on the entries that move; those that it holds at a bound do not.
    Where the answer is 0 that force is what is known to a rounding, and so is the point.
    """
    rounding = 2 * machine_epsilon(like) / default_tolerances(like)[0]
    return jnp.clip(force, length, jnp.maximum(BESIDE * length, rounding * force))


def on_moving(force: PyTree, move: PyTree) -> PyTree:
    """The force on entries that move."""
    return jax.tree.map(lambda f, m: jnp.where(m == 0, 0, f), force, move)


def beside_sides(one: jax.Array, other: jax.Array) -> jax.Array:
    """What moves of a primal and a dual side together are beside: the longer one.

    Of that a tenth where the other is so short, under steps far off, that it would not be seen.
    """
    longer = jnp.maximum(one, other)
    return jnp.clip(BESIDE * jnp.minimum(one, other), longer / BESIDE, longer)


def moving(size: jax.Array) -> jax.Array:
    """The step; NaN where it is so short that nothing would move, and everything seem solved."""
    return jnp.where(size >= jnp.finfo(size.dtype).tiny, size, jnp.nan)
