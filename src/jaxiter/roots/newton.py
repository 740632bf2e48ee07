"""What Newton's methods share: what a point is worth where Newton's step there is known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.numerics import safe_divide
from jaxiter.problem import Problem
from jaxiter.solution import Status
from jaxiter.stop import first_case

#: A root is near where a whole step of Newton left at most this share of |F|, and the next step is
#: at most this share of it: 1/x would double it, exp(x) keep it and leave exp(-1) of |F|; at a root
#: of order k in one unknown the shares are (1 - 1/k)^k and 1 - 1/k.
LEFT, SHORTER = 1 / 3, 0.75
#: So many roundings of x, and of the terms of F, are what F cannot resolve.
ROUNDINGS = 8
#: A step is useful that lowers |F|^2 by this share. So many others in a row end a solve, fewer of
#: them at what rounding leaves of F.
PROGRESS, SLOW, SLOW_AT_FLOOR = 1e-3, 10, 5
#: Steps in a row, far from the start and no nearer to a root, that make a solve DIVERGED.
PATIENCE = 20


class Point(NamedTuple):
    """One evaluation.

    Attributes:
      norm: |F|. x_norm: size of x. step: of Newton's step there, not finite where there is none.
      noise: what rounding of x may change F by. whole: x is where a whole step of Newton led.
      flat: some equation has lost all slope, as those do that underflow.
      good: the next step starts here, for |F| fell. useful: it fell by a good deal, or steps
        become longer.
    """

    norm: jax.Array
    x_norm: jax.Array
    step: jax.Array
    noise: jax.Array
    whole: jax.Array
    flat: jax.Array
    good: jax.Array
    useful: jax.Array


class Course(NamedTuple):
    """What was seen so far, scalars; and the verdict on the point evaluated last.

    Attributes:
      start, size: |F| and |x| at x0; start is inf before. norm, step, noise: |F|, the length of
        Newton's step and the rounding at the last good point. lost: evaluations in a row far from
        everything. slow: those that brought nothing.
      merit, scale, code: of the point evaluated last, as a `Problem` says them.
    """

    start: jax.Array
    size: jax.Array
    norm: jax.Array
    step: jax.Array
    noise: jax.Array
    lost: jax.Array
    slow: jax.Array
    merit: jax.Array
    scale: jax.Array
    code: jax.Array


def begin(zero: jax.Array) -> Course:
    """Nothing seen yet."""
    endless, none = zero + jnp.inf, jnp.int32(0)
    return Course(endless, zero, endless, endless, zero, none, none, endless, zero,
                  jnp.int32(Status.RUNNING))


def judged(course: Course, at: Point, epsilon: float) -> Course:
    """The course after one more evaluation.

    `scale` is |F| |x| / |step|, so that rtol bounds Newton's step by rtol |x|; and 0, which no
    tolerance but one on |F| itself meets, until it is known that a root is near.
    """
    first = jnp.isinf(course.start)
    size = jnp.where(first, at.x_norm, course.size)
    start = jnp.where(first, at.norm, course.start)
    length = jnp.maximum(at.x_norm, 0.1 * jnp.minimum(size, 1))
    contracts = at.whole & ~first & (at.norm <= LEFT * course.norm) & (
        at.step <= SHORTER * course.step)
    rounded = (at.norm <= at.noise) | (at.step <= ROUNDINGS * epsilon * length)
    # The scale at x0 is the unit of a default atol, and nothing there tells the unit of F.
    near = (contracts | rounded) & at.good & ~at.flat & jnp.isfinite(at.step) & ~first
    scale = jnp.where(near, at.norm * safe_divide(length, at.step), 0)
    far = (at.x_norm * epsilon > jnp.maximum(size, 1)) & ~(at.step <= 0.1 * at.x_norm)
    lost = jnp.where(far, course.lost + 1, 0)
    slow = jnp.where(first | at.useful, 0, course.slow + 1)
    # Down to nothing on the way, without a root: what is exactly 0 there has underflowed.
    vanished = (at.norm == 0) & at.flat & (course.norm <= epsilon**2 * start)
    norm, step, noise = (jnp.where(at.good, new, old) for new, old in (
        (at.norm, course.norm), (at.step, course.step), (at.noise, course.noise)))
    floor = (slow >= SLOW_AT_FLOOR) & (norm <= noise)
    code = first_case(
        ((lost >= PATIENCE) | vanished | (floor & at.flat), Status.DIVERGED),
        (floor, Status.PRECISION_FLOOR), (slow >= SLOW, Status.STAGNATED))
    return Course(start, size, norm, step, noise, lost, slow, at.norm, scale, code)


def judging(problem: Problem, epsilon: float) -> Problem:
    """The problem, judged by the `course` that its memory holds."""
    return problem._replace(
        merit=lambda x, out, m, *args: m.course.merit,
        scale=lambda x, out, m, *args: m.course.scale,
        floor=lambda x, m, *args: 4 * epsilon * m.course.scale,
        certify=lambda x, out, m, *args: m.course.code, hindsight=True)
