"""Squared extrapolation of two steps, as users of EM know it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.solvers.guard import guard
from jaxiter.solvers.residual import Evaluation, residual_solver
from jaxiter.values import as_value

PyTree = Any

#: The bound on the step length grows by this factor when it was met, and shrinks by it when the
#: point was refused.
GROWTH = 4.0
#: Where in its cycle the solver is: at x, at T(x), at the point extrapolated from both.
AT_X, AT_IMAGE, BEYOND = 0, 1, 2


class SquaremState(NamedTuple):
    """Where in its cycle the next evaluation is, and the bound on the step length."""

    phase: jax.Array
    bound: jax.Array


@as_value
def squarem(safeguard: Any = 10.0) -> optax.GradientTransformationExtraArgs:
    """SQUAREM: extrapolate from two steps, then take one plain step, in cycles of three.

    With r the residual at x and v the residual at T(x) minus r:

        a = |r| / |v|                            between 1 and the bound,
        x <- T(x + 2 a r + a^2 v)

    which is `T(T(T(x)))` for a = 1: then the cycle has two evaluations. The bound is 1 at first,
    and grows fourfold whenever a meets it. The accelerator of EM, MM and other slow monotone
    maps: it keeps two numbers and no history. `anderson` takes fewer steps where its memory can
    be had; there, too, rotations and oscillations are accelerated, here they are not.

    Args:
      safeguard: wraps the solver in `guard(..., safeguard)`: a point where the residual is more
        than so many times the last one is replaced by T(T(x)), which costs one evaluation, and
        the bound shrinks fourfold. None leaves it bare, for use inside `optax.chain`.

    Works on any pytree, real or complex.

    Reference: Varadhan and Roland, "Simple and globally convergent methods for accelerating the
    convergence of any EM algorithm", Scand. J. Statist. 35, 2008 (scheme S3).

    >>> import jax.numpy as jnp, jaxiter
    >>> slow = lambda x: jnp.linspace(0.9, 0.99, 5) * x + 1.0
    >>> steps = lambda solver: int(
    ...     jaxiter.fixed_point(slow, jnp.zeros(5), solver=solver, max_steps=2000).steps)
    >>> steps(squarem()) < steps(jaxiter.picard()) / 5
    True
    """
    def init(params: PyTree) -> SquaremState:
        return SquaremState(jnp.int32(AT_X), jnp.ones((), trees.norm_dtype(params)))

    def update(
        residual: PyTree, state: SquaremState, params: PyTree, *, previous: Evaluation,
        **extra: Any,
    ) -> tuple[PyTree, SquaremState]:
        del params, extra
        turn = trees.subtract(residual, previous.residual)
        length = _step_length(previous.residual, turn, state.bound)
        due = state.phase == AT_IMAGE
        # x + 2 a r + a^2 v, seen from T(x) = x + r; for a = 1 the plain step r + v.
        leap = trees.axpy(2 * length - 1, previous.residual, trees.scale(length**2, turn))
        beyond = due & (length > 1)
        increment = trees.where(beyond, leap, residual)
        phase = jnp.where(beyond, BEYOND, jnp.where(due | (state.phase == BEYOND), AT_X, AT_IMAGE))
        met = due & (length >= state.bound)
        return increment, SquaremState(
            phase.astype(jnp.int32), jnp.where(met, GROWTH * state.bound, state.bound))

    core = residual_solver("squarem", init, update, ("previous",))
    return core if safeguard is None else guard(core, safeguard, reset=_refused)


def _step_length(residual: PyTree, turn: PyTree, bound: jax.Array) -> jax.Array:
    """|r| / |v| between 1 and the bound; 1 where v vanishes or something is not finite."""
    r, v = (trees.norm(part).astype(bound.dtype) for part in (residual, turn))
    turns = v != 0
    ratio = jnp.where(turns, r / jnp.where(turns, v, 1), 1)
    return jnp.where(ratio > 1, jnp.minimum(ratio, bound), 1)


def _refused(state: SquaremState, params: PyTree) -> SquaremState:
    """A new cycle, with more caution."""
    del params
    return SquaremState(jnp.full_like(state.phase, AT_X), jnp.maximum(state.bound / GROWTH, 1))
