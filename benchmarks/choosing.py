"""A solver that chooses by its own residuals: the rule that `auto.py` measures.

It begins as `anderson()` does, but for two things: the first pair is used at once, and a point
whose residual grew is given one plain step to recover before it is given up. Every 60 evaluations
it looks at how far the smallest residual fell. By less than a factor of 10: then over-relaxation
gets 120 evaluations, and stays as long as it falls by more in 60 than Anderson's did; else Anderson
goes on, and waits four times as long before it lets go again.

It is no public solver, for it is no better than `anderson()`: see the page of benchmarks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import anderson, overrelaxed, trees
from jaxiter.solvers.anderson import AndersonState, _forget
from jaxiter.solvers.guard import GuardState, _judge
from jaxiter.solvers.residual import Evaluation, hosted, residual_solver
from jaxiter.values import as_value

PyTree = Any

#: Evaluations between two looks, and by how much the residual must fall in them.
LOOK, ENOUGH = 60, 10.0
#: A residual may grow by so much and stay; beyond, it has one step, up to the guard's own limit.
GROWTH, LIMIT = 2.0, 100.0


class PatientState(NamedTuple):
    """The guard's state; the image of the last accepted point; whether a point is on trial."""

    guard: GuardState
    image: PyTree
    trial: jax.Array


def patient() -> optax.GradientTransformationExtraArgs:
    """`anderson()` in its guard, with one plain step before a point is refused."""
    core = hosted(anderson(safeguard=None))
    assert core is not None
    blank = hosted(anderson())
    assert blank is not None

    def init(params: PyTree) -> PatientState:
        return PatientState(blank.init(params), trees.zeros_like(params), jnp.bool_(False))

    def update(
        residual: PyTree, state: PatientState, params: PyTree, *, merit: jax.Array,
        previous: Evaluation, **extra: Any,
    ) -> tuple[PyTree, PatientState]:
        old = state.guard
        verdict, new = _judge(old, merit, jnp.asarray(GROWTH, merit.dtype))
        hopeful = verdict.wild & ~state.trial & ~verdict.late & (merit <= LIMIT * old.best)
        kept = new._replace(merit=old.merit, must_accept=jnp.bool_(False), rejected=old.rejected)
        new = trees.where(hopeful, kept, new)
        inner = _at_once(new.inner)
        increment, inner = core.update(
            residual, inner, params, merit=merit, previous=previous, **extra)
        image = trees.add(params, residual)
        best_image = trees.where(verdict.better, image, new.best_image)
        back = trees.where(verdict.late, best_image, state.image)
        move = trees.where((new.plain > 0) | hopeful, residual, increment)
        move = trees.where(new.must_accept, trees.subtract(back, params), move)
        forgotten = trees.where(new.must_accept | (new.plain > 0), _forget(inner, params), inner)
        image = trees.where(hopeful | new.must_accept, state.image, image)
        return move, PatientState(
            new._replace(inner=forgotten, best_image=best_image), image, hopeful)

    return residual_solver("patient", init, update, ("params", "merit", "previous"))


def _at_once(state: AndersonState) -> AndersonState:
    """Its first pair is used in the second step instead of the third."""
    return state._replace(age=jnp.where(state.age == 1, 2, state.age))


class ChoosingState(NamedTuple):
    """Both solvers; whether the second moves; evaluations since it began or ended; the smallest
    residual, and what it was at the last look; the fall that the second has to beat; its patience.
    """

    first: PyTree
    second: PyTree
    relaxing: jax.Array
    age: jax.Array
    best: jax.Array
    mark: jax.Array
    bar: jax.Array
    wait: jax.Array


@as_value
def auto() -> optax.GradientTransformationExtraArgs:
    """Anderson acceleration or over-relaxation, whichever makes the residual fall."""
    first, second = hosted(patient()), overrelaxed()
    assert first is not None

    def init(params: PyTree) -> ChoosingState:
        infinite = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return ChoosingState(first.init(params), second.init(params), jnp.bool_(False),
                             jnp.int32(0), infinite, infinite, jnp.zeros_like(infinite),
                             jnp.int32(1))

    def update(
        residual: PyTree, state: ChoosingState, params: PyTree, *, merit: jax.Array,
        previous: Evaluation, **extra: Any,
    ) -> tuple[PyTree, ChoosingState]:
        del extra
        best, age = jnp.fmin(state.best, merit), state.age + 1
        looks, fall = age % LOOK == 0, state.mark / best
        lets_go = looks & ~state.relaxing & (fall < ENOUGH) & (age >= LOOK * state.wait)
        takes_over = looks & state.relaxing & (age >= 2 * LOOK) & ~(fall > state.bar)
        relaxing, switched = state.relaxing ^ lets_go ^ takes_over, lets_go | takes_over
        one = trees.where(takes_over, first.init(params), state.first)
        other = trees.where(lets_go, second.init(params), state.second)
        step, one_after = first.update(residual, one, params, merit=merit, previous=previous)
        relaxed, other = second.update(residual, other, params, merit=merit)
        return trees.where(relaxing, relaxed, step), ChoosingState(
            trees.where(relaxing, one, one_after), other, relaxing, jnp.where(switched, 0, age),
            best, jnp.where(looks, best, state.mark), jnp.where(lets_go, fall, state.bar),
            jnp.where(takes_over, 4 * state.wait, state.wait))

    return residual_solver("auto", init, update, ("params", "merit", "previous"))
