"""Adaptive over-relaxation: momentum whose strength is read off the observed rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.numerics import is_concrete
from jaxiter.solvers.residual import residual_solver
from jaxiter.values import as_value

PyTree = Any

#: The rate is measured over this many steps, and so is growth.
WINDOW = 10
#: No rate above this is believed: the momentum it asks for would never settle.
LARGEST_RATE = 0.9999


class OverrelaxedState(NamedTuple):
    """Last move, best point and its merit, merit a window ago, omega, steps so far."""

    move: PyTree
    best: PyTree
    best_merit: jax.Array
    old_merit: jax.Array
    omega: jax.Array
    count: jax.Array


@as_value
def overrelaxed(every: Any = 60) -> optax.GradientTransformationExtraArgs:
    """Over-relaxation for maps whose Jacobian has real eigenvalues in [0, 1), such as Sinkhorn's.

    `d <- omega^2 r + (omega - 1)^2 d`, `x <- x + d`: for the largest eigenvalue s the
    best omega is `2 / (1 + sqrt(1 - s))`, and the rate falls from s to `omega - 1`, which is
    that of successive over-relaxation of both potentials. Starts plain; every `every`
    steps s is estimated from the merit's fall over the last 10. When the merit doubles
    over 10 steps it returns to the best point, plain (without this it can diverge).

    Args:
      every: steps between two estimates of the rate, a multiple of 10; may be traced.

    Raises:
      ValueError: every is no positive multiple of 10.

    Reference: Golub and Varga, "Chebyshev semi-iterative methods, successive overrelaxation
    iterative methods, and second order Richardson iterative methods", Numer. Math. 3, 1961
    (equivalence); Lehmann, von Renesse, Sambale and Uschmajew, "A note on overrelaxation in the
    Sinkhorn algorithm", 2021.

    >>> import jax.numpy as jnp, jaxiter
    >>> slow = lambda x: 0.999 * x + 0.001
    >>> steps = lambda s: int(
    ...     jaxiter.fixed_point(slow, jnp.zeros(1), solver=s, max_steps=9000).steps)
    >>> steps(overrelaxed()) < steps(jaxiter.picard()) / 5
    True
    """
    if is_concrete(every) and (every < WINDOW or every % WINDOW):
        raise ValueError(f"every must be a positive multiple of {WINDOW}, got {every}.")

    def init(params: PyTree) -> OverrelaxedState:
        infinite = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return OverrelaxedState(trees.zeros_like(params), params, infinite, infinite,
                                jnp.ones_like(infinite), jnp.int32(0))

    def update(
        residual: PyTree, state: OverrelaxedState, params: PyTree, *, merit: jax.Array,
        **extra: Any,
    ) -> tuple[PyTree, OverrelaxedState]:
        del extra
        count = state.count + 1
        checked = count % WINDOW == 0
        failed = ~(merit <= 2 * state.old_merit) & checked & (state.omega > 1)
        omega = jnp.where(count % every == 0, _estimate(merit, state), state.omega)
        omega = jnp.where(failed, 1.0, omega)
        move = trees.axpy(
            jnp.where(failed, 0.0, (omega - 1) ** 2), state.move, trees.scale(omega**2, residual))
        retreat = trees.subtract(state.best, params)
        move = trees.where(failed, retreat, move)
        better = merit < state.best_merit
        return move, OverrelaxedState(
            trees.where(failed, trees.zeros_like(move), move),
            trees.where(better, params, state.best),
            jnp.where(better, merit, state.best_merit),
            jnp.where(failed, state.best_merit, jnp.where(checked, merit, state.old_merit)),
            omega, count)

    return residual_solver("overrelaxed", init, update, ("params", "merit"))


def _estimate(merit: jax.Array, state: OverrelaxedState) -> jax.Array:
    """The best omega for the eigenvalue that the observed rate belongs to."""
    rate = (merit / state.old_merit) ** (1 / WINDOW)
    alpha, beta = state.omega**2, (state.omega - 1) ** 2
    # A mode of eigenvalue s moves as z^2 - (1 + beta - alpha (1 - s)) z + beta = 0.
    gap = (1 + beta - rate - beta / rate) / alpha
    omega = 2 / (1 + jnp.sqrt(jnp.clip(gap, 1 - LARGEST_RATE, 1)))
    falling = (rate < 1) & (rate > 0)
    return jnp.where(falling, omega, state.omega)
