"""Zeros of F as fixed points of `x - F(x)`, by any solver: F is judged by its slopes on the way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.line_search import barzilai_borwein
from jaxiter.linear import gmres
from jaxiter.numerics import machine_epsilon, safe_divide, stop_gradient
from jaxiter.problem import Problem
from jaxiter.roots.vectors import signed
from jaxiter.solution import Solution, Status
from jaxiter.solvers.residual import residual_solver
from jaxiter.stop import Stop, accepts

PyTree = Any

#: The first move is this share of the size of x0: it only has to show the slope of F.
FIRST_MOVE, LONGER = 0.01, 1e3
#: A point that ran further than so many times the first estimate of where the root is does not
#: loosen its own test: there |F| must fall below rtol times what it was at the start.
GROWTH = 1e3
#: CONVERGED needs a Newton step of at most this share of x, from a linear solve that leaves at most
#: this relative residual after so many steps, and leads where |F| is at most this share: half of
#: it would be left by 1/x, exp(-1) of it by exp(x), a quarter by x^2.
NEAR, SOLVED, NEWTON_STEPS, LEFT = 0.01, 0.1, 200, 1 / 3
#: A point so many times further out than the start must be near a root for any F of this size,
#: and |F| must have fallen to the share `NEAR`.
RAN = 100
#: Steps in a row, far from the start and no nearer to a root, that make a solve DIVERGED.
PATIENCE = 20
#: The flattest of so many moves says how far a root may be, the steepest what rounding does.
WINDOW = 10


class Trail(NamedTuple):
    """What a root solve remembers of its way: it judges F by how F has changed along it.

    Attributes:
      x, value: the last point and F there.
      slopes: `|change of F| / |move|` of the last moves, `[WINDOW]`; 0 where there was none.
      steepest: the largest of all. moves: their count. move: length of the last.
      unit: size of x0, or the distance of its root as the first slope has it. start: |F(x0)|.
      reach: distance of the root when |F| fell to epsilon times start; inf before.
      lost: steps in a row at which x was far from everything.
    """

    x: PyTree
    value: PyTree
    slopes: jax.Array
    steepest: jax.Array
    moves: jax.Array
    move: jax.Array
    unit: jax.Array
    start: jax.Array
    reach: jax.Array
    lost: jax.Array


class _Sight(NamedTuple):
    """One more point seen from the trail; `distance`: |F| / slope, an estimate of the error."""

    norm: jax.Array
    x_norm: jax.Array
    move: jax.Array
    slopes: jax.Array
    moves: jax.Array
    distance: jax.Array


def _begin(x0: PyTree, *args: PyTree) -> Trail:
    del args
    zero, none = jnp.zeros((), trees.norm_dtype(x0)), jnp.int32(0)
    return Trail(x0, trees.zeros_like(x0), jnp.zeros((WINDOW,), zero.dtype), zero, none, zero,
                 zero, zero, zero + jnp.inf, none)


def _look(x: PyTree, value: PyTree, trail: Trail) -> _Sight:
    x, value, trail = stop_gradient((x, value, trail))
    norm, x_norm, move, change = (trees.norm(part) for part in (
        value, x, trees.subtract(x, trail.x), trees.subtract(value, trail.value)))
    new = (jnp.arange(WINDOW, dtype=jnp.int32) == trail.moves % WINDOW) & (move > 0)
    slopes = jnp.where(new, safe_divide(change, move), trail.slopes)
    moves = trail.moves + (move > 0).astype(jnp.int32)
    return _Sight(norm, x_norm, move, slopes, moves, norm / _flattest(slopes, moves))


def _flattest(slopes: jax.Array, moves: jax.Array) -> jax.Array:
    """The smallest slope of the last moves; 0 while there is none."""
    known = jnp.arange(WINDOW, dtype=jnp.int32) < moves
    return jnp.where(moves > 0, jnp.min(jnp.where(known, slopes, jnp.inf)), 0)


def _follow(x: PyTree, value: PyTree, trail: Trail) -> Trail:
    """The trail with one more point."""
    seen, epsilon = _look(x, value, trail), machine_epsilon(x)
    first, steepest = trail.start == 0, jnp.max(seen.slopes)
    start = jnp.where(first, seen.norm, trail.start)
    # As soon as F has changed with x.
    ahead = jnp.maximum(trees.norm(stop_gradient(trail.x)), safe_divide(trail.start, steepest))
    unit = jnp.where((trail.unit == 0) & (steepest > 0), ahead, trail.unit)
    fell = jnp.isinf(trail.reach) & (seen.norm <= epsilon * start) & (seen.moves > 0)
    far = (seen.x_norm * epsilon > jnp.maximum(trail.unit, 1)) & (
        ~(seen.distance <= 0.1 * seen.x_norm))
    return Trail(
        x, value, seen.slopes, jnp.maximum(trail.steepest, steepest), seen.moves, seen.move,
        unit, start,
        jnp.where(fell, seen.distance, trail.reach),
        jnp.where(far, trail.lost + 1, 0))


def _scale(x: PyTree, value: PyTree, trail: Trail) -> jax.Array:
    """What rtol multiplies: what a relative change of x would change F by; 0 while unknown."""
    seen = _look(x, value, trail)
    size = jnp.maximum(seen.x_norm, 0.1 * jnp.minimum(trail.unit, 1))
    ran = size > GROWTH * trail.unit
    # Exactly zero is a root however flat F was on the way, unless `_runs_away` objects.
    slope = jnp.where(seen.norm == 0, jnp.max(seen.slopes), _flattest(seen.slopes, seen.moves))
    return jnp.where(ran, jnp.minimum(slope * GROWTH * trail.unit, trail.start), slope * size)


def _floor(x: PyTree, trail: Trail) -> jax.Array:
    """What rounding of x alone changes F by; never so much that F would not have fallen."""
    epsilon = machine_epsilon(x)
    rounding = 4 * epsilon * jnp.max(trail.slopes) * trees.norm(stop_gradient(x))
    return jnp.minimum(rounding, epsilon**0.5 * trail.start)


def _runs_away(x: PyTree, value: PyTree, trail: Trail) -> jax.Array:
    """DIVERGED where F tends to zero only because x runs to infinity, or x is lost."""
    seen, epsilon = _look(x, value, trail), machine_epsilon(x)
    # Down by two epsilons without having come nearer, or to exactly 0 on the way.
    tiny = (seen.norm <= epsilon**2 * trail.start) & (seen.distance >= 0.5 * trail.reach)
    flat = (seen.norm == 0) & (jnp.min(seen.slopes) <= epsilon * trail.steepest) & (
        seen.move >= 0.5 * trail.move) & (trail.moves > 1)
    away = tiny | flat | (trail.lost >= PATIENCE)
    return jnp.where(away, jnp.int32(Status.DIVERGED), jnp.int32(Status.RUNNING))


class _Unit(NamedTuple):
    """The inner state; the residual's factor, and whether it is final; last point and residual.

    The factor is 0 before the first step, and changes once, when F has changed with x. It applies
    to residuals divided by `unit`, the size of the first.
    """

    inner: PyTree
    unit: jax.Array
    factor: jax.Array
    known: jax.Array
    x: PyTree
    residual: PyTree


def in_units(solver: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A solver that sees F in units of x: so its points do not depend on the scale of F.

    The first move is a hundredth of x0; how F changes along it is what the residual is then
    divided by, with its sign.
    """
    solver = optax.with_extra_args_support(solver)

    def init(params: PyTree) -> _Unit:
        none = trees.zeros_like(params)
        zero = jnp.zeros((), trees.norm_dtype(params))
        return _Unit(solver.init(params), zero, zero, jnp.bool_(False), none, none)

    def update(residual: PyTree, state: _Unit, params: PyTree, **extra: Any) -> tuple:
        size = stop_gradient(trees.magnitude(residual))
        unit = jnp.where(state.factor == 0, size, state.unit)
        residual = trees.scale(1 / unit, residual)
        x, r = stop_gradient((params, residual))
        move, change = trees.subtract(x, state.x), trees.subtract(r, state.residual)
        x_norm = trees.norm(x)
        first = FIRST_MOVE * safe_divide(jnp.where(x_norm > 0, x_norm, 1), trees.norm(r))
        secant = barzilai_borwein(move, change, "mean")
        uphill = trees.dot(change, move).real > 0
        seen = (secant > 0) & (secant < jnp.inf)
        secant = jnp.where(uphill, -secant, secant).astype(first.dtype)
        # A move too small to change F shows nothing: one a thousand times as long will.
        second = jnp.where(seen, secant, LONGER * state.factor)
        factor = jnp.where(state.known, state.factor, jnp.where(state.factor == 0, first, second))
        inner = trees.where(state.known, state.inner, solver.init(params))
        scaled, inner = solver.update(trees.scale(factor, residual), inner, params, **extra)
        known = state.known | ((state.factor != 0) & seen)
        return scaled, _Unit(inner, unit, factor, known, x, r)

    return residual_solver("in_units", init, update, ("params",))


