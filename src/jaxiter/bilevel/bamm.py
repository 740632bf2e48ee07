"""sl-BAMM: one loop for inner problems that are convex but not strongly.

The three conditions of optimality, `grad_y inner = 0`, `grad_y outer = H v` and
`grad_x outer = cross(v)`, are followed at once on the average `mu outer + (1 - mu) inner`, whose
Hessian is regular, with mu falling slowly to 0.

Source: Liu, Liu, Yao, Zeng and Zhang, "Averaged method of multipliers for bi-level optimization
without lower-level strong convexity", 2023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import directions
from jaxiter.numerics import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class BammState(NamedTuple):
    """x, y, the multipliers v (like y), and k steps made."""

    x: PyTree
    y: PyTree
    v: PyTree
    k: jax.Array


def sl_bamm(
    outer: Callable, inner: Callable, *, rate: float = 0.1, average: float = 0.9,
    decay: float = 0.1, tau: float = 1 / 40, project: Callable | None = None,
) -> Process:
    """A single loop on x, y and v with the schedules of the source.

    mu_k = average (k+1)^-decay; y moves by `rate`, v by `rate (k+1)^(-tau/2)` and x by
    `rate (k+1)^(-3 tau/2) mu_k^3`.

    Args:
      outer, inner: `(x, y, batch) -> scalar`; outer strongly convex in y, inner convex.
      project: onto the domain of x; default none.

    Raises:
      ValueError: average outside (0, 1), rate or decay not positive.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = sl_bamm(lambda x, y, _: (x - y[1]) ** 2 / 2 + (y[0] - 1) ** 2 / 2,
    ...                  lambda x, y, _: y[0] ** 2 / 2 - x * y[0])
    >>> state = run(method, jnp.float32(0), jnp.zeros(2),
    ...             max_steps=2000, key=jax.random.key(0)).state
    >>> abs(float(state.x) - 1) < 0.02
    True
    """
    if not 0 < average < 1:
        raise ValueError(f"average must be in (0, 1), got {average}.")
    check_positive(rate=rate, decay=decay)

    def init(start: tuple, *data: Batches) -> BammState:
        x, y = start
        return BammState(x, y, trees.zeros_like(y), jnp.int32(0))

    def step(
        state: BammState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> BammState:
        x, y, v, k = state
        inner_key, outer_key = jax.random.split(key)
        a, b = inner_data.draw(inner_key), outer_data.draw(outer_key)
        age = (k + 1).astype(jnp.float32)
        mu = average * age**-decay

        def average_of_both(x: PyTree, y: PyTree, batch: tuple) -> jax.Array:
            return trees.axpy(mu, outer(x, y, b), trees.scale(1 - mu, inner(x, y, a)))

        dx, dy, dv = directions(outer, average_of_both, x, y, v, (), b)
        new_y = trees.axpy(-rate, dy, y)
        new_v = trees.axpy(-rate * age ** (-tau / 2), dv, v)
        new_x = trees.axpy(-rate * age ** (-1.5 * tau) * mu**3, dx, x)
        new_x = new_x if project is None else project(new_x)
        return BammState(new_x, new_y, new_v, k + 1)

    return Process(init, step, calls=oracle_calls(1, 1, 2))
