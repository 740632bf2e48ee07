"""The stages of a transport solve on one budget of steps: large epsilons, Sinkhorn, Newton."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.monitor import Monitor, seeing
from jaxiter.options import Options
from jaxiter.solution import Solution, Status
from jaxiter.solvers.anderson import anderson
from jaxiter.stages import ended, follow, in_stages
from jaxiter.stop import StepInfo, Stop, tolerance
from jaxiter.transport.checks import valid
from jaxiter.transport.geometry import Geometry, Reduced
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

#: "auto" gives accelerated Sinkhorn this many steps before it turns to Newton. A fixed number: the
#: residual often stands still for long and then falls fast, so that its trend foretells little.
AUTO_STEPS = 600
#: "newton" starts from a plan with this relative row error, or after so many iterations.
WARMUP_ERROR, WARMUP_STEPS = 0.1, 200
#: A larger epsilon is solved to this relative error, in at most so many steps.
ROUGH_ERROR, ROUGH_STEPS = 1e-2, 200
#: Where a typical cost is above this many epsilons, larger epsilons are solved first, each this
#: many times the next, up to one at which costs are so many times easier than that, and at most
#: so many.
FAR, SCALING, EASIER, MOST_LEVELS = 500.0, 4.0, 2, 12


class Choices(NamedTuple):
    """How to solve: the method, and the options of `fixed_point`."""

    method: str
    options: Options


class Point(NamedTuple):
    """Where a solve stands: what has been taken out of the cost, and potentials of what is left."""

    rows: jax.Array
    columns: jax.Array
    f: jax.Array
    g: jax.Array


def solve_stages(
    parts: Reduced, marginals: Marginals, choices: Choices, schedule: jax.Array | None
) -> tuple[Point, Solution]:
    """All stages on one budget of steps: where they end, and their solution, whose value is g."""
    options = choices.options
    first = _sinkhorn(parts, marginals, choices, schedule)
    if choices.method in ("auto", "newton"):
        status = first.status
        # Newton's plan, changed by multiplication, says less of rounding than the kernel.
        needed = (status == Status.MAX_STEPS) | (status == Status.PRECISION_FLOOR)
        if choices.method == "newton":
            needed = (status != Status.BAD_INPUT) & (status != Status.NONFINITE)
        first = follow(
            first, partial(_newton, parts, marginals, options), needed, monitor=options.monitor,
            max_steps=options.max_steps, like=(parts, marginals))
    return first.value, first._replace(value=first.value.g)


def place(parts: Reduced, marginals: Marginals, now: Point) -> tuple[Reduced, Marginals]:
    """The cost and the marginals with the shifts that a solve has come to."""
    parts = parts.placed(now.rows, now.columns)
    rows, columns = parts.shifts
    return parts, marginals._replace(rows=rows, columns=columns)


def _moved(parts: Reduced, now: Point) -> Point:
    """The same point with its potentials taken out of the cost: they go on with all digits."""
    if not parts.shiftable:
        return now
    return Point(now.rows + now.f, now.columns + now.g, *trees.zeros_like((now.f, now.g)))


def _sinkhorn(
    parts: Reduced, marginals: Marginals, choices: Choices, schedule: jax.Array | None
) -> Solution:
    """Sinkhorn's iteration at one epsilon after the other; the value is a `Point`.

    All but the last are solved roughly; "newton" solves the last one no better.
    """
    options, stop, most = choices.options, choices.options.rule, choices.options.max_steps
    if choices.method == "auto":
        options, most = options._replace(solver=anderson()), AUTO_STEPS
    elif choices.method == "newton":
        stop, most = tolerance(rtol=WARMUP_ERROR, atol=0.0), WARMUP_STEPS
    kernel = parts.base.in_memory and choices.method != "log"
    levels, epsilon_at = _scaling(parts, marginals, schedule)

    def here(level: jax.Array, now: Point) -> tuple[Geometry, Marginals]:
        placed, there = place(parts, marginals.at(epsilon_at(level)), now)
        return placed.geometry, there

    def each(level: jax.Array, now: Point) -> dict:
        geometry, there = here(level, now)
        return {
            "args": (geometry, there),
            "stop": _rough_or(stop, level > 0),
            "monitor": viewed(options.monitor, lambda x: x * there.unit),
            "max_steps": jnp.where(level > 0, ROUGH_STEPS, most),
        }

    def update(solve: Solution, level: jax.Array, now: Point) -> tuple:
        geometry, there = here(level, now)
        # Where no stage follows, however many were to come, the potentials are for epsilon.
        last = (level == 0) | ended(solve, options.max_steps)
        g = solve.value * there.unit
        there = there.at(jnp.where(last, marginals.epsilon, there.epsilon))
        now = now._replace(f=sources(g, geometry, there), g=g)
        now = trees.where(last, now, _moved(parts, now))
        following = marginals.at(epsilon_at(level - 1))
        return now.g / following.unit, (level - 1, now), level == 0

    # Laid out over devices as the cost is; a weight vector need not be.
    f, g = trees.zeros_like((parts.shift_rows, marginals.b))
    out = in_stages(
        kernel_problem(valid) if kernel else log_problem(valid), g,
        levels, Point(parts.shift_rows, parts.shift_columns, f, g), update=update, each=each,
        **options._replace(adjoint=frozen())._asdict())
    level, end = out.aux
    out = from_units(out, marginals.at(epsilon_at(level + 1)))
    # A residual at a larger epsilon says nothing of this one.
    return out._replace(value=end, aux=None, residual=jnp.where(level < 0, out.residual, jnp.inf))


def _scaling(
    parts: Reduced, marginals: Marginals, schedule: jax.Array | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """How many larger epsilons are to be solved first, and the epsilon where so many are left."""
    levels = _levels(parts, marginals) if schedule is None else jnp.int32(schedule.size)

    def at(level: jax.Array) -> jax.Array:
        if schedule is None:
            return marginals.epsilon * SCALING ** level.astype(marginals.a.dtype)
        # Chosen without an index, which an explicit mesh would not let pass.
        places = np.arange(schedule.size, 0, -1, dtype=np.int32)
        larger = jnp.sum(jnp.where(places == level, schedule, 0))
        return jnp.where(level > 0, larger, marginals.epsilon)

    levels = jnp.where(valid(None, parts.geometry, marginals), levels, 0)
    return levels.astype(jnp.int32), at


def _rough_or(stop: Stop, rough: jax.Array) -> Stop:
    """The rule, or, for a stage before the last, a relative error of `ROUGH_ERROR`."""
    def update(info: StepInfo, state: PyTree) -> tuple[jax.Array, PyTree]:
        status, state = stop.update(info, state)
        near = jnp.where(info.merit <= ROUGH_ERROR * info.scale, Status.CONVERGED, Status.RUNNING)
        return jnp.where(rough, near, status).astype(jnp.int32), state

    return Stop(stop.init, update)


def viewed(monitor: Monitor | None, view: Callable[[PyTree], jax.Array]) -> Monitor | None:
    """The monitor, shown g, whatever x is."""
    return seeing(monitor, lambda info: info._replace(
        x=view(info.x), residual=view(info.residual)))


def _levels(parts: Reduced, marginals: Marginals) -> jax.Array:
    """How many larger epsilons are to be solved first; mostly none."""
    powers = np.arange(MOST_LEVELS, dtype=np.float32)
    far = FAR * marginals.epsilon * jnp.asarray(SCALING**powers, marginals.epsilon.dtype)
    level = jnp.sum((parts.geometry.typical(2 * far) > far).astype(jnp.int32))
    return jnp.where(level > 0, level + EASIER, 0)


def _newton(
    parts: Reduced, marginals: Marginals, options: Options, before: Solution, max_steps: Any,
    monitor: Monitor | None,
) -> Solution:
    """Newton steps from where Sinkhorn's iteration stopped."""
    now = _moved(parts, before.value)
    here, marginals = place(parts, marginals, now)
    a, b, epsilon = marginals[:3]
    # The "P" convention, with a finite number where the weight is 0: a solver's state.
    logs, one = log_weights(b, epsilon), marginals.unit
    out = from_units(fixed_point(
        newton_problem(valid), ((now.f + log_weights(a, epsilon)) / one, (now.g + logs) / one),
        here.geometry, marginals, **options._replace(
            solver=None, adjoint=frozen(), max_steps=max_steps,
            monitor=viewed(monitor, lambda x: x[1] * one - logs))._asdict()), marginals)
    g = jnp.where(b > 0, out.value[1] - logs, 0)
    return out._replace(value=now._replace(f=sources(g, here.geometry, marginals), g=g))


def epsilon_scaling(largest: float, epsilon: float, factor: float = 0.25) -> np.ndarray:
    """Epsilons from `largest` (say, the largest cost) down to above `epsilon`, by `factor`.

    >>> epsilon_scaling(1.0, 0.05).tolist()
    [1.0, 0.25, 0.0625]
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be between 0 and 1, got {factor}.")
    count = max(0, int(np.ceil(np.log(epsilon / largest) / np.log(factor) - 1e-9)))
    return largest * factor ** np.arange(count)
