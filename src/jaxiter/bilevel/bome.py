"""BOME: bilevel optimisation made easy, a value-function method with gradients only.

Source: Liu, Ye, Wright, Stone and Liu, "BOME! Bilevel optimization made easy: a simple
first-order approach", 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.bilevel.methods import both, descend, oracle_calls
from jaxiter.known import check_positive
from jaxiter.numerics import safe_divide
from jaxiter.process import Batches, Process

PyTree = Any


class BomeState(NamedTuple):
    """x, y, and the multiplier of the last step."""

    x: PyTree
    y: PyTree
    multiplier: jax.Array


def bome(
    outer: Callable, inner: Callable, *, rate: Any, inner_rate: Any, inner_steps: int = 10,
    strength: float = 0.5,
) -> Process:
    """Descends outer in (x, y) while `inner(x, y) - min inner(x, .)` keeps falling.

    q is the gradient of that gap, with the minimum replaced by T steps from y. The step is
    `grad outer + lam q` with the least lam >= 0 for which q still falls by `strength |q|^2`.

    Args:
      outer, inner: `(x, y, batch) -> scalar`; made for batches of all rows.
      rate: of (x, y). inner_rate: of the T steps, at most 1 / L. strength: eta in (0, 1).

    Raises:
      ValueError: rates, steps or strength not positive.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = bome(lambda x, y, _: (y - 1) ** 2 / 2, lambda x, y, _: (y - x) ** 2 / 2,
    ...               rate=0.1, inner_rate=0.5)
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=500, key=jax.random.key(0)).state
    >>> round(float(state.x), 2)
    1.0
    """
    check_positive(rate=rate, inner_rate=inner_rate, inner_steps=inner_steps, strength=strength)

    def init(start: tuple, *data: Batches) -> BomeState:
        return BomeState(*start, multiplier=jnp.float32(0))

    descent = optax.sgd(inner_rate)

    def step(state: BomeState, key: jax.Array, *data: Batches) -> BomeState:
        x, y, _ = state
        a, b = both(*data).draw(key)
        best, _ = descend(inner, descent, x, y, descent.init(y), Batches(a), key, inner_steps)
        down_x, down_y = jax.grad(inner, (0, 1))(x, y, a)
        q = (trees.subtract(down_x, jax.grad(inner, 0)(x, best, a)), down_y)
        up = jax.grad(outer, (0, 1))(x, y, b)
        square = trees.squared_norm(q)
        # At an inner solution q = 0: there is nothing to restore, and no division by it.
        lam = safe_divide(jnp.maximum(strength * square - trees.dot(up, q), 0), square)
        x, y = trees.axpy(-rate, trees.axpy(lam, q, up), (x, y))
        return BomeState(x, y, lam.astype(jnp.float32))

    return Process(init, step, calls=oracle_calls(inner_steps + 2, 1))
