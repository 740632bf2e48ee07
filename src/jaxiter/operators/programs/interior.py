"""The interior-point method for dense programs: Mehrotra's predictor and corrector.

Its step is one Cholesky factorisation of `n x n`, and the solves of both directions are refined
against the whole system: what float32 loses in `G' diag(z / s) G` is found again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear.factor import inverse_factor
from jaxiter.numerics import machine_epsilon, product, safe_divide, stop_gradient
from jaxiter.operators.programs.certificates import displaced
from jaxiter.operators.programs.kkt import program_equations
from jaxiter.operators.programs.optimality import complement, optimality
from jaxiter.operators.programs.program import (
    PrimalDual,
    Program,
    curvature,
    gradient,
    needed,
    within,
)
from jaxiter.operators.programs.sizes import near_sides, sizes
from jaxiter.problem import Problem
from jaxiter.solution import Status, most_severe

#: The share of the way to the boundary that a step goes.
NEAR = 0.99
#: Rounds of refinement of the predictor and of the corrector.
ROUNDS = 1, 2
#: After a failure the diagonal gets so many times as much, so often.
WIDER, TRIES = 8.0, 3
#: The merit that rounding leaves, in machine epsilons.
FLOOR = 32.0


class Room(NamedTuple):
    """All inequalities, `[m + 2n]`: those of G, of the lower and of the upper bounds.

    slack: the room that is left. dual: its multipliers. Both positive, 1 and 0 where a bound is
    infinite. blocked: how often rounding left no way to go on.
    """

    slack: jax.Array
    dual: jax.Array
    blocked: jax.Array


class _System(NamedTuple):
    """`[[Q, A', C'], [A, 0, 0], [C, 0, -ratio]]`, factorised with a little on its diagonal.

    weights: `1 / max(ratio, delta)`, 0 for infinite bounds. delta: also stands for the equalities.
    """

    program: Program
    ratio: jax.Array
    weights: jax.Array
    delta: float
    factor: jax.Array


def interior_problem() -> Problem:
    """The problem of args `(program,)`, one in units by `equilibrated`; its point a `PrimalDual`.

    The merit is the largest of the three ratios of `optimality`.
    """
    return Problem(
        step=_step, memory=_begin, equations=lambda point, room, program: program_equations(
            settled(program, point), program),
        merit=lambda point, image, room, program: _merit(point, program),
        scale=1.0, floor=lambda point, *rest: FLOOR * machine_epsilon(point), certify=_certify)


def _merit(point: PrimalDual, program: Program) -> jax.Array:
    """The largest of what `optimality` and `complement` see."""
    point = settled(program, point)
    return jnp.maximum(optimality(program, point).worst(), complement(program, point))


def settled(program: Program, point: PrimalDual) -> PrimalDual:
    """The point with x within its bounds; an entry that is pushed against its bound and has no way
    to it is there, and a multiplier that has no weight where there is room is 0. Where all of x,
    or all multipliers, vanish, nothing else says so. The derivatives are those of the point.

    A way is none beside the natural length of x, in units of rounding and by as much as the
    gradient pushes; a weight is none beside the gradient's terms, by as much as there is room.
    """
    fixed, old = stop_gradient((program, point))
    slope, room = gradient(fixed, old), fixed.h - product(fixed.G, old.x)
    units = sizes(fixed, old)
    none = machine_epsilon(old) * _length(fixed) * safe_divide(jnp.abs(slope), units[1])
    x = jnp.where((slope > 0) & (old.x - fixed.lower <= none), fixed.lower, old.x)
    x = jnp.where((slope < 0) & (fixed.upper - x <= none), fixed.upper, x)
    none = machine_epsilon(old) * units[1] * safe_divide(room, units[0])
    new = old._replace(x=jnp.clip(x, fixed.lower, fixed.upper), inequality_dual=jnp.where(
        old.inequality_dual <= none, 0, old.inequality_dual))
    new = needed(fixed, new)
    return jax.tree.map(lambda new, old, given: new + (given - old), new, old, point)


def _length(program: Program) -> jax.Array:
    """A natural length of x: the smaller of its right-hand sides and `|q| / |Q|` that is there."""
    right = trees.max_norm(near_sides(program))
    bend = jnp.zeros((), right.dtype) if program.Q is None else safe_divide(
        trees.max_norm(program.q), jnp.max(jnp.abs(program.Q), initial=0))
    lengths = [jnp.where(length > 0, length, jnp.inf) for length in (right, bend)]
    least = jnp.minimum(*lengths)
    return jnp.where(jnp.isfinite(least), least, 1)


def start(program: Program) -> PrimalDual:
    """x that minimises the objective and the squares of all rows; no multipliers.

    Where Q is small, or none, also its own square; 0 where there is no such x.
    """
    m, n = program.G.shape
    bend = 0 if program.Q is None else jnp.max(jnp.abs(program.Q), initial=0)
    own = jnp.maximum(1 - bend, 0) / 2
    ones = jnp.concatenate([jnp.isfinite(program.h).astype(program.q.dtype),
                            jnp.full(2 * n, own, program.q.dtype)])
    system = _system(program, jnp.ones_like(ones), ones)
    b, h = near_sides(program)
    x, y, _ = _once(system, -program.q, b, jnp.pad(h, (0, 2 * n)))
    found = trees.finite((x, y))
    x, y = (jnp.where(found, part, 0) for part in (x, y))
    return PrimalDual(within(program, x), y, jnp.zeros((m,), x.dtype))


def _limits(program: Program) -> tuple[jax.Array, jax.Array]:
    """The right-hand sides of `C x <= c`, and which of them are finite."""
    c = jnp.concatenate([program.h, -program.lower, program.upper])
    there = jnp.isfinite(c)
    return jnp.where(there, c, 0), there


def _rows(program: Program, x: jax.Array) -> jax.Array:
    """C x."""
    return jnp.concatenate([product(program.G, x), -x, x])


def _columns(program: Program, z: jax.Array) -> jax.Array:
    """C' z."""
    m, n = program.G.shape
    return product(program.G.T, z[:m]) - z[m:m + n] + z[m + n:]


