"""BiCGStab, the default of every adjoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.linear.residuals import WINDOW, conjugate_residuals
from jaxiter.linear.ridge import with_ridge
from jaxiter.linear.system import Gains, LinearSolver, Matvec, no_gains, restarted
from jaxiter.numerics import anchor, numbers_in, safe_divide
from jaxiter.packed import while_loop
from jaxiter.values import as_value

PyTree = Any


#: It ends after so many steps that did not halve |r|; after as many as there are unknowns where
#: those are too many for conjugate residuals to find the answer among all directions.
WAIT = 20


class _State(NamedTuple):
    """x, residual, direction; rho = <shadow, r>; squared norm of r; products; gains seen.

    best: the last squared norm that was a quarter of the one before; since: steps since then.
    """

    x: PyTree
    r: PyTree
    p: PyTree
    rho: jax.Array
    square: jax.Array
    products: jax.Array
    gains: Gains
    best: jax.Array
    since: jax.Array


@as_value
def bicgstab(
    rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000, *, ridge: Any = 0.0
) -> LinearSolver:
    """BiCGStab for general square systems: two products per step, memory of six vectors.

    When it believes to be done the true residual is measured, and it restarts from there. Where
    that has not halved, because the recurrence broke down (skew matrices, many saddle points) or
    stalls, the minimal residual over the last directions takes over: GMRES, while it needs no more
    than 100 directions or 32,768 numbers, and MINRES beyond on symmetric systems.
    The library's default for adjoints: on a DEQ layer its backward solve costs about one forward
    solve, where GMRES(20) costs three.

    Args:
      rtol, atol: stop when `norm(b - A x) <= max(rtol * norm(b), atol)`; default rtol
        float64 1e-10, float32 1e-6, and smaller where the matrix turns out to be ill conditioned.
      max_steps: limit on products with A.
      ridge: solve `(A + ridge I) x = b` instead; may be traced.

    Returns:
      A solver; its status is CONVERGED, PRECISION_FLOOR when the residual is as small as
      rounding allows, MAX_STEPS, NONFINITE, or LINEAR_FAILURE when restarts stopped helping.

    Reference: van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the
    solution of nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 13, 1992.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([4.0, 3.0])
    >>> bicgstab()(lambda v: A @ v, b).value.round(4).tolist()
    [1.5, 1.0]
    """
    return with_ridge(
        restarted(_cycle, rtol, atol, max_steps, rescue=conjugate_residuals), ridge)


def _cycle(
    matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
) -> tuple:
    """A cycle for `restarted`.

    Source: van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the
    solution of nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 13, 1992.
    """
    shadow, square, small = r, lax.square(norm), lax.square(tol)
    kind = jax.eval_shape(trees.dot, r, r).dtype
    start = _State(x, r, r, square.astype(kind), square, jnp.int32(0), no_gains(square), square,
                   jnp.int32(0))
    wait = WAIT if numbers_in(r) <= WINDOW else numbers_in(r)

    def going(s: _State) -> jax.Array:
        # Not finite: not larger. Two products a step, and one to measure what came of it.
        return (s.square > small) & (s.products + 2 < budget) & (s.square < jnp.inf) & (
            s.since < wait)

    def body(s: _State) -> _State:
        v = matvec(s.p)
        alpha = s.rho / trees.dot(shadow, v)
        sound = lax.is_finite(lax.abs(alpha))
        alpha = lax.select(sound, alpha, lax.full_like(alpha, 0))
        half = trees.axpy(-alpha, v, s.r)
        t = matvec(half)
        overlap, length = trees.dot(t, half), trees.squared_norm(t)
        omega = safe_divide(overlap, length.astype(overlap.dtype))
        x = trees.axpy(omega, half, trees.axpy(alpha, s.p, s.x))
        r = trees.axpy(-omega, t, half)
        rho, square = trees.dot(shadow, r), trees.squared_norm(r)
        beta = rho * alpha / (s.rho * omega)
        # half is the sum of r and of its own part along t, which are orthogonal.
        gain = lax.sqrt(length / (square + lax.square(lax.abs(omega)) * length))
        fell = square < 0.25 * s.best
        # Broken down, here or in the next step: nothing to wait for.
        since = lax.select(sound & lax.is_finite(lax.abs(beta)),
                           lax.select(fell, jnp.int32(0), s.since + 1), jnp.int32(wait))
        return _State(
            x, r, trees.axpy(beta, trees.axpy(-omega, v, s.p), r), rho, square, s.products + 2,
            s.gains.seeing(gain), lax.select(fell, square, s.best), since)

    end = while_loop(going, body, anchor(start, (x, r, tol)))
    return end.x, end.products, end.gains
