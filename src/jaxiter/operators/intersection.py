"""`project_intersection`: the nearest point of several convex sets, by their projections."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import if_needed, machine_epsilon, on_own_mesh, stop_gradient
from jaxiter.options import SolveOptions
from jaxiter.problem import Problem, as_point
from jaxiter.reuse import reused
from jaxiter.solution import Status
from jaxiter.splitting import SplitResult, Splitting, solve_splitting

PyTree = Any

#: Cycles before the first look for a proof that the sets do not meet; then at every power of two.
FIRST_PROOF = 16


class _Memory(NamedTuple):
    """Cycles so far, and whether the sets were proved not to meet."""

    cycles: jax.Array
    empty: jax.Array


@reused
@on_own_mesh
def project_intersection(
    projections: Sequence[Callable], x: PyTree, *args: PyTree, **options: Unpack[SolveOptions]
) -> SplitResult:
    """Project x onto the intersection of convex sets, each given by its projection: Dykstra.

        y = x - (q_1 + ... + q_m);    for every set in turn:  z = P_i(y + q_i),
        q_i = y + q_i - z,  y = z

    The governing point is q, the corrections; the answer is the last set's z, and q is the dual:
    q_i is normal to set i there, and they add up to `x - value`. What the tolerance is measured
    on are the moves `y - z` of one cycle: where they are small, the answer is as near to every
    set, which `y` alone, standing still for many cycles, would not prove.

    Args:
      projections: functions `P_i(v, *args)`, of points like x. x: a tree of real arrays.
      *args: passed to all projections.
      **options: those of `fixed_point`, of which every step is one cycle. `solver=anderson()`
        often saves most of the cycles.

    Returns:
      A `SplitResult` of value, dual (the tuple of q_i) and solve. PRIMAL_INFEASIBLE where normals
      of the sets were found that add up to nothing and prove that no point nearer than
      1 / sqrt(eps) times the size of x is in all of them; `solve.displacement` is the evidence.
      Sets that do not meet by less than the fourth root of eps, of that size, end with MAX_STEPS;
      accelerated also with PRECISION_FLOOR, where q has grown so long that rounding hides the gap.

    Derivatives, by args, x and what the projections close over, are those of the answer, by one
    linear solve for q. Where q is not unique, that of the value is as a rule found all the same;
    where not, it is NaN.

    Raises:
      ValueError: no projections. TypeError: one that is not callable; complex x.

    Reference: Boyle and Dykstra, "A method for finding projections onto the intersection of
    convex sets in Hilbert spaces", 1986; Birgin and Raydan, "Robust stopping criteria for
    Dykstra's algorithm", SIAM J. Sci. Comput. 26, 2005.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import projection_hyperplane, projection_non_negative
    >>> plane = lambda v: projection_hyperplane(v, jnp.ones(3), 1.0)
    >>> out = project_intersection([plane, projection_non_negative], jnp.array([2.0, 1.5, -1.0]))
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)
    ([0.75, 0.25, 0.0], True)
    """
    projections = tuple(projections)
    if not projections:
        raise ValueError("give at least one projection.")
    for projection in projections:
        if not callable(projection):
            raise TypeError(f"a projection must be a function P(v, *args), got {projection!r}.")
    x = as_point(x)
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(x)):
        raise TypeError("project_intersection needs real arrays.")
    return solve_splitting(_dykstra(projections), x, x, *args, **options)


def _dykstra(projections: tuple[Callable, ...]) -> Splitting:
    """The splitting of the corrections; its args are the point that is projected, and args."""
    def cycle(q: tuple, x: PyTree, *args: PyTree) -> tuple[tuple, PyTree]:
        """The moves, by which the corrections grow, and the last point."""
        y, moves = _uncorrected(q, x), []
        for projection, correction in zip(projections, q, strict=True):
            z = projection(trees.add(y, correction), *args)
            moves.append(trees.subtract(y, z))
            y = z
        return tuple(moves), y

    def residual(q: tuple, memory: _Memory, x: PyTree, *args: PyTree) -> tuple[tuple, _Memory]:
        moves, y = cycle(q, x, *args)
        cycles = memory.cycles + 1
        asked = (cycles >= FIRST_PROOF) & (cycles & (cycles - 1) == 0) & ~memory.empty
        found = if_needed(
            asked, lambda moves, y, x: _proof(projections, moves, y, x, args),
            stop_gradient((moves, y, x)), memory.empty, memory.empty)
        return moves, _Memory(cycles, found)

    def scale(q: tuple, moves: tuple, memory: _Memory, x: PyTree, *args: PyTree) -> jax.Array:
        return jnp.maximum(trees.norm(x), trees.norm(_uncorrected(q, x)))

    def floor(q: tuple, memory: _Memory, x: PyTree, *args: PyTree) -> jax.Array:
        return 4 * machine_epsilon(q) * jnp.maximum(trees.norm(x), trees.norm(q))

    def extract(q: tuple, memory: _Memory, x: PyTree, *args: PyTree) -> tuple[PyTree, tuple]:
        return projections[-1](trees.add(_uncorrected(q, x), q[-1]), *args), q

    problem = Problem(
        residual=residual, scale=scale, floor=floor, hindsight=True,
        memory=lambda q, x, *args: _Memory(jnp.int32(0), jnp.bool_(False)),
        equations=lambda q, memory, x, *args: cycle(q, x, *args)[0],
        certify=lambda q, moves, memory, x, *args: jnp.where(
            memory.empty, jnp.int32(Status.PRIMAL_INFEASIBLE), jnp.int32(Status.RUNNING)),
        calls={"projections": len(projections)})
    return Splitting(
        problem, start=lambda x0, x, *args: tuple(trees.zeros_like(x0) for _ in projections),
        extract=extract)


def _uncorrected(q: tuple, x: PyTree) -> PyTree:
    for correction in q:
        x = trees.subtract(x, correction)
    return x


def _proof(
    projections: tuple[Callable, ...], moves: tuple, y: PyTree, x: PyTree, args: tuple
) -> jax.Array:
    """Whether the moves of a cycle prove that the sets do not meet near the point y.

    `n_i = y + m_i - p_i` with `p_i = P_i(y + m_i)` is normal to set i at p_i: all its points c
    have `<n_i, c - p_i> <= 0`. One that is in all sets therefore has
    `<sum n_i, c - y> <= sum <n_i, p_i - y>`: where the right is negative and the sum on the left
    nearly 0, c is far away. The m_i are long multiples of the moves, for where a set is round the
    normal is the direction the nearer the longer it is, and are made to cancel.
    """
    epsilon = machine_epsilon(y)
    size = jnp.maximum(trees.norm(x), trees.norm(y)) + trees.norm(moves)
    squares = [trees.squared_norm(move) for move in moves]
    gap = sum(squares)
    length = 2 * size**2 / (epsilon**0.5 * jnp.where(gap > 0, gap, 1))
    left = _total(moves)
    normals, slope = [], 0.0
    for projection, move, square in zip(projections, moves, squares, strict=True):
        share = square / jnp.where(gap > 0, gap, 1)
        outside = trees.axpy(length, trees.axpy(-share, left, move), y)
        at = projection(outside, *args)
        normals.append(trees.scale(1 / length, trees.subtract(outside, at)))
        slope = slope + trees.dot(normals[-1], trees.subtract(at, y))
    # What is rounded in p_i, times the moves, must not decide.
    enough = jnp.maximum(size * trees.norm(_total(normals)), 4 * epsilon * size**2)
    return -slope > enough / epsilon**0.5


def _total(parts: Sequence[PyTree]) -> PyTree:
    return reduce(trees.add, parts)
