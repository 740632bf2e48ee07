"""Trajectories guessed without the model: where the rounds start, and what lies ahead of them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.linearize import gaussian_slopes
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, histories, walk


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
        rows = walk(table, histories(table, x_init), lambda x, row, slope: slope * x,
                    gaussian_slopes(sampler, denoiser, table))[1]
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

    def value(x: jax.Array, row: SamplerTable, _: None) -> jax.Array:
        return guess if sampler.currency == "x0" else (x - row.alpha * guess) / row.sigma

    def before(array: jax.Array, at: jax.Array, depth: int) -> jax.Array:
        return jnp.stack([array[jnp.maximum(at - j, 0)] for j in range(depth)])

    carry = (before(x, end, table.state.shape[1]),
             before(values, end - 1, table.model.shape[1]))
    index = end + jnp.arange(width, dtype=jnp.int32)
    ahead = jax.tree.map(lambda leaf: leaf[jnp.minimum(index, count - 1)], table)
    return x.at[index + 1].set(walk(ahead, carry, value)[1], mode="drop")
