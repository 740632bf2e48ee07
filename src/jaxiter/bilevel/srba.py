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
from jaxiter.bilevel.hypergradient import OracleCount
from jaxiter.bilevel.methods import (
    Batches,
    Method,
    add_counts,
    coupled,
    directions,
    move,
    no_counts,
    rows_of,
)
from jaxiter.numerics import check_positive

PyTree = Any


class SrbaState(NamedTuple):
    """x, y, v and their optimisers; the point before, the directions there, and k steps made."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimisers: PyTree
    before: tuple
    estimates: tuple
    k: jax.Array
    counts: OracleCount


def srba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None, period: float = 0.5,
    radius: float = jnp.inf,
) -> Method:
    """Linear convergence with constant rates, without SABA's tables.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, means over the rows of the batch.
      inner_optimizer, outer_optimizer, linear_optimizer: of y, x and v; v's default is y's.
      period: passes over all rows between two refreshes.
      radius: v is kept in a ball of this radius; above |grad_y outer| / mu it changes nothing.

    Counts are in batches: a refresh counts as many as the rows fill.

    Raises:
      ValueError: period or radius not positive.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> data = jnp.arange(8.0)
    >>> method = srba(lambda x, y, b: jnp.mean((y - b) ** 2),
    ...               lambda x, y, b: jnp.mean((y - x - b) ** 2),
    ...               inner_optimizer=optax.sgd(0.2), outer_optimizer=optax.sgd(0.05))
    >>> state, _ = run(method, method.init(jnp.float32(1), jnp.float32(0)), data, data,
    ...                num_steps=600, batch_size=2, key=jax.random.key(0))
    >>> abs(float(state.x)) < 1e-3
    True
    """
    check_positive(period=period, radius=radius)
    optimizer = coupled(outer_optimizer, inner_optimizer, linear_optimizer)

    def init(x: PyTree, y: PyTree) -> SrbaState:
        v = trees.zeros_like(y)
        point = (x, y, v)
        return SrbaState(*point, optimizer.init(point), point, trees.zeros_like(point),
                         jnp.int32(0), no_counts())

    def step(state: SrbaState, batches: Batches, key: jax.Array) -> SrbaState:
        x, y, v, optimisers, before, estimates, k, counts = state
        n, m = rows_of(batches.inner_data), rows_of(batches.outer_data)
        size = max(n, m) if batches.size is None else batches.size
        refresh = k % max(1, int(period * (n + m) / size)) == 0
        first, second = jax.random.split(key)

        def everything() -> tuple:
            return directions(outer, inner, x, y, v, batches.inner_data, batches.outer_data)

        def recursive() -> tuple:
            a, b = batches.inner(first), batches.outer(second)
            x_old, y_old, v_old = before
            change = trees.subtract(directions(outer, inner, x, y, v, a, b),
                                    directions(outer, inner, x_old, y_old, v_old, a, b))
            return trees.add(estimates, change)

        estimates = lax.cond(refresh, everything, recursive)
        point = (x, y, v)
        (x, y, v), optimisers = move(optimizer, estimates, optimisers, point)
        v = trees.into_ball(radius, v)
        whole = (-(-n // size), -(-m // size), -(-n // size))
        counts = add_counts(counts, *(jnp.where(refresh, part, 2) for part in whole))
        return SrbaState(x, y, v, optimisers, point, estimates, k + 1, counts)

    return Method(init, step)
