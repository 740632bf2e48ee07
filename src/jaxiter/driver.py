"""The forward loop of the library: the only one.

A step is: T is evaluated at the next point, the residual is measured there, the
solver turns it into an increment, the stop rule says a status. The state keeps
both the measured point and the next one, so the returned value is always a
point whose residual was measured, and a resumed solve continues bitwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, as_adjoint, split
from jaxiter.method import Method, check_max_steps, make_method
from jaxiter.monitor import Monitor
from jaxiter.numerics import anchor, hoist, pin, stop_gradient
from jaxiter.problem import (
    Measure,
    Problem,
    as_point,
    evaluate,
    measure,
    root_equations,
)
from jaxiter.solution import Kept, LoopState, Solution, Status
from jaxiter.stop import StepInfo, Stop

PyTree = Any


def init(method: Method, x0: PyTree, *args: PyTree) -> LoopState:
    """The state before the first step; evaluates nothing. An invalid start is BAD_INPUT."""
    infinite = jnp.full((), jnp.inf, trees.norm_dtype(x0))
    step, running = jnp.int32(0), jnp.int32(Status.RUNNING)
    problem = method.problem
    memory = () if problem.memory is None else problem.memory(x0, *args)
    solver = method.solver.init(x0)
    info = StepInfo(step, x0, x0, infinite, infinite, infinite, jnp.bool_(True))
    keeps = method.keep_best or method.check_every > 1
    valid = trees.finite(x0)
    if problem.valid is not None:
        valid &= problem.valid(x0, *args)
    return LoopState(
        x=x0,
        image=x0,
        next=None if _follows_image(method, x0, solver) else x0,
        next_norm=trees.quick_norm(x0),
        merit=infinite,
        memory=jax.tree.map(jnp.asarray, memory),
        solver=solver,
        stop=method.stop.init(info),
        monitor=None if method.monitor is None else method.monitor.init(info),
        kept=Kept(x0, x0, infinite) if keeps else None,
        step=step,
        status=jnp.where(valid, running, jnp.int32(Status.BAD_INPUT)),
    )


def _follows_image(method: Method, x0: PyTree, solver_state: PyTree) -> bool:
    """Whether the next point is always T(x): the solver hands the residual back untouched.

    Then the loop carries one array less and the addition is saved: picard costs what a
    hand-written loop does. Found by looking whether the very same arrays come back.
    """
    same = False

    def probe(residual: PyTree, state: PyTree) -> None:
        nonlocal same
        merit = jnp.zeros((), trees.norm_dtype(residual))
        increment, _ = _update(method.solver, residual, state, residual, jnp.int32(0), merit)
        pairs = zip(jax.tree.leaves(increment), jax.tree.leaves(residual), strict=True)
        same = all(x is y for x, y in pairs)

    jax.eval_shape(probe, x0, solver_state)
    return same and method.problem.retract is None


def first_step(method: Method, x0: PyTree, args: tuple) -> LoopState:
    """One step outside any loop: tracing it finds what the method closes over, and checks it."""
    cache = None if method.problem.cache is None else method.problem.cache(x0, *args)
    return advance(method, init(method, x0, *args), cache, *args)


def active(state: LoopState, max_steps: Any) -> jax.Array:
    """Whether the solve goes on: no status yet, and steps left."""
    return (state.status == Status.RUNNING) & (state.step < max_steps)


def advance(
    method: Method, state: LoopState, cache: PyTree, *args: PyTree, max_steps: Any = 2**31 - 1
) -> LoopState:
    """One step: one evaluation of T. Safe, but meaningless, on a finished state."""
    problem, lazy = method.problem, method.check_every > 1
    x = _next(state)
    image, memory, _ = evaluate(problem, x, cache, state.memory, args, method.has_aux)
    residual = trees.subtract(image, x)
    step, nan = state.step + 1, jnp.full_like(state.merit, jnp.nan)
    measured = jnp.bool_(True)
    if lazy:
        measured = (step % method.check_every == 0) | (step >= max_steps)

    def when_measured(norms: Callable, blank: PyTree) -> PyTree:
        """Norms, but only when they are looked at: over devices, each is a reduction."""
        if not lazy:
            return norms()
        return lax.cond(measured, norms, lambda: anchor(blank, state.merit))

    def look() -> Measure:
        held = stop_gradient((image, residual, cache, state.memory, args))
        point = stop_gradient(x)
        norm = trees.quick_norm(point) if lazy else stop_gradient(state.next_norm)
        return stop_gradient(measure(problem, point, norm, *held))

    norms = when_measured(look, Measure(*(nan for _ in Measure._fields)))
    merit = None if lazy else norms.merit
    increment, solver = _update(method.solver, residual, state.solver, x, step - 1, merit)
    following, ahead = None, image
    if state.next is not None:
        following = ahead = trees.add(x, increment)
        if problem.retract is not None:
            following = ahead = problem.retract(following)
    if following is None and not lazy:
        next_norm = norms.image_norm
    else:
        next_norm = when_measured(lambda: trees.quick_norm(stop_gradient(ahead)), nan)
    # A guarded solver steps back from a residual that is not finite; only a next point
    # that is not finite ends the solve.
    finite = jnp.isfinite(next_norm)
    info = StepInfo(step, x, residual, norms.merit, norms.scale, norms.floor, finite)
    status, stop = method.stop.update(stop_gradient(info), state.stop)
    keep = finite | (status == Status.BAD_INPUT)  # the only status more severe than NONFINITE
    status = jnp.where(keep, status, jnp.int32(Status.NONFINITE))
    if lazy:
        status = jnp.where(measured, status, jnp.int32(Status.RUNNING))
        stop = trees.where(measured, stop, state.stop)
    monitor = state.monitor
    if method.monitor is not None:
        going = active(state, max_steps) & measured
        monitor = method.monitor.update(stop_gradient(info), monitor, going)
    better = measured & jnp.isfinite(norms.residual_norm)
    kept = _keep(method, better, Kept(x, image, norms.merit), state.kept)
    return LoopState(
        x, image, following, next_norm, norms.merit, memory, solver, stop, monitor, kept, step,
        status.astype(jnp.int32),
    )


def _keep(method: Method, better: jax.Array, new: Kept, old: Kept | None) -> Kept | None:
    """The measured point to return: the best with keep_best, else the last; None: the last x."""
    if old is None:
        return None
    if method.keep_best:
        better &= new.merit < old.merit
    return trees.where(better, new, old)


def _next(state: LoopState) -> PyTree:
    """Where the next step evaluates T."""
    return state.image if state.next is None else state.next


def _update(
    solver: optax.GradientTransformation, residual: PyTree, state: PyTree, x: PyTree,
    step: jax.Array, merit: jax.Array | None,
) -> tuple[PyTree, PyTree]:
    """Ask the solver for an increment; plain optax transformations get no extra arguments."""
    if isinstance(solver, optax.GradientTransformationExtraArgs):
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

    `pause`, at most `max_steps`, is a step at which to hand back an unfinished state.
    """
    problem = method.problem
    end = max_steps if pause is None else pause

    def going(s: LoopState) -> jax.Array:
        return active(s, end)

    build, stale = problem.cache, problem.stale
    if build is None:
        return loop(
            going, lambda s: advance(method, s, None, *args, max_steps=max_steps), state, max_steps)

    blocks = -(-max_steps // problem.refresh) if isinstance(max_steps, int) else max_steps

    def block(s: LoopState, cache: PyTree) -> LoopState:
        rebuild = s.step + problem.refresh
        return loop(
            lambda t: going(t) & (t.step < rebuild),
            lambda t: advance(method, t, cache, *args, max_steps=max_steps), s, problem.refresh)

    if stale is None:
        return loop(going, lambda s: block(s, build(_next(s), *args)), state, blocks)

    def keeping(carry: tuple) -> tuple:  # the cache lives on until it is stale
        s, cache = carry
        s = block(s, cache)
        old = going(s) & stale(_next(s), cache, *args)
        # A loop of at most one round, for a conditional would rebuild always under vmap.
        _, cache = loop(
            lambda c: c[0], lambda c: (~c[0], build(pin(_next(s), c[0]), *args)), (old, cache), 1)
        return s, cache

    return loop(lambda c: going(c[0]), keeping, (state, build(_next(state), *args)), blocks)[0]


def finish(method: Method, state: LoopState, max_steps: Any) -> Solution:
    """The solution that a final state stands for (no derivatives attached yet)."""
    point = Kept(state.x, state.image, state.merit) if state.kept is None else state.kept
    displacement = trees.subtract(point.image, point.x)
    # The loop's norms are quick ones; the reported one is right over the whole float range.
    residual = trees.norm(stop_gradient(displacement))
    if state.kept is None:
        residual = jnp.where(state.step > 0, residual, jnp.inf)
    else:
        residual = jnp.where(jnp.isfinite(point.merit), residual, jnp.inf)
    merit = residual if method.problem.merit is None else point.merit
    ended = (state.status == Status.RUNNING) & (state.step >= max_steps)
    status = jnp.where(ended, jnp.int32(Status.MAX_STEPS), state.status)
    return Solution(
        value=point.x, status=status, steps=state.step, residual=residual, merit=merit,
        displacement=displacement, aux=None, state=state, trace=state.monitor,
    )


def fixed_point(
    problem: Problem | Callable,
    x0: PyTree,
    *args: PyTree,
    solver: Any = None,
    stop: Stop | None = None,
    adjoint: Adjoint | None = None,
    max_steps: Any = 1000,
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
      check_every: measure norms only every so many steps (one large problem over
        many devices: saves reductions). Solvers then see no merit.
      keep_best: return the measured point with the smallest merit, not the last.
      has_aux: T returns `(x, aux)`; aux is re-evaluated once at the solution.
      monitor: `record()`, `printer()`, `progress()` or `callback(f)`.
      resume: the `.state` of an earlier solution with the same choices; continues
        bitwise, then x0 is only checked for structure.

    Returns:
      A `Solution`: value, status, steps, residual, and more.

    Raises:
      TypeError: T changes tree, shape or dtype (names the leaf); integer leaves in x0.
      ValueError: empty or non-finite x0, negative max_steps (when concrete).

    >>> import jax.numpy as jnp, jaxiter
    >>> solution = jaxiter.fixed_point(jnp.cos, 1.0)
    >>> round(float(solution.value), 4), bool(solution.converged)
    (0.7391, True)
    """
    method = make_method(problem, solver, stop, monitor, check_every, keep_best, has_aux)
    adjoint = as_adjoint(adjoint)
    check_max_steps(max_steps)
    x0 = as_point(x0)
    arrays, restore = split(args)

    end = forward(method, adjoint, x0, arrays, restore, max_steps, resume)
    return conclude(method, adjoint, end, arrays, restore, max_steps)


def forward(
    method: Method, adjoint: Adjoint, x0: PyTree, arrays: tuple, restore: Callable,
    max_steps: Any, resume: LoopState | None,
) -> LoopState:
    """The final state; cut off from every derivative unless the adjoint unrolls the loop.

    T is traced twice: once to discover what it closes over, so that the carry
    can take the device types of those constants too, and once in the loop.
    """

    def start(given: tuple) -> LoopState:
        x0, arrays, resume = given
        return init(method, x0, *restore(arrays)) if resume is None else resume

    given = (x0, arrays, resume)
    _, constants, shapes = hoist(
        lambda given: first_step(method, given[0], restore(given[1])), given)
    if resume is not None:
        trees.check_same_structure(shapes, resume, "resume (a state of other choices?)")
        trees.check_same_structure(x0, resume.x, "resume (against x0)")
    like = (given, constants, max_steps)
    if adjoint.differentiates_loop:
        state = anchor(start(given), like)
        return run(method, adjoint.loop, state, restore(arrays), max_steps)

    def loop(given: tuple, max_steps: jax.Array) -> LoopState:
        state = anchor(start(given), like)
        return run(method, adjoint.loop, state, restore(given[1]), max_steps)

    # Stopped before it is anchored: the transpose of a select would keep its predicate.
    operands = anchor(stop_gradient((given, jnp.asarray(max_steps, jnp.int32))), like)
    pure, constants, _ = hoist(loop, *operands)
    return pure(stop_gradient(constants), *operands)


def conclude(
    method: Method, adjoint: Adjoint, end: LoopState, arrays: tuple, restore: Callable,
    max_steps: Any,
) -> Solution:
    """The solution of a final state, with the adjoint's derivatives on value and aux."""
    solution = finish(method, end, max_steps)
    memory = stop_gradient(end.memory)
    equations = root_equations(method.problem, method.has_aux)

    def rooted(x: PyTree, *arrays: PyTree) -> PyTree:
        return equations(x, memory, *restore(arrays))

    value = adjoint.attach(rooted, solution.value, arrays, solution.status)
    if not method.has_aux:
        return solution._replace(value=value)
    problem, args = method.problem, restore(arrays)
    cache = None if problem.cache is None else problem.cache(value, *args)
    aux = evaluate(problem, value, cache, memory, args, True)[2]
    return solution._replace(value=value, aux=aux)


def root(
    function: Callable, x0: PyTree, *args: PyTree, solver: Any = None, **keywords: Any
) -> Solution:
    """Solve `F(x, *args) = 0` as the fixed point of `x - F(x)`.

    Args:
      function: F, same tree, shapes and dtypes as x.
      x0, *args: as in `fixed_point`.
      solver: default `anderson(period=1, safeguard=None)`, a multisecant method: it does not
        need `x - F(x)` to contract, so it takes no plain steps. For a gradient F,
        `damped(alpha)` is descent with step alpha.
      **keywords: as in `fixed_point`.

    Returns:
      A `Solution`; its residual is the norm of F, its derivatives those of the root.

    >>> import jax.numpy as jnp, jaxiter
    >>> round(float(jaxiter.root(lambda x, a: x * x - a, jnp.array(1.0), 2.0).value), 4)
    1.4142
    """
    from jaxiter.solvers.anderson import anderson

    def step(x: PyTree, *args: PyTree) -> PyTree:
        out = function(x, *args)
        trees.check_same_structure(x, jax.tree.map(jnp.asarray, out), "F")
        return trees.subtract(x, out)

    problem = Problem(step=step, equations=function)
    return fixed_point(
        problem, x0, *args, solver=solver or anderson(period=1, safeguard=None), **keywords)
