"""GMRES, for hard systems of which some dozens of vectors fit into memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import columns, trees
from jaxiter.linear.ridge import with_ridge
from jaxiter.linear.system import LinearSolver, Matvec, no_gains, restarted
from jaxiter.numerics import anchor, safe_divide
from jaxiter.packed import while_loop
from jaxiter.values import as_value

PyTree = Any


class _State(NamedTuple):
    """Arnoldi basis; the triangle and the rotations that made it; right-hand side; |r|; column."""

    basis: PyTree
    triangle: jax.Array
    cosines: jax.Array
    sines: jax.Array
    rhs: jax.Array
    norm: jax.Array
    j: jax.Array


@as_value
def gmres(
    restart: int = 20, rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000, *,
    ridge: Any = 0.0,
) -> LinearSolver:
    """GMRES(restart) with twice-orthogonalised Arnoldi vectors and Givens rotations.

    One product per step and memory of `restart + 1` vectors. It minimises the
    residual in each cycle; with a restart shorter than the dimension it may
    stagnate, and says LINEAR_FAILURE then. Arguments as in `bicgstab`, `ridge`
    as in `cg`.

    Reference: Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving
    nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7, 1986.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.array([1.0, 2.0])
    >>> gmres()(lambda v: A @ v, b).value.round(4).tolist()
    [-2.0, 1.0]
    """
    if restart < 1:
        raise ValueError(f"restart must be at least 1, got {restart}.")

    def cycle(
        matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
    ) -> tuple:
        beta, kind = norm, trees.dot(r, r).dtype
        first = trees.scale(safe_divide(1.0, beta), r)
        most = min(restart, _dimension(r))
        start = _State(
            columns.put(columns.empty(r, most + 1), 0, first),
            jnp.eye(most + 1, most, dtype=kind), jnp.ones(most, kind),
            jnp.zeros(most, kind), jnp.zeros(most + 1, kind).at[0].set(beta.astype(kind)),
            beta, jnp.int32(0),
        )

        def going(s: _State) -> jax.Array:
            return (s.norm > tol) & (s.j < most) & (s.j < budget)

        end = while_loop(
            going, lambda s: _arnoldi_step(matvec, s, r, most), anchor(start, (x, r, tol)))
        used = jnp.arange(most, dtype=jnp.int32) < end.j
        upper = jnp.where(used[:, None] & used[None, :], end.triangle[:most],
                          jnp.eye(most, dtype=kind))
        rhs = jnp.where(used, end.rhs[:most], 0)
        weights = jax.scipy.linalg.solve_triangular(upper, rhs)
        weights = jnp.concatenate([weights, jnp.zeros(1, kind)])
        # The diagonal of a triangle lies between its singular values.
        diagonal = jnp.abs(jnp.diagonal(upper))
        gains = no_gains(beta)
        gains = gains.seeing(jnp.max(jnp.where(used, diagonal, 0)))
        gains = gains.seeing(jnp.min(jnp.where(used, diagonal, jnp.inf)))
        return trees.add(x, columns.combine(weights, end.basis, x)), end.j, gains

    return with_ridge(restarted(cycle, rtol, atol, max_steps, patience=20), ridge)


def _dimension(r: PyTree) -> int:
    """How many vectors can be independent: more of them would be made of rounding.

    Over the reals: a map that is not holomorphic has no other derivative.
    """
    return max(sum(leaf.size * (1 + jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(r)), 1)


def _arnoldi_step(matvec: Matvec, s: _State, like: PyTree, restart: int) -> _State:
    """One more basis vector, and its column of the triangle."""
    kind, real = s.rhs.dtype, s.norm.dtype
    w = matvec(jax.tree.map(lambda h, leaf: h[s.j].reshape(leaf.shape), s.basis, like))
    column = columns.dot(s.basis, w)[:, 0]
    w = trees.subtract(w, columns.combine(column, s.basis, w))
    again = columns.dot(s.basis, w)[:, 0]
    w = trees.subtract(w, columns.combine(again, s.basis, w))
    length = jnp.sqrt(trees.squared_norm(w))
    column = (column + again).at[s.j + 1].set(length.astype(kind))
    basis = columns.put(s.basis, s.j + 1, trees.scale(safe_divide(1.0, length), w))
    column = lax.fori_loop(
        0, restart, lambda i, c: jnp.where(i < s.j, _rotate(c, s.cosines, s.sines, i), c), column)
    radius = jnp.sqrt(jnp.abs(column[s.j]) ** 2 + length.astype(real) ** 2)
    cosines = s.cosines.at[s.j].set(safe_divide(column[s.j], radius.astype(kind)))
    sines = s.sines.at[s.j].set(safe_divide(length, radius).astype(kind))
    column = _rotate(column, cosines, sines, s.j)
    rhs = _rotate(s.rhs, cosines, sines, s.j)
    return _State(basis, s.triangle.at[:, s.j].set(column), cosines, sines, rhs,
                  jnp.abs(rhs[s.j + 1]).astype(real), s.j + 1)


def _rotate(column: jax.Array, cosines: jax.Array, sines: jax.Array, i: jax.Array) -> jax.Array:
    upper, lower, c, s = column[i], column[i + 1], cosines[i], sines[i]
    column = column.at[i].set(jnp.conj(c) * upper + s * lower)
    return column.at[i + 1].set(-s * upper + c * lower)
