"""LV-HBA: inner problems with constraints that couple x and y, by gradients only.

The inner problem enters through its proximal Lagrangian value function, a saddle point in a
copy theta of y and multipliers lam that two plain steps follow.

Source: Yao, Yu, Zeng and Zhang, "Constrained bi-level optimization: proximal Lagrangian value
function approach and Hessian-free algorithm", 2024.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.methods import oracle_calls
from jaxiter.estimators import Oracle
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class LvHbaState(NamedTuple):
    """x, y; theta (like y) and multipliers lam of the value function; their centre z; k steps."""

    x: PyTree
    y: PyTree
    theta: PyTree
    lam: jax.Array
    z: jax.Array
    k: jax.Array


def lv_hba(
    outer: Callable, inner: Callable, constraint: Callable, project: Callable, *,
    equality: bool = False, rate: float = 0.03, value_rate: float = 0.1, centre_rate: float = 0.01,
    prox: float = 10.0, penalty: float = 1.0, growth: float = 0.3, largest: float = 1000.0,
) -> Process:
    """A Hessian-free single loop for `y in argmin inner(x, .) subject to constraint(x, y) <= 0`.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, inner convex in y.
      constraint: `(x, y) -> [l]`, convex; scale its gradients to unit norm.
      project: `(x, y) -> (x, y)`, onto the points that satisfy the constraint.
      equality: the constraint is `= 0`: multipliers of both signs.
      rate, value_rate, centre_rate: of (x, y), of (theta, lam), of z. prox: both proximal
        parameters. penalty, growth: `c_k = penalty (k+1)^growth`, growth in (0, 1/2); the
        answer's bias is O(1 / c_k). largest: bound of the multipliers.

    Returns:
      A `Process`; the multipliers at the end are `state.lam`. Do not expect better than about
      one percent: the bias falls as slowly as the penalty grows.

    Raises:
      ValueError: growth outside (0, 1/2), rates not positive.
    """
    if not 0 < growth < 0.5:
        raise ValueError(f"growth must be in (0, 1/2), got {growth}.")
    check_positive(rate=rate, value_rate=value_rate, centre_rate=centre_rate, prox=prox,
                   penalty=penalty)
    low = -largest if equality else 0.0

    def init(start: tuple, *data: Batches) -> LvHbaState:
        x, y = project(*start)
        zero = jnp.zeros_like(constraint(x, y))
        return LvHbaState(x, y, y, zero, zero, jnp.int32(0))

    def step(state: LvHbaState, key: jax.Array, *data: Batches) -> LvHbaState:
        x, y, theta, lam, z, k = state
        a, b = Oracle((), data).draw(key)

        def value(x: PyTree, y: PyTree, theta: PyTree, lam: jax.Array) -> jax.Array:
            """The proximal Lagrangian, whose saddle point in (theta, lam) is the value."""
            apart = trees.squared_norm(trees.subtract(theta, y)) - trees.squared_norm(lam - z)
            return inner(x, theta, a) + jnp.sum(lam * constraint(x, theta)) + (
                apart / (2 * prox)).astype(lam.dtype)

        down, up = jax.grad(value, (2, 3))(x, y, theta, lam)
        theta = trees.axpy(-value_rate, down, theta)
        lam = jnp.clip(lam + value_rate * up, low, largest)
        share = 1 / (penalty * (k + 1).astype(jnp.float32) ** growth)

        def gap(point: tuple) -> jax.Array:
            x, y = point
            return trees.axpy(share, outer(x, y, b), inner(x, y, a)) - value(x, y, theta, lam)

        x, y = project(*trees.axpy(-rate, jax.grad(gap)((x, y)), (x, y)))
        z = jnp.clip(z + centre_rate * (lam - z), low, largest)
        return LvHbaState(x, y, theta, lam, z, k + 1)

    return Process(init, step, calls=oracle_calls(3, 1))
