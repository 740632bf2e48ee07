"""sl-BAMM: one loop for inner problems that are convex but not strongly.

The three conditions of optimality, `grad_y inner = 0`, `grad_y outer = H v` and
`grad_x outer = cross(v)`, are followed at once on the average `mu outer + (1 - mu) inner`, whose
Hessian is regular, with mu falling slowly to 0.

Source: Liu, Liu, Yao, Zeng and Zhang, "Averaged method of multipliers for bi-level optimization
without lower-level strong convexity", 2023.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import product_pair, three_directions
from jaxiter.bilevel.single_loop import moving_together
from jaxiter.estimators import Estimator, Oracle
from jaxiter.numerics import check_positive
from jaxiter.process import Process

PyTree = Any


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

    def age(k: Any) -> jax.Array:
        return (k + 1).astype(jnp.float32)

    def update(oracle: Oracle, point: tuple, k: jax.Array, key: jax.Array) -> tuple:
        a, b = oracle.draw(key)
        mu = average * age(k) ** -decay

        def average_of_both(x: PyTree, y: PyTree, _: None) -> jax.Array:
            return trees.axpy(mu, outer(x, y, b), trees.scale(1 - mu, inner(x, y, a)))

        x, y, v = point
        return three_directions(product_pair(average_of_both, x, y, v, None),
                                jax.grad(outer, (0, 1))(x, y, b)), k + 1

    def slow(k: Any) -> jax.Array:
        return rate * age(k) ** (-1.5 * tau) * (average * age(k) ** -decay) ** 3

    def keep(point: tuple) -> tuple:
        x, y, v = point
        return (x if project is None else project(x)), y, v

    optimizers = (optax.sgd(slow), optax.sgd(rate),
                  optax.sgd(lambda k: rate * age(k) ** (-tau / 2)))
    averaged = Estimator(lambda oracle, point: jnp.int32(0), update, lambda *_: ())
    return moving_together(
        optimizers, averaged, lambda point, *data: Oracle((), data),
        lambda: oracle_calls(1, 1, 2), keep=keep)
