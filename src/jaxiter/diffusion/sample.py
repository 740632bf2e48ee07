"""Samples by the loop: the reference that every parallel solve must reproduce."""

import jax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import begin, evaluate, histories, walk
from jaxiter.reuse import reused


@reused
def sample(
    sampler: Sampler, denoiser: Denoiser, x_init: jax.Array, key: jax.Array | None = None, *,
    noise: jax.Array | None = None, trajectory: bool = False,
) -> jax.Array:
    """One sample of a diffusion or flow model by the loop; `vmap` over x_init and keys for a batch.

    R model calls, one after the other; `sample_parallel` gives the same in a few batched rounds.

    Args:
      sampler: rows such as `ddim(linear_beta_schedule(50))`.
      denoiser: a `Denoiser`; its function may close over parameters.
      x_init: the state at the first row, of any shape; usually sigma[0] times a normal.
      key: for samplers that add noise.
      noise: `[R, ...]` instead of a key.
      trajectory: return all R + 1 states instead of the last.

    Returns:
      The sample, or the states `[R + 1, ...]`. Differentiable: the loop is checkpointed.

    >>> import jax.numpy as jnp
    >>> from jaxiter.diffusion import Denoiser, ddim, vp_schedule
    >>> gaussian = Denoiser(lambda x, t: jnp.zeros_like(x), "x0")
    >>> sample(ddim(vp_schedule(20)), gaussian, jnp.ones(2)).shape
    (2,)
    """
    x_init, table = begin(sampler, denoiser, x_init, key, noise)
    (states, _), rows = walk(table, histories(table, x_init),
                             lambda x, row, _: evaluate(sampler, denoiser, x, row))
    return trees.prepend(x_init, rows) if trajectory else states[0]
