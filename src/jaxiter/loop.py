"""What one step does, and the loop around it that every solve of the library runs.

A step is: T is evaluated at the next point, the residual is measured there, the
solver turns it into an increment, the stop rule says a status. The state keeps
both the measured point and the next one, so the returned value is always a
point whose residual was measured, and a resumed solve continues bitwise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.method import Method
from jaxiter.numerics import anchor, pin, stop_gradient
from jaxiter.problem import (
    Measure,
    Problem,
    build_cache,
    calls,
    epoch,
    evaluate,
    extras,
    image_and_residual,
    judges_itself,
    measure,
    nothing_measured,
)
from jaxiter.solution import Kept, LoopState, Status, most_severe
from jaxiter.solvers.residual import Evaluation, hosted
from jaxiter.stop import StepInfo

PyTree = Any

def init(method: Method, x0: PyTree, *args: PyTree) -> LoopState:
    """The state before the first step; evaluates nothing. An invalid start is BAD_INPUT."""
    infinite = jnp.full((), jnp.inf, trees.norm_dtype(x0))
    step, running = jnp.int32(0), jnp.int32(Status.RUNNING)
    problem = method.problem
    memory = () if problem.memory is None else problem.memory(x0, *args)
    solver = _own(method.solver).init(x0)
    memory = jax.tree.map(jnp.asarray, memory)
    info = StepInfo(step, x0, x0, infinite, infinite, infinite, jnp.bool_(True), x0, x0, memory)
    valid = trees.finite(x0)
    if problem.valid is not None:
        valid &= problem.valid(x0, *args)
    return LoopState(
        x=x0,
        output=x0 if problem.residual is None else trees.zeros_like(x0),
        next=None if _follows_image(method, x0, solver) else x0,
        next_norm=trees.norm(x0),
        merit=infinite,
        memory=memory,
        solver=solver,
        stop=method.stop.init(info),
        monitor=None if method.monitor is None else method.monitor.init(info),
        kept=Kept(x0, x0, infinite * jnp.nan, memory) if method.keep_best or method.lazy else None,
        step=step,
        status=jnp.where(valid, running, jnp.int32(Status.BAD_INPUT)),
        calls=_no_calls(problem, x0, memory, args),
        opened=step,
    )


def _no_calls(problem: Problem, x0: PyTree, memory: PyTree, args: tuple) -> PyTree:
    if problem.calls is None:
        return None

    def once() -> PyTree:
        return calls(problem, x0, build_cache(problem, x0, memory, args), memory, args)

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(once))


def reopened(method: Method, state: LoopState, *args: PyTree) -> LoopState:
    """A new start at the point of an old state: its steps, calls and monitor count on."""
    return init(method, state.answer.x, *args)._replace(
        step=state.step, monitor=state.monitor, calls=state.calls, opened=state.step)


def _follows_image(method: Method, x0: PyTree, solver_state: PyTree) -> bool:
    """Whether the next point is always T(x): the solver hands the residual back untouched.

    Then the loop carries one array less and the addition is saved: picard costs what a
    hand-written loop does. Found by looking whether the very same arrays come back; a solver that
    asks for the evaluation before has other plans, and is long to trace.
    """
    if hosted(method.solver) is not None:
        return False
    same = False

    def probe(residual: PyTree, state: PyTree) -> None:
        nonlocal same
        merit = jnp.zeros((), trees.norm_dtype(residual))
        increment, _ = _update(method.solver, residual, state, residual, jnp.int32(0), merit,
                               Evaluation(residual, residual))
        pairs = zip(jax.tree.leaves(increment), jax.tree.leaves(residual), strict=True)
        same = all(x is y for x, y in pairs)

    jax.eval_shape(probe, x0, solver_state)
    return same and method.problem.retract is None and method.problem.residual is None


def first_step(method: Method, x0: PyTree, args: tuple) -> LoopState:
    """One step outside any loop: tracing it finds what the method closes over, and checks it."""
    state = init(method, x0, *args)
    return advance(method, state, build_cache(method.problem, x0, state.memory, args), *args)


def active(state: LoopState, max_steps: Any) -> jax.Array:
    """Whether the solve goes on: no status yet, and steps left."""
    return (state.status == Status.RUNNING) & (state.step < max_steps)


def advance(
    method: Method, state: LoopState, cache: PyTree, *args: PyTree, max_steps: Any = 2**31 - 1
) -> LoopState:
    """One step: one evaluation of T. Safe, but meaningless, on a finished state."""
    problem, nan = method.problem, jnp.full_like(state.merit, jnp.nan)
    x = _next(state)
    output, memory, _ = evaluate(problem, x, cache, state.memory, args, method.has_aux)
    image, residual = image_and_residual(problem, x, output)
    step = state.step + 1
    measured = (step % method.check_every == 0) | (step >= max_steps) if method.lazy else None

    def when_measured(norms: Callable, blank: PyTree) -> PyTree:
        """Norms, but only when they are looked at: over devices, each is a reduction."""
        if measured is None:
            return norms()
        return lax.cond(measured, norms, lambda: anchor(blank, state.merit))

    def look() -> Measure:
        held = stop_gradient((x, output))
        norm = _length(problem, held[0]) if method.lazy else state.next_norm
        norms = norm, *_image_and_residual_norms(problem, *held)
        known = memory if problem.hindsight else state.memory
        rest = stop_gradient((norms, cache, known, args))
        return stop_gradient(measure(problem, *held, *rest))

    norms = when_measured(look, nothing_measured(nan))
    merit = None if method.lazy else norms.merit
    previous = Evaluation(state.x, image_and_residual(problem, state.x, state.output)[1])
    increment, solver = _update(
        method.solver, residual, state.solver, x, step - 1, merit, previous)
    changed = None
    if problem.epoch is not None:
        changed = epoch(problem, memory) != epoch(problem, state.memory)
        increment = trees.where(changed, residual, increment)
        solver = trees.where(changed, _own(method.solver).init(image), solver)
    following, ahead = None, image
    if state.next is not None:
        following = ahead = trees.add(x, increment)
        if problem.retract is not None:
            following = ahead = problem.retract(following)
    if following is None and not method.lazy:
        next_norm = norms.image_norm
    else:
        next_norm = when_measured(lambda: _length(problem, stop_gradient(ahead)), nan)
    info = StepInfo(step, x, residual, norms.merit, norms.scale, norms.floor,
                    lax.is_finite(next_norm), state.x,
                    image_and_residual(problem, state.x, state.output)[0], memory, changed)
    spent = trees.add(state.calls, calls(problem, x, cache, state.memory, args))
    moved = LoopState(x, output, following, next_norm, norms.merit, memory, solver, state.stop,
                      state.monitor, state.kept, step, state.status, spent, state.opened)
    return _judged(method, moved, info, norms, measured, active(state, max_steps))


def _image_and_residual_norms(problem: Problem, x: PyTree, output: PyTree) -> list[jax.Array]:
    both = partial(image_and_residual, problem)
    if problem.step is None or judges_itself(problem):
        return [_length(problem, vector) for vector in both(x, output)]
    # A residual whose square underflows beside that of the image is below its rounding.
    return trees.safe_norms(both, x, output)


def _length(problem: Problem, vector: PyTree) -> jax.Array:
    """The l2 norm; for a problem that needs none 0, or NaN where something is not finite."""
    if judges_itself(problem):
        return trees.zero_if_finite(vector)
    return trees.safe_norms(lambda vector: (vector,), vector)[0]


def _judged(
    method: Method, state: LoopState, info: StepInfo, norms: Measure, measured: Any,
    going: jax.Array,
) -> LoopState:
    """The state after the stop rule, the monitor and `kept` saw its evaluation.

    `measured`: whether the norms were taken; None: yes.
    """
    status, stop = method.stop.update(stop_gradient(info), state.stop)
    if method.problem.certify is not None:
        status = most_severe(status, norms.certificate)
    # A guarded solver steps back from a residual that is not finite; only a next point that is
    # not finite ends the solve. BAD_INPUT is the only status more severe than NONFINITE.
    keep = info.finite | (status == Status.BAD_INPUT)
    status = jnp.where(keep, status, jnp.int32(Status.NONFINITE)).astype(jnp.int32)
    counts = jnp.bool_(True) if measured is None else measured
    if measured is not None:
        status = jnp.where(measured, status, state.status)
        stop = jax.tree.map(
            lambda new, old: new if new is old else lax.select(counts, new, old), stop, state.stop)
    monitor = state.monitor
    if method.monitor is not None:
        monitor = method.monitor.update(stop_gradient(info), monitor, going & counts)
    kept = state.kept
    if kept is not None:
        better = counts & lax.is_finite(norms.residual_norm)
        if method.keep_best:
            # What the stop rule called converged is also what is returned: a smaller merit may
            # be larger beside its own scale.
            first = jnp.isnan(kept.merit)
            better &= (norms.merit < kept.merit) | first | (status == Status.CONVERGED)
        kept = trees.where(better, Kept(
            state.x, state.output, norms.merit, state.memory), kept)
    return state._replace(status=status, stop=stop, monitor=monitor, kept=kept)


def _next(state: LoopState) -> PyTree:
    """Where the next step evaluates T."""
    return state.output if state.next is None else state.next


def _own(solver: optax.GradientTransformation) -> optax.GradientTransformation:
    """The form of the solver that keeps no copy of what the loop carries."""
    return hosted(solver) or solver


def _update(
    solver: optax.GradientTransformation, residual: PyTree, state: PyTree, x: PyTree,
    step: jax.Array, merit: jax.Array | None, previous: Evaluation,
) -> tuple[PyTree, PyTree]:
    """Ask the solver for an increment; plain optax transformations get no extra arguments."""
    inside = hosted(solver)
    if inside is not None:
        increment, new = inside.update(
            residual, state, x, step=step, merit=merit, previous=previous)
    elif isinstance(solver, optax.GradientTransformationExtraArgs):
        increment, new = solver.update(residual, state, x, step=step, merit=merit)
    else:
        increment, new = solver.update(residual, state, x)
    trees.check_same_structure(x, increment, "The solver's increment")
    return increment, new


def run(
    method: Method, loop: Callable, state: LoopState, args: tuple, max_steps: Any,
    pause: Any = None,
) -> LoopState:
    """Advance until a status or `max_steps`; with a cache, in blocks of `refresh` steps.

    `pause` is a step at which to hand back unfinished.
    """
    end = max_steps if pause is None else pause
    problem = method.problem

    def going(s: LoopState) -> jax.Array:
        return active(s, end)

    def step(s: LoopState, cache: PyTree) -> LoopState:
        return advance(method, s, cache, *args, max_steps=max_steps)

    def build(s: LoopState, carried: Any = None) -> PyTree:
        x = _next(s)
        return build_cache(problem, x if carried is None else pin(x, carried), s.memory, args)

    stale = problem.stale
    if problem.cache is None:
        return loop(going, lambda s: step(s, None), state, max_steps)

    blocks = -(-max_steps // problem.refresh) if isinstance(max_steps, int) else max_steps

    def block(s: LoopState, cache: PyTree) -> LoopState:
        rebuild = s.step + problem.refresh
        return loop(
            lambda t: going(t) & (t.step < rebuild),
            lambda t: step(t, cache), s, problem.refresh)

    if stale is None:
        return loop(going, lambda s: block(s, build(s)), state, blocks)

    def keeping(carry: tuple) -> tuple:  # the cache lives on until it is stale
        s, cache = carry
        s = block(s, cache)
        old = going(s) & stale(_next(s), *extras(problem, cache, s.memory), *args)
        # A loop of at most one round, for a conditional would rebuild always under vmap.
        _, cache = loop(
            lambda c: c[0], lambda c: (~c[0], build(s, c[0])), (old, cache), 1)
        return s, cache

    return loop(lambda c: going(c[0]), keeping, (state, build(state)), blocks)[0]
