"""A step that follows the curvature it meets: shorter where too long, longer where idle."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

#: Where what is stepped along is not finite the step was this many times too long.
CUT = 8.0
#: The step grows, at most so much, where no move of so many showed this share of the curvature that
#: it allows. Twice as many for every time that it was too long: late moves of an ill-conditioned
#: problem lie where there is little curvature, and a step that follows them is too long again.
GROWTH, WINDOW, IDLE = 4.0, 8, 0.25


class Pace(NamedTuple):
    """The step; how often it was too long; moves since it was last looked at, the most curvature
    in them, in units of what the step allows; how often it changed.
    """

    size: jax.Array
    shrunk: jax.Array
    age: jax.Array
    peak: jax.Array
    changes: jax.Array


def begun(size: jax.Array) -> Pace:
    """A first step."""
    zero = jnp.int32(0)
    return Pace(size, zero, zero, jnp.zeros_like(size), zero)


def paced(
    pace: Pace, seen: jax.Array, trusted: jax.Array, long: jax.Array, fitting: jax.Array,
    sound: jax.Array,
) -> Pace:
    """The next step.

    `seen`: the curvature of the last move in units of what the step allows, where it is `trusted`;
    `long`: whether the step was too long for it, and `fitting` is right; `sound`: whether what it
    led to is of any use, else it was so long that nothing is known but that.
    """
    peak = jnp.maximum(pace.peak, jnp.where(trusted, seen, 0))
    age = pace.age + trusted.astype(jnp.int32)
    looked = age >= WINDOW * 2 ** jnp.minimum(pace.shrunk, 20)
    idle = sound & ~long & looked & (peak < IDLE)
    longer = pace.size * jnp.minimum(GROWTH, 0.5 / jnp.maximum(peak, 1e-3))
    size = jnp.where(long, fitting, jnp.where(idle, longer, pace.size))
    size = jnp.where(sound, size, pace.size / CUT)
    changed, short = long | idle | ~sound, long | ~sound
    begins = looked | changed
    return Pace(
        size.astype(pace.size.dtype), pace.shrunk + short.astype(jnp.int32),
        jnp.where(begins, 0, age), jnp.where(begins, 0, peak).astype(pace.peak.dtype),
        pace.changes + changed.astype(jnp.int32))
