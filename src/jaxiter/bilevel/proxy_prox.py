"""ProxyProx: few gradients of a dear objective, many of a cheap proxy.

Each step minimises the proxy, corrected by one dear gradient, near the last point:
`proxy(x) + <grad F(x_t) - grad proxy(x_t), x> + |x - x_t|^2 / (2 rate)`. With
`1 / rate >= delta`, delta the smoothness of F - proxy, this majorises F up to a constant, so F
falls: `min |grad F|^2 <= 8 delta (F_0 - F*) / T`, whatever the smoothness of F itself.

Source: Woodworth, Mishchenko and Bach, "Two losses are better than one: faster optimization
using a cheaper proxy", 2023. The inner stopping rule is ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.inner import solve_inner
from jaxiter.numerics import check_positive

PyTree = Any


class ProxyState(NamedTuple):
    """x, the current rate, the status of the last inner solve, and dear gradients so far."""

    x: PyTree
    rate: jax.Array
    status: jax.Array
    gradients: jax.Array


def proxy_prox(
    gradient: Callable, proxy: Callable, *, rate: float, max_steps: int = 1000, **keywords: Any,
) -> tuple[Callable, Callable]:
    """`init(x)` and `step(state, batch=None)`, which takes one dear gradient.

    Args:
      gradient: `(x, batch) -> grad F`, dear; may be stochastic.
      proxy: `x -> scalar`, cheap. rate: 1 / delta.
      max_steps, **keywords: of `solve_inner`, which minimises the surrogate from x.

    Where the inner solve makes the surrogate rise, x stays and the rate is halved.

    Raises:
      ValueError: rate not positive.

    >>> import jax, jax.numpy as jnp
    >>> init, step = proxy_prox(lambda x, _: x - 1.0, lambda x: jnp.sum(x**2) / 2, rate=1.0)
    >>> state = init(jnp.zeros(2))
    >>> step = jax.jit(step)
    >>> for _ in range(30):
    ...     state = step(state)
    >>> [round(float(v), 3) for v in state.x]
    [1.0, 1.0]
    """
    check_positive(rate=rate)

    def init(x: PyTree) -> ProxyState:
        return ProxyState(x, jnp.float32(rate), jnp.int32(0), jnp.int32(0))

    def surrogate(at: tuple, x: PyTree) -> jax.Array:
        start, tilt, rate = at
        away = trees.subtract(x, start)
        return proxy(x) + trees.dot(tilt, away) + trees.squared_norm(away) / (2 * rate)

    def step(state: ProxyState, batch: PyTree = None) -> ProxyState:
        x, rate, _, count = state
        tilt = trees.subtract(gradient(x, batch), jax.grad(proxy)(x))
        at = (x, tilt, rate)
        inner = solve_inner(surrogate, x, at, max_steps=max_steps, **keywords)
        falls = surrogate(at, inner.value) <= surrogate(at, x)
        return ProxyState(trees.where(falls, inner.value, x), jnp.where(falls, rate, rate / 2),
                          inner.status, count + 1)

    return init, step
