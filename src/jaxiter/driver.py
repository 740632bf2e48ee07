"""`fixed_point`: checks its inputs, runs the loop, attaches derivatives to the answer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import Adjoint, refuse_series, split
from jaxiter.implicit import as_adjoint
from jaxiter.loop import first_step, init, reopened, run
from jaxiter.method import Method, make_method
from jaxiter.monitor import Monitor
from jaxiter.numerics import anchor, hoist_typed, on_own_mesh, stop_gradient, typed_by
from jaxiter.options import Options
from jaxiter.packed import Packed, unpacked
from jaxiter.problem import (
    Problem,
    as_point,
    build_cache,
    evaluate,
    image_and_residual,
    in_units,
)
from jaxiter.reuse import reused
from jaxiter.solution import LoopState, Solution, Status
from jaxiter.stop import Stop

PyTree = Any


def finish(method: Method, state: LoopState, max_steps: Any) -> Solution:
    """The solution that a final state stands for (no derivatives attached yet)."""
    point = state.answer
    _, displacement = image_and_residual(method.problem, point.x, point.output)
    # The loop's norms are quick ones; the reported one is right over the whole float range.
    residual = trees.norm(displacement)
    measured = state.step > state.opened if state.kept is None else ~jnp.isnan(point.merit)
    residual = jnp.where(measured, residual, jnp.inf)
    merit = jnp.where(measured, point.merit, jnp.inf)
    merit = residual if method.problem.merit is None else merit
    ended = (state.status == Status.RUNNING) & (state.step >= max_steps)
    status = jnp.where(ended, jnp.int32(Status.MAX_STEPS), state.status)
    stop, error = method.stop, jnp.full_like(residual, jnp.nan)
    if stop.amplification is not None:
        # A residual of 0 has no error, also where no ratio is known; but where the problem's own
        # merit objects it is no step, and shows nothing.
        ratio = stop.amplification(state.stop).astype(error.dtype)
        idle = (merit > 0) & (status != Status.CONVERGED)
        error = jnp.where(residual > 0, ratio * residual, jnp.where(idle, jnp.inf, 0))
    return Solution(
        value=point.x, status=status, steps=state.step, residual=residual, merit=merit,
        error=error, displacement=displacement, aux=None, state=state, trace=state.monitor,
        calls=state.calls,
    )


@reused
@on_own_mesh
def fixed_point(
    problem: Problem | Callable,
    x0: PyTree,
    *args: PyTree,
    solver: Any = None,
    stop: Stop | None = None,
    adjoint: Adjoint | None = None,
    max_steps: Any = 1000,
    min_steps: Any = 0,
    check_every: int = 1,
    keep_best: bool = False,
    has_aux: bool = False,
    monitor: Monitor | None = None,
    resume: LoopState | None = None,
) -> Solution:
    """Solve `x = T(x, *args)`.

    Each step evaluates T once and adds `solver(T(x) - x)` to x. A pure function:
    wrap the outermost caller in `jax.jit` once; vmap, grad, jvp, pmap, shard_map
    and scan all apply. Nothing raises inside the graph: read `.status`.

    Args:
      problem: the map `T(x, *args)`, or a `Problem`. It may close over arrays.
      x0: start, a pytree of floating-point or complex arrays.
      *args: pytrees passed to T; leaves that are not arrays are static.
      solver: an optax transformation of the residual; default `picard()`, the
        cheapest for contractions. `anderson()` needs far fewer steps on slow maps.
      stop: a stop rule; default `tolerance()`.
      adjoint: how derivatives pass; default `implicit()`.
      max_steps: most evaluations of T, including those inside `resume`; may be traced.
      min_steps: the stop rule ends no solve before so many steps, whatever it sees, but for what
        is not finite; may be traced.
      check_every: measure norms only every so many steps (one large problem over
        many devices: saves reductions). Solvers then see no merit.
      keep_best: return the measured point with the smallest merit, not the last.
      has_aux: T returns `(x, aux)`; aux is re-evaluated once at the solution.
      monitor: `record()`, `printer()`, `progress()` or `callback(f)`.
      resume: the `.state` of an earlier solution with the same choices; an unfinished one
        continues bitwise. One that ended is measured again at its point, under the args and the
        stop rule of this call, and goes on from there where they ask for more. x0 is then
        only checked for structure.

    Returns:
      A `Solution`: value, status, steps, residual, and more.

    Raises:
      TypeError: T changes tree, shape or dtype (names the leaf); integer leaves in x0.
      ValueError: empty or non-finite x0, negative max_steps or min_steps (when concrete).

    >>> import jax.numpy as jnp, jaxiter
    >>> solution = jaxiter.fixed_point(jnp.cos, 1.0)
    >>> round(float(solution.value), 4), bool(solution.converged)
    (0.7391, True)
    """
    method = make_method(problem, Options(
        solver, stop, adjoint, max_steps, min_steps, check_every, keep_best, monitor, resume),
        has_aux)
    adjoint = as_adjoint(adjoint)
    x0 = as_point(x0)
    arrays, restore = split(args)

    end = forward(method, adjoint, x0, arrays, restore, max_steps, unpacked(resume))
    return conclude(method, adjoint, end, arrays, restore, max_steps)


def forward(
    method: Method, adjoint: Adjoint, x0: PyTree, arrays: tuple, restore: Callable,
    max_steps: Any, resume: LoopState | None,
) -> LoopState:
    """The final state; cut off from every derivative unless the adjoint unrolls the loop.

    Where arrays say on which devices they are, T is traced twice: once to discover what it closes
    over, so that the carry can take the device types of those constants too, and once in the loop.
    """

    def start(given: tuple) -> LoopState:
        x0, arrays, resume = given
        if resume is None:
            return init(method, x0, *restore(arrays))
        ended = resume.status != Status.RUNNING
        return trees.where(ended, reopened(method, resume, *restore(arrays)), resume)

    def one(given: tuple, max_steps: jax.Array) -> LoopState:
        del max_steps
        return first_step(method, given[0], restore(given[1]))

    given = (x0, arrays, resume)
    operands = given, jnp.asarray(max_steps, jnp.int32)
    if resume is not None:
        shapes = jax.eval_shape(one, *operands)
        trees.check_same_structure(shapes, resume, "resume (a state of other choices?)")
        trees.check_same_structure(x0, resume.x, "resume (against x0)")
    if adjoint.differentiates_loop:
        state = typed_by(one, operands, start(given))
        return run(method, adjoint.loop, state, restore(arrays), max_steps)

    def loop(given: tuple, max_steps: jax.Array) -> LoopState:
        state = anchor(start(given), (given, max_steps))
        return run(method, adjoint.loop, state, restore(given[1]), max_steps)

    # Stopped before it is anchored: the transpose of a select would keep its predicate.
    pure, constants, operands = hoist_typed(loop, one, *stop_gradient(operands))
    return pure(stop_gradient(constants), *operands)


def conclude(
    method: Method, adjoint: Adjoint, end: LoopState, arrays: tuple, restore: Callable,
    max_steps: Any,
) -> Solution:
    """The solution of a final state, with the adjoint's derivatives on value and aux."""
    solution = finish(method, end, max_steps)
    if not adjoint.differentiates_loop:  # else it has derivatives, which words have not
        solution = solution._replace(state=Packed(end))
    value = attached(method, adjoint, solution, end.answer.memory, arrays, restore)
    if not method.has_aux:
        return solution._replace(value=value)
    problem, args, memory = method.problem, restore(arrays), stop_gradient(end.answer.memory)
    cache = build_cache(problem, value, memory, args)
    aux = evaluate(problem, value, cache, memory, args, True)[2]
    return solution._replace(value=value, aux=aux)


def attached(
    method: Method, adjoint: Adjoint, solution: Solution, memory: PyTree, arrays: tuple,
    restore: Callable,
) -> PyTree:
    """The value with the adjoint's derivatives with respect to args, which `restore` makes."""
    if method.problem.equations is not None:
        refuse_series(adjoint, "this problem")
    equations, x, back = in_units(
        method.problem, solution.value, stop_gradient(memory), restore(arrays), method.has_aux)

    def rooted(x: PyTree, *arrays: PyTree) -> PyTree:
        return equations(x, *restore(arrays))

    return back(adjoint.attach(rooted, x, arrays, solution.status))
