"""ADMM for dense programs, in the form of OSQP: one factorisation, then products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear.factor import inverse_factor
from jaxiter.numerics import if_needed, machine_epsilon, product, safe_divide, stop_gradient
from jaxiter.operators.programs.certificates import displaced
from jaxiter.operators.programs.optimality import optimality
from jaxiter.operators.programs.program import PrimalDual, Program, curvature, gradient, within
from jaxiter.operators.programs.sizes import held
from jaxiter.problem import Problem
from jaxiter.solution import Status

#: Added to Q, as OSQP does.
SHIFT = 1e-6
#: Equalities have so many times the penalty of inequalities; OSQP has 1,000, which float32 feels.
EQUAL = 10.0
#: The penalty changes where it is wrong by more than this, to within these limits.
WRONG, LEAST, MOST = 3.0, 1e-4, 1e4
#: Steps between two looks at it.
REFRESH = 25
#: The merit that rounding leaves, in machine epsilons.
FLOOR = 32.0


class Split(NamedTuple):
    """The governing point: x and, for the rows of A, G and the bounds, their value plus their
    multiplier over the penalty.
    """

    x: jax.Array
    equality: jax.Array
    inequality: jax.Array
    bounds: jax.Array


class Penalty(NamedTuple):
    """In which units the point evaluated last was, and its image is; how often they changed; how
    many evaluations there were.
    """

    seen: jax.Array
    ahead: jax.Array
    epoch: jax.Array
    steps: jax.Array


class Factor(NamedTuple):
    """The Cholesky factor of `Q + shift + K' diag(penalty) K`."""

    penalty: jax.Array
    factor: jax.Array


def admm_problem(fixed: bool) -> Problem:
    """The problem of args `(program, penalty)`, a program in units by `equilibrated`.

        z = clip(v, low, high),    y = rho (v - z)
        x+ = (Q + shift + K' rho K)^-1 (shift x - q + K' (rho z - y)),    v+ = v + K x+ - z

    K = [A; G; I]. The penalty is balanced every 25 steps where it is far off. With `fixed` the
    second argument is a `Factor`, which a batch of right-hand sides shares.
    """
    common = {
        "merit": _merit, "scale": 1.0, "hindsight": True, "epoch": lambda memory: memory.epoch,
        "certify": _certify, "floor": lambda point, *rest: FLOOR * machine_epsilon(point)}

    def begin(point: Split, program: Program, given: Any) -> Penalty:
        penalty = given.penalty if fixed else given
        return Penalty(penalty, penalty, jnp.int32(0), jnp.int32(0))

    if fixed:
        return Problem(
            step=lambda s, memory, program, factor: _step(s, factor, memory, program),
            memory=begin, equations=_equations, **common)
    return Problem(
        step=lambda s, factor, memory, program, _: _step(s, factor, memory, program),
        cache=_balanced, memory=begin, refresh=REFRESH, stale=_stale,
        equations=lambda s, factor, *rest: _equations(s, *rest),
        **{**common, "merit": lambda s, image, factor, *rest: _merit(s, image, *rest),
           "certify": lambda s, image, factor, *rest: _certify(s, image, *rest)})


def start(program: Program, point: PrimalDual, penalty: jax.Array) -> Split:
    """The governing point of x and multipliers: rows that are pushed are at their limit."""
    weights = _weights(program, penalty)
    x, y, z = point
    low, high = held(program, point)
    push = jnp.where(low | high, -gradient(program, point), 0)
    equal, unequal, inside = _projected(program, _rows(program, x))
    unequal = jnp.where(z > 0, program.h, unequal)
    inside = jnp.where(low, program.lower, jnp.where(high, program.upper, inside))
    return Split(x, *(row + safe_divide(dual, weight) for row, dual, weight in zip(
        (equal, unequal, inside), (y, z, push), weights, strict=True)))


def factorised(program: Program, penalty: jax.Array) -> Factor:
    """The factor for a penalty."""
    equal, unequal, bounds = _weights(program, penalty)
    matrix = product(program.A.T, equal[:, None] * program.A)
    matrix = matrix + product(program.G.T, unequal[:, None] * program.G)
    matrix = matrix + jnp.diag(bounds + SHIFT)
    if program.Q is not None:
        matrix = matrix + program.Q
    return Factor(penalty, inverse_factor(matrix))


def primal_dual(program: Program, point: Split, penalty: Penalty) -> PrimalDual:
    """x and the multipliers of a governing point."""
    y, z, _ = _multipliers(program, point, penalty.seen)[1]
    return PrimalDual(point.x, y, z)


def _weights(program: Program, penalty: jax.Array) -> tuple:
    """The penalty of every row: 0 for what is no constraint."""
    bounded = (program.lower > -jnp.inf) | (program.upper < jnp.inf)
    return (jnp.broadcast_to(EQUAL * penalty, program.b.shape),
            jnp.where(program.h < jnp.inf, penalty, 0), jnp.where(bounded, penalty, 0))


def _rows(program: Program, x: jax.Array) -> tuple:
    return product(program.A, x), product(program.G, x), x


def _projected(program: Program, v: tuple) -> tuple:
    return program.b, jnp.minimum(v[1], program.h), jnp.clip(v[2], program.lower, program.upper)


def _multipliers(program: Program, point: Split, penalty: jax.Array) -> tuple[tuple, tuple]:
    """z and y of a governing point."""
    z = _projected(program, point[1:])
    weights = _weights(program, penalty)
    return z, tuple(w * (v - z) for w, v, z in zip(weights, point[1:], z, strict=True))


def _step(
    point: Split, factor: Factor, memory: Penalty, program: Program
) -> tuple[Split, Penalty]:
    z, y = _multipliers(program, point, memory.ahead)
    rho = _weights(program, factor.penalty)
    equal, unequal, bounds = (w * z - y for w, z, y in zip(rho, z, y, strict=True))
    right = SHIFT * point.x - program.q + bounds + product(program.A.T, equal)
    right = right + product(program.G.T, unequal)
    x = product(factor.factor.T, product(factor.factor, right))
    moved = _rows(program, x)
    # In the units of the factor, where they are others than those of the point.
    governing = (jnp.where(w > 0, row + safe_divide(y, w), row)
                 for row, y, w in zip(moved, y, rho, strict=True))
    changed = factor.penalty != memory.ahead
    return Split(x, *governing), Penalty(
        memory.ahead, factor.penalty, memory.epoch + changed.astype(jnp.int32), memory.steps + 1)


def _merit(point: Split, image: Split, memory: Penalty, program: Program, *_: Any) -> jax.Array:
    del image
    found = primal_dual(program, point, memory)
    return optimality(program, found._replace(x=within(program, found.x))).worst()


def proof(image: Split, memory: Penalty, program: Program) -> tuple[jax.Array, PrimalDual]:
    """What the way from zero to an image proves, as `displaced` does.

    In the way of one step rounding grows as the point does.
    """
    ahead = primal_dual(program, image, memory._replace(seen=memory.ahead))
    return displaced(program, trees.zeros_like(ahead), ahead)


def _certify(
    point: Split, image: Split, memory: Penalty, program: Program, *_: Any
) -> jax.Array:
    """What every so many steps prove."""
    del point
    fixed = stop_gradient((image, memory, program))
    return if_needed(memory.steps % REFRESH == 0, lambda *parts: proof(*parts)[0],
                     fixed, fixed, jnp.int32(Status.RUNNING))


def _wanted(point: Split, memory: Penalty, program: Program) -> jax.Array:
    """The penalty that balances what the point lacks in constraints and in its gradient."""
    z, y = _multipliers(program, point, memory.ahead)
    rows = _rows(program, point.x)
    primal = trees.norm(trees.subtract(rows, z))
    primal = safe_divide(primal, jnp.maximum(trees.norm(rows), trees.norm(z)))
    pull = product(program.A.T, y[0]) + product(program.G.T, y[1]) + y[2]
    bend = curvature(program, point.x)
    dual = safe_divide(trees.norm(bend + program.q + pull), jnp.stack(
        [trees.norm(part) for part in (bend, program.q, pull)]).max())
    ratio = jnp.where((primal > 0) & (dual > 0), jnp.sqrt(safe_divide(primal, dual)), 1)
    return jnp.clip(memory.ahead * ratio.astype(memory.ahead.dtype), LEAST, MOST)


def _far(wanted: jax.Array, penalty: jax.Array) -> jax.Array:
    return (wanted > WRONG * penalty) | (wanted < penalty / WRONG)


def _balanced(point: Split, memory: Penalty, program: Program, _: Any) -> Factor:
    """The factor for the balanced penalty, once there is something to balance."""
    wanted = _wanted(point, memory, program)
    some = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in point if leaf.size]))
    change = some & _far(wanted, memory.ahead)
    return factorised(program, jnp.where(change, wanted, memory.ahead))


def _stale(point: Split, factor: Factor, memory: Penalty, program: Program, _: Any) -> jax.Array:
    return _far(_wanted(point, memory, program), factor.penalty)


def _equations(point: Split, memory: Penalty, program: Program, _: Any) -> Split:
    """Zero gradient, and rows that are where their multipliers say."""
    z, (y, mu, push) = _multipliers(program, point, memory.seen)
    slope = gradient(program, PrimalDual(point.x, y, mu)) + push
    rows = _rows(program, point.x)
    return Split(slope, *trees.subtract(rows, z))
