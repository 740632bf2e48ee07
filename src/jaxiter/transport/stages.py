"""The stages of a transport solve on one budget of steps: large epsilons, Sinkhorn, Newton."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.monitor import Monitor
from jaxiter.numerics import anchor
from jaxiter.solution import Solution, Status
from jaxiter.solvers.anderson import anderson
from jaxiter.stop import StepInfo, Stop, tolerance
from jaxiter.transport.checks import if_needed, valid
from jaxiter.transport.geometry import Reduced
from jaxiter.transport.iteration import Marginals, kernel_problem, log_problem, sources
from jaxiter.transport.newton import newton_problem

PyTree = Any

#: "auto" gives accelerated Sinkhorn this many steps before it turns to Newton.
AUTO_STEPS = 150
#: "newton" starts from a plan with this relative row error, or after so many iterations.
WARMUP_ERROR, WARMUP_STEPS = 0.1, 200
#: A larger epsilon is solved to this relative error, in at most so many steps.
ROUGH_ERROR, ROUGH_STEPS = 1e-2, 200


#: Where a typical cost is above this many epsilons, larger epsilons are solved first, each this
#: many times the next, up to one at which costs are so many times easier than that, and at most
#: so many.
FAR, SCALING, EASIER, MOST_LEVELS = 500.0, 4.0, 2, 24


class Choices(NamedTuple):
    """How to solve: the method, and what `fixed_point` calls solver, stop, monitor, max_steps."""

    method: str
    solver: optax.GradientTransformation | None
    stop: Stop
    monitor: Monitor | None
    max_steps: Any


class Progress(NamedTuple):
    """Where a solve stands between two stages.

    Potentials g `[m]` of a cost from which the shifts are taken out, steps so far, the trace.
    """

    rows: jax.Array
    columns: jax.Array
    g: jax.Array
    steps: jax.Array
    trace: PyTree


def solve_stages(
    parts: Reduced, marginals: Marginals, choices: Choices, schedule: jax.Array | None
) -> tuple[Solution, Progress]:
    """All stages; the solution counts their steps together, its value is g."""
    g = jnp.zeros_like(marginals.b)
    trace = None
    if choices.monitor is not None:
        infinite = jnp.full((), jnp.inf, g.dtype)
        trace = choices.monitor.init(StepInfo(
            jnp.int32(0), g, g, infinite, infinite, infinite, jnp.bool_(True)))
    now = Progress(parts.shift_rows, parts.shift_columns, g, jnp.int32(0), trace)
    if schedule is None:
        now = _scaled(parts, marginals, choices, now, _levels(parts, marginals),
                      lambda level: marginals.epsilon * SCALING ** level.astype(g.dtype))
    elif schedule.size:
        now = _scaled(parts, marginals, choices, now, jnp.int32(schedule.size),
                      lambda level: schedule[schedule.size - level])
    solver, stop, most = choices.solver, choices.stop, None
    if choices.method == "auto":
        solver, most = anderson(), AUTO_STEPS
    elif choices.method == "newton":
        stop, most = tolerance(rtol=WARMUP_ERROR, atol=0.0), WARMUP_STEPS
    first = _stage(parts, marginals, choices, now, most, solver=solver, stop=stop)
    now = now._replace(g=first.value, steps=now.steps + first.steps, trace=first.trace)
    if choices.method not in ("auto", "newton"):
        return _merged(first, now), now
    done = (first.status == Status.BAD_INPUT) | (first.status == Status.NONFINITE)
    if choices.method == "auto":
        done |= first.status != Status.MAX_STEPS
    needed = ~done & (now.steps < choices.max_steps)

    def refine(now: Progress) -> tuple[Solution, Progress]:
        return _newton(parts, marginals, choices, now)

    second, later = if_needed(needed, refine, (now,), (parts, marginals))
    now = jax.tree.map(lambda new, old: jnp.where(needed, new, old), later, now)
    end = jax.tree.map(lambda new, old: jnp.where(needed, new, old), second, _merged(first, now))
    return end._replace(steps=now.steps, trace=now.trace, value=now.g), now


def _merged(solution: Solution, now: Progress) -> Solution:
    """The last stage's solution with all steps; what only the driver can use is left out."""
    return solution._replace(
        value=now.g, steps=now.steps, trace=now.trace, displacement=None, state=None)


def place(parts: Reduced, marginals: Marginals, now: Progress) -> tuple[Reduced, Marginals]:
    """The cost and the marginals with the shifts that a solve has come to."""
    parts = parts.placed(now.rows, now.columns)
    rows, columns = parts.shifts
    return parts, marginals._replace(rows=rows, columns=columns)


def _moved(parts: Reduced, marginals: Marginals, now: Progress) -> Progress:
    """The same point with its potentials taken out of the cost: they go on with all digits."""
    if not parts.shiftable:
        return now
    here, marginals = place(parts, marginals, now)
    f = sources(now.g, here.geometry, marginals)
    return now._replace(
        rows=now.rows + f, columns=now.columns + now.g, g=jnp.zeros_like(now.g))


