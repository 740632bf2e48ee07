"""Powell's hybrid method: Newton's step where it can be trusted, bent to the gradient elsewhere.

Source: Powell, "A hybrid method for nonlinear equations", in Numerical Methods for Nonlinear
Algebraic Equations, 1970; More, Garbow and Hillstrom, "User guide for MINPACK-1", 1980, whose
scaling and whose rules for the radius these are. The Jacobian is a new one at every point.

Where |F| has a minimum that is no root, or a valley in which the region of trust stays small, the
plain method of Newton is tried once from x0: it does not mind |F| rising, nor any units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.jacobian import flat, unflat
from jaxiter.numerics import machine_epsilon, product, safe_divide
from jaxiter.problem import Problem
from jaxiter.roots.newton import LEFT, PROGRESS, Course, Point, begin, judged, judging
from jaxiter.roots.vectors import value_and_jacobian
from jaxiter.solution import Status

PyTree = Any

#: The first radius, in sizes of x0; the share of the predicted fall that moves the start of the
#: next step, that is too little, and that is plenty.
FACTOR, ACCEPTED, POOR, PLENTY = 100.0, 1e-4, 0.1, 0.5
#: What a step is shortened to that fell short of the model, or led where F is no number.
SHORT, UNDEFINED = 0.5, 0.1
#: A step in so many roundings of x leaves no room for a shorter one.
ROOM = 10
#: Where F does not change with some entry at x0, the entry moves by so much of the size of x0.
FIRST_MOVE = 0.01
#: Newton's plain method gets so many steps; it begins after so many of the other at the latest.
PLAIN, TRUSTED = 100, 200
#: Newton's step is one where its linear system is solved to this share of |F|.
SOLVED = 0.5


class Model(NamedTuple):
    """F about a point that was accepted, in scaled variables `s = D x` and a unit of F.

    Attributes:
      x, value, norm, unit: the point, F there, |F|, and the unit of F. newton, left: Newton's step
        and `F + J newton`.
      descent, change: the step to the least |F| along the gradient, and what it changes F by.
      usable: whether newton solves its system. diagonal: D.
    """

    x: jax.Array
    value: jax.Array
    norm: jax.Array
    unit: jax.Array
    newton: jax.Array
    left: jax.Array
    descent: jax.Array
    change: jax.Array
    usable: jax.Array
    diagonal: jax.Array


class Trust(NamedTuple):
    """The memory of a solve.

    Attributes:
      model: of the last accepted point. unit: size of the first Jacobian, that of D; 0 before.
      radius: of the region where the model is trusted. length: of the last step.
      predicted: |F| of the model where it led. whole: whether it was Newton's.
      free: whether it is accepted whatever comes of it. successes: good steps in a row.
      origin: x0. count: evaluations. plain: steps of Newton's plain method so far, of which the
        first leads to x0; 0 before, PLAIN + 1 after.
      steep: equations that ever changed with x. value: F at the point evaluated last.
      course: the judge's.
    """

    model: Model
    unit: jax.Array
    radius: jax.Array
    length: jax.Array
    predicted: jax.Array
    whole: jax.Array
    free: jax.Array
    successes: jax.Array
    origin: jax.Array
    count: jax.Array
    plain: jax.Array
    steep: jax.Array
    value: PyTree
    course: Course


def hybrid_problem(evaluate: Callable, x0: PyTree, has_aux: bool) -> Problem:
    """The problem whose map leads from trial to trial; `evaluate(x, *args) -> (F, aux)`."""
    dtype = trees.norm_dtype(x0)

    def step(x: PyTree, trust: Trust, *args: PyTree) -> tuple:
        value, jacobian, aux = value_and_jacobian(lambda x: evaluate(x, *args), x, dtype)
        at = flat(x, dtype)
        following, trust = _advance(at, flat(value, dtype), jacobian, trust, machine_epsilon(x))
        out = unflat(following - at, x), trust._replace(value=value)
        return (out, aux) if has_aux else out

    return judging(Problem(
        residual=step, memory=lambda x, *args: _begin(x, dtype),
        equations=lambda x, trust, *args: evaluate(x, *args)[0]), machine_epsilon(x0))


def _begin(x0: PyTree, dtype: Any) -> Trust:
    x = flat(x0, dtype)
    none, zero, no = jnp.zeros_like(x), jnp.zeros((), dtype), jnp.bool_(False)
    model = Model(x, none, zero, zero, none, none, none, none, no, none)
    count = jnp.int32(0)
    return Trust(model, zero, zero, zero, zero, no, no, count, x, count, count,
                 jnp.zeros(x.shape, bool), trees.full_like(x0, jnp.inf), begin(zero))


def _advance(
    x: jax.Array, value: jax.Array, jacobian: jax.Array, trust: Trust, epsilon: float
) -> tuple[jax.Array, Trust]:
    """The next trial, and the memory after one more evaluation."""
    first = trust.unit == 0
    plain = (trust.plain > 0) & (trust.plain <= PLAIN)
    # F in units of its own slope here: from far starts both may fall by the whole float range.
    norm, x_norm, before, unit = (
        trees.norm(value), _size(x), trust.model.norm, _unit(value, jacobian))
    start = jnp.where(first, unit, trust.unit)
    sound = trees.finite((value, jacobian))
    value, jacobian = value / unit, jacobian / unit
    fell = 1 - safe_divide(norm, before) ** 2
    ratio = safe_divide(fell, 1 - safe_divide(trust.predicted, before) ** 2)
    good = sound & (first | trust.free | (ratio >= ACCEPTED)) & ~plain
    here = _model(x, value, norm, unit, _shown(jacobian, norm / unit, x_norm, first),
                  jnp.where(first, 0, trust.model.diagonal), unit / start, epsilon)
    still = first & jnp.any(jnp.all(jacobian == 0, 0)) & (norm > 0)
    scaled = _size(here.diagonal * x)
    radius, successes = _radius(trust, ratio, sound)
    radius = jnp.where(first, FACTOR * jnp.where(scaled > 0, scaled, 1),
                       jnp.where(plain, trust.radius, radius))
    # A refused step is of use, too, while there is room for a shorter one and |F| can be resolved.
    room = trust.length > ROOM * epsilon * scaled
    useful = (fell >= PROGRESS) | (radius > trust.radius) | ~sound | plain | (
        ~good & room & (trust.course.norm > trust.course.noise))
    sloped = jnp.any(jacobian != 0, 1)
    newton = jnp.where(here.usable, _size(here.newton / here.diagonal), jnp.inf)
    noise = 4 * epsilon * trees.norm(product(jnp.abs(jacobian), jnp.abs(x)))
    # F that oscillates may seem to contract: what the region of trust had was no root, so a root
    # has much less.
    whole = trust.whole & (~plain | (norm <= LEFT * before))
    course = judged(trust.course, Point(
        norm, x_norm, newton, noise * unit, whole, jnp.any(trust.steep & ~sloped),
        good | (plain & sound), useful), epsilon)
    stuck = (trust.plain == 0) & (
        (course.code == Status.STAGNATED) | (trust.count >= TRUSTED)) & sound
    course = course._replace(  # a point of the plain method that is no better has no say
        merit=jnp.where(plain & (norm > before), jnp.inf, course.merit),
        slow=jnp.where(stuck, 0, course.slow),
        code=jnp.where(stuck & (course.code == Status.STAGNATED), Status.RUNNING, course.code))
    model = jax.tree.map(lambda new, old: jnp.where(good, new, old), here, trust.model)
    move, length, predicted, whole = _dogleg(model, radius)
    onward = plain & here.usable & (trust.plain < PLAIN)
    following = jnp.where(onward, x + here.newton / here.diagonal, model.x + move / model.diagonal)
    taken = jnp.where(plain, jnp.where(onward, trust.plain + 1, PLAIN + 1), trust.plain)
    return jnp.where(stuck, trust.origin, following), Trust(
        model, start, jnp.where(first, jnp.minimum(radius, length), radius), length, predicted,
        onward | (whole & ~stuck), still, successes, trust.origin, trust.count + 1,
        jnp.where(stuck, 1, taken), trust.steep | (good & sloped), trust.value, course)


def _unit(value: jax.Array, jacobian: jax.Array) -> jax.Array:
    """The size of the Jacobian; of F where that is zero."""
    slope = jnp.max(jnp.abs(jacobian))
    return trees.magnitude(jnp.where(slope > 0, slope, jnp.max(jnp.abs(value))))


def _shown(jacobian: jax.Array, norm: jax.Array, x_norm: jax.Array, first: jax.Array) -> jax.Array:
    """The Jacobian; at x0 with a slope where F does not change with an entry, which then moves."""
    slope = norm / (FIRST_MOVE * jnp.where(x_norm > 0, x_norm, 1))
    still = first & jnp.all(jacobian == 0, 0) & (norm > 0)
    return jnp.where(still, slope * jnp.eye(still.size, dtype=jacobian.dtype), jacobian)


def _radius(trust: Trust, ratio: jax.Array, sound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The radius after a step that brought `ratio` of what was predicted, and successes in a row.

    A poor step is as good as one of its length: a radius beyond it would try it again.
    """
    radius, length = trust.radius, trust.length
    poor = ~(ratio >= POOR)
    successes = jnp.where(poor | ~sound, 0, trust.successes + 1)
    larger = jnp.where((ratio >= PLENTY) | (successes > 1), jnp.maximum(radius, 2 * length), radius)
    larger = jnp.where(jnp.abs(ratio - 1) <= 0.1, 2 * length, larger)
    smaller = jnp.minimum(radius, length) * jnp.where(sound, SHORT, UNDEFINED)
    return jnp.where(poor | ~sound, smaller, larger), successes


