"""SRBA: SOBA with recursive directions (SARAH), refreshed on all rows now and then.

Source: Dagreou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for bilevel
empirical risk minimization", 2023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import directions, joint_optimizer, move
from jaxiter.numerics import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class SrbaState(NamedTuple):
    """x, y, v and their optimizers; the point before, the directions there, and k steps made."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimizers: PyTree
    before: tuple
    estimates: tuple
    k: jax.Array


def srba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None, period: float = 0.5,
    radius: float = jnp.inf,
) -> Process:
    """Linear convergence with constant rates, without SABA's tables.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, means over the rows of the batch.
      inner_optimizer, outer_optimizer, linear_optimizer: of y, x and v; v's default is y's.
      period: passes over all rows between two refreshes.
      radius: v is kept in a ball of this radius; above |grad_y outer| / mu it changes nothing.

    Calls are in batches: a refresh counts as many as the rows fill.

    Raises:
      ValueError: period or radius not positive.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> data = jnp.arange(8.0)
    >>> method = srba(lambda x, y, b: jnp.mean((y - b) ** 2),
    ...               lambda x, y, b: jnp.mean((y - x - b) ** 2),
    ...               inner_optimizer=optax.sgd(0.2), outer_optimizer=optax.sgd(0.05))
    >>> state = run(method, jnp.float32(1), jnp.float32(0), data, data,
    ...             max_steps=600, batch_size=2, key=jax.random.key(0)).state
    >>> abs(float(state.x)) < 1e-3
    True
    """
    check_positive(period=period, radius=radius)
    optimizer = joint_optimizer(outer_optimizer, inner_optimizer, linear_optimizer)

    def size_of(inner_data: Batches, outer_data: Batches) -> int:
        every = max(inner_data.rows, outer_data.rows)
        return every if inner_data.size is None else inner_data.size

    def due(state: SrbaState, inner_data: Batches, outer_data: Batches) -> jax.Array:
        rows, size = inner_data.rows + outer_data.rows, size_of(inner_data, outer_data)
        return state.k % max(1, int(period * rows / size)) == 0

    def init(start: tuple, *data: Batches) -> SrbaState:
        x, y = start
        v = trees.zeros_like(y)
        point = (x, y, v)
        return SrbaState(*point, optimizer.init(point), point, trees.zeros_like(point),
                         jnp.int32(0))

    def step(
        state: SrbaState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> SrbaState:
        x, y, v, optimizers, before, estimates, k = state
        inner_key, outer_key = jax.random.split(key)

        def everything() -> tuple:
            return directions(outer, inner, x, y, v, inner_data.data, outer_data.data)

        def recursive() -> tuple:
            a, b = inner_data.draw(inner_key), outer_data.draw(outer_key)
            x_old, y_old, v_old = before
            change = trees.subtract(directions(outer, inner, x, y, v, a, b),
                                    directions(outer, inner, x_old, y_old, v_old, a, b))
            return trees.add(estimates, change)

        estimates = lax.cond(due(state, inner_data, outer_data), everything, recursive)
        point = (x, y, v)
        (x, y, v), optimizers = move(optimizer, estimates, optimizers, point)
        v = trees.into_ball(radius, v)
        return SrbaState(x, y, v, optimizers, point, estimates, k + 1)

    def calls(
        state: SrbaState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> dict[str, Any]:
        refresh = due(state, inner_data, outer_data)
        inner, outer = (jnp.where(refresh, -(-part.rows // size_of(inner_data, outer_data)), 2)
                        for part in (inner_data, outer_data))
        return oracle_calls(inner, outer, inner)

    return Process(init, step, calls=calls)
