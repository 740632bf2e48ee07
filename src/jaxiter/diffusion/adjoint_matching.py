"""Fine-tuning a flow towards a reward by regression on adjoints.

Under the memoryless noise, samples of the optimally controlled process follow
`p_base(x) exp(r(x))`; the control is learnt by regression on an adjoint that is solved backwards
along samples of the current model with the base model's drift only.

With x_t = t x_1 + (1 - t) x_0, velocity v(x, t) and step h the noise is
c(t)^2 = 2 (1 - t + h) / (t + h) and the drift 2 v - x / (t + h).

Source: Domingo-Enrich, Drozdzal, Karrer and Chen, "Adjoint matching: fine-tuning flow and
diffusion generative models with memoryless stochastic optimal control", 2024.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.known import check_count
from jaxiter.numerics import stop_gradient


def _times(steps: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Times `[N]` of the steps and the noise c(t) there."""
    h = 1 / steps
    t = h * jnp.arange(steps, dtype=dtype)
    return t, jnp.sqrt(2 * (1 - t + h) / (t + h))


def _drift(velocity: Callable, x: jax.Array, t: jax.Array, h: float) -> jax.Array:
    return 2 * velocity(x, t) - x / (t + h)


def memoryless_path(velocity: Callable, x_init: jax.Array, key: jax.Array, steps: int) -> jax.Array:
    """States `[N + 1, ...]` of one sample of the memoryless process, from noise to data.

    >>> memoryless_path(lambda x, t: -x, jnp.ones(2), jax.random.key(0), 5).shape
    (6, 2)
    """
    check_count(steps=steps)
    h = 1 / steps
    noise = jax.random.normal(key, (steps, *x_init.shape), x_init.dtype)

    def step(x: jax.Array, at: tuple) -> jax.Array:
        t, c, z = at
        return x + h * _drift(velocity, x, t, h) + h**0.5 * c * z

    return trees.prepend(
        x_init, trees.iterates(step, x_init, (*_times(steps, x_init.dtype), noise)))


def lean_adjoint(base: Callable, path: jax.Array, reward: Callable) -> jax.Array:
    """Adjoints `[N, ...]` at the path's states 0..N-1: `-grad r`, pulled back by the base drift.

    Args:
      base: velocity of the base model. path: `[N + 1, ...]`. reward: `reward(x) -> scalar`.
    """
    steps = path.shape[0] - 1
    h = 1 / steps

    def step(adjoint: jax.Array, at: tuple) -> jax.Array:
        x, t = at
        return adjoint + h * jax.vjp(lambda x: _drift(base, x, t, h), x)[1](adjoint)[0]

    end = -jax.grad(reward)(path[-1])
    times, _ = _times(steps, path.dtype)
    return trees.iterates(step, end, (path[:-1], times), reverse=True)


def adjoint_matching_loss(
    velocity: Callable, base: Callable, path: jax.Array, adjoint: jax.Array,
    chosen: jax.Array | None = None,
) -> jax.Array:
    """`sum_t h |u + c a|^2 / 2` of one path, u = 2 (v - v_base) / c, by the velocity alone.

    Args:
      velocity, base: of the model to tune and the base model.
      path: `memoryless_path` of the model to tune. adjoint: `lean_adjoint` of that path.
      chosen: indices of the steps that count; default all. Paths are cheap, losses are not:
        the authors take four of fifty.

    >>> velocity = lambda x, t: -x
    >>> path = memoryless_path(velocity, jnp.ones(2), jax.random.key(0), 4)
    >>> float(adjoint_matching_loss(velocity, velocity, path, jnp.zeros((4, 2))))
    0.0
    """
    steps = path.shape[0] - 1
    path, adjoint = stop_gradient((path, adjoint))
    rows = (path[:-1], adjoint, *_times(steps, path.dtype))
    if chosen is not None:
        rows = trees.at(rows, chosen)

    def one(x: jax.Array, a: jax.Array, t: jax.Array, c: jax.Array) -> jax.Array:
        control = 2 * (velocity(x, t) - lax.stop_gradient(base(x, t))) / c
        return jnp.sum(jnp.square(control + c * a)) / 2

    return jnp.sum(jax.vmap(one)(*rows)) / steps
