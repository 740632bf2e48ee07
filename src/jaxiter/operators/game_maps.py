"""The maps whose fixed points are equilibria of matrix games, sharp and of bounded rationality."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_softmax

from jaxiter import trees
from jaxiter.linear import dense
from jaxiter.numerics import anchor, if_needed, product, stop_gradient
from jaxiter.operators import simplices
from jaxiter.operators.game_interior import Inner, centre, inner_step, settled
from jaxiter.problem import Problem
from jaxiter.spectral import operator_norm

Pair = tuple[jax.Array, jax.Array]

#: Steps are this share of the longest for which the map is nonexpansive; the norm is from below.
STEP, MARGIN = 0.99, 1.02
#: No step is longer than this many over the largest payoff: beyond it strategies drown in rounding.
LONGEST = 50
#: Steps between two guesses; of quantal responses, where most are in vain, fewer are made.
EVERY, SELDOM = 5, 25


def exploitability(A: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`max(A y) - min(A' x)`: 0 at an equilibrium, positive elsewhere."""
    return jnp.max(product(A, y)) - jnp.min(product(x, A))


def _largest(A: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(A))


def _valid(z: Pair, A: jax.Array, *rest: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(A)) & (jnp.all(rest[0] > 0) if rest else True)


class Held(NamedTuple):
    """The step; the exploitability of T(z); how often a guess took its place; an `Inner`, or ()."""

    size: jax.Array
    gap: jax.Array
    jumps: jax.Array
    inner: Any


class Guess(NamedTuple):
    """A guess, its exploitability, and the interior point that it came by."""

    z: Pair
    gap: jax.Array
    inner: Inner


def _newton(off: Callable, z: Pair) -> Pair:
    """Where one step of Newton's method for `off(z) = 0` leads."""
    missing, slope = jax.linearize(off, z)
    return trees.add(z, dense()(lambda v: trees.negative(slope(v)), missing).value)


def sharp_problem(guesses: bool) -> Problem:
    """The primal-dual map of strategies, with `guesses` every so many steps.

    A guess is where one step of Newton's method for `T(z) = z` leads from the better one of the
    point at hand and an interior point, which moves one step between guesses; or the latter itself.
    """

    def memory(z: Pair, A: jax.Array) -> Held:
        A = stop_gradient(A)
        # What is constant in a row or a column is no coupling of the players.
        coupling = A - jnp.mean(A, 0, keepdims=True)
        coupling = coupling - jnp.mean(coupling, 1, keepdims=True)
        norm = jnp.maximum(MARGIN * operator_norm(coupling).value.astype(A.dtype),
                           _largest(A) / LONGEST)
        size = STEP / jnp.where(norm == 0, 1, norm)
        return Held(size, jnp.full_like(size, jnp.inf), jnp.int32(0), centre(A) if guesses else ())

    def judged(z: Pair, A: jax.Array) -> tuple[Pair, jax.Array]:
        z = simplices.project(z)
        return z, exploitability(A, *z)

    def better(one: tuple, other: tuple) -> tuple:
        return trees.where(one[1] <= other[1], one, other)

    def cache(z: Pair, held: Held, A: jax.Array) -> Guess:
        z, held, A = stop_gradient((anchor(z, (z, held, A)), held, A))  # over a mesh as A varies
        inner = inner_step(held.inner, A)
        middle, gap = judged((inner.x, inner.y), A)
        z, _ = better(judged(z, A), (middle, gap))
        # T is affine while no strategy enters or leaves: from there one step is exact.
        there = _newton(lambda z: trees.subtract(primal_dual(z, held.size, A), z), z)
        # Near a vertex it still has no strategy of 0: no derivative would be right there.
        gap = jnp.where(settled(inner, held.inner), gap, jnp.inf)
        z, gap = better(judged(there, A), (middle, gap))
        return Guess(z, gap, inner)

    def step(z: Pair, *rest: Any) -> tuple[Pair, Held]:
        held, A = rest[-2:]
        image = primal_dual(z, held.size, A)
        held = held._replace(gap=exploitability(*stop_gradient((A, *image))))
        if not guesses:
            return image, held
        guess = rest[0]
        jump = guess.gap < 0.5 * held.gap
        jumps = held.jumps + jump.astype(jnp.int32)
        return trees.where(jump, guess.z, image), held._replace(jumps=jumps, inner=guess.inner)

    return Problem(
        step=step, memory=memory, valid=_valid,
        cache=cache if guesses else None, refresh=EVERY,
        epoch=(lambda held: held.jumps) if guesses else None,
        equations=lambda z, *rest: trees.subtract(primal_dual(z, rest[-2].size, rest[-1]), z),
        merit=lambda z, image, *rest: rest[-2].gap, hindsight=True,
        scale=lambda z, image, *rest: _largest(rest[-1]),
        calls={"products": 2})


