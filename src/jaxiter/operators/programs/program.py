"""Linear and quadratic programs: their canonical form, how well a point solves one, the result."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import machine_epsilon, product, safe_divide, stop_gradient
from jaxiter.operators.linear_map import LinearMap, linear_map
from jaxiter.solution import Solution, reports

PyTree = Any

#: Rows are not told apart by so many machine epsilons of what they are sums of.
ROUNDING = 4.0
#: By itself a row, or an entry of the gradient, counts so much beside its own terms: where one row
#: is huge the others would not be seen at all.
ALONE = 0.1
#: The sides of rows with room at 0 count at most so many times the nearest one.
NARROW = 100.0


class Program(NamedTuple):
    """minimise `x' Q x / 2 + q' x` subject to `A x = b`, `G x <= h`, `lower <= x <= upper`.

    Vectors of one dtype; A and G are matrices, sparse ones or pairs of products (`linear_map`).
    Where there are no constraints they have no rows; bounds that were not given are infinite. Q is
    None for a linear program, else symmetric.
    """

    Q: LinearMap | None
    q: jax.Array
    A: LinearMap
    b: jax.Array
    G: LinearMap
    h: jax.Array
    lower: jax.Array
    upper: jax.Array


class PrimalDual(NamedTuple):
    """A point of a program and the multipliers of its rows: what all methods iterate on.

    x: `[n]`. equality_dual: `[p]`. inequality_dual: `[m]`, not negative.
    """

    x: jax.Array
    equality_dual: jax.Array
    inequality_dual: jax.Array


@reports
class ProgramResult(NamedTuple):
    """The answer of a linear or quadratic program.

    The Lagrangian is `x'Qx/2 + q'x + y'(A x - b) + z'(G x - h) - r'(x - bound)`, so that

        Q x + q + A' equality_dual + G' inequality_dual - reduced_cost = 0

    and the derivatives of the objective are `-equality_dual` with respect to b,
    `-inequality_dual` with respect to h, and `reduced_cost` with respect to an active bound.

    Attributes:
      x: `[n]`, within its bounds.
      equality_dual, inequality_dual: `[p]`, `[m]`; the latter are at least 0.
      reduced_cost: `[n]`: positive where x is held at its lower bound, negative at its upper.
      objective: `x'Qx/2 + q'x`. gap: by how much the dual's objective is below, scalar.
      certificate: zeros, but for two statuses. PRIMAL_INFEASIBLE: multipliers y, z >= 0 for which
        every x within its bounds has `y'(A x - b) + z'(G x - h) > 0` (a Farkas ray).
        DUAL_INFEASIBLE: an x along which the objective falls for ever, `q'x < 0`, `Q x = 0`,
        `A x = 0`, `G x <= 0`, and which leaves no bound. Equalities are to a thousandth: a ray
        says nothing about solutions a thousand times as long as right-hand sides, q / Q and the
        last point.
      solve: the untouched `Solution`; its value is in the units that the method works in.
    """

    x: jax.Array
    equality_dual: jax.Array
    inequality_dual: jax.Array
    reduced_cost: jax.Array
    objective: jax.Array
    gap: jax.Array
    certificate: PrimalDual
    solve: Solution


class Optimality(NamedTuple):
    """What a point lacks: l2 norms of the violated constraints and of the gradient that no
    multiplier explains, and the gap; with the sizes of rows and right-hand sides, of the parts of
    the gradient and of the terms that the gap is a sum of.

    The ratios do not change when the program is rescaled as a whole. Of violations the rounding of
    rows is left out, all that is left where rows of a long x are as short as their sides.
    `alone`: ALONE of the largest ratio of one row, or of one entry of that gradient, to its terms.
    """

    primal: jax.Array
    dual: jax.Array
    gap: jax.Array
    primal_unit: jax.Array
    dual_unit: jax.Array
    gap_unit: jax.Array
    alone: jax.Array

    def worst(self) -> jax.Array:
        """The largest of the three ratios and of `alone`."""
        pairs = ((self.primal, self.primal_unit), (self.dual, self.dual_unit),
                 (self.gap, self.gap_unit))
        # A part whose terms are all 0 is 0 itself.
        return jnp.stack([jnp.abs(safe_divide(part, unit)) for part, unit in pairs]
                         + [self.alone]).max()


def right_sides(program: Program) -> tuple[jax.Array, jax.Array]:
    """b, and h with 0 where it is infinite and so no constraint."""
    return program.b, jnp.where(jnp.isfinite(program.h), program.h, 0)


def near_sides(program: Program, rows: tuple | None = None) -> tuple[jax.Array, jax.Array]:
    """`right_sides`, in units of rows if there are any, with those of rows far away cut: they do
    not tell how long x is.
    """
    sides = b, h = right_sides(program)
    if rows is not None:
        b, h = (side * unit for side, unit in zip(sides, rows, strict=True))
    nearest = jnp.min(jnp.where(h > 0, h, jnp.inf), initial=jnp.inf)
    own = trees.max_norm(b)
    nearest = jnp.minimum(nearest, jnp.where(own > 0, own, jnp.inf))
    return b, jnp.minimum(h, NARROW * nearest)


def curvature(program: Program, x: jax.Array) -> jax.Array:
    """Q x; zeros for a linear program."""
    return jnp.zeros_like(x) if program.Q is None else linear_map(program.Q, x)[0](x)


def gradient(program: Program, point: PrimalDual) -> jax.Array:
    """`Q x + q + A' y + G' z`, which at a solution is the reduced cost."""
    first, *others = _gradient_terms(program, point)
    return sum(others, first)


def _gradient_terms(program: Program, point: PrimalDual) -> tuple:
    x, y, z = point
    back, again = (linear_map(rows, x)[1] for rows in (program.A, program.G))
    return curvature(program, x), program.q, back(y), again(z)


def held(program: Program, point: PrimalDual) -> tuple[jax.Array, jax.Array]:
    """Which entries of x are held by their lower, and which by their upper bound.

    Where the gradient pushes against a bound, and more, in units of its terms, than there is room,
    in units of x: rounding pushes everywhere. Never differentiated.
    """
    program, point = stop_gradient((program, point))
    slope, x = gradient(program, point), point.x
    units = trees.max_norm(x), sizes(program, point)[1]
    low = (slope > 0) & ((x - program.lower) * units[1] <= slope * units[0])
    high = (slope < 0) & ((program.upper - x) * units[1] <= -slope * units[0])
    return low, high


def reduced_cost(program: Program, point: PrimalDual) -> jax.Array:
    """The gradient where a bound holds x, else 0."""
    low, high = held(program, point)
    return jnp.where(low | high, gradient(program, point), 0)


def needed(program: Program, point: PrimalDual) -> PrimalDual:
    """The point; where there is no objective, without multipliers, which are the right ones."""
    some = jnp.any(program.q != 0)
    if program.Q is not None and not isinstance(program.Q, tuple):
        some |= jnp.any(getattr(program.Q, "data", program.Q) != 0)
    elif program.Q is not None:
        return point
    return PrimalDual(point.x, *(jnp.where(some, dual, 0) for dual in point[1:]))


def explained(program: Program, slope: jax.Array) -> jax.Array:
    """What bounds can explain of a gradient: its positive part at lower ones, else negative."""
    below = jnp.where(program.lower > -jnp.inf, jnp.maximum(slope, 0), 0)
    return below + jnp.where(program.upper < jnp.inf, jnp.minimum(slope, 0), 0)


def objective(program: Program, x: jax.Array) -> jax.Array:
    """`x'Qx/2 + q'x`."""
    return product(curvature(program, x) / 2 + program.q, x)


def within(program: Program, x: jax.Array) -> jax.Array:
    """x, clipped to its bounds; the derivatives are those of x."""
    fixed = lax.stop_gradient(x)
    return lax.stop_gradient(jnp.clip(fixed, program.lower, program.upper)) + (x - fixed)


def optimality(program: Program, point: PrimalDual) -> Optimality:
    """How far a point with x within its bounds is from solving the program.

    The gap is `z'(h - G x) - y'(A x - b)` and what the reduced cost adds: the difference of the
    two objectives but for `x'` times the unexplained gradient, which is counted already, and
    without its cancellation.
    """
    x, y, z = point
    equal, unequal = linear_map(program.A, x)[0](x), linear_map(program.G, x)[0](x)
    bounded = jnp.isfinite(program.h)
    _, h = right = right_sides(program)
    slack = jnp.where(bounded, h - unequal, 0)
    terms = _gradient_terms(program, point)
    slope = sum(terms[1:], terms[0])
    low, high = held(program, point)
    cost = jnp.where(low | high, slope, 0)
    bound = jnp.where(low, program.lower, jnp.where(high, program.upper, 0))
    gap = product(z, slack) + product(y, program.b - equal) + product(
        cost, jnp.where(low | high, x, 0) - bound)
    size = jnp.maximum(jnp.abs(h), jnp.abs(unequal))
    # Rows with room have no say: beside one of 1e6 an equation of 1 would not be seen.
    tight = (z > 0) | (slack < 0)
    parts = ((x, terms[0]), (x, program.q), (y, program.b), (z, size), (cost, bound))
    gap_unit = sum((product(jnp.abs(a), jnp.abs(b)) for a, b in parts), jnp.zeros((), x.dtype))
    # Beside the rows, not beside terms that cancel, of which only the rounding is forgiven.
    row_units = row_terms(program, x)
    rounding = trees.scale(ROUNDING * machine_epsilon(x), row_units)
    primal = jax.tree.map(lambda off, noise: jnp.maximum(jnp.abs(off) - noise, 0),
                          (equal - program.b, jnp.minimum(slack, 0)), rounding)
    pulls = terms[0], program.q, terms[2] + terms[3], cost
    units = *jax.tree.map(lambda unit, side: jnp.maximum(unit, jnp.abs(side)), row_units, right), \
        _gradient_sizes(program, point)
    return Optimality(
        trees.norm(primal),
        trees.norm((slope - cost, jnp.minimum(z, 0), jnp.where(bounded, 0, z))), gap,
        _rows_unit(right, (equal, unequal), row_units, tight),
        jnp.stack([trees.norm(part) for part in pulls]).max(), gap_unit,
        ALONE * trees.max_norm(jax.tree.map(safe_divide, (*primal, slope - cost), units)))


def complement(program: Program, point: PrimalDual) -> jax.Array:
    """By how much neither an inequality nor its multiplier vanishes: the length of the smaller of
    the two, over the sizes of what slacks and gradient are sums of.

    Near a solution that is unique the distance to it is in proportion to this and to the other
    violations, where it is only to the root of the gap.
    """
    x, _, z = point
    unequal = linear_map(program.G, x)[0](x)
    bounded = jnp.isfinite(program.h)
    slack = jnp.where(bounded, program.h - unequal, jnp.inf)
    units = sizes(program, point)
    low, high = held(program, point)
    room = jnp.where(low, x - program.lower, jnp.where(high, program.upper - x, 0))
    return trees.norm((jnp.minimum(safe_divide(slack, units[0]), safe_divide(z, units[1])),
                       safe_divide(room, trees.max_norm(x))))


def sizes(program: Program, point: PrimalDual) -> tuple[jax.Array, jax.Array]:
    """The largest entries of what the slacks of G, and what the gradient is a sum of."""
    inequalities = near_sides(program)[1], row_terms(program, point.x)[1]
    return (trees.max_norm(inequalities), trees.max_norm(_gradient_terms(program, point)))


def row_terms(program: Program, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sizes of what the entries of A x and G x are sums of; where the matrices are not in
    memory, of the entries.
    """
    return _terms(program.A, x), _terms(program.G, x)


