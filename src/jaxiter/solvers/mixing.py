"""Picard, Krasnoselskii-Mann and inertial iterations."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.numerics import is_concrete
from jaxiter.solvers.residual import residual_solver
from jaxiter.values import as_value

PyTree = Any


@as_value
def picard() -> optax.GradientTransformationExtraArgs:
    """Picard iteration: `x <- T(x)`; the increment is the residual itself.

    The cheapest solver and the default: for a contraction of rate q it gains a
    factor q per evaluation and stores nothing. It never converges on a map that
    is merely nonexpansive, such as a rotation; use `damped`, `halpern` or
    `anderson` there, and `anderson` for every slow contraction.

    >>> import jax.numpy as jnp, jaxiter
    >>> int(jaxiter.fixed_point(jnp.cos, 1.0, solver=picard()).steps) < 40
    True
    """
    return optax.with_extra_args_support(optax.identity())


@as_value
def damped(alpha: Any) -> optax.GradientTransformationExtraArgs:
    """Krasnoselskii-Mann iteration: `x <- x + alpha (T(x) - x)`.

    Converges for nonexpansive maps with 0 < alpha < 1, at rate
    `residual <= O(1 / sqrt(k))`; alpha = 1/2 is the classical choice. For firmly
    nonexpansive maps (projections, proximal maps) alpha < 2 is legal.

    Args:
      alpha: scalar in (0, 2), may be traced and vmapped.

    Raises:
      ValueError: a concrete alpha outside (0, 2).

    Reference: Krasnoselskii, "Two remarks on the method of successive approximations", Uspekhi
    Mat. Nauk 10, 1955; Mann, "Mean value methods in iteration", Proc. Amer. Math. Soc. 4, 1953.

    >>> import jax.numpy as jnp, jaxiter
    >>> turn = lambda x: jnp.array([-x[1], x[0]])
    >>> bool(jaxiter.fixed_point(turn, jnp.array([1.0, 0.0]), solver=damped(0.5)).converged)
    True
    """
    if is_concrete(alpha) and not np.all((np.asarray(alpha) > 0) & (np.asarray(alpha) < 2)):
        raise ValueError(f"alpha must lie in (0, 2), got {alpha}.")

    def update(residual: PyTree, state: PyTree, params: PyTree, **extra: Any) -> tuple:
        del params, extra
        return trees.scale(alpha, residual), state

    return residual_solver("damped", lambda params: optax.EmptyState(), update)


@as_value
def inertial(beta: Any) -> optax.GradientTransformationExtraArgs:
    """Inertial iteration: `x <- T(y)`, then `y <- x + beta (x - x_previous)`; iterates on y.

    With d the last move of x: `d <- r + beta d`, `y <- y + r + beta d`, which is
    optax.trace with Nesterov momentum, but keeps dtypes when beta is traced.
    For maps like a gradient step, whose Jacobian has eigenvalues in [0, 1); a negative
    eigenvalue below `-1 / (1 + 2 beta)` makes it diverge.

    Args:
      beta: scalar in [0, 1), may be traced and vmapped.

    Raises:
      ValueError: a concrete beta outside [0, 1).

    Reference: Nesterov, "A method of solving a convex programming problem with convergence rate
    O(1/k^2)", Soviet Math. Dokl. 27, 1983; Mainge, "Convergence theorems for inertial KM-type
    algorithms", J. Comput. Appl. Math. 219, 2008.

    >>> import jax.numpy as jnp, jaxiter
    >>> slow = lambda x: 0.99 * x + 0.01
    >>> steps = lambda s: int(jaxiter.fixed_point(slow, jnp.zeros(1), solver=s).steps)
    >>> steps(inertial(0.8)) < steps(picard()) / 3
    True
    """
    if is_concrete(beta) and not np.all((np.asarray(beta) >= 0) & (np.asarray(beta) < 1)):
        raise ValueError(f"beta must lie in [0, 1), got {beta}.")

    def update(
        residual: PyTree, state: Any, params: PyTree, restart: Any = False, **extra: Any
    ) -> tuple:
        del params, extra
        factor = jnp.where(restart, 0.0, beta)
        move = trees.axpy(factor, state.trace, residual)
        return trees.axpy(beta, move, residual), optax.TraceState(move)

    def init(params: PyTree) -> optax.TraceState:
        return optax.TraceState(trees.zeros_like(params))

    return residual_solver("inertial", init, update)
