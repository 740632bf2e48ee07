"""Derivatives of a sampling trajectory: one linear triangular system, never singular."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, frozen
from jaxiter.diffusion.table import (
    SamplerTable,
    combine_all,
    histories,
    linear_rows,
    push,
    walk,
    widen,
)
from jaxiter.driver import fixed_point
from jaxiter.numerics import anchor, hoist, machine_epsilon, stop_gradient
from jaxiter.problem import Problem
from jaxiter.recurrence.adjoint import ChainAdjoint, attach_rows
from jaxiter.recurrence.linearize import dot, secant_slopes
from jaxiter.recurrence.rounds import spread
from jaxiter.stop import tolerance

PyTree = Any


def attach_sampling(
    model: Callable, x: jax.Array, x_init: jax.Array, table: SamplerTable, slopes: jax.Array,
    adjoint: Adjoint,
) -> jax.Array:
    """States x `[R + 1, ...]` with the loop's derivatives by x_init and what the model closes over.

    Args:
      model: `model(x, row) -> value` at one row of the table.
      x_init: varies over a mesh where the model's parameters do (`sample.vary`).
      slopes: `[R]`, first guesses of the model's slopes for the parallel backward pass.
      adjoint: `parallel()` solves the transposed system by rounds of batched VJPs, `sequential()`
        by a loop; `frozen()`: no derivatives.
    """
    if not isinstance(adjoint, ChainAdjoint):
        return stop_gradient(x)
    x, table, slopes = anchor((x, *stop_gradient((table, slopes))), x_init)
    pure, constants, _ = hoist(model, x_init, trees.first(table))

    def solves(operands: tuple, fixed: tuple, states: jax.Array) -> tuple[Callable, Callable]:
        at = (lambda s, row: pure(operands[1], s, row), fixed[0], states)
        if adjoint.batched:
            return partial(_forward, *at), partial(_rounds, *at, fixed[1])
        return partial(_forward, *at), partial(_backward, *at)

    def rows(operands: tuple, fixed: tuple, states: jax.Array) -> jax.Array:
        values = jax.vmap(lambda s, row: pure(operands[1], s, row))(states, fixed[0])
        return combine_all(fixed[0], states, values)

    return jnp.concatenate([x_init[None], attach_rows(
        rows, x[1:], (x_init, constants), (table, slopes), solves)])


def _forward(model: Callable, table: SamplerTable, states: jax.Array, b: jax.Array) -> jax.Array:
    """The tangent recurrence: a jvp of the model per row; b stands where noise did."""
    start = anchor(jnp.zeros_like(b[0]), (b, states))
    return walk(
        table._replace(noise=jnp.ones_like(table.noise), z=b), histories(table, start),
        lambda dx, row, at: jax.jvp(lambda s: model(s, row), (at,), (dx,))[1], states)[1]


def _reversed(table: SamplerTable) -> tuple[jax.Array, jax.Array]:
    """`state[t + j, j]` and `model[t + j, j]` for t = R-1 .. 1, `[R - 1, K]`: who reads X[t]."""
    reach = max(table.state.shape[1], table.model.shape[1])

    def column(array: jax.Array, j: int) -> jax.Array:
        return jnp.concatenate([array[j:, j], jnp.zeros(j, array.dtype)])

    state, model = (jnp.stack([column(widen(array, reach), j) for j in range(reach)], axis=1)
                    for array in (table.state, table.model))
    return state[:0:-1], model[:0:-1]


def _backward(model: Callable, table: SamplerTable, states: jax.Array, b: jax.Array) -> jax.Array:
    """The transposed recurrence from the last row to the first: a VJP of the model per row."""
    state, weight = _reversed(table)

    def step(later: jax.Array, at: tuple) -> tuple[jax.Array, jax.Array]:
        state, weight, row, x, b = at
        pulled = _pull(model, x, row, jnp.tensordot(weight, later, 1, precision="highest"))
        g = b + jnp.tensordot(state, later, 1, precision="highest") + pulled
        return push(later, g), g

    empty = jnp.zeros((state.shape[1], *b.shape[1:]), b.dtype)
    first = push(anchor(empty, (b, states)), b[-1])
    rows = jax.tree.map(lambda leaf: leaf[:0:-1], (table, states))
    g = lax.scan(step, first, (state, weight, *rows, b[-2::-1]))[1]
    return jnp.concatenate([b[-1:], g])[::-1]


def _rounds(
    model: Callable, table: SamplerTable, states: jax.Array, slopes: jax.Array, b: jax.Array
) -> jax.Array:
    """The same system by secant quasi-Newton rounds: all VJPs of a round in one batch."""
    state, weight = _reversed(table)
    rows, x = jax.tree.map(lambda leaf: leaf[:0:-1], (table, states))
    rest, count = b[-2::-1], b.shape[0] - 1
    if count == 0:
        return b

    def sums(table: jax.Array, g: jax.Array) -> jax.Array:
        """`sum_j table[k, j] G[k - j]` for the chain G = (last of b, g_0, .., g_{k-1})."""
        chain = jnp.concatenate([b[-1:], g[:-1]])
        last = table.shape[1] - 1
        padded = jnp.concatenate([jnp.zeros((last, *b.shape[1:]), b.dtype), chain])
        total = jnp.zeros_like(g)
        for j in range(last + 1):
            total += spread(table[:, j], g) * padded[last - j: last - j + count]
        return total

    def step(g: jax.Array, memory: tuple) -> tuple[jax.Array, tuple]:
        slope, old_h, old_v, seen = memory
        h = sums(weight, g)
        v = jax.vmap(partial(_pull, model))(x, rows, h)
        tiny = 100 * machine_epsilon(b) ** 2 * dot(h, h)
        slope = secant_slopes(h - old_h, v - old_v, slope, seen, tiny)
        plain = rest + sums(state, g) + v
        lift, _ = linear_rows(state + weight * slope[:, None], plain - g)
        return plain + lift, (slope, h, v, anchor(jnp.bool_(True), seen))

    problem = Problem(
        step=step,
        memory=lambda g: (slopes[:0:-1], jnp.zeros_like(g), jnp.zeros_like(g), jnp.bool_(False)))
    tight = 1e-5 if machine_epsilon(b) > 1e-12 else 1e-12
    g = fixed_point(problem, rest, stop=tolerance(rtol=tight, atol=0.0), adjoint=frozen(),
                    max_steps=count + 1).state.output
    return jnp.concatenate([b[-1:], g])[::-1]


def _pull(model: Callable, x: jax.Array, row: SamplerTable, cotangent: jax.Array) -> jax.Array:
    """The model's Jacobian at x, transposed, times a cotangent."""
    return jax.vjp(lambda s: model(s, row), x)[1](cotangent)[0]
