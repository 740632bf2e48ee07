"""The steps of a primal-dual method, which balance themselves where none was given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import if_needed
from jaxiter.operators.steps import beside_sides

PyTree = Any

#: The default steps stay so far within their bound.
SHARE = 0.99
#: They are balanced after so many evaluations, after twice as many, and so on, where one side went
#: so many times as far as the other, by so much at most at a time.
FIRST, UNEVEN, FARTHEST = 5, 3.0, 100.0
#: They stay where both sides moved by less than this beside where they are.
FAR = 1e-3


class Travel(NamedTuple):
    """What steps are balanced by: |K|, L, where both sides were at the last look.

    count: evaluations so far; until: those at the next look; epoch: how often the steps changed.
    """

    gain: jax.Array
    curvature: jax.Array
    x: PyTree
    y: PyTree
    count: jax.Array
    until: jax.Array
    epoch: jax.Array


class Steps(NamedTuple):
    """The steps of both sides; sqrt(sigma / tau) of the first ones, by which y is divided.

    travel: where no step was given.
    """

    tau: jax.Array
    sigma: jax.Array
    unit: jax.Array
    travel: Travel | None = None


def longest(
    tau: Any, sigma: Any, gain: jax.Array, curvature: jax.Array, s: tuple
) -> Steps:
    """The step that was not given by the one that was; both by |K|, and to be balanced, else."""
    if tau is not None:
        # A tau above 1 / L leaves nothing: NaN, which the solve reports as NONFINITE.
        left = SHARE / tau - curvature
        sigma = jnp.where(left > 0, left, jnp.nan) / gain**2
        return Steps(tau, sigma, jnp.sqrt(sigma / tau))
    given = sigma is not None
    sigma = sigma if given else _above(SHARE / gain, gain, curvature)
    tau = _beside(sigma, gain, curvature)
    unit = jnp.sqrt(sigma / tau)
    return Steps(tau, sigma, unit, None if given else Travel(
        gain, curvature, s[0], trees.scale(unit, s[1]), jnp.int32(0), jnp.int32(FIRST),
        jnp.int32(0)))


def _beside(sigma: jax.Array, gain: jax.Array, curvature: jax.Array) -> jax.Array:
    """The longest tau with `1 / tau - sigma |K|^2 >= L`."""
    return SHARE / (curvature + sigma * gain**2)


def _above(sigma: jax.Array, gain: jax.Array, curvature: jax.Array) -> jax.Array:
    """sigma, but no shorter than costs tau a factor of two."""
    return jnp.maximum(sigma, curvature / gain**2)


def balanced(m: Steps, x: PyTree, y: PyTree) -> Steps:
    """The steps of the next evaluation: both sides are to go equally far, each in its unit.

    Source: Applegate, Diaz, Hinder, Lu, Lubin, O'Donoghue and Schudy, "Practical large-scale linear
    programming using primal-dual hybrid gradient", NeurIPS, 2021 (the primal weight).
    """
    if m.travel is None:
        return m
    travel = m.travel._replace(count=m.travel.count + 1)
    m = m._replace(travel=travel)
    return if_needed(travel.count >= travel.until, _rebalanced, (m, x, y), (x, y), otherwise=m)


def _rebalanced(m: Steps, x: PyTree, y: PyTree) -> Steps:
    travel = m.travel
    assert travel is not None
    far, other = (trees.norm(trees.subtract(*pair)) for pair in ((x, travel.x), (y, travel.y)))
    ratio = other / far * jnp.sqrt(m.tau / m.sigma)
    uneven = (ratio > UNEVEN) | (ratio < 1 / UNEVEN)
    near = (far <= FAR * trees.norm(x)) & (other <= FAR * trees.norm(y))
    # An x that rests waits for a dual that is too slow; a dual that rests may not be active yet.
    moves = uneven & (ratio > 0) & ~near
    bounds = travel.gain, travel.curvature
    sigma = _above(m.sigma * jnp.clip(jnp.sqrt(ratio), 1 / FARTHEST, FARTHEST), *bounds)
    travel = travel._replace(
        x=x, y=y, until=2 * travel.until, epoch=travel.epoch + moves.astype(jnp.int32))
    return m._replace(
        tau=jnp.where(moves, _beside(sigma, *bounds), m.tau),
        sigma=jnp.where(moves, sigma, m.sigma), travel=travel)


def _sides(m: Steps, vectors: Callable, *points: tuple) -> list[jax.Array]:
    """The longest of `vectors(*sides)` for x and for y, in units of x under the steps of now.

    By plain sums where those are safe: norms in two passes would take half of a step.
    """
    x, y = (jnp.max(jnp.stack(trees.safe_norms(vectors, *side)))
            for side in zip(*points, strict=True))
    return [x, y * m.unit * jnp.sqrt(m.tau / m.sigma)]


def merit(s: tuple, image: tuple, m: Steps, *args: PyTree) -> jax.Array:
    """How far a point moves, in the metric of these steps."""
    return jnp.hypot(*_sides(m, lambda old, new: (trees.subtract(new, old),), s, image))


def scale(s: tuple, image: tuple, m: Steps, *args: PyTree) -> jax.Array:
    """What that is beside."""
    return beside_sides(*_sides(m, lambda old, new: (old, new), s, image))


def units(s: tuple, m: Steps, *args: PyTree) -> tuple[jax.Array, jax.Array]:
    """Those in which both sides are of one size under the steps of now."""
    return jnp.ones_like(m.unit), jnp.sqrt(m.sigma / m.tau) / m.unit
