"""Derivatives of a sampling trajectory: one linear triangular system, never singular."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import Adjoint, frozen
from jaxiter.diffusion.table import (
    SamplerTable,
    combine_all,
    histories,
    linear_rows,
    walk,
    weighted,
    widen,
)
from jaxiter.driver import fixed_point
from jaxiter.numerics import anchor, hoist, machine_epsilon, stop_gradient
from jaxiter.problem import Problem
from jaxiter.recurrence.adjoint import ChainAdjoint, attach_rows
from jaxiter.recurrence.linearize import dot, secant_slopes
from jaxiter.recurrence.rounds import back
from jaxiter.stop import tolerance

PyTree = Any


def attach_sampling(
    model: Callable, rows: jax.Array, x_init: jax.Array, table: SamplerTable, slopes: jax.Array,
    adjoint: Adjoint,
) -> jax.Array:
    """x_init and the rows `[R, ...]`, with the loop's derivatives by it and what model closes over.

    Args:
      model: `model(x, row) -> value` at one row of the table.
      x_init: varies over a mesh where the model's parameters do (`table.begin`).
      slopes: `[R]`, first guesses of the model's slopes for the parallel backward pass.
      adjoint: `parallel()` solves the transposed system by rounds of batched VJPs, `sequential()`
        by a loop; `frozen()`: no derivatives.
    """
    if not isinstance(adjoint, ChainAdjoint):
        return stop_gradient(trees.prepend(x_init, rows))
    rows, table, slopes = anchor((rows, *stop_gradient((table, slopes))), x_init)
    pure, constants, _ = hoist(model, x_init, trees.first(table))

    def solves(operands: tuple, fixed: tuple, states: jax.Array) -> tuple:
        at = (partial(pure, operands[1]), fixed[0], states)
        return partial(_forward, *at), partial(_rounds, *at, fixed[1]) if adjoint.batched else None

    def outputs(operands: tuple, fixed: tuple, states: jax.Array) -> jax.Array:
        values = jax.vmap(partial(pure, operands[1]))(states, fixed[0])
        return combine_all(fixed[0], states, values)

    return trees.prepend(x_init, attach_rows(
        outputs, rows, (x_init, constants), (table, slopes), solves))


def _forward(
    model: Callable, table: SamplerTable, states: jax.Array, b: jax.Array, like: jax.Array
) -> jax.Array:
    """The tangent recurrence: a jvp of the model per row; b stands where noise did."""
    start = anchor(jnp.zeros_like(b[0]), (like, states))
    return walk(
        table._replace(noise=jnp.ones_like(table.noise), z=b), histories(table, start),
        lambda dx, row, at: jax.jvp(lambda s: model(s, row), (at,), (dx,))[1], states)[1]


def _rounds(
    model: Callable, table: SamplerTable, states: jax.Array, slopes: jax.Array, b: jax.Array
) -> jax.Array:
    """The transposed system by secant quasi-Newton rounds: all VJPs of a round in one batch."""
    reach = max(table.state.shape[1], table.model.shape[1])
    # From the last row to the second: X[t] is read by row t + j, as its j-th.
    state, weight = (
        jnp.diagonal(back(widen(array, reach)[::-1], reach), axis1=1, axis2=2)[:-1]
        for array in (table.state, table.model))
    rows, x = trees.at((table, states), slice(None, 0, -1))
    rest, count = b[-2::-1], b.shape[0] - 1
    if count == 0:
        return b

    def step(g: jax.Array, memory: tuple) -> tuple[jax.Array, tuple]:
        slope, old_h, old_v = memory
        chain = trees.before(g, b[-1])
        h = weighted(weight, chain)
        v = jax.vmap(lambda x, row, h: jax.vjp(lambda s: model(s, row), x)[1](h)[0])(x, rows, h)
        tiny = 100 * machine_epsilon(b) ** 2 * dot(h, h)
        slope = secant_slopes(h - old_h, v - old_v, slope, tiny)
        plain = rest + weighted(state, chain) + v
        lift, _ = linear_rows(state + weight * slope[:, None], plain - g)
        return plain + lift, (slope, h, v)

    problem = Problem(
        step=step,
        memory=lambda g: (slopes[:0:-1], jnp.full_like(g, jnp.nan), jnp.zeros_like(g)))
    tight = 1e-5 if machine_epsilon(b) > 1e-12 else 1e-12
    g = fixed_point(problem, rest, stop=tolerance(rtol=tight, atol=0.0), adjoint=frozen(),
                    max_steps=count + 1).state.output
    return jnp.concatenate([b[-1:], g])[::-1]
