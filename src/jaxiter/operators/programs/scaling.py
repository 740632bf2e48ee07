"""Units of a program's rows and columns in which its matrices have entries and norms near one."""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.numerics import safe_divide, stop_gradient
from jaxiter.operators.linear_map import is_pair, is_sparse, linear_map
from jaxiter.operators.programs.program import PrimalDual, Program, curvature
from jaxiter.spectral import largest_eigenvalue
from jaxiter.stop import never

PyTree = Any
#: Rounds of Ruiz' equilibration; more change little.
ROUNDS = 10


class Scaling(NamedTuple):
    """Constants of a program; nothing is differentiated through them.

    Attributes:
      units: the size of one unit of each unknown and multiplier: `x = units.x * scaled x`.
      norm: the largest singular value of the rows in these units. curvature: the largest
        eigenvalue of Q. Both from below, by at most one per cent; 0 where there is nothing.
    """

    units: PrimalDual
    norm: jax.Array
    curvature: jax.Array


def scaling(program: Program) -> Scaling:
    """Ruiz' equilibration, Pock and Chambolle's scaling, and the norms that are left.

        rows, columns <- rows / sqrt(max_j |K_ij|), columns / sqrt(max_i |K_ij|)    ten times
        rows, columns <- rows / sqrt(sum_j |K_ij|), columns / sqrt(sum_i |K_ij|)

    A matrix that is given by its products is taken as it is, and then so are all others.

    Reference: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices",
    2001; Pock and Chambolle, "Diagonal preconditioning for first order primal-dual algorithms in
    convex optimization", ICCV, 2011.
    """
    program = stop_gradient(program)
    units = PrimalDual(*map(jnp.ones_like, (program.q, program.b, program.h)))
    if not any(map(is_pair, (program.Q, program.A, program.G))):
        units = fixed_point(
            lambda units, program: _divided(units, *_sizes(program, units, largest=True)),
            units, program, max_steps=ROUNDS + 1, stop=never(), adjoint=frozen()).value
        sums = _sizes(program._replace(Q=None), units, largest=False)
        units = _unbound(program, _divided(units, *sums), sums[0] == 0)
    units = stop_gradient(units)

    def twice(v: jax.Array) -> jax.Array:
        rows = products(program, units.x * v)
        rows = tuple(unit**2 * row for unit, row in zip(units[1:], rows, strict=True))
        return units.x * pulled(program, *rows)

    norm = jnp.sqrt(jnp.abs(largest_eigenvalue(twice, program.q).value))
    bend = jnp.zeros_like(norm)
    if program.Q is not None:
        bend = jnp.abs(largest_eigenvalue(
            lambda v: units.x * curvature(program, units.x * v), program.q).value)
    return Scaling(units, norm, bend)


def products(program: Program, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(A x, G x)`."""
    return linear_map(program.A, x)[0](x), linear_map(program.G, x)[0](x)


def pulled(program: Program, y: jax.Array, z: jax.Array) -> jax.Array:
    """`A' y + G' z`."""
    return linear_map(program.A)[1](y) + linear_map(program.G)[1](z)


def scaled_norm(point: PyTree, units: PyTree) -> jax.Array:
    """The length of a part of a point in its units."""
    return trees.norm(jax.tree.map(jnp.divide, point, units))


def _sizes(program: Program, units: PrimalDual, largest: bool) -> PrimalDual:
    """The largest entry, or the sum, of every column and every row in some units."""
    columns, *rows = units
    sizes = [_of_matrix(matrix, row, columns, largest) for matrix, row in (
        (program.A, rows[0]), (program.G, rows[1]))]
    if program.Q is not None and largest:
        sizes.append(_of_matrix(program.Q, columns, columns, largest))
    combine = jnp.maximum if largest else jnp.add
    return PrimalDual(reduce(combine, [column for _, column in sizes]), sizes[0][0], sizes[1][0])


def _of_matrix(
    matrix: Any, rows: jax.Array, columns: jax.Array, largest: bool
) -> tuple[jax.Array, jax.Array]:
    """Of every row and of every column."""
    if is_sparse(matrix):
        matrix = matrix.to_bcoo() if hasattr(matrix, "to_bcoo") else matrix
        i, j = matrix.indices[:, 0], matrix.indices[:, 1]
        entries = jnp.abs(matrix.data) * rows[i] * columns[j]
        gather = jax.ops.segment_max if largest else jax.ops.segment_sum
        # The largest of nothing is minus infinity.
        return (jnp.maximum(gather(entries, i, rows.shape[0]), 0),
                jnp.maximum(gather(entries, j, columns.shape[0]), 0))
    entries = jnp.abs(matrix) * rows[:, None] * columns
    if not largest:
        return jnp.sum(entries, axis=1), jnp.sum(entries, axis=0)
    return jnp.max(entries, axis=1, initial=0), jnp.max(entries, axis=0, initial=0)


def _divided(units: PrimalDual, *sizes: jax.Array) -> PrimalDual:
    """Units after one round; where there is no entry they stay."""
    return PrimalDual(*(unit / jnp.sqrt(jnp.where(size > 0, size, 1))
                        for unit, size in zip(units, sizes, strict=True)))


def _unbound(program: Program, units: PrimalDual, empty: jax.Array) -> PrimalDual:
    """Units with long steps for unknowns that are in no row: only their bounds stop them."""
    if program.Q is not None:
        return units
    bounds = [jnp.where(jnp.isfinite(bound), jnp.abs(bound), 0)
              for bound in (program.lower, program.upper)]
    reach = 10 * (1 + bounds[0] + bounds[1])
    return units._replace(x=jnp.where(
        empty, reach * jnp.sqrt(safe_divide(1, jnp.abs(program.q)) + 1), units.x))
