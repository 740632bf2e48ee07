"""How well a point solves a program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import machine_epsilon, product, safe_divide
from jaxiter.operators.linear_map import linear_map
from jaxiter.operators.programs.program import (
    PrimalDual,
    Program,
    gradient_terms,
    right_sides,
)
from jaxiter.operators.programs.sizes import gradient_sizes, held, row_terms, sizes, tight_norm

#: Rows are not told apart by so many machine epsilons of what they are sums of.
ROUNDING = 4.0
#: By itself a row, or an entry of the gradient, counts so much beside its own terms: where one row
#: is huge the others would not be seen at all.
ALONE = 0.1


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
    terms = gradient_terms(program, point)
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
        gradient_sizes(program, point)
    return Optimality(
        trees.norm(primal),
        trees.norm((slope - cost, jnp.minimum(z, 0), jnp.where(bounded, 0, z))), gap,
        _rows_unit(right, (equal, unequal), row_units, tight),
        jnp.stack([trees.norm(part) for part in pulls]).max(), gap_unit,
        ALONE * trees.max_norm(jax.tree.map(safe_divide, (*primal, slope - cost), units)))


def _rows_unit(right: tuple, values: tuple, terms: tuple, tight: jax.Array) -> jax.Array:
    """What violated rows are judged beside: the length of sides or of rows. Where all sides are 0,
    only what the rows are sums of says how long they are.
    """
    side = tight_norm(right, tight)
    return jnp.where(side > 0, jnp.maximum(side, tight_norm(values, tight)),
                     tight_norm(terms, tight))


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
