"""Conjugate gradients, on A or on its normal equations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear.ridge import with_ridge
from jaxiter.linear.system import (
    Gains,
    LinearSolver,
    Matvec,
    no_gains,
    restarted,
    transposed,
)
from jaxiter.numerics import anchor, safe_divide
from jaxiter.packed import while_loop
from jaxiter.values import as_value

PyTree = Any


class _State(NamedTuple):
    """x, residual, direction; gamma of the recurrence; norm of r; products; gains seen."""

    x: PyTree
    r: PyTree
    p: PyTree
    gamma: jax.Array
    norm: jax.Array
    products: jax.Array
    gains: Gains


@as_value
def cg(
    rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000,
    precondition: Callable[[PyTree], PyTree] | None = None, ridge: Any = 0.0,
) -> LinearSolver:
    """Conjugate gradients for symmetric (Hermitian) positive definite systems.

    One product per step. On other matrices it stalls and says LINEAR_FAILURE.

    Args:
      rtol, atol, max_steps: as in `bicgstab`, and so are the statuses.
      precondition: an approximate inverse, symmetric positive definite and linear.
      ridge: solve `(A + ridge I) x = b` instead; may be traced.

    Reference: Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    J. Res. Natl. Bur. Stand. 49, 1952.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 4.0])
    >>> cg()(lambda v: A @ v, b).value.round(4).tolist()
    [1.0, 1.0]
    """

    def cycle(
        matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
    ) -> tuple:
        def scaled(r: PyTree) -> tuple[PyTree, jax.Array]:
            z = r if precondition is None else precondition(r)
            return z, trees.dot(r, z).real

        def body(s: _State) -> _State:
            q = matvec(s.p)
            alpha = safe_divide(s.gamma, trees.dot(s.p, q).real)
            r = trees.axpy(-alpha, q, s.r)
            z, gamma = scaled(r)
            p = trees.axpy(safe_divide(gamma, s.gamma), s.p, z)
            x = trees.axpy(alpha, s.p, s.x)
            # 1 / alpha lies between the eigenvalues (of the preconditioned matrix).
            return _State(x, r, p, gamma, trees.quick_norm(r), s.products + 1,
                          s.gains.seeing(1 / alpha))

        z, gamma = scaled(r)
        return _loop(body, _State(x, r, z, gamma, norm, jnp.int32(0), no_gains(norm)), tol, budget)

    return with_ridge(restarted(cycle, rtol, atol, max_steps), ridge)


@as_value
def normal_cg(
    rtol: Any = None, atol: Any = 0.0, max_steps: Any = 1000, *, ridge: Any = 0.0
) -> LinearSolver:
    """CGLS: conjugate gradients on `A^H A x = A^H b`, for any square A; of singular systems that
    have a solution it finds the one of least norm. Squares the condition number.

    Two products per step, one with A and one with its adjoint. The residual that
    stops it is that of A x = b. Arguments and statuses as in `bicgstab`; `ridge`
    is added to A, not to its square.

    Reference: Paige and Saunders, "LSQR: an algorithm for sparse linear equations and sparse least
    squares", ACM Trans. Math. Softw. 8, 1982 (which compares it); and that of `cg`.

    >>> import jax.numpy as jnp
    >>> A, b = jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.array([1.0, 2.0])
    >>> normal_cg()(lambda v: A @ v, b).value.round(4).tolist()
    [-2.0, 1.0]
    """

    def cycle(
        matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
    ) -> tuple:
        adjoint = transposed(matvec, x)
        gradient = adjoint(r)
        # In units of A itself: its square alone would leave the float range at 1e-10.
        unit = trees.magnitude(gradient) / trees.magnitude(r)

        def body(s: _State) -> _State:
            q = trees.scale(1 / unit, matvec(s.p))
            length = trees.squared_norm(q)
            alpha = safe_divide(s.gamma, length)
            r = trees.axpy(-alpha, q, s.r)
            x = trees.axpy(alpha / unit, s.p, s.x)
            gradient = trees.scale(1 / unit, adjoint(r))
            gamma = trees.squared_norm(gradient)
            p = trees.axpy(safe_divide(gamma, s.gamma), s.p, gradient)
            return _State(x, r, p, gamma, trees.quick_norm(r), s.products + 2,
                          s.gains.seeing(jnp.sqrt(1 / alpha) * unit))

        gradient = trees.scale(1 / unit, gradient)
        return _loop(body, _State(
            x, r, gradient, trees.squared_norm(gradient), norm, jnp.int32(1), no_gains(norm)),
            tol, budget)

    return with_ridge(restarted(cycle, rtol, atol, max_steps), ridge)


def _loop(body: Callable, start: _State, tol: Any, budget: Any) -> tuple:
    def going(s: _State) -> jax.Array:
        return (s.norm > tol) & (s.gamma > 0) & (s.products < budget)

    end = while_loop(going, body, anchor(start, (start.x, start.r, tol)))
    return end.x, end.products, end.gains
