"""NAG-GS: accelerated gradient flow with noise, discretised by Gauss and Seidel.

Source: Leplat, Merkulov, Katrutsa, Bershatsky, Tsymboi and Oseledets, "NAG-GS: semi-implicit,
accelerated and robust stochastic optimizer", 2022.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_positive, check_share
from jaxiter.optim.transform import next_count, rate_at, scalars, transformation

PyTree = Any


class NagGsState(NamedTuple):
    """Steps made, the damping gamma, and the second sequence v."""

    count: jax.Array
    gamma: jax.Array
    v: PyTree


def nag_gs(
    learning_rate: Any, *, mu: Any = 1.0, gamma: Any = 1.5, constant_gamma: bool = False,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Accelerated descent with an adaptive damping; with a = learning_rate, in this order.

        gamma <- (gamma + a mu) / (1 + a)
        v <- (gamma v + a mu x - a g) / (gamma + a mu)
        x <- (x + a v) / (1 + a)

    Args:
      learning_rate: positive, or a schedule; for quadratics `nag_gs_optimal_alpha`.
      mu: strong convexity, or a guess; 0 is allowed. gamma: the damping at the start.
      constant_gamma: keep gamma; with gamma = mu the optimal rate on quadratics is known.
      accumulator_dtype: of v, where it is real; default each leaf's own, at least float32.

    mu pulls v towards x, not x to 0: put weight decay into the gradient. Not a strong
    default for networks.

    Raises:
      ValueError: learning_rate or gamma not positive, mu < 0.

    >>> import jax.numpy as jnp
    >>> optimizer = nag_gs(0.5)
    >>> params = jnp.float32(1)
    >>> update, _ = optimizer.update(params, optimizer.init(params), params)
    >>> round(float(params + update), 4)
    0.9091
    """
    check_positive(gamma=gamma)
    if not callable(learning_rate):
        check_positive(learning_rate=learning_rate)
    if isinstance(mu, int | float) and mu < 0:
        raise ValueError(f"mu must not be negative, got {mu}.")

    def stored(v: PyTree) -> PyTree:
        if accumulator_dtype is None:
            return v
        return jax.tree.map(lambda leaf: leaf if jnp.iscomplexobj(leaf)
                            else leaf.astype(accumulator_dtype), v)

    def init(params: PyTree) -> NagGsState:
        return NagGsState(jnp.int32(0), scalars(params, gamma)[0], stored(params))

    def update(
        g: PyTree, state: NagGsState, params: PyTree, **_: Any
    ) -> tuple[PyTree, NagGsState]:
        count, damping, v = state
        a, convexity = scalars(params, rate_at(learning_rate, count), mu)
        if not constant_gamma:
            damping = (damping + a * convexity) / (1 + a)
        total = damping + a * convexity
        wide = jax.tree.map(lambda v, x: v.astype(x.dtype), v, params)
        pulled = trees.axpy(a * convexity / total, params, trees.scale(damping / total, wide))
        v = stored(trees.axpy(-a / total, g, pulled))
        updates = jax.tree.map(lambda v, x: v.astype(x.dtype) - x, v, params)
        return trees.scale(a / (1 + a), updates), NagGsState(next_count(count), damping, v)

    return transformation("nag_gs", init, update, ("params",))


def nag_gs_optimal_alpha(mu: float, smoothness: float, safety: float = 0.95) -> float:
    """The fastest rate on quadratics for `nag_gs(..., gamma=mu, constant_gamma=True)`.

    It contracts by `(sqrt(kappa) - 1) / (sqrt(kappa) + 1)` per step, and is the very edge of
    stability: one percent more diverges. Hence the safety factor.

    Raises:
      ValueError: unless 0 < mu < smoothness, safety outside (0, 1].

    >>> round(nag_gs_optimal_alpha(1.0, 100.0, safety=1.0), 4)
    0.2222
    """
    if not 0 < mu < smoothness:
        raise ValueError(f"need 0 < mu < smoothness, got {mu} and {smoothness}.")
    check_share(safety=safety)
    return safety * (2 * mu + 2 * math.sqrt(mu * smoothness)) / (smoothness - mu)
