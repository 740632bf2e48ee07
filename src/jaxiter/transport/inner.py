"""A balanced plan inside the step of another problem, from the potentials of the one before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.stop import tolerance
from jaxiter.transport.checks import reduce, valid
from jaxiter.transport.geometry import Dense
from jaxiter.transport.iteration import Marginals, from_units, kernel_problem, sources

#: Sinkhorn steps within one outer step, at most.
INNER_STEPS = 1000
#: An inner solve is this much more exact than the outer step last moved; the first is a rough one.
INNER_SHARE, FIRST_ERROR = 0.05, 1e-2


class Warm(NamedTuple):
    """What an inner solve leaves: potentials `[m]`, how far the outer step went, steps of all.

    The distance is one in units of the mass.
    """

    g: jax.Array
    change: jax.Array
    steps: jax.Array


def cold(g: jax.Array) -> Warm:
    """Before the first inner solve."""
    return Warm(g, jnp.asarray(FIRST_ERROR / INNER_SHARE, g.dtype), jnp.int32(0))


def inner_plan(
    cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: jax.Array, g: jax.Array, change: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The plan `[n, m]` of a cost in memory, its potentials g `[m]`, and the steps it took."""
    parts, marginals = reduce(Dense(cost), Marginals(a, b, epsilon), g)
    solve = from_units(fixed_point(
        kernel_problem(valid), jnp.zeros_like(b), parts.geometry, marginals,
        stop=tolerance(rtol=INNER_SHARE * change, atol=0.0), max_steps=INNER_STEPS,
        adjoint=frozen()), marginals)
    f = sources(solve.value, parts.geometry, marginals)
    # In the "ab" convention, where weights may be 0: there the potential is free, and has no plan.
    f, g = (jnp.where(weights > 0, potential, -jnp.inf)
            for weights, potential in ((a, f), (b, solve.value)))
    plan = jnp.outer(a, b) * parts.geometry.plan(f, g, epsilon)
    return plan, solve.value + parts.shifts[1], solve.steps
