"""Levenberg-Marquardt: Gauss-Newton steps, damped as much as the model of the residuals needs.

Each step tries one point: residuals and Jacobian there, accepted or not.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.fit import Box, Fit, FitMethod
from jaxiter.jacobian import column_lengths, dense_jacobian, flat, positive, unflat
from jaxiter.known import check_positive
from jaxiter.linear.dense import damped_triangle, triangle
from jaxiter.numerics import machine_epsilon, product, safe_divide
from jaxiter.problem import Problem
from jaxiter.solution import Status

PyTree = Any

#: A step is taken that brings this share of what the model promised. Below `POOR` the radius
#: shrinks, from `GOOD` on it may grow.
ENOUGH, POOR, GOOD = 1e-4, 0.25, 0.75
#: Changes of the cost below so many roundings say nothing: there the next full step decides.
NOISE = 16
#: D is at most the lengths of the columns here times this power of the machine epsilon: what
#: they once were must not hide a direction.
LONGEST = -0.4
#: Singular values of columns of length 1 below so many roundings times n are none.
RANK = 10
#: So many roundings of what enters make the smallest full step.
ROUNDINGS = 2
#: A full step longer than this power of epsilon, as a share of x, is no rounding.
BLIND = 0.25
#: An unknown is far from its start that is more than so many times as large.
RAN = 2
#: Steps of Newton's method for the damping: from below, the first are nearly exact.
SECULAR = 6


class Seen(NamedTuple):
    """A point as the method sees it; J there, its columns divided by `units`, is
    `W diag(values) basis`, without those of unknowns that are held at a bound.

    values: singular values, 0 for those that rounding cannot tell from 0. basis: `[n, n]`.
    pull: W^T r. units: D, the largest lengths of the columns so far. size: the root of twice the
    cost. full: length of the undamped step in residuals, `|C d|`, C being the lengths of the
    columns here. moves: whether it moves x at all. scale: `|C x|`. floor: what rounding makes of
    `full`.
    """

    values: jax.Array
    basis: jax.Array
    pull: jax.Array
    units: jax.Array
    size: jax.Array
    full: jax.Array
    moves: jax.Array
    scale: jax.Array
    floor: jax.Array


class Move(NamedTuple):
    """The step to try, flat, and its length `|D d|`; the share of the squared size that the model
    says it saves; whether it is the full step; and whether it is none, where the full one is some.
    """

    step: jax.Array
    length: jax.Array
    predicted: jax.Array
    whole: jax.Array
    stuck: jax.Array


class Trust(NamedTuple):
    """What a solve remembers: the point it is at, what comes next, and how far that is trusted.

    radius: the longest step, `|D d|`; inf before the first. start: x0. alive: which unknowns have
    had an effect. lost: whether one of them, far from its start, has none now.
    """

    seen: Seen
    move: Move
    radius: jax.Array
    start: jax.Array
    alive: jax.Array
    lost: jax.Array


class LevenbergMarquardt(FitMethod):
    """See `levenberg_marquardt`."""

    name: ClassVar[str] = "levenberg_marquardt"
    takes_bounds: ClassVar[bool] = True
    radius: Any = 100.0

    def problem(self, fit: Fit) -> Problem:
        """The problem of args `(box, *args)`; the merit is the length of the full step."""
        def step(x: PyTree, trust: Trust, box: Box, *args: PyTree) -> tuple[PyTree, Trust]:
            return _step(fit, self.radius, x, trust, box, args)

        def begin(x0: PyTree, *args: PyTree) -> Trust:
            del args
            return _begin(flat(x0))

        return Problem(
            step=step, memory=begin, merit=_merit,
            scale=lambda x, image, trust, *args: trust.seen.scale,
            floor=lambda x, trust, *args: trust.seen.floor, certify=_certify,
            equations=lambda x, trust, box, *args: fit.equations(x, box, *args))


def levenberg_marquardt(radius: Any = 100.0) -> LevenbergMarquardt:
    """Levenberg-Marquardt with a dense Jacobian, for up to a few hundred unknowns; takes bounds.

        min |J d + r|  subject to  |D d| <= radius,    x <- clip(x + d)

    D are the lengths of the columns of J, so units of the unknowns do not matter. The radius grows
    where the cost fell as the model said, and shrinks where it did not. An entry at a bound that
    the gradient pushes against stays there. By a QR factorisation of J and the singular values of
    R: nothing squares the condition number, and of a Jacobian without full rank the steps are those
    of least norm. One evaluation of residuals and Jacobian (n products) per step.

    Args:
      radius: of the first step, in units of `|D x0|`.

    Reference: More, "The Levenberg-Marquardt algorithm: implementation and theory", Numerical
    Analysis, 1978; Kanzow, Yamashita and Fukushima, "Levenberg-Marquardt methods with strong local
    convergence properties for solving nonlinear equations with convex constraints", 2004 (bounds).

    >>> levenberg_marquardt() == levenberg_marquardt(100.0)
    True
    """
    check_positive(radius=radius)
    return LevenbergMarquardt(radius)


def _begin(x: jax.Array) -> Trust:
    none, vector = jnp.zeros((), x.dtype), jnp.zeros_like(x)
    endless, nan, no = none + jnp.inf, none + jnp.nan, jnp.bool_(False)
    nothing = Seen(vector, jnp.zeros((x.size, x.size), x.dtype), vector, vector, endless, endless,
                   jnp.bool_(True), nan, nan)
    return Trust(nothing, Move(vector, none, none, no, no), endless, x, vector > 0, no)


def _step(
    fit: Fit, radius: Any, x: PyTree, trust: Trust, box: Box, args: tuple
) -> tuple[PyTree, Trust]:
    first = jnp.isinf(trust.seen.size)
    here = flat(x)
    trial = unflat(box.clip(here + trust.move.step), x)
    there = flat(trial)
    new, columns = _look(fit, trial, trust.seen.units, box, args)
    finite = trees.finite((new.values, new.basis, new.pull, new.size, new.full))
    better, ratio = _judge(trust, new)
    accepted = finite & (better | first)
    seen = trees.where(accepted, new, trust.seen)
    here = jnp.where(accepted, there, here)
    start = jnp.asarray(radius, here.dtype) * positive(new.scale)
    radius = jnp.where(first, start, _radius(trust, finite, ratio))
    move = _move(here, seen, radius, box)
    # The first radius is as long as the first step at most.
    limit = jnp.where(first, jnp.minimum(radius, move.length), radius)
    alive = trust.alive | (columns > 0) & accepted
    far = jnp.abs(there) > RAN * jnp.abs(trust.start)
    lost = accepted & jnp.any(alive & (columns == 0) & far)
    # Where the start itself cannot be evaluated there is no way on.
    image = trees.where(accepted, trial, x)
    image = trees.where(first & ~finite, trees.full_like(x, jnp.nan), image)
    return image, Trust(seen, move, limit, trust.start, alive, lost)


def _look(
    fit: Fit, x: PyTree, units: jax.Array, box: Box, args: tuple
) -> tuple[Seen, jax.Array]:
    """One evaluation of the residuals and their Jacobian, and the lengths of its columns."""
    long = flat(x)
    r, jacobian = (part.astype(long.dtype) for part in dense_jacobian(
        lambda x: fit.residuals(x, *args), x))
    size = fit.size(r)
    rows, own = fit.weights(r)
    if rows is not None:
        jacobian, r = rows[:, None] * jacobian, own * r
    r_factor = triangle(jnp.concatenate([jacobian, r[:, None]], axis=1))[:-1]
    lengths = column_lengths(r_factor[:, :-1])
    return _measured(long, r_factor, lengths, units, size, box), lengths


def _measured(
    x: jax.Array, factor: jax.Array, lengths: jax.Array, units: jax.Array, size: jax.Array,
    box: Box,
) -> Seen:
    epsilon, own = machine_epsilon(x), positive(lengths)
    units = jnp.clip(units, own, own * epsilon**LONGEST)
    matrix, pull = factor[:, :-1] / units, factor[:, -1]
    pinned = box.pinned(x, product(matrix.T, pull))
    if pinned is not None:
        matrix = jnp.where(pinned, 0, matrix)
    left, values, basis = jnp.linalg.svd(matrix, full_matrices=False)
    pull = product(left.T, pull)
    values = jnp.where(values > RANK * x.size * epsilon, values, 0)
    inverse = safe_divide(1, values)
    full = box.clip(x - product(basis.T, inverse * pull) / units) - x
    scale = trees.norm(own * x)
    gain = jnp.sqrt(jnp.sum((inverse[:, None] * basis * (own / units)) ** 2))
    floor = ROUNDINGS * epsilon * gain * (scale + gain * size)
    floor = jnp.minimum(floor, epsilon**BLIND * scale)
    return Seen(values, basis, pull, units, size, trees.norm(own * full),
                jnp.any(x + full != x), scale, floor)


def _judge(trust: Trust, new: Seen) -> tuple[jax.Array, jax.Array]:
    """Whether the trial is better, and the share of the promise that it kept."""
    old, predicted = trust.seen, trust.move.predicted
    share = safe_divide(new.size, old.size)
    saved = (1 - share) * (1 + share)
    noise = NOISE * machine_epsilon(saved) * (1 + safe_divide(old.scale, old.size))
    quiet = (jnp.abs(saved) <= noise) & (jnp.abs(predicted) <= noise)
    # A step that the bounds bent uphill promises nothing, and keeps no promise by failing.
    promised = jnp.maximum(predicted, 0)
    better = jnp.where(quiet, new.full < old.full, saved > ENOUGH * promised)
    ratio = jnp.where(quiet, jnp.where(better, 1, 0), safe_divide(saved, promised))
    return better, ratio


def _radius(trust: Trust, finite: jax.Array, ratio: jax.Array) -> jax.Array:
    """The next radius, by about the rule of MINPACK."""
    move = trust.move
    # Where the cost rose, the parabola through what is known has its minimum at this share.
    share = jnp.where(ratio >= 0, 0.5, jnp.maximum(0.1, 0.5 / (1 - jnp.minimum(ratio, 0))))
    share = jnp.where(finite, share, 0.1)
    smaller = share * jnp.minimum(trust.radius, 10 * move.length)
    longer = jnp.where(move.whole | (ratio >= GOOD), 2 * move.length, trust.radius)
    return jnp.where(finite & (ratio > POOR), longer, smaller)


def _move(x: jax.Array, seen: Seen, radius: jax.Array, box: Box) -> Move:
    """The step within the radius."""
    damping = _damping(seen, radius)
    away = safe_divide(seen.values * seen.pull, seen.values**2 + damping)
    step = -product(seen.basis.T, away) / seen.units
    if box.lower is not None:
        step = _within(x, step, seen, damping, box)
    change = seen.values * product(seen.basis, seen.units * step)
    unit = positive(seen.size)
    predicted = -product((2 * seen.pull + change) / unit, change / unit)
    return Move(step, trees.norm(seen.units * step), predicted, damping == 0,
                jnp.all(x + step == x) & seen.moves)


def _within(
    x: jax.Array, step: jax.Array, seen: Seen, damping: jax.Array, box: Box
) -> jax.Array:
    """The step of the others where those that would cross their bounds go to them."""
    inside = box.clip(x + step) - x
    crosses = (x + step < box.lower) | (x + step > box.upper)
    matrix = seen.values[:, None] * seen.basis
    moved = jnp.where(crosses, seen.units * inside, 0)
    smallest = RANK * x.size * machine_epsilon(x)
    factor, rhs = damped_triangle(jnp.where(crosses, 0, matrix), seen.pull + product(
        matrix, moved), jnp.maximum(jnp.sqrt(damping), smallest))
    others = -jax.scipy.linalg.solve_triangular(factor, rhs) / seen.units
    return box.clip(x + jnp.where(crosses, inside, others)) - x


def _damping(seen: Seen, radius: jax.Array) -> jax.Array:
    """lambda such that the step is as long as the radius, or 0 where the full one is shorter.

    `1 / |d(lambda)|` is concave, so Newton's method from 0 stays below its zero.
    """
    pull = seen.values * seen.pull / positive(radius)
    squares = seen.values**2
    damping = jnp.zeros_like(radius)
    for _ in range(SECULAR):
        inverse = safe_divide(1, squares + damping)
        parts = (inverse * pull) ** 2
        length = jnp.sqrt(jnp.sum(parts))
        slope = safe_divide(jnp.sum(parts * inverse), length**2)
        # Lengths a little above the radius will do.
        damping = damping + jnp.where(length > 1.1, safe_divide(length - 1, slope), 0)
    return damping


def _merit(x: PyTree, image: PyTree, trust: Trust, *args: PyTree) -> jax.Array:
    """The length of the full step. What is longer than x and r together is as good as unknown, and
    how much longer means nothing.
    """
    del x, image, args
    most = trust.seen.scale + trust.seen.size
    return jnp.where(trust.seen.full > most, most, trust.seen.full)


def _certify(x: PyTree, image: PyTree, trust: Trust, *args: PyTree) -> jax.Array:
    """DIVERGED where an unknown ran to where it has no effect; STAGNATED where no step is left."""
    del x, image, args
    # Of a full step that is rounding there is nothing to be missed.
    stuck = trust.move.stuck & (trust.seen.full > trust.seen.floor)
    stuck = jnp.where(stuck, jnp.int32(Status.STAGNATED), jnp.int32(Status.RUNNING))
    lost = trust.lost & (trust.seen.full <= machine_epsilon(trust.start)**BLIND * trust.seen.scale)
    return jnp.where(lost, jnp.int32(Status.DIVERGED), stuck)
