"""Trajectories guessed without the model: where the rounds start, and what lies ahead of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.linearize import gaussian_slopes
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, combine, histories, push


def first_trajectory(
    sampler: Sampler, denoiser: Denoiser, table: SamplerTable, x_init: jax.Array, init: Any
) -> jax.Array:
    """The first trajectory `[R + 1, ...]`."""
    count = sampler.rows
    copy = jnp.broadcast_to(x_init, (count + 1, *x_init.shape))
    if isinstance(init, str):
        if init not in ("auto", "copy"):
            raise ValueError(f"init must be 'auto', 'copy' or states, got {init!r}.")
        if init == "copy" or not sampler.stochastic:
            return copy
        slopes = gaussian_slopes(sampler, denoiser, table)

        def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
            (states, values), (row, slope) = carry, at
            values = push(values, slope * states[0])
            new = combine(row, states, values)
            return (push(states, new), values), new

        rows = lax.scan(step, histories(table, x_init), (table, slopes))[1]
        return jnp.concatenate([x_init[None], rows])
    init = jnp.asarray(init, x_init.dtype)
    if init.shape != copy.shape:
        raise ValueError(f"init must have one state per row and the start: {copy.shape}, got "
                         f"{init.shape}.")
    return init.at[0].set(x_init)


def roll_out(
    sampler: Sampler, table: SamplerTable, x: jax.Array, values: jax.Array, end: jax.Array,
    width: int,
) -> jax.Array:
    """States after row `end`, as if the newest guess of the data were right."""
    count = values.shape[0]
    last = jax.tree.map(lambda leaf: leaf[end - 1], table)
    newest, at = values[end - 1], x[end - 1]
    guess = newest if sampler.currency == "x0" else (at - last.sigma * newest) / last.alpha

    def step(carry: tuple, t: jax.Array) -> tuple[tuple, jax.Array]:
        states, values = carry
        row = jax.tree.map(lambda leaf: leaf[jnp.minimum(t, count - 1)], table)
        value = guess
        if sampler.currency == "eps":
            value = (states[0] - row.alpha * guess) / row.sigma
        values = push(values, value)
        new = combine(row, states, values)
        return (push(states, new), values), new

    def before(array: jax.Array, at: jax.Array, depth: int) -> jax.Array:
        return jnp.stack([array[jnp.maximum(at - j, 0)] for j in range(depth)])

    carry = (before(x, end, table.state.shape[1]),
             before(values, end - 1, table.model.shape[1]))
    index = end + jnp.arange(width, dtype=jnp.int32)
    rows = lax.scan(step, carry, index)[1]
    return x.at[index + 1].set(rows, mode="drop")