def _begin(point: PrimalDual, program: Program) -> Room:
    """Slacks of at least the size of x, and multipliers that make all products equal."""
    c, there = _limits(program)
    room = jnp.where(there, c - _rows(program, point.x), 1)
    unit = jnp.maximum(trees.max_norm(point.x), jnp.max(-room, initial=0))
    unit = jnp.where(unit > 0, unit, _length(program)).astype(room.dtype)
    slack = jnp.where(there, jnp.maximum(room, unit), 1)
    given = jnp.pad(point.inequality_dual, (0, 2 * point.x.size))
    dual = jnp.where(there, jnp.maximum(given, unit * (unit / slack)), 0)
    return Room(slack, dual, jnp.int32(0))


def _system(
    program: Program, ratio: jax.Array, there: jax.Array, wider: jax.Array | float = 1.0
) -> _System:
    m, n = program.G.shape
    delta = machine_epsilon(program.q) ** 0.5
    weights = there / jnp.maximum(ratio, delta)
    matrix = product(program.G.T, weights[:m, None] * program.G)
    matrix = matrix + product(program.A.T, program.A) / delta
    matrix = matrix + jnp.diag(weights[m:m + n] + weights[m + n:] + delta * wider)
    if program.Q is not None:
        matrix = matrix + program.Q
    return _System(program, ratio, weights, delta, inverse_factor(matrix))


def _once(system: _System, r: jax.Array, equal: jax.Array, rest: jax.Array) -> tuple:
    """The solution of the system with what was added to its diagonal."""
    program, weights = system.program, system.weights
    right = r + product(program.A.T, equal) / system.delta + _columns(program, weights * rest)
    x = product(system.factor.T, product(system.factor, right))
    return (x, (product(program.A, x) - equal) / system.delta,
            weights * (_rows(program, x) - rest))


def _solved(
    system: _System, r: jax.Array, equal: jax.Array, rest: jax.Array, rounds: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The solution of the system, refined."""
    program = system.program
    x, y, z = _once(system, r, equal, rest)
    for _ in range(rounds):
        missing = r - curvature(program, x) - product(program.A.T, y) - _columns(program, z)
        gap = jnp.where(system.weights > 0, rest - _rows(program, x) + system.ratio * z, 0)
        change = _once(system, missing, equal - product(program.A, x), gap)
        x, y, z = trees.add((x, y, z), change)
    return x, y, z


def _furthest(v: jax.Array, change: jax.Array) -> jax.Array:
    """The step at which some entry of v would be 0."""
    falls = change < 0
    return jnp.min(jnp.where(falls, v / jnp.where(falls, -change, 1), jnp.inf), initial=jnp.inf)


def _step(point: PrimalDual, room: Room, program: Program) -> tuple[PrimalDual, Room]:
    (x, y, _), (slack, dual, _) = point, room
    c, there = _limits(program)
    some = there.astype(x.dtype)
    ratio = jnp.where(there, slack / jnp.where(there, dual, 1), 1)
    # Where rounding left no factor, with more on its diagonal, which refinement takes out again.
    system = _system(program, ratio, some, WIDER ** room.blocked.astype(x.dtype))
    slope = curvature(program, x) + program.q + product(program.A.T, y) + _columns(program, dual)
    equal = product(program.A, x) - program.b
    excess = some * (_rows(program, x) + slack - c)
    count = jnp.maximum(jnp.sum(some), 1)
    mean = product(slack, dual) / count

    def direction(products: jax.Array, rounds: int) -> tuple:
        """The step to products `s z` that are smaller by these."""
        share = jnp.where(there, products / jnp.where(there, dual, 1), 0)
        dx, dy, dz = _solved(system, -slope, -equal, share - excess, rounds)
        ds = -some * (share + ratio * dz)
        most = jnp.minimum(_furthest(slack, ds), _furthest(dual, dz))
        return dx, dy, ds, dz, jnp.minimum(1, NEAR * most)

    _, _, ds, dz, size = direction(slack * dual, ROUNDS[0])
    left = product(slack + size * ds, dual + size * dz) / count
    centre = mean * jnp.where(mean > 0, left / jnp.where(mean > 0, mean, 1), 0) ** 3
    dx, dy, ds, dz, size = direction(some * (slack * dual + ds * dz - centre), ROUNDS[1])
    moved = (x + size * dx, y + size * dy, slack + size * ds, dual + size * dz)
    # Where the factorisation fails, or no step is left, the point is the best there is.
    good = trees.finite(moved) & (size > 0)
    x, y, slack, dual = trees.where(good, moved, (x, y, slack, dual))
    m = program.G.shape[0]
    return PrimalDual(x, y, dual[:m]), Room(
        slack, dual, room.blocked + (~good).astype(jnp.int32))


def _certify(
    point: PrimalDual, image: PrimalDual, room: Room, program: Program
) -> jax.Array:
    """What the step proves; STAGNATED, or PRECISION_FLOOR near it, where it was none."""
    low = _merit(point, program) <= FLOOR * machine_epsilon(point)
    code = jnp.where(low, Status.PRECISION_FLOOR, Status.STAGNATED)
    ended = jnp.where(room.blocked > TRIES, code, Status.RUNNING)
    return most_severe(displaced(program, point, image)[0], ended).astype(jnp.int32)