def _model(
    x: jax.Array, value: jax.Array, norm: jax.Array, unit: jax.Array, jacobian: jax.Array,
    diagonal: jax.Array, share: jax.Array, epsilon: float,
) -> Model:
    """F about x. Rows and columns are taken in units of their own, D never shrinks.

    `share`: the unit of F and J over that of D.
    """
    size = norm / unit
    diagonal = jnp.maximum(diagonal, share * jnp.max(jnp.abs(jacobian), 0))
    diagonal = jnp.where(diagonal > 0, diagonal, 1)
    scaled = jacobian / diagonal
    rows = jnp.max(jnp.abs(scaled), 1)
    rows = jnp.where(rows > 0, rows, 1)
    # What rounding may add anyway: so a singular matrix has a finite answer too, which is of use
    # where the system can be solved.
    shifted = scaled / rows[:, None] + epsilon * jnp.eye(x.size, dtype=x.dtype)
    newton = -jnp.linalg.solve(shifted, value / rows)
    left = value + product(scaled, newton)
    usable = trees.finite(newton) & (trees.norm(left) <= SOLVED * size)
    # Of F / |F|, for squares of F may leave the float range.
    gradient = product(safe_divide(value, size), scaled)
    along = product(scaled, gradient)
    far = -size * safe_divide(trees.squared_norm(gradient), trees.squared_norm(along))
    return Model(x, value, norm, unit, jnp.where(usable, newton, 0), jnp.where(usable, left, 0),
                 far * gradient, far * along, usable, diagonal)


