"""The primal-dual hybrid gradient step of a program, as a map: products with its matrices alone.

Its weight, the ratio of the dual and the primal step, is chosen anew at restarts, which are those
of an anchor too: the memory moves its epoch, the driver takes the plain step, and a solver such as
`halpern()` starts afresh from there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import if_needed, machine_epsilon, safe_divide, stop_gradient
from jaxiter.operators.programs.certificates import certificate, relative_error
from jaxiter.operators.programs.checks import valid
from jaxiter.operators.programs.program import PrimalDual, Program, curvature
from jaxiter.operators.programs.scaling import Scaling, products, pulled
from jaxiter.operators.programs.sizes import near_sides
from jaxiter.problem import Problem
from jaxiter.solution import Status, most_severe

PyTree = Any
#: Restart when the displacement is this fraction of that at the anchor ...
SUFFICIENT = 0.1
#: ... or this fraction and growing, or when the epoch is that fraction of all steps.
NECESSARY = 0.6
LONGEST = 0.36
#: The share of the new ratio of lengths in the logarithm of the weight.
SMOOTHING = 0.6
#: The weight changes by at most this factor at once.
TURN = 5.0
#: The step is this fraction of the longest; the norm is known to half a per cent.
SAFETY = 0.99
#: A point that moved by fewer roundings of its length says nothing about the weight.
ROUNDINGS = 100
#: So many roundings of its length are no step, and so many of those in a row the end.
NOISE, PATIENCE = 8, 200
#: Unless the best error fell to this fraction meanwhile, or is above this still.
BETTER, ROUGH = 0.9, 1e-2


class Pace(NamedTuple):
    """The weight of the last evaluation and of the next; where and when the anchor was set.

    error: lengths of the displacement at the anchor and at the last step. age: steps since the
    anchor. steps: all of them. epoch: restarts. still: steps in a row that were all rounding.
    merit, best, status: what the last evaluation came to, where it was judged; the least so far.
    """

    used: jax.Array
    weight: jax.Array
    anchor: PrimalDual
    errors: tuple[jax.Array, jax.Array]
    age: jax.Array
    steps: jax.Array
    epoch: jax.Array
    still: jax.Array
    merit: jax.Array
    best: jax.Array
    status: jax.Array


def hybrid_gradient(every: int = 20) -> Problem:
    """One step of the primal-dual hybrid gradient as a `Problem` of `(program, scaling)`.

        x+ = clip(x - tau (q + Q x + A'y + G'z), lower, upper)
        y+ = y + sigma (A (2 x+ - x) - b),    z+ = max(z + sigma (G (2 x+ - x) - h), 0)
        tau = units.x^2 / (w / eta + |Q|),    sigma = units^2 w eta,    eta = 0.99 / |K|

    The point is a `PrimalDual`; what it is judged by, and what is the answer, is its image. It is
    judged at the first step and every so many: the merit is infinite in between. By the memory and
    not by `check_every`, for a batch then pays for it as seldom as one program.
    """

    def step(point: PrimalDual, pace: Pace, program: Program, units: Scaling) -> tuple:
        image = advanced(point, pace.weight, program, units)
        held = stop_gradient((point, image, pace, program, units))
        new = _paced(*held)

        def look(point: PrimalDual, image: PrimalDual, new: Pace) -> tuple:
            error = relative_error(held[3], image, units)
            low = jnp.minimum(error, new.best) <= ROUGH
            ended = jnp.where((new.still >= PATIENCE) & low, Status.PRECISION_FLOOR, Status.RUNNING)
            proved = proof(point, image, new, *held[3:])[0]
            return error, most_severe(proved, ended)

        due = (pace.steps == 0) | (new.steps % every == 0)
        merit, status = if_needed(
            due, look, (*held[:2], new), held, (jnp.full_like(new.used, jnp.inf), jnp.int32(0)))
        # What still gets better is slow, and not at its rounding yet.
        return image, new._replace(
            merit=merit, best=jnp.minimum(merit, new.best), status=status,
            still=jnp.where(merit < BETTER * new.best, 0, new.still))

    return Problem(
        step=step, memory=_first_pace, epoch=lambda pace: pace.epoch, scale=1.0, hindsight=True,
        merit=lambda point, image, pace, *rest: pace.merit,
        certify=lambda point, image, pace, *rest: pace.status,
        floor=lambda point, *rest: ROUNDINGS * machine_epsilon(point),
        valid=lambda point, program, units: valid(program))


def advanced(point: PrimalDual, weight: jax.Array, program: Program, units: Scaling) -> PrimalDual:
    """The image of a point for one weight."""
    x, y, z = point
    primal, dual = _paces(weight, units)
    slope = curvature(program, x) + program.q + pulled(program, y, z)
    # Its derivative is 0 where a bound holds.
    new = jnp.clip(x - primal * units.units.x**2 * slope, program.lower, program.upper)
    equal, unequal = products(program, 2 * new - x)
    lengths = [dual * unit**2 for unit in units.units[1:]]
    above = z + lengths[1] * (unequal - program.h)
    return PrimalDual(new, y + lengths[0] * (equal - program.b), jnp.maximum(above, 0))


def _paces(weight: jax.Array, units: Scaling) -> tuple[jax.Array, jax.Array]:
    """The primal and the dual step, in the units of the scaling."""
    eta = SAFETY / jnp.where(units.norm > 0, units.norm, 1)
    return 1 / (weight / eta + units.curvature), eta * weight


def step_units(weight: jax.Array, units: Scaling) -> PrimalDual:
    """Units of a point in which the map of one weight is nonexpansive: roots of its steps."""
    primal, dual = (jnp.sqrt(step) for step in _paces(weight, units))
    return PrimalDual(primal * units.units.x, *(dual * unit for unit in units.units[1:]))


def _first_pace(point: PrimalDual, program: Program, units: Scaling) -> Pace:
    rows = trees.norm(near_sides(program, tuple(units.units[1:])))
    costs = trees.norm(program.q * units.units.x)
    # The gradient is as long as its q, or as Q times an x that reaches the rows.
    weight = jnp.maximum(safe_divide(costs, rows), safe_divide(units.curvature, units.norm))
    weight = jnp.where(weight > 0, weight, 1)
    endless, zero = jnp.full_like(weight, jnp.inf), jnp.int32(0)
    return Pace(weight, weight, point, (endless, endless), zero, zero, zero, zero,
                endless, endless, zero)


def _paced(
    point: PrimalDual, image: PrimalDual, pace: Pace, program: Program, units: Scaling
) -> Pace:
    """The memory after one evaluation: whether to restart, and with which weight."""
    steps = jnp.stack(_paces(pace.weight, units))
    moved, far, size = _squares(point, image, pace.anchor, units.units)
    error = jnp.sqrt(jnp.sum(moved / steps))
    started = pace.age > 0
    first, last = jnp.where(started, pace.errors[0], error), pace.errors[1]
    turned = (error <= NECESSARY * first) & (error > last)
    long = pace.age.astype(error.dtype) >= LONGEST * pace.steps.astype(error.dtype)
    due = started & ((error <= SUFFICIENT * first) | turned | long)
    # A way that may be all rounding says nothing about the weight.
    epsilon = machine_epsilon(point)
    heard = jnp.all(far > (ROUNDINGS * epsilon) ** 2 * size)
    ratio = jnp.where(heard, far[1], 1) / jnp.where(heard, far[0], 1)
    # A share of the logarithm of the ratio of lengths, which are still squares here.
    turn = jnp.clip((ratio / pace.weight**2) ** (SMOOTHING / 2), 1 / TURN, TURN)
    still = error <= NOISE * epsilon * jnp.sqrt(jnp.sum(size / steps))
    return Pace(
        pace.weight, pace.weight * jnp.where(due & heard, turn, 1),
        trees.where(due, image, pace.anchor), (first, error),
        jnp.where(due, 0, pace.age + 1), pace.steps + 1, pace.epoch + due.astype(jnp.int32),
        jnp.where(still, pace.still + 1, 0), pace.merit, pace.best, pace.status)


def _squares(
    point: PrimalDual, image: PrimalDual, anchor: PrimalDual, units: PrimalDual
) -> jax.Array:
    """Squares `[3, 2]` of the ways from point and anchor to the image, and of its length; x, y.

    All sums of a block at once: over devices that is one reduction.
    """
    def block(image: jax.Array, point: jax.Array, anchor: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.sum((jnp.stack([image - point, image - anchor, image]) / unit) ** 2, axis=1)

    x, y, z = (block(*parts) for parts in zip(image, point, anchor, units, strict=True))
    return jnp.stack([x, y + z], axis=1)


def proof(
    point: PrimalDual, image: PrimalDual, pace: Pace, program: Program, units: Scaling
) -> tuple[jax.Array, PrimalDual]:
    """What the displacement proves, or else the way from the anchor, and the ray that does."""
    ways = trees.subtract(image, point), trees.subtract(image, pace.anchor)
    (first, ray), (second, other) = (certificate(program, units, image, way) for way in ways)
    found = first != Status.RUNNING
    return jnp.where(found, first, second), trees.where(found, ray, other)