def confirmed(
    solution: Solution, function: Callable, x0: PyTree, args: tuple, stop: Stop, start: jax.Array
) -> Solution:
    """The solution, DIVERGED where it says CONVERGED and Newton's step sees no root near.

    F has a forward derivative; `start` is |F(x0)|. Slopes along the way are not the derivative: F
    may be steep in one direction and flat in the one that matters, or fall towards zero only at
    infinity. An absolute tolerance that is met needs no such proof.
    """
    x, x0, args = stop_gradient((solution.value, x0, args))
    first = stop_gradient(start)
    unit = jnp.where(first > 0, first, 1)

    def scaled(x: PyTree) -> PyTree:
        return trees.scale(1 / unit, function(x, *args))

    value, derivative = jax.linearize(scaled, x)
    # Each unknown and each equation in a unit of its own: in a common one the linear solve would
    # reach its share of |F| before it has seen the small ones. What no unknown changes is missed.
    moves = signed(x)
    changes = jax.tree.map(_size, derivative(moves), value)

    def rows(value: PyTree) -> PyTree:
        return jax.tree.map(jnp.divide, value, changes)

    def columns(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, v, moves)

    norm, x_norm = trees.norm(rows(value)), trees.norm(x)
    probe = trees.probe_like(value)
    ran = x_norm > RAN * jnp.maximum(trees.norm(x0), 1)
    other = trees.scale(jnp.where(ran, norm / trees.norm(probe), 0), probe)
    solved = gmres(max_steps=NEWTON_STEPS)(
        lambda v: rows(derivative(columns(v))), trees.add(rows(value), other))
    step = columns(solved.value)
    left = trees.norm(trees.add(rows(scaled(trees.subtract(x, step))), other))
    length = jnp.maximum(x_norm, 0.1 * jnp.minimum(trees.norm(trees.subtract(x, x0)), 1))
    # What rounding of x changes F by, at a root near 0 too.
    rounding = 8 * machine_epsilon(x) * jnp.maximum(
        trees.norm(rows(derivative(x))), norm * safe_divide(length, trees.norm(step)))
    fell = trees.norm(value) <= NEAR * first / unit
    near = (~ran | fell) & (solved.residual <= SOLVED) & (trees.norm(step) <= NEAR * length) & (
        left <= jnp.maximum(LEFT * norm, rounding)) & trees.finite(changes)
    absolute = accepts(stop, x, trees.scale(unit, value), solution.merit, 0)
    refused = (solution.status == Status.CONVERGED) & ~near & ~absolute
    return solution._replace(
        status=jnp.where(refused, jnp.int32(Status.DIVERGED), solution.status))


def _size(change: jax.Array, value: jax.Array) -> jax.Array:
    """|change|; |value| where that is 0, 1 where both are."""
    size = jnp.where(change == 0, jnp.abs(value), jnp.abs(change))
    return jnp.where(size == 0, 1, size).astype(change.dtype)


def trail_problem(evaluate: Callable, has_aux: bool) -> Problem:
    """The problem whose residual is -F; `evaluate(x, *args) -> (F, aux)`."""

    def residual(x: PyTree, trail: Trail, *args: PyTree) -> tuple:
        value, aux = evaluate(x, *args)
        out = trees.negative(value), _follow(x, value, stop_gradient(trail))
        return (out, aux) if has_aux else out

    def of_value(function: Callable) -> Callable:
        return lambda x, r, trail, *args: function(x, trees.negative(r), trail)

    return Problem(
        residual=residual, memory=_begin, scale=of_value(_scale),
        floor=lambda x, trail, *args: _floor(x, trail), certify=of_value(_runs_away),
        equations=lambda x, trail, *args: evaluate(x, *args)[0])
