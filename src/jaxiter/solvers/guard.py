"""Safeguards around any solver: step back when it made things worse, or start afresh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.numerics import is_concrete
from jaxiter.solvers.residual import Evaluation, hosted, residual_solver
from jaxiter.values import as_value

PyTree = Any


#: Steps in which the solver must halve the smallest merit, and plain steps when it did not.
#: Both double whenever it failed, so that plain steps cannot be outnumbered for ever.
PATIENCE, RECOVERY = 30, 30
#: The merit may never exceed its smallest value by more than this: stop rules call it divergence.
LARGEST_RISE = 100.0


class GuardState(NamedTuple):
    """Inner state; where to return to; what the solver has to achieve, and how long it may take.

    Attributes:
      inner: the solver's state.
      merit: the merit of the last accepted point.
      best_image, best: the plain image of the best point since the solver last began, and the
        merit of that point.
      target: the merit that the solver must reach, else it has failed. waited: steps since it
        was set. plain: plain steps still to take. level: how often the solver failed.
      must_accept: whether the point is one that was returned to. rejected: rejections so far.
    """

    inner: PyTree
    best_image: PyTree
    merit: jax.Array
    best: jax.Array
    target: jax.Array
    waited: jax.Array
    plain: jax.Array
    level: jax.Array
    must_accept: jax.Array
    rejected: jax.Array


@as_value
def guard(
    solver: optax.GradientTransformation,
    factor: Any = 2.0,
    reset: Callable[[PyTree, PyTree], PyTree] | None = None,
    mixing: Any = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Let a solver move as it likes, as long as the merit falls; else take plain steps.

    A point is accepted while its merit is at most `factor` times that of the last accepted one,
    and 100 times the smallest. Otherwise, and also when the residual is not finite, return to
    the plain image `x + mixing (T(x) - x)` of the last accepted point, reset the solver, and
    accept what follows: a rejection costs one evaluation. When the solver did not halve the
    smallest merit within 30 steps, return to the plain image of the best point, and take 30
    plain steps before it may try again; both numbers double whenever that happens. So on a
    contraction a guarded solver converges if the plain iteration does, in at most a few times
    its steps. The merit is the driver's when given, else the l2 norm of the residual.

    Args:
      solver: any optax transformation of the residual.
      factor: at least 1; may be traced.
      reset: `reset(inner_state, params) -> inner_state`; default `solver.init(params)`.
        A solver with a large memory can forget more cheaply than that.
      mixing: what plain steps multiply the residual by; may be traced.

    Raises:
      ValueError: a concrete factor below 1; params missing.

    Reference: Zhang, O'Donoghue and Boyd, "Globally convergent type-I Anderson acceleration for
    nonsmooth fixed-point iterations", SIAM J. Optim. 30, 2020; the tests here are ours.

    >>> import jax.numpy as jnp, jaxiter, optax
    >>> wild = guard(optax.scale(1.9), factor=1.0)
    >>> bool(jaxiter.fixed_point(lambda x: -0.5 * x, jnp.ones(3), solver=wild).converged)
    True
    """
    if is_concrete(factor) and not np.all(np.asarray(factor) >= 1):
        raise ValueError(f"factor must be at least 1, got {factor}.")
    inside = hosted(solver)
    solver = optax.with_extra_args_support(solver if inside is None else inside)

    def init(params: PyTree) -> GuardState:
        # Widened like every merit, so that a carried state keeps its dtype.
        merit, zero = jnp.full((), jnp.inf, trees.norm_dtype(params)), jnp.int32(0)
        return GuardState(
            solver.init(params), trees.zeros_like(params), merit, merit, merit, zero, zero, zero,
            jnp.bool_(True), zero)

    def update(
        residual: PyTree, state: GuardState, params: PyTree, *, merit: jax.Array,
        previous: Evaluation, **extra: Any,
    ) -> tuple[PyTree, GuardState]:
        verdict, state = _judge(state, merit, jnp.asarray(factor).astype(merit.dtype))
        handed = extra if inside is None else {**extra, "previous": previous}
        increment, inner = solver.update(residual, state.inner, params, merit=merit, **handed)
        fresh = solver.init(params) if reset is None else reset(inner, params)
        step = trees.scale(mixing, residual)
        best_image = trees.where(verdict.better, trees.add(params, step), state.best_image)
        # What follows a point that was returned to is accepted: the point before one that is out
        # of bounds was the last accepted.
        image = trees.axpy(mixing, previous.residual, previous.point)
        image = trees.where(verdict.late, best_image, image)
        move = trees.where(state.plain > 0, step, increment)
        move = trees.where(state.must_accept, trees.subtract(image, params), move)
        inner = trees.where(state.must_accept | (state.plain > 0), fresh, inner)
        return move, state._replace(inner=inner, best_image=best_image)

    return residual_solver("guard", init, update, ("params", "merit", "previous"))