def _stage(
    parts: Reduced, marginals: Marginals, choices: Choices, now: Progress, most: int | None,
    **keywords: Any,
) -> Solution:
    """One solve by Sinkhorn's iteration, of at most `most` steps of what the budget has left."""
    here, marginals = place(parts, marginals, now)
    kernel = here.base.in_memory and choices.method != "log"
    problem = kernel_problem(valid) if kernel else log_problem(valid)
    return fixed_point(
        problem, now.g, here.geometry, marginals, adjoint=frozen(),
        max_steps=_left(choices.max_steps, now.steps, most),
        monitor=_continued(choices.monitor, now, lambda x: x), **keywords)


def _left(limit: Any, spent: Any, most: int | None) -> Any:
    left = jnp.asarray(limit, jnp.int32) - spent
    return left if most is None else jnp.minimum(left, most)


def _continued(
    monitor: Monitor | None, now: Progress, view: Callable[[PyTree], jax.Array]
) -> Monitor | None:
    """The monitor going on where the last stage left it; `view` gives it g, whatever x is."""
    if monitor is None:
        return None

    def update(info: StepInfo, state: PyTree, active: jax.Array) -> PyTree:
        seen = info._replace(
            step=info.step + now.steps, x=view(info.x), residual=view(info.residual))
        return monitor.update(seen, state, active)

    return Monitor(lambda info: now.trace, update)


def _levels(parts: Reduced, marginals: Marginals) -> jax.Array:
    """How many larger epsilons are to be solved first; mostly none."""
    def far(level: jax.Array) -> jax.Array:
        epsilon = marginals.epsilon * SCALING ** level.astype(marginals.epsilon.dtype)
        return (level < MOST_LEVELS) & (parts.geometry.typical(2 * FAR * epsilon) > FAR * epsilon)

    level = lax.while_loop(far, lambda level: level + 1, anchor(
        jnp.int32(0), (parts, marginals)))
    return jnp.where(level > 0, level + EASIER, 0)


def _scaled(
    parts: Reduced, marginals: Marginals, choices: Choices, now: Progress, levels: jax.Array,
    epsilon: Callable[[jax.Array], jax.Array],
) -> Progress:
    """Rough solves at `epsilon(level)`, from `levels` down to 1, each from the last one's point."""
    rough = tolerance(rtol=ROUGH_ERROR, atol=0.0)

    def body(state: tuple[jax.Array, Progress]) -> tuple[jax.Array, Progress]:
        level, now = state
        larger = marginals._replace(epsilon=epsilon(level))
        out = _stage(parts, larger, choices, now, ROUGH_STEPS, solver=anderson(), stop=rough)
        now = now._replace(g=out.value, steps=now.steps + out.steps, trace=out.trace)
        return anchor((level - 1, _moved(parts, larger, now)), (parts, marginals))

    def going(state: tuple[jax.Array, Progress]) -> jax.Array:
        level, now = state
        return (level > 0) & (now.steps < choices.max_steps)

    levels = jnp.where(valid(now.g, parts.geometry, marginals), levels, 0)
    like = (parts, marginals)
    return lax.while_loop(going, body, anchor((levels.astype(jnp.int32), now), like))[1]


def _newton(
    parts: Reduced, marginals: Marginals, choices: Choices, now: Progress
) -> tuple[Solution, Progress]:
    """Newton steps from where Sinkhorn's iteration stopped."""
    now = _moved(parts, marginals, now)
    here, marginals = place(parts, marginals, now)
    a, b, epsilon = marginals[:3]
    # The "P" convention, with a finite number where the weight is 0: a solver's state.
    logs = epsilon * _log(b)
    out = fixed_point(
        newton_problem(valid), (epsilon * _log(a), logs), here.geometry, marginals,
        stop=choices.stop, adjoint=frozen(), max_steps=_left(choices.max_steps, now.steps, None),
        monitor=_continued(choices.monitor, now, lambda x: x[1] - logs))
    g = jnp.where(b > 0, out.value[1] - logs, 0)
    now = now._replace(g=g, steps=now.steps + out.steps, trace=out.trace)
    return _merged(out, now), now


def _log(weights: jax.Array) -> jax.Array:
    return jnp.log(jnp.where(weights > 0, weights, 1))


def epsilon_scaling(largest: float, epsilon: float, factor: float = 0.25) -> np.ndarray:
    """Epsilons from `largest` (say, the largest cost) down to above `epsilon`, by `factor`.

    >>> epsilon_scaling(1.0, 0.05).tolist()
    [1.0, 0.25, 0.0625]
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be between 0 and 1, got {factor}.")
    count = max(0, int(np.ceil(np.log(epsilon / largest) / np.log(factor) - 1e-9)))
    return largest * factor ** np.arange(count)
