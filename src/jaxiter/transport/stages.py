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
from jaxiter.numerics import accumulation_dtype, anchor, if_needed
from jaxiter.solution import Solution, Status
from jaxiter.solvers.anderson import anderson
from jaxiter.stop import StepInfo, Stop, tolerance
from jaxiter.transport.checks import valid
from jaxiter.transport.geometry import Reduced
from jaxiter.transport.iteration import (
    Marginals,
    from_units,
    kernel_problem,
    log_problem,
    log_weights,
    sources,
)
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
FAR, SCALING, EASIER, MOST_LEVELS = 500.0, 4.0, 2, 12


class Choices(NamedTuple):
    """How to solve: the method, and what `fixed_point` calls solver, stop, monitor, max_steps."""

    method: str
    solver: optax.GradientTransformation | None
    stop: Stop
    monitor: Monitor | None
    max_steps: Any


class Progress(NamedTuple):
    """Where a solve stands between two stages.

    Attributes:
      rows, columns: what has been taken out of the cost. f, g: potentials of what is left.
      level: stages at larger epsilons that are still to come.
      solve: how the last stage ended, with all steps so far and the trace of all.
    """

    rows: jax.Array
    columns: jax.Array
    f: jax.Array
    g: jax.Array
    level: jax.Array
    solve: Solution


def solve_stages(
    parts: Reduced, marginals: Marginals, choices: Choices, schedule: jax.Array | None
) -> Progress:
    """All stages on one budget of steps; the solution counts them together, its value is g."""
    if schedule is None:
        levels = _levels(parts, marginals)
    else:
        levels = jnp.int32(schedule.size)

    def at(level: jax.Array) -> jax.Array:
        if schedule is None:
            return marginals.epsilon * SCALING ** level.astype(marginals.a.dtype)
        # Chosen without an index, which an explicit mesh would not let pass.
        places = np.arange(schedule.size, 0, -1, dtype=np.int32)
        larger = jnp.sum(jnp.where(places == level, schedule, 0))
        return jnp.where(level > 0, larger, marginals.epsilon)

    levels = jnp.where(valid(None, parts.geometry, marginals), levels, 0)
    now = _sinkhorn(parts, marginals, choices, at, _start(parts, marginals, choices, levels))
    if choices.method not in ("auto", "newton"):
        return now
    status, steps = now.solve.status, now.solve.steps
    done = (status == Status.BAD_INPUT) | (status == Status.NONFINITE)
    if choices.method == "auto":
        done |= status != Status.MAX_STEPS
    needed = ~done & (steps < choices.max_steps)
    later = if_needed(needed, lambda now: _newton(parts, marginals, choices, now), (now,), (
        parts, marginals))
    return jax.tree.map(lambda new, old: jnp.where(needed, new, old), later, now)


def _start(
    parts: Reduced, marginals: Marginals, choices: Choices, levels: jax.Array
) -> Progress:
    """Potentials 0 of the reduced cost, nothing done."""
    g = jnp.zeros_like(marginals.b)
    infinite = jnp.full((), jnp.inf, accumulation_dtype(g.dtype))
    info = StepInfo(jnp.int32(0), g, g, infinite, infinite, infinite, jnp.bool_(True))
    trace = None if choices.monitor is None else choices.monitor.init(info)
    solve = Solution(g, jnp.int32(Status.RUNNING), jnp.int32(0), infinite, infinite,
                     infinite, None, None, None, trace)
    # Laid out over devices as the cost is; a weight vector need not be.
    f = jnp.zeros_like(parts.shift_rows)
    return Progress(parts.shift_rows, parts.shift_columns, f, g, levels.astype(jnp.int32), solve)


def place(parts: Reduced, marginals: Marginals, now: Progress) -> tuple[Reduced, Marginals]:
    """The cost and the marginals with the shifts that a solve has come to."""
    parts = parts.placed(now.rows, now.columns)
    rows, columns = parts.shifts
    return parts, marginals._replace(rows=rows, columns=columns)


def _moved(parts: Reduced, now: Progress) -> Progress:
    """The same point with its potentials taken out of the cost: they go on with all digits."""
    if not parts.shiftable:
        return now
    return now._replace(rows=now.rows + now.f, columns=now.columns + now.g,
                        f=jnp.zeros_like(now.f), g=jnp.zeros_like(now.g))


