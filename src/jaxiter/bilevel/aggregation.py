"""Inner problems with many solutions: descent that listens to both objectives (BDA).

Differentiating descent on the inner objective alone picks the inner solution nearest to the
start, and its hypergradient leads to a wrong x. A vanishing share of the outer objective
in every inner step picks the inner solution that is best for it.

Source: Liu, Mu, Yuan, Zeng and Zhang, "A generic first-order algorithmic framework for bi-level
programming beyond lower-level singleton", 2020.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees

PyTree = Any


def aggregated_descent(
    outer: Callable, inner: Callable, *, inner_rate: Any, outer_rate: Any, weight: float = 1.0,
    project: Callable | None = None,
) -> Callable:
    """An inner map for `unrolled_hypergradient`: `step(x, (y, t)) -> (y', t + 1)`.

    `y' = P(y - a_t outer_rate grad_y outer - (1 - a_t) inner_rate grad_y inner)` with
    `a_t = min(weight / (t + 1), 0.99)`, which vanishes and has an infinite sum, as the theory asks.

    Args:
      outer, inner: scalars of (x, y), convex in y. inner_rate: at most 1 / L of inner; half of it
        is safe. outer_rate: about 1 / L of outer. weight: positive; small ones need many steps.
      project: onto the domain of y; default none.

    Start with `(y0, 0)` and read y with `readout=lambda state: state[0]`.

    >>> import jax.numpy as jnp
    >>> step = aggregated_descent(lambda x, y: (y - x) ** 2, lambda x, y: 0 * y,
    ...                           inner_rate=0.5, outer_rate=0.5)
    >>> round(float(step(jnp.float32(3.0), (jnp.float32(0.0), jnp.int32(0)))[0]), 2)
    2.97
    """
    if not weight > 0:
        raise ValueError(f"weight must be positive, got {weight}.")

    def step(x: PyTree, state: tuple) -> tuple:
        y, t = state
        up, down = jax.grad(outer, 1)(x, y), jax.grad(inner, 1)(x, y)
        kind = jax.tree.leaves(y)[0].dtype
        share = jnp.minimum(weight / (t + 1).astype(kind), 0.99)
        y = trees.axpy(-share * outer_rate, up, y)
        y = trees.axpy(-(1 - share) * inner_rate, down, y)
        return (y if project is None else project(y)), t + 1

    return step
