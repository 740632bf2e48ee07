"""What a point proves: that it nearly solves a program, or that nothing does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import machine_epsilon, product, safe_divide, stop_gradient
from jaxiter.operators.programs.optimality import ROUNDING
from jaxiter.operators.programs.program import (
    PrimalDual,
    Program,
    curvature,
    explained,
    needed,
    right_sides,
)
from jaxiter.operators.programs.scaling import Scaling, products, pulled, scaled_norm
from jaxiter.operators.programs.sizes import tight_norm
from jaxiter.solution import Solution, Status

PyTree = Any
#: What a certificate may be short of a proof, beside the size of the point that it speaks about.
ACCEPTED = 1e-3
#: An objective below this share of its terms is none to measure by.
SMALL = 1e-2
#: No entry of a ray is below the least of floats times this.
ROOM = 16


def relative_error(program: Program, point: PrimalDual, scaling: Scaling) -> jax.Array:
    """The largest relative error of a point within its bounds: of rows, gradient, objective.

    Rows are judged beside their sides; where these are all 0, in the units of the scaling, beside
    the longest that rows of such an x may be. The gap is the difference of both objectives, beside
    these; where they nearly vanish, beside a hundredth of the terms that they are sums of.
    """
    x, y, z = needed(program, point)
    bounded = jnp.isfinite(program.h)
    h = right_sides(program)[1]
    equal, unequal = products(program, x)
    bent, pull = curvature(program, x), pulled(program, y, z)
    slope = bent + program.q + pull
    unit = jnp.stack([trees.norm(term) for term in (bent, program.q, pull)]).max()
    pairs = [(x, bent), (x, program.q), (y, -program.b), (z, -h)]
    sizes = sum((product(jnp.abs(a), jnp.abs(b)) for a, b in pairs), jnp.zeros((), x.dtype))
    held = explained(program, slope)
    bound = jnp.where(held > 0, program.lower, jnp.where(held < 0, program.upper, x))
    # What rounding leaves of a gradient says nothing about a bound far away.
    held = jnp.where(jnp.abs(x - bound) * unit <= sizes, held, 0)
    bound = jnp.where(held == 0, 0, bound)
    pairs.append((held, bound))
    sizes += product(jnp.abs(held), jnp.abs(bound))
    terms = [product(a, b) for a, b in pairs]
    primal, dual = terms[0] / 2 + terms[1], sum(terms[2:], -terms[0] / 2)
    # Rows with room have no say: beside one of 1e3 an equation of 1 would not be seen.
    excess = jnp.where(bounded, jnp.maximum(unequal - h, 0), 0)
    tight = (z > 0) | (excess > 0)
    side = tight_norm((program.b, h), tight)
    longest = jnp.maximum(side, tight_norm((equal, unequal), tight))
    missing = equal - program.b, excess
    scaled = jax.tree.map(jnp.multiply, missing, tuple(scaling.units[1:]))
    ratios = (
        (jnp.where(side > 0, trees.norm(missing), trees.norm(scaled)),
         jnp.where(side > 0, longest, scaling.norm * scaled_norm(x, scaling.units.x))),
        (trees.norm(slope - held), jnp.maximum(unit, trees.norm(held))),
        (jnp.abs(primal - dual), jnp.maximum(jnp.abs(primal) + jnp.abs(dual), SMALL * sizes)))
    return jnp.stack([safe_divide(part, unit) for part, unit in ratios]).max()


def farkas(program: Program, ray: PrimalDual) -> tuple[PrimalDual, jax.Array, jax.Array]:
    """The multipliers of a ray as they count, what they prove, and what spoils the proof.

        min over lower <= x <= upper of y'(A x - b) + z'(G x - h)

    Returns:
      Multipliers with `z >= 0` and zeros for x; the value of the minimum, positive where no x
      satisfies the rows; the entries of `A'y + G'z` that no bound holds, without which that
      minimum is minus infinity.
    """
    bounded = jnp.isfinite(program.h)
    y, z = ray.equality_dual, jnp.where(bounded, jnp.maximum(ray.inequality_dual, 0), 0)
    slope = pulled(program, y, z)
    held = explained(program, slope)
    bound = jnp.where(held > 0, program.lower, jnp.where(held < 0, program.upper, 0))
    value = product(held, bound) - product(y, program.b)
    value = value - product(z, right_sides(program)[1])
    return PrimalDual(jnp.zeros_like(slope), y, z), value, slope - held


def falling(program: Program, ray: PrimalDual) -> tuple[PrimalDual, jax.Array, tuple]:
    """The direction of a ray within the bounds, how fast the objective falls, what spoils it.

    Returns:
      A direction that leaves no bound, and zeros for the multipliers; `-q'x`; the entries of `A x`,
      of `G x` above 0, and of `Q x`, all of which must vanish.
    """
    x = ray.x
    x = jnp.where(program.lower > -jnp.inf, jnp.maximum(x, 0), x)
    x = jnp.where(program.upper < jnp.inf, jnp.minimum(x, 0), x)
    equal, unequal = products(program, x)
    above = jnp.where(jnp.isfinite(program.h), jnp.maximum(unequal, 0), 0)
    none = jnp.zeros_like(equal), jnp.zeros_like(unequal)
    return PrimalDual(x, *none), -product(program.q, x), (equal, above, curvature(program, x))


def certificate(
    program: Program, scaling: Scaling, point: PrimalDual, moved: PrimalDual
) -> tuple[jax.Array, PrimalDual]:
    """What the displacement at a point proves, and the ray that proves it.

    A ray with violation v and value d excludes every x but those with `|v| |x| >= d`, in the
    units of the scaling: it counts as a proof where `|v| |x| <= d / 1000` for the largest x that
    this point gives reason to expect; alike for the other one and the multipliers.

    Returns:
      PRIMAL_INFEASIBLE, DUAL_INFEASIBLE or RUNNING; the ray with value 1, zeros where there is
      none.

    Reference: Applegate, Diaz, Lu and Lubin, "Infeasibility detection with primal-dual hybrid
    gradient for large-scale linear programming", SIAM J. Optim. 34, 2024; Park and Ryu,
    "Accelerated infeasibility detection of constrained optimization and fixed-point iterations",
    ICML, 2023.
    """
    # By themselves both may be so short that their products vanish.
    x, duals = (trees.scale(1 / trees.magnitude(part), part) for part in (moved.x, moved[1:]))
    moved = PrimalDual(x, *duals)
    units = scaling.units
    sizes = _expected(program, scaling, point)
    multipliers, proven, loose = farkas(program, moved)
    none = _proves(trees.norm(loose * units.x) * sizes[0], proven - _noise(program, multipliers))
    direction, fall, (equal, above, bent) = falling(program, moved)
    rows = trees.norm((equal * units.equality_dual, above * units.inequality_dual))
    spoilt = rows * sizes[1] + trees.norm(bent * units.x) * sizes[0]
    endless = _proves(spoilt, fall) & ~none
    status = jnp.where(none, Status.PRIMAL_INFEASIBLE, jnp.where(
        endless, Status.DUAL_INFEASIBLE, Status.RUNNING)).astype(jnp.int32)
    ray = trees.add(_normalised(none, proven, multipliers), _normalised(endless, fall, direction))
    return status, ray


def displaced(
    program: Program, point: PrimalDual, image: PrimalDual
) -> tuple[jax.Array, PrimalDual]:
    """`certificate` of the way from a point to its image, of a program in units by `equilibrated`.

    Where there is no solution both run away along a ray. No norm of such rows is below 1, and the
    smaller a norm is taken to be, the longer solutions are expected.
    """
    program, point, image = stop_gradient((program, point, image))
    one = jnp.ones((), program.q.dtype)
    units = PrimalDual(*map(jnp.ones_like, (program.q, program.b, program.h)))
    bend = 0 * one if program.Q is None else jnp.max(jnp.abs(program.Q), initial=0)
    return certificate(
        program, Scaling(units, one, bend), image, trees.subtract(image, point))


def ray_of(solution: Solution, proof: Callable, *args: PyTree) -> PrimalDual:
    """The certificate of a solve that ended with one, else zeros.

    That of `proof(point, image, memory, *args) -> (status, ray)` for the evaluation made last.
    """
    state, args = stop_gradient((solution.state, args))
    status, ray = proof(state.x, state.output, state.memory, *args)
    return trees.where(status == solution.status, ray, trees.zeros_like(ray))


def in_other_units(program: Program, ray: PrimalDual, units: PrimalDual) -> PrimalDual:
    """A ray times units, of value 1 in this program."""
    program, units = stop_gradient((program, units))
    # The product may leave the float range, and not come back; its root does not.
    roots = jax.tree.map(lambda ray, unit: jnp.sqrt(jnp.abs(ray)) * jnp.sqrt(unit), ray, units)
    roots = _whole(trees.max_norm(roots), roots, 0.5)
    ray = jax.tree.map(lambda ray, root: jnp.sign(ray) * root * root, ray, roots)
    _, proven, _ = farkas(program, ray)
    _, fall, _ = falling(program, ray)
    # One of the two is that of zeros, or both are.
    return _whole(jnp.maximum(proven, fall), ray)


def _expected(program: Program, scaling: Scaling, point: PrimalDual) -> tuple:
    """Lengths of x and of the multipliers, in their units: of the point, and what rows ask for."""
    x, *rows = scaling.units
    wanted = trees.norm(jax.tree.map(jnp.multiply, right_sides(program), tuple(rows)))
    costs = trees.norm(program.q * x)
    norm = scaling.norm
    free = safe_divide(costs, scaling.curvature)  # where the objective alone is least
    return (jnp.maximum(scaled_norm(point.x, x), jnp.maximum(safe_divide(wanted, norm), free)),
            jnp.maximum(scaled_norm(tuple(point[1:]), tuple(rows)), safe_divide(costs, norm)))


def _noise(program: Program, multipliers: PrimalDual) -> jax.Array:
    """What the rounding of sides may make of the value of multipliers: rows that follow from
    others have sides that do but for rounding.
    """
    b, h = map(jnp.abs, right_sides(program))
    terms = product(jnp.abs(multipliers.equality_dual), b)
    terms = terms + product(jnp.abs(multipliers.inequality_dual), h)
    return ROUNDING * machine_epsilon(program.q) * terms


def _proves(violation: jax.Array, value: jax.Array) -> jax.Array:
    return (value > 0) & jnp.isfinite(value) & (violation <= ACCEPTED * value)


def _normalised(holds: jax.Array, value: jax.Array, ray: PrimalDual) -> PrimalDual:
    return trees.where(holds, _whole(value, ray), trees.zeros_like(ray))


def _whole(value: jax.Array, ray: PrimalDual, power: float = 1.0) -> PrimalDual:
    """The ray over its value, or so long that floats hold its entries to the power 1 / power."""
    entries = jnp.abs(jnp.concatenate(ray))
    least = jnp.min(jnp.where(entries > 0, entries, jnp.inf), initial=jnp.inf)
    shortest = (ROOM * float(jnp.finfo(entries.dtype).tiny)) ** power / least
    return trees.scale(jnp.maximum(safe_divide(1, value), shortest), ray)
