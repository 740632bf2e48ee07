"""A sampler's rows as arrays: their algebra, shared by the loop, the rounds and their adjoints."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import Sampler
from jaxiter.known import check_floating
from jaxiter.numerics import HIGHEST, anchor, typed_by
from jaxiter.recurrence.rounds import back

PyTree = Any


class SamplerTable(NamedTuple):
    """A sampler's rows as arrays of the sample's dtype, leading axis R; z is the noise drawn."""

    state: jax.Array
    model: jax.Array
    noise: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    time: jax.Array
    scale: jax.Array
    z: jax.Array


def tabulate(
    sampler: Sampler, x_init: jax.Array, key: jax.Array | None, noise: jax.Array | None
) -> SamplerTable:
    """Cast coefficients and all noise, drawn before any loop: row t from `fold_in(key, t)`.

    Raises:
      ValueError: a stochastic sampler without key or noise, or noise of another length.
    """
    count = sampler.rows
    if noise is not None:
        if noise.shape != (count, *x_init.shape):
            raise ValueError(f"noise must have one row for each of the {count} steps: expected "
                             f"{(count, *x_init.shape)}, got {noise.shape}.")
    elif sampler.stochastic:
        if key is None:
            raise ValueError("this sampler adds noise: pass a key.")
        noise = jax.vmap(lambda t: jax.random.normal(
            jax.random.fold_in(key, t), x_init.shape, x_init.dtype))(jnp.arange(count))
    else:
        noise = jnp.zeros((count, *(1,) * x_init.ndim), x_init.dtype)
    arrays = (jnp.asarray(table, x_init.dtype) for table in sampler[:-1])
    return SamplerTable(*arrays, z=noise)


def begin(
    sampler: Sampler, denoiser: Denoiser, x_init: Any, key: jax.Array | None,
    noise: jax.Array | None,
) -> tuple[jax.Array, SamplerTable]:
    """x_init, which varies over a mesh where the model's parameters or the noise do; the table.

    Raises:
      TypeError: a schedule instead of a sampler, a function instead of a denoiser, integers.
      ValueError: as `tabulate`.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError("sampler must be rows such as ddim(schedule), got "
                        f"{type(sampler).__name__}.")
    if not isinstance(denoiser, Denoiser):
        raise TypeError("denoiser must say what the model predicts: wrap it as Denoiser(fn, "
                        f"'eps'), got {type(denoiser).__name__}.")
    x = jnp.asarray(x_init)
    check_floating(x_init=x)
    table = tabulate(sampler, x, key, noise)
    model = partial(evaluate, sampler, denoiser)
    return typed_by(model, (x, trees.first(table)), x), table


def evaluate(sampler: Sampler, denoiser: Denoiser, x: jax.Array, row: SamplerTable) -> jax.Array:
    """The model at one row, in the sampler's currency."""
    eps, x0 = denoiser.convert(x, row.alpha, row.sigma, row.time)
    return eps if sampler.currency == "eps" else x0


def combine(row: SamplerTable, states: jax.Array, values: jax.Array) -> jax.Array:
    """One row: states `[S, ...]` and values `[V, ...]`, the newest first."""
    out = jnp.tensordot(row.state, states, 1, precision=HIGHEST)
    out = out + jnp.tensordot(row.model, values, 1, precision=HIGHEST)
    return out + row.noise * row.z


def combine_all(table: SamplerTable, states: jax.Array, values: jax.Array) -> jax.Array:
    """What every row shows, `[R, ...]`, for states X[0..R-1] and the model's values there."""
    return jax.vmap(combine)(table, back(states, table.state.shape[1]),
                             back(values, table.model.shape[1]))


def weighted(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """`sum_j weights[t, j] rows[t - j]` for every row t, `[R, ...]`."""
    return jax.vmap(lambda w, r: jnp.tensordot(w, r, 1, precision=HIGHEST))(
        weights, back(rows, weights.shape[1]))


def walk(
    table: SamplerTable, start: tuple, value: Callable, more: PyTree = None
) -> tuple[tuple, jax.Array]:
    """The rows one after the other, from histories: the last of these, and all new states.

    value: `value(state, row, more) -> model's value`, more a row of the tree given. Checkpointed.
    """
    @jax.checkpoint
    def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        (states, values), (row, more) = carry, at
        values = trees.before(values, value(states[0], row, more))
        new = combine(row, states, values)
        return (trees.before(states, new), values), new

    return lax.scan(step, start, (table, more))


def histories(table: SamplerTable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States and values before the first row."""
    states, values = table.state.shape[1], table.model.shape[1]
    return (trees.before(jnp.zeros((states, *x.shape), x.dtype), x),
            anchor(jnp.zeros((values, *x.shape), x.dtype), x))


def widen(table: jax.Array, reach: int) -> jax.Array:
    """The table `[R, K]` with columns of zeros up to `reach`."""
    return jnp.pad(table, ((0, 0), (0, reach - table.shape[1])))


def linear_rows(answer: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`D[t+1] = L[t] + r[t]` with `L[t] = sum_j answer[t, j] D[t-j]` and D[0] = 0.

    Returns L[0..W-1] and D[1..W], `[W, ...]`. A plain loop: it is cheap beside the model.
    """
    def step(history: jax.Array, at: tuple) -> tuple[jax.Array, tuple]:
        answer, residual = at
        lift = jnp.tensordot(answer, history, 1, precision=HIGHEST)
        return trees.before(history, lift + residual), (lift, lift + residual)

    empty = jnp.zeros((answer.shape[1], *residual.shape[1:]), residual.dtype)
    return lax.scan(step, anchor(empty, (answer, residual)), (answer, residual))[1]
