"""Trajectories guessed without the model: where the rounds start, and what lies ahead of them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.diffusion.linearize import Seen
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, histories, walk
from jaxiter.recurrence.rounds import View


def first_trajectory(
    sampler: Sampler, slopes: jax.Array, table: SamplerTable, x_init: jax.Array, init: Any
) -> jax.Array:
    """The first trajectory `[R + 1, ...]`; `slopes` `[R]` of a model of Gaussian data."""
    count = sampler.rows
    copy = jnp.broadcast_to(x_init, (count + 1, *x_init.shape))
    if isinstance(init, str):
        if init not in ("auto", "copy"):
            raise ValueError(f"init must be 'auto', 'copy' or states, got {init!r}.")
        if init == "copy" or not sampler.stochastic:
            return copy
        rows = walk(table, histories(table, x_init), lambda x, row, slope: slope * x, slopes)[1]
        return trees.prepend(x_init, rows)
    init = jnp.asarray(init, x_init.dtype)
    if init.shape != copy.shape:
        raise ValueError(f"init must have one state per row and the start: {copy.shape}, got "
                         f"{init.shape}.")
    return init.at[0].set(x_init)


def roll_out(
    sampler: Sampler, view: View, rows: jax.Array, seen: Seen, x_init: jax.Array,
    table: SamplerTable,
) -> jax.Array:
    """The rows, those after the window as if its newest guess of the data were right."""
    if view.width == len(rows):
        return rows
    x, values, end = trees.prepend(x_init, rows), seen.value, view.start + view.width
    last, newest, at = trees.at((table, values, x), end - 1)
    guess = newest if sampler.currency == "x0" else (at - last.sigma * newest) / last.alpha

    def value(x: jax.Array, row: SamplerTable, _: None) -> jax.Array:
        return guess if sampler.currency == "x0" else (x - row.alpha * guess) / row.sigma

    def before(array: jax.Array, at: jax.Array, depth: int) -> jax.Array:
        return array[jnp.maximum(at - jnp.arange(depth, dtype=jnp.int32), 0)]

    carry = (before(x, end, table.state.shape[1]), before(values, end - 1, table.model.shape[1]))
    index = view.index() + view.width
    ahead = trees.at(table, jnp.minimum(index, len(rows) - 1))
    return rows.at[index].set(walk(ahead, carry, value)[1], mode="drop")
