"""Newton's method without a matrix: inexact steps by GMRES, shortened until |F| falls.

Source: Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci.
Comput. 17, 1996; Pernice and Walker, "NITSOL: a Newton iterative solver for nonlinear systems",
SIAM J. Sci. Comput. 19, 1998.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear import gmres
from jaxiter.numerics import machine_epsilon, safe_divide
from jaxiter.problem import Problem
from jaxiter.roots.newton import PROGRESS, Course, Point, begin, judged, judging
from jaxiter.roots.vectors import signed

PyTree = Any

#: The linear systems are solved to a share of |F| between these, with so many vectors and products.
LOOSEST, TIGHTEST, FIRST, VECTORS, PRODUCTS = 0.9, 1e-3, 0.1, 30, 300
#: A step is Newton's, and may say that a root is near, where it solves its system to this share.
SOLVED = 0.1
#: Where F does not change with x at x0, x moves by so much of its size.
FIRST_MOVE = 0.01
#: A step is taken that lowers |F| by this share of what its linear system promises.
ENOUGH = 1e-4
#: A step that is refused is shortened to between these shares of it.
SHORTEST, LONGEST = 0.1, 0.5


class Line(NamedTuple):
    """The memory of a solve.

    Attributes:
      x, norm: where the line begins, and |F| there. direction: Newton's inexact step, which leaves
        the share `left` of |F| in the linear model. share: of it that the last trial took.
      forcing: the share of |F| that was asked of the linear solve.
      steep: equations that ever changed with x. value: F at the point evaluated last.
      course: the judge's.
    """

    x: PyTree
    norm: jax.Array
    direction: PyTree
    left: jax.Array
    share: jax.Array
    forcing: jax.Array
    steep: PyTree
    value: PyTree
    course: Course


def krylov_problem(evaluate: Callable, x0: PyTree, has_aux: bool) -> Problem:
    """The problem whose map leads from trial to trial; `evaluate(x, *args) -> (F, aux)`."""
    epsilon = machine_epsilon(x0)

    def step(x: PyTree, line: Line, *args: PyTree) -> tuple:
        value, product, aux = jax.linearize(lambda x: evaluate(x, *args), x, has_aux=True)
        following, line = _advance(x, value, product, line, epsilon)
        out = trees.subtract(following, x), line
        return (out, aux) if has_aux else out

    return judging(Problem(
        residual=step, memory=_begin,
        equations=lambda x, line, *args: evaluate(x, *args)[0]), epsilon)


def _begin(x0: PyTree, *args: PyTree) -> Line:
    del args
    zero = jnp.zeros((), trees.norm_dtype(x0))
    return Line(x0, zero + jnp.inf, trees.zeros_like(x0), zero, zero + 1, zero + FIRST,
                jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), x0),
                trees.full_like(x0, jnp.inf), begin(zero))


def _advance(
    x: PyTree, value: PyTree, product: Callable, line: Line, epsilon: float
) -> tuple[PyTree, Line]:
    """The next trial, and the memory after one more evaluation."""
    norm, x_norm = trees.norm(value), trees.norm(x)
    begun, first, sound = jnp.isinf(line.course.start), jnp.isinf(line.norm), jnp.isfinite(norm)
    promised = line.share * (1 - line.left)
    good = sound & (first | (norm <= (1 - ENOUGH * promised) * line.norm))
    forcing = jnp.where(good & ~first, _forcing(norm, line), line.forcing)
    # A refused trial needs no new direction: the system with 0 ends before its first product.
    unit = trees.magnitude(value)  # squares of products may leave the float range

    def scaled(v: PyTree) -> PyTree:
        return trees.scale(1 / unit, product(v))

    asked = trees.scale(jnp.where(good, -1 / unit, 0), value)
    solved = gmres(restart=VECTORS, rtol=forcing, max_steps=PRODUCTS)(scaled, asked)
    short = jnp.where(sound, _shortened(norm, line), SHORTEST) * line.share
    whole = good & (line.share == 1)
    solves = solved.residual <= LOOSEST + 0.05
    # Where F does not change with x at all, any move that shows its slope will do, and is kept.
    lost = begun & ~solves & (norm > 0)
    move = FIRST_MOVE * jnp.where(x_norm > 0, x_norm, 1) * safe_divide(1.0, norm)
    direction = trees.where(lost, trees.scale(-move, value), solved.value)
    # A sum over the entries of x with random signs: what rounding each of them may come to.
    change = product(signed(x))
    steep = jax.tree.map(lambda leaf: leaf != 0, change)
    flat = jax.tree.reduce(jnp.logical_or, jax.tree.map(
        lambda was, now: jnp.any(was & ~now), line.steep, steep))
    new = Line(x, jnp.where(lost, jnp.inf, norm), direction, jnp.minimum(solved.residual, 1),
               jnp.ones_like(norm), forcing, jax.tree.map(jnp.logical_or, line.steep, steep),
               value, line.course)
    old = line._replace(share=short)
    chosen = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    step = jnp.where(good & (solved.residual <= SOLVED), trees.norm(solved.value), jnp.inf)
    noise = 4 * epsilon * trees.norm(change)
    useful = (1 - (norm / line.norm) ** 2 >= PROGRESS) | ~sound
    course = judged(line.course, Point(
        norm, x_norm, step, noise, whole, flat, good, useful), epsilon)
    # Where F(x0) is no number there is nowhere to go back to.
    share = jnp.where(begun & ~sound, jnp.nan, chosen.share)
    following = trees.axpy(share, chosen.direction, chosen.x)
    return following, chosen._replace(value=value, course=course)


def _forcing(norm: jax.Array, line: Line) -> jax.Array:
    """How far the next system is solved, by how far |F| fell (the second choice of the source)."""
    fell = norm / line.norm
    rate = 0.9 * fell**2
    before = 0.9 * line.forcing**2
    rate = jnp.where(before > 0.1, jnp.maximum(rate, before), rate)
    return jnp.clip(rate, TIGHTEST, LOOSEST)


def _shortened(norm: jax.Array, line: Line) -> jax.Array:
    """The share of a refused step at which the parabola through |F|^2 and its slope is least."""
    slope = 2 * (1 - line.left) * line.share  # of |F|^2, over |F|^2
    rise = (norm / line.norm) ** 2 - 1 + slope
    return jnp.clip(0.5 * slope / jnp.maximum(rise, 1e-30), SHORTEST, LONGEST)