def primal_dual(z: Pair, size: jax.Array, A: jax.Array) -> Pair:
    """One step of both players, the second with the first's extrapolated."""
    x, y = z
    new_x = simplices.project(x + size * product(A, y))
    return new_x, simplices.project(y - size * product(2 * new_x - x, A))


def _responses(z: Pair, A: jax.Array, temperature: jax.Array) -> Pair:
    """Logits of the best answers to strategies of these logits."""
    x, y = simplices.softmax(z)
    return log_softmax(product(A, y) / temperature), log_softmax(-product(x, A) / temperature)


class Quantal(NamedTuple):
    """What logits are off by, in payoffs; how often a guess took their place; steps so far."""

    gap: jax.Array
    jumps: jax.Array
    steps: jax.Array


def quantal_problem(guesses: bool) -> Problem:
    """The primal-dual map of logits, in entropy, with `guesses` of Newton's every so many steps.

    Where it is cold, a strategy that is not played loses its weight by steps of `temperature /
    max |A|` of it only; what is played already says how much it is.
    """

    def off(z: Pair, A: jax.Array, temperature: jax.Array) -> Pair:
        return jax.tree.map(jnp.subtract, _responses(z, A, temperature), z)

    def worst(z: Pair, A: jax.Array, temperature: jax.Array) -> jax.Array:
        parts = jax.tree.leaves(off(simplices.normalised(z), A, temperature))
        return temperature * jnp.maximum(*(jnp.max(jnp.abs(part)) for part in parts))

    def guess(z: Pair, A: jax.Array, temperature: jax.Array) -> tuple[Pair, jax.Array]:
        z = simplices.normalised(_newton(lambda z: off(z, A, temperature), z))
        return z, worst(z, A, temperature)

    def cache(z: Pair, held: Quantal, A: jax.Array, temperature: jax.Array) -> tuple:
        z, A, temperature = stop_gradient((anchor(z, (z, A)), A, temperature))
        # None at first: where it is warm the solve ends before one is of use.
        return if_needed(held.steps >= SELDOM, guess, (z, A, temperature), (z, A, held),
                         (z, jnp.full_like(held.gap, jnp.inf)))

    def step(z: Pair, *rest: Any) -> tuple[Pair, Quantal]:
        held, A, temperature = rest[-3:]
        p, q = z
        largest = _largest(stop_gradient(A))
        size = STEP / jnp.where(largest == 0, 1, largest)
        x, y = simplices.softmax(z)
        shorter = 1 / (1 + size * temperature)
        new_p = log_softmax(shorter * (p + size * product(A, y)))
        ahead = 2 * jnp.exp(new_p) - x
        image = new_p, log_softmax(shorter * (q - size * product(ahead, A)))
        held = held._replace(
            gap=worst(*stop_gradient((z, A, temperature))), steps=held.steps + 1)
        if not guesses:
            return image, held
        there, gap = rest[0]
        # Logits that are off by more than 1 were no place to take a slope at.
        jump = (gap < 0.5 * held.gap) & (gap < temperature)
        jumps = held.jumps + jump.astype(jnp.int32)
        return trees.where(jump, there, image), held._replace(jumps=jumps)

    return Problem(
        step=step, equations=lambda z, *rest: off(z, *rest[-2:]), valid=_valid,
        memory=lambda z, A, temperature: Quantal(
            jnp.full((), jnp.inf, A.dtype), jnp.int32(0), jnp.int32(0)),
        cache=cache if guesses else None, refresh=SELDOM,
        epoch=(lambda held: held.jumps) if guesses else None,
        merit=lambda z, image, *rest: rest[-3].gap, hindsight=True, retract=simplices.normalised,
        scale=lambda z, image, *rest: jnp.maximum(_largest(rest[-2]), rest[-1]),
        calls={"products": 2})
