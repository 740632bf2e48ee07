"""Matrix-free linear solvers; every solve recomputes its true residual and returns a status.

Each factory returns a `LinearSolver`: `solve(matvec, b, *, x0=None) -> LinearSolution`, on pytrees.
They share one outer loop, `_restarted`: a *cycle* improves x from its residual, the loop measures.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.numerics import anchor, machine_epsilon, safe_divide, stop_gradient
from jaxiter.solution import Status, reports

PyTree = Any
Matvec = Callable[[PyTree], PyTree]


@reports
class LinearSolution(NamedTuple):
    """Answer of a linear solve.

    Attributes:
      value: x. status: a `Status` code. steps: products with the matrix (int32).
      residual: recomputed `norm(b - A x) / norm(b)` (0 when b is 0).
    """

    value: PyTree
    status: jax.Array
    steps: jax.Array
    residual: jax.Array


LinearSolver = Callable[..., LinearSolution]


def default_rtol(b: PyTree) -> float:
    """Relative residual asked for by default: float64 1e-10, float32 1e-6, 16-bit 1e-2."""
    epsilon = machine_epsilon(b)
    return 1e-10 if epsilon < 1e-12 else 1e-6 if epsilon < 1e-5 else 1e-2


#: A solver gives up after this many restarts in a row that did not halve its true residual.
PATIENCE = 2


class _System(NamedTuple):
    """`b` scaled to unit size, so that squared norms stay inside the float range."""

    b: PyTree
    unit: jax.Array
    norm: jax.Array
    tol: jax.Array


def _normalised(b: PyTree, rtol: Any, atol: Any) -> _System:
    unit = trees.magnitude(stop_gradient(b))
    b = trees.scale(1 / unit, b)
    norm = trees.quick_norm(stop_gradient(b))
    relative = default_rtol(b) if rtol is None else rtol
    tol = jnp.maximum(jnp.asarray(relative, norm.dtype) * norm,
                      jnp.asarray(atol, norm.dtype) / unit)
    # b has unit size unless it is zero: then the answer 0 is within any tolerance.
    return _System(b, unit, norm, jnp.where(norm <= 0.1, jnp.inf, tol))


def _report(system: _System, x: PyTree, norm: Any, steps: Any, max_steps: Any) -> LinearSolution:
    """The solution in the units of the caller; `norm` is that of the recomputed residual."""
    status = jnp.where(
        norm <= system.tol, Status.CONVERGED,
        jnp.where(steps >= max_steps, Status.MAX_STEPS, Status.LINEAR_FAILURE))
    value = trees.scale(system.unit, x)  # may overflow, where the answer is beyond the dtype
    finite = jnp.isfinite(norm) & trees.finite(value)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    residual = jnp.where(system.norm <= 0.1, 0, norm / system.norm)
    return LinearSolution(value, status, steps, residual)


class _Outer(NamedTuple):
    x: PyTree
    r: PyTree
    norm: jax.Array
    steps: jax.Array
    stuck: jax.Array


def _restarted(
    cycle: Callable, rtol: Any, atol: Any, max_steps: Any, patience: int = PATIENCE
) -> LinearSolver:
    """A solver that repeats `cycle(matvec, x, r, tol, budget) -> (x, products)`.

    The true residual is recomputed after each cycle: recurrences drift.
    """

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        matvec = trees.keeping_structure(matvec, "matvec")
        system = _normalised(b, rtol, atol)
        b, tol = system.b, system.tol
        x = trees.zeros_like(b) if x0 is None else trees.scale(1 / system.unit, x0)
        r = b if x0 is None else trees.subtract(b, matvec(x))
        norm = system.norm if x0 is None else trees.quick_norm(r)
        start = _Outer(x, r, norm, jnp.int32(0), jnp.int32(0))

        def unfinished(s: _Outer) -> jax.Array:
            return (s.norm > tol) & (s.steps < max_steps) & (s.stuck < patience)

        def body(s: _Outer) -> _Outer:
            x, products = cycle(matvec, s.x, s.r, tol, max_steps - s.steps)
            r = trees.subtract(b, matvec(x))
            norm = trees.quick_norm(r)
            better = norm < s.norm
            return _Outer(
                trees.where(better, x, s.x),
                trees.where(better, r, s.r),
                jnp.where(better, norm, s.norm),
                s.steps + products + 1,
                jnp.where(norm < 0.5 * s.norm, 0, s.stuck + 1),
            )

        end = lax.while_loop(unfinished, body, anchor(start, (b, x)))
        return _report(system, end.x, end.norm, end.steps, max_steps)

    return solve


def bicgstab(rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000) -> LinearSolver:
    """BiCGStab for general square systems: two products per step, memory of six vectors.

    Restarts from the true residual on breakdown or drift. The library's default
    for adjoints: on a DEQ layer its backward solve costs about one forward
    solve, where GMRES(20) costs three.

    Args:
      rtol, atol: stop when `norm(b - A x) <= max(rtol * norm(b), atol)`; default rtol
        float64 1e-10, float32 1e-6.
      max_steps: limit on products with A.

    Returns:
      A solver; its status is CONVERGED, MAX_STEPS, NONFINITE, or LINEAR_FAILURE when
      restarts stopped helping.

    Reference: van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the
    solution of nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 13, 1992.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([4.0, 3.0])
    >>> bicgstab()(lambda v: A @ v, b).value.round(4).tolist()
    [1.5, 1.0]
    """

    class State(NamedTuple):
        x: PyTree
        r: PyTree
        p: PyTree  # what is multiplied next: the direction, or x when fresh
        shadow: PyTree
        rho: jax.Array
        fresh: jax.Array
        best: PyTree
        error: jax.Array  # squared norm of the true residual of best
        steps: jax.Array
        stuck: jax.Array

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        matvec = trees.keeping_structure(matvec, "matvec")
        system = _normalised(b, rtol, atol)
        b, tol = system.b, system.tol
        x = trees.zeros_like(b) if x0 is None else trees.scale(1 / system.unit, x0)
        # From zero the residual is b: nothing to measure.
        fresh = jnp.bool_(x0 is not None)
        error = jnp.square(system.norm if x0 is None else jnp.full_like(system.norm, jnp.inf))
        start = State(x, b, b if x0 is None else x, b, trees.dot(b, b), fresh, x, error,
                      jnp.int32(0), jnp.int32(0))
        small = jnp.square(tol)

        def unfinished(s: State) -> jax.Array:
            return (s.error > small) & (s.steps < max_steps) & (s.stuck < PATIENCE)

        def body(s: State) -> State:
            # A fresh step measures b - A x, takes a minimal residual step and starts anew.
            # It shares the two products of the usual step: fewer things to compile.
            v = matvec(s.p)
            alpha = jnp.where(s.fresh, 1, s.rho / trees.dot(s.shadow, v))
            half = trees.axpy(-alpha, v, trees.where(s.fresh, b, s.r))
            t = matvec(half)
            omega = safe_divide(trees.dot(t, half), trees.dot(t, t))
            x = trees.axpy(omega, half, trees.axpy(jnp.where(s.fresh, 0, alpha), s.p, s.x))
            r = trees.axpy(-omega, t, half)
            shadow = trees.where(s.fresh, r, s.shadow)
            rho = trees.dot(shadow, r)
            beta = rho * alpha / (s.rho * omega)

            true, estimate = trees.squared_norm(half), trees.squared_norm(r)
            better = s.fresh & (true < s.error)
            stuck = jnp.where(true < 0.25 * s.error, 0, s.stuck + 1)
            steps = s.steps + 2
            # Converged, broken down, or at the last products: what is true must be measured.
            sound = jnp.isfinite(estimate)
            fresh = ~(sound & (estimate > small) & jnp.isfinite(beta) & (rho != 0))
            fresh |= steps + 2 >= max_steps
            x = trees.where(sound, x, s.x)
            p = trees.where(s.fresh, r, trees.axpy(beta, trees.axpy(-omega, v, s.p), r))
            return State(
                x, r, trees.where(fresh, x, p), shadow, rho, fresh,
                trees.where(better, s.x, s.best), jnp.where(better, true, s.error), steps,
                jnp.where(s.fresh, stuck, s.stuck))

        end = lax.while_loop(unfinished, body, anchor(start, (b, x)))
        return _report(system, end.best, jnp.sqrt(end.error), end.steps, max_steps)

    return solve


class _GradientState(NamedTuple):
    x: PyTree
    r: PyTree
    p: PyTree
    gamma: jax.Array
    norm: jax.Array
    products: jax.Array


def cg(
    rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000,
    precondition: Callable[[PyTree], PyTree] | None = None,
) -> LinearSolver:
    """Conjugate gradients for symmetric (Hermitian) positive definite systems.

    One product per step. On other matrices it stalls and says LINEAR_FAILURE.

    Args:
      rtol, atol, max_steps: as in `bicgstab`, and so are the statuses.
      precondition: an approximate inverse, symmetric positive definite and linear.

    Reference: Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    J. Res. Natl. Bur. Stand. 49, 1952.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 4.0])
    >>> cg()(lambda v: A @ v, b).value.round(4).tolist()
    [1.0, 1.0]
    """

    def cycle(matvec: Matvec, x: PyTree, r: PyTree, tol: jax.Array, budget: Any) -> tuple:
        def scaled(r: PyTree) -> tuple[PyTree, jax.Array]:
            z = r if precondition is None else precondition(r)
            return z, trees.dot(r, z).real

        def body(s: _GradientState) -> _GradientState:
            q = matvec(s.p)
            alpha = safe_divide(s.gamma, trees.dot(s.p, q).real)
            r = trees.axpy(-alpha, q, s.r)
            z, gamma = scaled(r)
            p = trees.axpy(safe_divide(gamma, s.gamma), s.p, z)
            x = trees.axpy(alpha, s.p, s.x)
            return _GradientState(x, r, p, gamma, trees.quick_norm(r), s.products + 1)

        z, gamma = scaled(r)
        return _gradient_loop(body, _GradientState(
            x, r, z, gamma, trees.quick_norm(r), jnp.int32(0)), tol, budget)

    return _restarted(cycle, rtol, atol, max_steps)


def normal_cg(rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000) -> LinearSolver:
    """CGLS: conjugate gradients on `A^H A x = A^H b`, for any A; squares the condition number.

    Two products per step, one with A and one with its adjoint. The residual that
    stops it is that of A x = b. Arguments and statuses as in `bicgstab`.

    Reference: Paige and Saunders, "LSQR: an algorithm for sparse linear equations and sparse least
    squares", ACM Trans. Math. Softw. 8, 1982 (which compares it); and that of `cg`.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.array([1.0, 2.0])
    >>> normal_cg()(lambda v: A @ v, b).value.round(4).tolist()
    [-2.0, 1.0]
    """

    def cycle(matvec: Matvec, x: PyTree, r: PyTree, tol: jax.Array, budget: Any) -> tuple:
        transpose = jax.linear_transpose(matvec, x)

        def adjoint(v: PyTree) -> PyTree:
            return jax.tree.map(jnp.conj, transpose(jax.tree.map(jnp.conj, v))[0])

        def body(s: _GradientState) -> _GradientState:
            q = matvec(s.p)
            alpha = safe_divide(s.gamma, trees.squared_norm(q))
            r = trees.axpy(-alpha, q, s.r)
            x = trees.axpy(alpha, s.p, s.x)
            gradient = adjoint(r)
            gamma = trees.squared_norm(gradient)
            p = trees.axpy(safe_divide(gamma, s.gamma), s.p, gradient)
            return _GradientState(x, r, p, gamma, trees.quick_norm(r), s.products + 2)

        gradient = adjoint(r)
        return _gradient_loop(body, _GradientState(
            x, r, gradient, trees.squared_norm(gradient),
            trees.quick_norm(r), jnp.int32(1)), tol, budget)

    return _restarted(cycle, rtol, atol, max_steps)


def _gradient_loop(body: Callable, start: _GradientState, tol: Any, budget: Any) -> tuple:
    def going(s: _GradientState) -> jax.Array:
        return (s.norm > tol) & (s.gamma > 0) & (s.products < budget)

    end = lax.while_loop(going, body, anchor(start, (start.x, start.r, tol)))
    return end.x, end.products


def gmres(
    restart: int = 20, rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000
) -> LinearSolver:
    """GMRES(restart) with twice-orthogonalised Arnoldi vectors and Givens rotations.

    One product per step and memory of `restart + 1` vectors. It minimises the
    residual in each cycle; with a restart shorter than the dimension it may
    stagnate, and says LINEAR_FAILURE then. Arguments as in `bicgstab`.

    Reference: Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving
    nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7, 1986.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.array([1.0, 2.0])
    >>> gmres()(lambda v: A @ v, b).value.round(4).tolist()
    [-2.0, 1.0]
    """
    if restart < 1:
        raise ValueError(f"restart must be at least 1, got {restart}.")

    class State(NamedTuple):
        basis: PyTree
        triangle: jax.Array
        cosines: jax.Array
        sines: jax.Array
        rhs: jax.Array
        norm: jax.Array
        j: jax.Array

    def rotate(column: jax.Array, cosines: jax.Array, sines: jax.Array, i: jax.Array) -> jax.Array:
        upper, lower, c, s = column[i], column[i + 1], cosines[i], sines[i]
        column = column.at[i].set(jnp.conj(c) * upper + s * lower)
        return column.at[i + 1].set(-s * upper + c * lower)

    def cycle(matvec: Matvec, x: PyTree, r: PyTree, tol: jax.Array, budget: Any) -> tuple:
        beta = trees.quick_norm(r)
        kind = trees.dot(r, r).dtype
        first = trees.scale(safe_divide(1.0, beta), r)
        basis = trees.columns_set(trees.columns(r, restart + 1), 0, first)
        start = State(
            basis, jnp.eye(restart + 1, restart, dtype=kind), jnp.ones(restart, kind),
            jnp.zeros(restart, kind), jnp.zeros(restart + 1, kind).at[0].set(beta.astype(kind)),
            beta, jnp.int32(0),
        )

        def going(s: State) -> jax.Array:
            return (s.norm > tol) & (s.j < restart) & (s.j < budget)

        def body(s: State) -> State:
            w = matvec(jax.tree.map(lambda h, leaf: h[s.j].reshape(leaf.shape), s.basis, r))
            column = trees.columns_dot(s.basis, w)[:, 0]
            w = trees.subtract(w, trees.columns_combine(column, s.basis, w))
            again = trees.columns_dot(s.basis, w)[:, 0]
            w = trees.subtract(w, trees.columns_combine(again, s.basis, w))
            length = jnp.sqrt(trees.squared_norm(w))
            column = (column + again).at[s.j + 1].set(length.astype(kind))
            unit = trees.scale(safe_divide(1.0, length), w)
            basis = trees.columns_set(s.basis, s.j + 1, unit)
            column = lax.fori_loop(
                0, restart,
                lambda i, c: jnp.where(i < s.j, rotate(c, s.cosines, s.sines, i), c), column)
            radius = jnp.sqrt(jnp.abs(column[s.j]) ** 2 + length.astype(beta.dtype) ** 2)
            cosines = s.cosines.at[s.j].set(safe_divide(column[s.j], radius.astype(kind)))
            sines = s.sines.at[s.j].set(safe_divide(length, radius).astype(kind))
            column = rotate(column, cosines, sines, s.j)
            rhs = rotate(s.rhs, cosines, sines, s.j)
            return State(basis, s.triangle.at[:, s.j].set(column), cosines, sines, rhs,
                         jnp.abs(rhs[s.j + 1]).astype(beta.dtype), s.j + 1)

        end = lax.while_loop(going, body, anchor(start, (x, r, tol)))
        used = jnp.arange(restart, dtype=jnp.int32) < end.j
        upper = jnp.where(used[:, None] & used[None, :], end.triangle[:restart],
                          jnp.eye(restart, dtype=kind))
        rhs = jnp.where(used, end.rhs[:restart], 0)
        weights = jax.scipy.linalg.solve_triangular(upper, rhs)
        weights = jnp.concatenate([weights, jnp.zeros(1, kind)])
        return trees.add(x, trees.columns_combine(weights, end.basis, x)), end.j

    return _restarted(cycle, rtol, atol, max_steps, patience=20)


def dense(rtol: Any = None) -> LinearSolver:
    """Build the matrix column by column and factorise it (LU); for up to about 1,000 unknowns.

    CONVERGED when the recomputed relative residual is within `rtol` (default ten
    times that of the iterative solvers), else LINEAR_FAILURE or NONFINITE.

    >>> import jax.numpy as jnp
    >>> dense()(lambda v: 4 * v, jnp.array([8.0])).value.tolist()
    [2.0]
    """

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        del x0  # a direct solve has no use for a start
        matvec = trees.keeping_structure(matvec, "matvec")
        flat, unravel = ravel_pytree(b)
        columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(
            jnp.eye(flat.size, dtype=flat.dtype))
        x = unravel(jnp.linalg.solve(columns.T, flat))
        norm, b_norm = trees.norm(trees.subtract(b, matvec(x))), trees.norm(b)
        residual = safe_divide(norm, b_norm)
        tolerance = 10 * default_rtol(b) if rtol is None else rtol
        status = jnp.where(residual <= tolerance, Status.CONVERGED, Status.LINEAR_FAILURE)
        status = jnp.where(jnp.isfinite(norm), status, Status.NONFINITE).astype(jnp.int32)
        return LinearSolution(x, status, jnp.int32(flat.size), residual)

    return solve
