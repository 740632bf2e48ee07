"""Gauss-Newton without matrices: steps by conjugate gradients on `J^T J`, shortened as needed."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.fit import Box, Fit, FitMethod
from jaxiter.jacobian import flat, unflat
from jaxiter.known import check_count
from jaxiter.line_search import halve
from jaxiter.linear import cg
from jaxiter.numerics import machine_epsilon, safe_divide
from jaxiter.problem import Problem
from jaxiter.solution import Status

PyTree = Any

#: A step is taken that brings this share of what the slope promises.
ENOUGH = 1e-3
#: Changes of the cost below so many roundings say nothing.
NOISE = 8
#: The shortest step is a fraction 2^-20 of the full one.
HALVINGS = 20
#: Relative residual of the normal equations that the products of one step are spent on.
SOLVED = 1e-4


class Ahead(NamedTuple):
    """The next step, as seen from the point the solve is at.

    step: d. size: the root of twice the cost. slope: `-d^T J^T r / size^2`, the share that a unit
    of it saves at first. unsolved: whether conjugate gradients failed. blocked: the last step was
    refused.
    """

    step: PyTree
    size: jax.Array
    slope: jax.Array
    unsolved: jax.Array
    blocked: jax.Array


class GaussNewton(FitMethod):
    """See `gauss_newton`."""

    name: ClassVar[str] = "gauss_newton"
    products: int = 100

    def problem(self, fit: Fit) -> Problem:
        """The problem of args `(box, *args)`; the merit is the length of the full step."""
        def step(x: PyTree, ahead: Ahead, box: Box, *args: PyTree) -> tuple[PyTree, Ahead]:
            del box
            return _step(fit, self.products, x, ahead, args)

        def merit(x: PyTree, image: PyTree, ahead: Ahead, *args: PyTree) -> jax.Array:
            del x, image, args
            length = trees.norm(ahead.step)
            # The length of a step that is not known says nothing.
            return jnp.where(jnp.isinf(ahead.size) | ahead.unsolved, jnp.inf, length)

        def scale(x: PyTree, image: PyTree, ahead: Ahead, *args: PyTree) -> jax.Array:
            del image, args
            return jnp.where(jnp.isinf(ahead.size), jnp.nan, trees.norm(x))

        return Problem(
            step=step, memory=_begin, merit=merit, scale=scale, certify=_certify,
            equations=lambda x, ahead, box, *args: fit.equations(x, box, *args))


def gauss_newton(products: int = 100) -> GaussNewton:
    """Gauss-Newton, matrix-free: for many unknowns, a good start and residuals that get small.

        J^T J d = -J^T r  by conjugate gradients,    x <- x + s d

    s is the first of 1, 1/2, 1/4, ... at which the cost falls. Two products with J and its
    transpose per step of CG. Takes no bounds; where it fails `levenberg_marquardt` is safer.

    Args:
      products: most steps of CG per step; CONVERGED needs those it ends with to suffice.

    Reference: Nocedal and Wright, "Numerical optimization", 2006, section 10.3.

    >>> gauss_newton() == gauss_newton(100)
    True
    """
    check_count(products=products)
    return GaussNewton(products)


def _begin(x0: PyTree, *args: PyTree) -> Ahead:
    del args
    none, no = jnp.zeros((), trees.norm_dtype(x0)), jnp.bool_(False)
    return Ahead(trees.zeros_like(x0), none + jnp.inf, none, no, no)


def _step(
    fit: Fit, products: int, x: PyTree, ahead: Ahead, args: tuple
) -> tuple[PyTree, Ahead]:
    first, epsilon = jnp.isinf(ahead.size), machine_epsilon(x)

    def evaluate(s: jax.Array) -> jax.Array:
        r = flat(fit.residuals(trees.axpy(s, ahead.step, x), *args))
        return fit.size(r).astype(ahead.size.dtype)

    def accept(s: jax.Array, size: jax.Array) -> jax.Array:
        share = size / ahead.size
        steep = jnp.sqrt(ahead.slope) / trees.norm(ahead.step)
        noise = NOISE * epsilon * (1 + trees.norm(x) * steep)
        promised = 2 * ENOUGH * s * ahead.slope
        return first | (ahead.size == 0) | ((1 - share) * (1 + share) + noise >= promised)

    trial = halve(evaluate, accept, jnp.ones_like(ahead.size), HALVINGS)
    there = trees.where(trial.accepted, trees.axpy(trial.step, ahead.step, x), x)
    new = _direction(fit, products, there, args)
    # Where the start itself cannot be evaluated there is no way on.
    good = trees.finite((new.step, new.size))
    there = trees.where(first & ~good, trees.full_like(x, jnp.nan), there)
    return there, new._replace(blocked=~trial.accepted | ~good)


def _direction(fit: Fit, products: int, x: PyTree, args: tuple) -> Ahead:
    """The full step from a point."""
    r, product = jax.linearize(lambda x: fit.residuals(x, *args), x)
    pull = jax.linear_transpose(product, x)
    long = flat(r)
    rows, own = fit.weights(long)
    # J and r in units of r, or J^T r leaves the float range where both are far from 1.
    unit = trees.magnitude(long)

    def pulled(image: PyTree) -> PyTree:
        return trees.scale(1 / unit, pull(image)[0])

    def normal(v: PyTree) -> PyTree:
        image = trees.scale(1 / unit, product(v))
        if rows is not None:
            image = unflat(rows**2 * flat(image), image)
        return pulled(image)

    # The weights of the slope: rho'.
    weighted = long if rows is None else rows * own * long
    slope = trees.negative(pulled(unflat(weighted / unit, r)))
    solved = cg(rtol=SOLVED, max_steps=products)(normal, slope)
    gain = jnp.maximum(trees.dot(slope, solved.value), 0)
    failed = (solved.status != Status.CONVERGED) & (solved.status != Status.PRECISION_FLOOR)
    size = fit.size(long).astype(gain.dtype)
    share = safe_divide(gain, (size / unit) ** 2)
    return Ahead(solved.value, size, share, failed, jnp.bool_(False))


def _certify(x: PyTree, image: PyTree, ahead: Ahead, *args: PyTree) -> jax.Array:
    """STAGNATED where no step brings the cost down; LINEAR_FAILURE where d is not known there."""
    del x, image, args
    code = jnp.where(ahead.unsolved, Status.LINEAR_FAILURE, Status.STAGNATED)
    return jnp.where(ahead.blocked, code, Status.RUNNING).astype(jnp.int32)
