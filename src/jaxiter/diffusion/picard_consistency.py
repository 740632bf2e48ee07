"""Picard consistency: a model tuned so that one Picard round lands near the final trajectory.

Training regresses the tuned model's Picard map of early iterates on the fixed point of the base
model; sampling starts with the tuned map, fades to the base model and ends as an
ordinary parallel solve, so the answer is the base model's own sample.

Source: So, Shin, Jang and Park, "PCM: Picard consistency model for fast parallel sampling of
diffusion models", 2025.
"""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.parallel import ParallelSample, sample_parallel
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, combine_all, evaluate, tabulate
from jaxiter.known import check_count
from jaxiter.numerics import stop_gradient
from jaxiter.options import SolveOptions
from jaxiter.recurrence.methods import RowMethod


class SamplingOptions(SolveOptions, total=False):
    """What is passed on to `sample_parallel`."""

    method: str | RowMethod
    window: int | None
    tolerance: Any
    slopes: jax.Array | None
    mesh: Mesh | None


def picard_map(
    sampler: Sampler, denoiser: Denoiser, trajectory: jax.Array, table: SamplerTable
) -> jax.Array:
    """One Picard round on all states `[R + 1, ...]`: increments at the old states, summed up.

    table: `tabulate(sampler, x_init, key, noise)`, with the noise drawn.
    """
    states = trajectory[:-1]
    values = jax.vmap(partial(evaluate, sampler, denoiser))(states, table)
    out = combine_all(table, states, values)
    rows = states[:1] + jnp.cumsum(out - states, axis=0)
    return trees.prepend(trajectory[0], rows)


def picard_iterates(
    sampler: Sampler, denoiser: Denoiser, x_init: jax.Array, key: jax.Array | None = None, *,
    max_steps: int, noise: jax.Array | None = None,
) -> jax.Array:
    """Training data: the base model's Picard iterates `[max_steps + 1, R + 1, ...]` from copies.

    All rounds are made, and the last one stands for the fixed point: take as many as
    `sample_parallel` with `method="picard"` needs.
    """
    check_count(max_steps=max_steps)
    table = tabulate(sampler, x_init, key, noise)
    start = jnp.broadcast_to(x_init, (sampler.rows + 1, *x_init.shape))

    rounds = trees.iterates(
        lambda x, _: picard_map(sampler, denoiser, x, table), start, length=max_steps)
    return trees.prepend(start, rounds)


def picard_consistency_loss(
    sampler: Sampler, denoiser: Denoiser, iterates: jax.Array, k: jax.Array,
    key: jax.Array | None = None, *, noise: jax.Array | None = None,
    gaps: jax.Array | None = None, cap: float = 20.0,
) -> jax.Array:
    """`weight_k mean |X* - Phi(X^k)|^2` of one trajectory; no derivative through rounds.

    Args:
      denoiser: the model in training. iterates: `picard_iterates` of the base model.
      k: which iterate, an integer scalar below the number of rounds; draw it at random.
      key, noise: those of the iterates.
      gaps: `[max_steps]`, mean squared gaps of the iterates over the data set; default this one's.
        The weight is 1 / sqrt(gap), in units of the first and at most `cap`: iterates that have
        converged would rule otherwise, and training would do nothing.

    >>> import jax.numpy as jnp
    >>> from jaxiter.diffusion import Denoiser, ddim, linear_beta_schedule
    >>> s, m = ddim(linear_beta_schedule(5)), Denoiser(lambda x, t: 0.1 * x)
    >>> x = picard_iterates(s, m, jnp.ones(2), max_steps=5)
    >>> bool(picard_consistency_loss(s, m, x, jnp.int32(4)) < 1e-6)
    True
    """
    iterates = stop_gradient(iterates)
    final = iterates[-1]
    if gaps is None:
        gaps = jnp.mean(jnp.square(iterates[:-1] - final).reshape(len(iterates) - 1, -1), axis=1)
    weight = jnp.minimum(jnp.sqrt(gaps[0] / jnp.maximum(gaps[k], gaps[0] / cap**2)), cap)
    table = tabulate(sampler, iterates[0, 0], key, noise)
    guess = picard_map(sampler, denoiser, iterates[k], table)
    return weight * jnp.mean(jnp.square(final - guess))


def sample_switching(
    sampler: Sampler, base: Denoiser, tuned: Denoiser, x_init: jax.Array,
    key: jax.Array | None = None, *, tuned_steps: int = 4, stiffness: float = 1.0,
    noise: jax.Array | None = None, allow_inexact: bool = False,
    **options: Unpack[SamplingOptions],
) -> ParallelSample:
    """The base model's sample, started by rounds of the tuned model.

    Args:
      tuned_steps: K, rounds before the solve; round k blends the Picard maps with weight
        `clip(1 - stiffness k / K, 0, 1)` on the tuned one, two calls a round.
      stiffness: at least 1, or the tuned model never leaves; `allow_inexact` permits it and
        returns the blended trajectory without the exact solve.
      **options: method, window, tolerance, slopes, mesh and the options of a solve as in
        `sample_parallel`, which finishes with the base model.

    Returns:
      A `ParallelSample`. Its rounds and calls count the solve with the base model; the K
      rounds before cost 2 K R model calls more.
    """
    if not stiffness >= 1 and not allow_inexact:
        raise ValueError(f"stiffness must be at least 1, got {stiffness}: the tuned model would "
                         "never be left; allow_inexact=True accepts that.")
    table = tabulate(sampler, x_init, key, noise)
    start = jnp.broadcast_to(x_init, (sampler.rows + 1, *x_init.shape))

    def step(x: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        weight = jnp.clip(1 - stiffness * k.astype(x.dtype) / tuned_steps, 0, 1)
        new, old = (picard_map(sampler, model, x, table) for model in (tuned, base))
        return weight * new + (1 - weight) * old, None

    x, _ = lax.scan(step, start, jnp.arange(tuned_steps, dtype=jnp.int32))
    if allow_inexact and stiffness < 1:
        options["max_steps"] = 0
    return sample_parallel(sampler, base, x_init, key, init=x, noise=noise, **options)