def _sinkhorn(
    parts: Reduced, marginals: Marginals, choices: Choices,
    epsilon_at: Callable[[jax.Array], jax.Array], now: Progress,
) -> Progress:
    """Sinkhorn's iteration at one epsilon after the other, each from the last one's point.

    All but the last are solved roughly; "newton" solves the last one no better.
    """
    solver, stop, most = choices.solver, choices.stop, choices.max_steps
    if choices.method == "auto":
        solver, most = anderson(), AUTO_STEPS
    elif choices.method == "newton":
        stop, most = tolerance(rtol=WARMUP_ERROR, atol=0.0), WARMUP_STEPS
    kernel = parts.base.in_memory and choices.method != "log"
    problem = kernel_problem(valid) if kernel else log_problem(valid)

    def body(now: Progress) -> Progress:
        rough = now.level > 0
        here, there = place(parts, marginals.at(epsilon_at(now.level)), now)
        left = jnp.asarray(choices.max_steps, jnp.int32) - now.solve.steps
        one = there.unit
        out = from_units(fixed_point(
            problem, now.g / one, here.geometry, there, solver=solver, adjoint=frozen(),
            stop=_rough_or(stop, rough),
            monitor=_continued(choices.monitor, now, lambda x: x * one),
            max_steps=jnp.minimum(left, jnp.where(rough, ROUGH_STEPS, most))), there)
        spent = out.steps >= left
        now = now._replace(
            f=sources(out.value, here.geometry, there), g=out.value, solve=_counted(out, now),
            level=jnp.where(spent, jnp.minimum(now.level - 1, 0), now.level - 1))
        moved = _moved(parts, now)
        return anchor(jax.tree.map(
            lambda new, old: jnp.where(rough, new, old), moved, now), (parts, marginals))

    # Where no steps are left the last stage makes none, but gives the potentials for epsilon.
    return lax.while_loop(
        lambda now: now.level >= 0, body, anchor(now, (parts, marginals)))


def _rough_or(stop: Stop, rough: jax.Array) -> Stop:
    """The rule, or, for a stage before the last, a relative error of `ROUGH_ERROR`."""
    def update(info: StepInfo, state: PyTree) -> tuple[jax.Array, PyTree]:
        status, state = stop.update(info, state)
        near = jnp.where(info.merit <= ROUGH_ERROR * info.scale, Status.CONVERGED, Status.RUNNING)
        return jnp.where(rough, near, status).astype(jnp.int32), state

    return Stop(stop.init, update)


def _counted(out: Solution, now: Progress) -> Solution:
    """A stage's solution with the steps of those before it."""
    return out._replace(steps=now.solve.steps + out.steps)


def _continued(
    monitor: Monitor | None, now: Progress, view: Callable[[PyTree], jax.Array]
) -> Monitor | None:
    """The monitor going on where the last stage left it; `view` gives it g, whatever x is."""
    if monitor is None:
        return None

    def update(info: StepInfo, state: PyTree, active: jax.Array) -> PyTree:
        seen = info._replace(
            step=info.step + now.solve.steps, x=view(info.x), residual=view(info.residual))
        return monitor.update(seen, state, active)

    return Monitor(lambda info: now.solve.trace, update)


def _levels(parts: Reduced, marginals: Marginals) -> jax.Array:
    """How many larger epsilons are to be solved first; mostly none."""
    powers = np.arange(MOST_LEVELS, dtype=np.float32)
    far = FAR * marginals.epsilon * jnp.asarray(SCALING**powers, marginals.epsilon.dtype)
    level = jnp.sum((parts.geometry.typical(2 * far) > far).astype(jnp.int32))
    return jnp.where(level > 0, level + EASIER, 0)


def _newton(
    parts: Reduced, marginals: Marginals, choices: Choices, now: Progress
) -> Progress:
    """Newton steps from where Sinkhorn's iteration stopped."""
    now = _moved(parts, now)
    here, marginals = place(parts, marginals, now)
    a, b, epsilon = marginals[:3]
    # The "P" convention, with a finite number where the weight is 0: a solver's state.
    logs, one = log_weights(b, epsilon), marginals.unit
    out = from_units(fixed_point(
        newton_problem(valid), ((now.f + log_weights(a, epsilon)) / one, (now.g + logs) / one),
        here.geometry, marginals, stop=choices.stop, adjoint=frozen(),
        max_steps=jnp.asarray(choices.max_steps, jnp.int32) - now.solve.steps,
        monitor=_continued(choices.monitor, now, lambda x: x[1] * one - logs)), marginals)
    g = jnp.where(b > 0, out.value[1] - logs, 0)
    return now._replace(f=sources(g, here.geometry, marginals), g=g,
                        solve=_counted(out._replace(value=g), now))


def epsilon_scaling(largest: float, epsilon: float, factor: float = 0.25) -> np.ndarray:
    """Epsilons from `largest` (say, the largest cost) down to above `epsilon`, by `factor`.

    >>> epsilon_scaling(1.0, 0.05).tolist()
    [1.0, 0.25, 0.0625]
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be between 0 and 1, got {factor}.")
    count = max(0, int(np.ceil(np.log(epsilon / largest) / np.log(factor) - 1e-9)))
    return largest * factor ** np.arange(count)
