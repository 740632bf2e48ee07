"""ProxyProx: few gradients of a dear objective, many of a cheap proxy.

Each step minimises the proxy, corrected by one dear gradient, near the last point:
`proxy(x) + <grad F(x_t) - grad proxy(x_t), x> + |x - x_t|^2 / (2 rate)`. With
`1 / rate >= delta`, delta the smoothness of F - proxy, this majorises F up to a constant, so F
falls: `min |grad F|^2 <= 8 delta (F_0 - F*) / T`, whatever the smoothness of F itself.

Source: Woodworth, Mishchenko and Bach, "Two losses are better than one: faster optimization
using a cheaper proxy", 2023. The inner stopping rule is ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.inner import solve_inner
from jaxiter.known import check_positive
from jaxiter.options import SolveOptions, choose
from jaxiter.process import Batches, Process

PyTree = Any

NO_DATA = Batches(None)


class ProxyState(NamedTuple):
    """x, the current rate, and the status of the last inner solve."""

    x: PyTree
    rate: jax.Array
    status: jax.Array


def proxy_prox(
    gradient: Callable, proxy: Callable, *, rate: float, **options: Unpack[SolveOptions],
) -> Process:
    """A `Process` from x0 whose steps take one dear gradient each; `Batches` are its only arg.

    Args:
      gradient: `(x, batch) -> grad F`, dear; may be stochastic.
      proxy: `x -> scalar`, cheap. rate: 1 / delta.
      **options: of `solve_inner`, which minimises the surrogate from x; no monitor and no resume:
        every step has an inner problem of its own.

    Where the inner solve makes the surrogate rise, x stays and the rate is halved.

    Raises:
      ValueError: rate not positive, a monitor, a resume.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter import iterate
    >>> process = proxy_prox(lambda x, _: x - 1.0, lambda x: jnp.sum(x**2) / 2, rate=1.0)
    >>> out = iterate(process, jnp.zeros(2), key=jax.random.key(0), max_steps=30)
    >>> [round(float(v), 3) for v in out.value.x], int(out.calls["gradients"])
    ([1.0, 1.0], 30)
    """
    check_positive(rate=rate)
    own = "each step solves an inner problem of its own; watch and resume `iterate`"
    chosen = choose("proxy_prox", options, {"monitor": own, "resume": own}, solver=None,
                    adjoint=None)

    def init(x: PyTree, *data: Batches) -> ProxyState:
        return ProxyState(x, jnp.float32(rate), jnp.int32(0))

    def surrogate(at: tuple, x: PyTree) -> jax.Array:
        start, tilt, rate = at
        away = trees.subtract(x, start)
        return proxy(x) + trees.dot(tilt, away) + trees.squared_norm(away) / (2 * rate)

    def step(state: ProxyState, key: jax.Array, data: Batches = NO_DATA) -> ProxyState:
        x, rate, _ = state
        tilt = trees.subtract(gradient(x, data.draw(key)), jax.grad(proxy)(x))
        at = (x, tilt, rate)
        inner = solve_inner(surrogate, x, at, **chosen._asdict())
        falls = surrogate(at, inner.value) <= surrogate(at, x)
        return ProxyState(trees.where(falls, inner.value, x), jnp.where(falls, rate, rate / 2),
                          inner.status)

    return Process(init, step, calls={"gradients": 1})