def _gradient_sizes(program: Program, point: PrimalDual) -> jax.Array:
    """The sizes of what the entries of the gradient are sums of, in the same way."""
    x, y, z = point
    parts = _terms(program.A, y, 1), _terms(program.G, z, 1), jnp.abs(program.q)
    bent = jnp.zeros_like(x) if program.Q is None else _terms(program.Q, x)
    return sum(parts, bent)


def _terms(rows: LinearMap, v: jax.Array, way: int = 0) -> jax.Array:
    if isinstance(rows, jax.Array):
        return linear_map(jnp.abs(rows))[way](jnp.abs(v))
    return jnp.abs(linear_map(rows, v)[way](v))


def _rows_unit(right: tuple, values: tuple, terms: tuple, tight: jax.Array) -> jax.Array:
    """What violated rows are judged beside: the length of sides or of rows. Where all sides are 0,
    only what the rows are sums of says how long they are.
    """
    side = tight_norm(right, tight)
    return jnp.where(side > 0, jnp.maximum(side, tight_norm(values, tight)),
                     tight_norm(terms, tight))


def tight_norm(parts: tuple, tight: jax.Array) -> jax.Array:
    """The length of `(of A, of G)` without the rows of G that are not tight."""
    return trees.norm((parts[0], jnp.where(tight, parts[1], 0)))


def result(
    program: Program, point: PrimalDual, solve: Solution, certificate: PrimalDual | None = None
) -> ProgramResult:
    """The result that a point in the units of the program stands for."""
    point = point._replace(x=within(program, point.x))
    if certificate is None:
        certificate = trees.zeros_like(point)
    return ProgramResult(
        point.x, point.equality_dual, point.inequality_dual, reduced_cost(program, point),
        objective(program, point.x), optimality(program, point).gap, certificate, solve)