class _Verdict(NamedTuple):
    """On a point: its merit is out of bounds; the solver's time is up; it is the best so far."""

    wild: jax.Array
    late: jax.Array
    better: jax.Array


def _judge(
    state: GuardState, merit: jax.Array, factor: jax.Array
) -> tuple[_Verdict, GuardState]:
    """The verdict on a point of this merit, and the state after it, its vectors aside."""
    free = state.plain == 0  # the solver moves, no plain steps are due
    bound = jnp.minimum(factor * state.merit, LARGEST_RISE * state.best)
    wild = free & ~state.must_accept & ~(merit <= bound)  # also for NaN
    begins = free & (state.waited == 0)  # after plain steps the solver starts from what it finds
    better = ~wild & ((merit < state.best) | begins)
    best = jnp.where(better, merit, state.best)
    reached = merit <= state.target
    waited = jnp.where(reached, 1, state.waited + 1)
    late = free & ~reached & (waited > PATIENCE * 2**state.level)
    back = wild | late
    return _Verdict(wild, late, better), state._replace(
        merit=jnp.where(late, best, jnp.where(wild, state.merit, merit)),
        best=best,
        target=jnp.where(reached | begins, best / 2, state.target),
        waited=jnp.where(free & ~late, waited, 0),
        plain=jnp.where(late, RECOVERY * 2**state.level, jnp.maximum(state.plain - 1, 0)),
        level=jnp.where(late, jnp.minimum(state.level + 1, 20), state.level),
        must_accept=back,
        rejected=state.rejected + back.astype(jnp.int32))


class RestartState(NamedTuple):
    """Inner state, steps since the last restart, and the last merit."""

    inner: PyTree
    age: jax.Array
    merit: jax.Array


@as_value
def restarted(
    solver: optax.GradientTransformation, every: Any = None, increase: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Restart any solver every `every` steps, or when the merit grew by the factor `increase`.

    A restart replaces the inner state by `solver.init(x)` before the update.

    Args:
      solver: any optax transformation of the residual.
      every: steps between restarts, at least 1; may be traced.
      increase: restart when merit > increase * previous merit; may be traced.

    Raises:
      ValueError: neither is given, or a concrete `every` below 1.

    Reference: O'Donoghue and Candes, "Adaptive restart for accelerated gradient
    schemes", Found. Comput. Math. 15, 2015.

    >>> import jax.numpy as jnp, jaxiter
    >>> solver = restarted(jaxiter.halpern(), every=10)
    >>> bool(jaxiter.fixed_point(lambda x: 0.9 * x + 1, jnp.zeros(2), solver=solver).converged)
    True
    """
    if every is None and increase is None:
        raise ValueError("give every=, increase=, or both.")
    if every is not None and is_concrete(every) and not np.all(np.asarray(every) >= 1):
        raise ValueError(f"every must be at least 1, got {every}.")
    solver = optax.with_extra_args_support(solver)

    def init(params: PyTree) -> RestartState:
        merit = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return RestartState(solver.init(params), jnp.int32(0), merit)

    def update(
        residual: PyTree, state: RestartState, params: PyTree, *, merit: jax.Array, **extra: Any
    ) -> tuple[PyTree, RestartState]:
        due = jnp.bool_(False)
        if every is not None:
            due |= state.age >= every
        if increase is not None:
            due |= merit > jnp.asarray(increase).astype(merit.dtype) * state.merit
        inner = trees.where(due, solver.init(params), state.inner)
        increment, inner = solver.update(residual, inner, params, merit=merit, **extra)
        return increment, RestartState(inner, jnp.where(due, 1, state.age + 1), merit)

    return residual_solver("restarted", init, update, ("params", "merit"))