def _size(vector: jax.Array) -> jax.Array:
    """The largest magnitude: in one pass, and in the float range whatever the entries are."""
    return jnp.max(jnp.abs(vector))


def _dogleg(
    model: Model, radius: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The step on the path x, descent, newton that is `radius` long, or newton.

    Returns:
      The step in scaled variables, its length, |F| of the model there, whether it is Newton's.
    """
    reach, descent = trees.norm(model.newton), trees.norm(model.descent)
    whole = model.usable & (reach <= radius)
    # In units of the radius; a step that is longer by far shows its direction only.
    newton = model.newton / radius * jnp.minimum(1, 1e6 * safe_divide(radius, reach))
    start = model.descent / radius
    leg = newton - start
    a, b, c = (trees.dot(leg, leg), trees.dot(start, leg), 1 - trees.dot(start, start))
    root = jnp.sqrt(jnp.maximum(b * b + a * c, 0))
    share = jnp.where(b > 0, safe_divide(c, b + root), safe_divide(root - b, a))
    short = (descent >= radius) | ~model.usable
    share = jnp.where(short, 0, jnp.clip(share, 0, 1))
    keep = jnp.where(short, jnp.minimum(1, safe_divide(radius, descent)), 1 - share)
    long = share * jnp.minimum(1, 1e6 * safe_divide(radius, reach))
    keep, long = jnp.where(whole, 0, keep), jnp.where(whole, 1, long)
    model_value = model.value + keep * model.change + long * (model.left - model.value)
    move = jnp.where(whole, model.newton, keep * model.descent + long * model.newton)
    length = jnp.where(whole, reach, jnp.where(short, jnp.minimum(descent, radius), radius))
    return move, length, model.unit * trees.norm(model_value), whole
