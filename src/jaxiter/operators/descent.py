"""Forward-backward steps whose length follows the curvature that they meet."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.line_search import barzilai_borwein
from jaxiter.numerics import machine_epsilon, stop_gradient, typed_by
from jaxiter.operators.pace import Pace, begun, paced
from jaxiter.operators.steps import beside, on_moving
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any

#: A step is too long where it exceeds what the last move's curvature allows by this factor, and
#: is then made shorter than that by the other one.
SLACK, MARGIN = 1.1, 1.05
#: The curvature along a move is rounding where the move is so many epsilons of the point.
TRUST = 1000.0


class Course(NamedTuple):
    """The step; the last point where f was sound and its gradient there; merit and scale.

    `merit`: the length of the last move, infinite where f was not sound; `scale`: what that is
    beside, the point or the gradient's step.
    """

    pace: Pace
    point: PyTree
    slope: PyTree
    merit: jax.Array
    scale: jax.Array

    @property
    def size(self) -> jax.Array:
        """The step."""
        return self.pace.size


def descent(f: Callable, prox: Callable, step: Any = None, first: Any = None) -> Splitting:
    """The splitting of `proximal_gradient`. first: the step to begin with, which may shrink."""
    check_positive(**({} if step is None else {"step": step}))

    gradient = partial(_gradient, f)

    def forward(y: PyTree, slope: PyTree, size: jax.Array, args: tuple) -> PyTree:
        return prox(trees.axpy(-size, slope, y), size, *args)

    def start(x: PyTree, *args: PyTree) -> Course:
        kind = trees.norm_dtype(x)
        size = first_step(f, x, args, step) if first is None else first
        # No slope yet: nothing can be learnt from the first evaluation.
        endless = jnp.full((), jnp.inf, kind)
        return Course(begun(jnp.asarray(size, kind)), x, trees.full_like(x, jnp.nan), endless,
                      endless)

    def move(y: PyTree, m: Course, *args: PyTree) -> tuple[PyTree, Course]:
        slope, sound = gradient(y, *args), jnp.bool_(True)
        if step is None:
            sound = trees.finite(slope)
            m = stop_gradient(_learn(m, y, slope, sound))
            y, slope = trees.where(sound, (y, slope), (m.point, m.slope))
        image = forward(y, slope, m.size, args)
        seen = stop_gradient((y, slope, image))
        return image, _measured(m._replace(point=seen[0], slope=seen[1]), seen[2], sound)

    def extract(y: PyTree, m: Course, *args: PyTree) -> tuple[PyTree, None]:
        return forward(y, gradient(y, *args), m.size, args), None

    def valid(y: PyTree, *args: PyTree) -> jax.Array:
        return jnp.asarray(step) > 0

    return Splitting(
        Problem(step=move, memory=start, epoch=lambda m: m.pace.changes, hindsight=True,
                merit=lambda y, image, m, *args: m.merit, valid=None if step is None else valid,
                scale=lambda y, image, m, *args: m.scale),
        start=lambda x0, *args: x0, extract=extract)


def _gradient(f: Callable, x: PyTree, *args: PyTree) -> PyTree:
    slope = jax.grad(f)(x, *args)
    return jax.tree.map(lambda leaf: jnp.conj(leaf) if jnp.iscomplexobj(leaf) else leaf, slope)


def first_step(f: Callable, x: PyTree, args: tuple, step: Any = None) -> Any:
    """The step, if given; else 1 / curvature along the gradient at x: at least 1 / L.

    1 where there is no curvature.
    """
    if step is not None:
        return step
    gradient, (at, fixed) = partial(_gradient, f), stop_gradient((x, args))
    at = typed_by(lambda x: gradient(x, *fixed), (at,), at)
    slope, product = jax.linearize(lambda x: gradient(x, *fixed), at)
    flat = trees.max_norm(slope) == 0
    along = trees.where(flat, trees.probe_like(at), slope)
    size = barzilai_borwein(along, product(along))
    return jnp.where(jnp.isfinite(size) & (size > 0), size, 1)


def _measured(m: Course, image: PyTree, sound: jax.Array) -> Course:
    """Merit and scale of a move, by plain sums of squares: in small problems safer ones double it.

    Below their range, which is 1e-19 in float32, the merit is too large, never a false zero.
    """
    residual = trees.subtract(image, m.point)
    square = trees.squared_norm(residual)
    length = jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))
    still = reduce(jnp.logical_and, [jnp.all(leaf == 0) for leaf in jax.tree.leaves(residual)])
    points, steep = (trees.squared_norm(tree) for tree in (
        (m.point, image), on_moving(m.slope, residual)))
    return m._replace(merit=jnp.where(sound, jnp.where(still, 0, length), jnp.inf),
                      scale=beside(jnp.sqrt(points / 2), m.size * jnp.sqrt(steep), image))


def _learn(m: Course, y: PyTree, slope: PyTree, sound: jax.Array) -> Course:
    """A shorter step where there is more curvature, or no sound gradient; a longer one for less."""
    move, change = trees.subtract(y, m.point), trees.subtract(slope, m.slope)
    square, bend = trees.squared_norm(move), trees.dot(move, change).real
    units = jnp.maximum(trees.squared_norm(y), m.size**2 * trees.squared_norm(slope))
    trusted = square > (TRUST * machine_epsilon(y)) ** 2 * units
    # False for NaN, as at the first evaluation.
    long = trusted & (m.size * bend > SLACK * square)
    fitting = square / (MARGIN * jnp.where(long, bend, 1))
    seen = m.size * bend / jnp.where(trusted, square, 1)
    return m._replace(pace=paced(m.pace, seen, trusted, long, fitting, sound))
