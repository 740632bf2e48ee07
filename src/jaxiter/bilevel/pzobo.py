"""PZOBO: hypergradients by finite differences of the inner trajectory.

Source: Sow, Ji and Liang, "On the convergence theory for Hessian-free bilevel algorithms", 2022.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxiter import trees
from jaxiter.bilevel.methods import descend, nested, oracle_calls
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


def pzobo(
    outer: Callable, inner: Callable, *, inner_rate: Any, outer_optimizer: Any,
    inner_steps: int = 10, directions: int = 10, radius: float = 1e-2,
) -> Process:
    """`grad_x outer + mean_u u <y_T(x + mu u) - y_T(x), grad_y outer> / mu` over Gaussian u.

    y_T is T steps of gradient descent from the warm y. Unbiased for the map smoothed by mu; its
    variance grows with the size of x, so this is for few outer variables and black-box y_T.

    Args:
      outer, inner: `(x, y, batch) -> scalar`.
      inner_rate: at most 1 / L. outer_optimizer: of x. directions: Gaussian directions per step.
      radius: mu; at 1e-2 float32 rounding and curvature both cost about 1e-3.

    Raises:
      ValueError: rates, steps, directions or radius not positive.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> method = pzobo(lambda x, y, _: (y - 1) ** 2 / 2, lambda x, y, _: (y - x) ** 2 / 2,
    ...                inner_rate=0.5, outer_optimizer=optax.sgd(0.1))
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=300, key=jax.random.key(0)).state
    >>> round(float(state.x), 2)
    1.0
    """
    check_positive(inner_rate=inner_rate, inner_steps=inner_steps, directions=directions,
                   radius=radius)
    descent = optax.sgd(inner_rate)

    def slope(x: PyTree, y: PyTree, before: PyTree, keys: jax.Array, *data: Batches) -> tuple:
        inner_key, outer_key, direction_key = keys
        direct, pull = jax.grad(outer, (0, 1))(x, y, data[1].draw(outer_key))

        def one(key: jax.Array) -> PyTree:
            u = optax.tree.random_like(key, x)
            end, _ = descend(inner, descent, trees.axpy(radius, u, x), before,
                             descent.init(before), data[0], inner_key, inner_steps)
            return trees.scale(trees.dot(trees.subtract(end, y), pull) / radius, u)

        slopes = jax.vmap(one)(jax.random.split(direction_key, directions))
        return trees.add(direct, trees.mean_rows(slopes)), None

    return nested(inner, descent, outer_optimizer, inner_steps, slope,
                  oracle_calls((directions + 1) * inner_steps, 1), series=False)
