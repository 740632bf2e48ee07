"""BiCGStab, the default of every adjoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear.system import Gains, LinearSolver, Matvec, no_gains, restarted
from jaxiter.numerics import anchor, safe_divide, while_loop
from jaxiter.values import as_value

PyTree = Any


#: A cycle ends after so many steps, or as many as there are unknowns, that did not halve |r|.
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
def bicgstab(rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000) -> LinearSolver:
    """BiCGStab for general square systems: two products per step, memory of six vectors.

    Where a recurrence breaks down it takes a minimal residual step and begins anew; when it
    believes to be done the true residual is measured, and it restarts from there. The library's
    default for adjoints: on a DEQ layer its backward solve costs about one forward solve, where
    GMRES(20) costs three.

    Args:
      rtol, atol: stop when `norm(b - A x) <= max(rtol * norm(b), atol)`; default rtol
        float64 1e-10, float32 1e-6, and smaller where the matrix turns out to be ill conditioned.
      max_steps: limit on products with A.

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

    def cycle(matvec: Matvec, x: PyTree, r: PyTree, tol: jax.Array, budget: Any) -> tuple:
        square, probe = trees.squared_norm(r), trees.probe_like(r)
        # A cycle after the first: along r alone it would stall where the last one did.
        other = jnp.where(budget < max_steps, jnp.sqrt(square / trees.squared_norm(probe)), 0)
        shadow = trees.axpy(other, probe, r)
        start = _State(x, r, r, trees.dot(shadow, r), square, jnp.int32(0), no_gains(square),
                       square, jnp.int32(0))
        small = jnp.square(tol)
        wait = max(WAIT, sum(leaf.size for leaf in jax.tree.leaves(r)))

        def going(s: _State) -> jax.Array:
            # Not finite: not larger. Two products a step, and one to measure what came of it.
            return (s.square > small) & (s.products + 2 < budget) & (s.square < jnp.inf) & (
                s.since < wait)

        def body(s: _State) -> _State:
            v = matvec(s.p)
            alpha = s.rho / trees.dot(shadow, v)
            broken = ~jnp.isfinite(jnp.abs(alpha))
            alpha = jnp.where(broken, jnp.zeros_like(alpha), alpha)
            half = trees.axpy(-alpha, v, s.r)
            t = matvec(half)
            overlap, length = trees.dot(t, half), trees.squared_norm(t)
            omega = safe_divide(overlap, length.astype(overlap.dtype))
            x = trees.axpy(omega, half, trees.axpy(alpha, s.p, s.x))
            r = trees.axpy(-omega, t, half)
            rho, square = trees.dot(shadow, r), trees.squared_norm(r)
            beta = rho * alpha / (s.rho * omega)
            beta = jnp.where(jnp.isfinite(jnp.abs(beta)), beta, jnp.zeros_like(beta))
            # half is the sum of r and of its own part along t, which are orthogonal.
            gain = jnp.sqrt(length / (square + jnp.abs(omega) ** 2 * length))
            fell = square < 0.25 * s.best
            return _State(
                x, r, trees.axpy(beta, trees.axpy(-omega, v, s.p), r), rho,
                # Broken down, and the minimal residual step brought nothing: give up.
                jnp.where(broken & (omega == 0), 0, square), s.products + 2, s.gains.seeing(gain),
                jnp.where(fell, square, s.best), jnp.where(fell, 0, s.since + 1))

        end = while_loop(going, body, anchor(start, (x, r, tol)))
        return end.x, end.products, end.gains

    return restarted(cycle, rtol, atol, max_steps)
