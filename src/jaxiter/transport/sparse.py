"""Quadratic and k-sparse transport by the smooth semi-dual: plans with exact zeros."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint, attach_implicit
from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, stop_gradient, strong
from jaxiter.operators.projections import projection_sparse_simplex
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance
from jaxiter.transport.checks import (
    check_masses,
    check_signs,
    mass_agrees,
    only_implicit,
    or_uniform,
)
from jaxiter.transport.rounding import round_to_polytope


@reports
class SparseTransportResult(NamedTuple):
    """A plan with at most k non-zeros in each column.

    Attributes:
      plan: `[n, m]`; its columns sum to b exactly. alpha: dual potentials `[n]`, mean 0.
      dual_value: the semi-dual value, a lower bound of `<C, T> + gamma/2 |T|^2`; its
        gradient is exact (Danskin).
      row_violation: `sum |T 1 - a|`. For k < n the dual is that of the convexified problem
        and ties can leave a violation that no alpha removes: it is reported, never hidden.
      solve: the Solution of alpha.
    """

    plan: jax.Array
    alpha: jax.Array
    dual_value: jax.Array
    row_violation: jax.Array
    solve: Solution

    def rounded(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The plan moved onto the polytope; it may lose its sparsity."""
        return round_to_polytope(self.plan, a, b)


def _columns(alpha: jax.Array, cost: jax.Array, b: jax.Array, gamma: Any, k: int) -> jax.Array:
    """The conditional plans p_j `[m, n]`: optimal columns for alpha."""
    strength = gamma * jnp.where(b > 0, b, 1)[:, None]
    return projection_sparse_simplex((alpha[None, :] - cost.T) / strength, k)


def _dual(
    alpha: jax.Array, cost: jax.Array, a: jax.Array, b: jax.Array, gamma: Any, k: int
) -> jax.Array:
    # Danskin: the maximiser p is constant in the derivative.
    p = stop_gradient(_columns(alpha, cost, b, gamma, k))
    inner = jnp.sum(p * (alpha[None, :] - cost.T), 1) - 0.5 * gamma * b * jnp.sum(p * p, 1)
    return alpha @ a - b @ inner


def _check(cost: Any, a: Any, b: Any, gamma: Any) -> None:
    """Errors for input that can be read; what cannot be becomes BAD_INPUT."""
    host = np.asarray(cost)
    if not np.all(np.isfinite(host)):
        raise ValueError("cost must be finite; k-sparse plans cannot forbid pairs.")
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")
    a, b = (np.asarray(or_uniform(weights, count, host.dtype))
            for weights, count in zip((a, b), host.shape, strict=True))
    check_signs("a", a)
    check_signs("b", b)
    check_masses(a, b, "normalise them")


@reused
@on_own_mesh
def sparse_transport(
    cost: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    gamma: Any,
    k: int | None = None,
    init: jax.Array | None = None,
    **options: Unpack[SolveOptions],
) -> SparseTransportResult:
    """Minimise `<C, T> + gamma/2 |T|^2` over plans whose columns have at most k non-zeros.

    Maximises the concave semi-dual over the row potentials by L-BFGS. The merit is the
    row violation `sum |T 1 - a|`, its scale the mass. Gradients of the plan for k = n are
    implicit; for k < n they hold the support fixed.

    Args:
      cost: `[n, m]`, finite. a, b: weights `[n]`, `[m]` of equal sum; default uniform.
      gamma: strength of the quadratic term, positive.
      k: non-zeros a column, static; default n (quadratic transport).
      init: a previous alpha.
      **options: those of `fixed_point`; by default 500 steps and a tolerance of 1e-3. No `solver`:
        the steps are those of L-BFGS.

    Raises:
      ValueError: shapes, k outside 1..n, k m < n; for concrete input a cost that is not finite,
        gamma <= 0, negative weights, unequal masses, which under jit are BAD_INPUT; `neumann`,
        `one_step` and `unrolled`, which are no adjoints of its equations.

    Reference: Blondel, Seguy and Rolet, "Smooth and sparse optimal transport", 2018; Liu,
    Puigcerver and Blondel, "Sparsity-constrained optimal transport", 2022.

    >>> import jax.numpy as jnp
    >>> out = sparse_transport(jnp.array([[0.0, 1.0], [1.0, 0.0]]), gamma=0.1)
    >>> out.plan.round(3).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    chosen = choose("sparse_transport", options, {"solver": "its steps are those of L-BFGS"},
                    stop=tolerance(rtol=1e-3, atol=0.0), max_steps=500)
    only_implicit("sparse_transport", as_adjoint(chosen.adjoint), sums=False)
    given = cost, a, b, gamma
    cost = strong(cost)
    if cost.ndim != 2:
        raise ValueError(f"cost must be a matrix [n, m], got shape {cost.shape}.")
    n, m = cost.shape
    k = n if k is None else k
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}.")
    if k * m < n:
        raise ValueError(f"no k-sparse plan: {k} non-zeros in each of {m} columns cannot cover "
                         f"{n} rows (k*m < n).")
    a = jnp.full((n,), 1 / n, cost.dtype) if a is None else strong(a).astype(cost.dtype)
    b = jnp.full((m,), 1 / m, cost.dtype) if b is None else strong(b).astype(cost.dtype)
    if a.shape != (n,) or b.shape != (m,):
        raise ValueError(f"shape mismatch: cost is {(n, m)}, a is {a.shape}, b is {b.shape}.")
    gamma = jnp.asarray(gamma, cost.dtype)
    known(_check, *given)
    optimizer = optax.lbfgs()

    def step(alpha: jax.Array, state: Any, cost: Any, a: Any, b: Any, gamma: Any) -> tuple:
        def loss(alpha: jax.Array) -> jax.Array:
            return -_dual(alpha, cost, a, b, gamma, k)

        value, slope = jax.value_and_grad(loss)(alpha)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            update, state = optimizer.update(
                slope, state, alpha, value=value, grad=slope, value_fn=loss)
        return optax.apply_updates(alpha, update), state

    def violation(alpha: jax.Array, image: Any, state: Any, cost: Any, a: Any, b: Any,
                  gamma: Any) -> jax.Array:
        return jnp.sum(jnp.abs(b @ _columns(alpha, cost, b, gamma, k) - a))

    problem = Problem(
        step=step, memory=lambda alpha, *args: optimizer.init(alpha), merit=violation,
        scale=lambda alpha, image, state, cost, a, *rest: jnp.sum(a),
        valid=lambda alpha, cost, a, b, gamma: trees.finite(cost) & (gamma > 0) & (
            jnp.min(a) >= 0) & (jnp.min(b) >= 0) & mass_agrees(a, b, a.dtype))
    start = jnp.zeros_like(a) if init is None else jnp.asarray(init, a.dtype)
    solve = fixed_point(
        problem, start, *stop_gradient((cost, a, b, gamma)),
        **chosen._replace(adjoint=frozen())._asdict())

    def equations(alpha: jax.Array, cost: Any, a: Any, b: Any, gamma: Any) -> jax.Array:
        # Constants drop out of the plan: alpha has mean 0.
        return b @ _columns(alpha, cost, b, gamma, k) - a + jnp.mean(alpha) / gamma

    alpha = solve.value - jnp.mean(solve.value)
    value = _dual(stop_gradient(alpha), cost, a, b, gamma, k)
    alpha = attach_implicit(equations, alpha, cost, a, b, gamma, adjoint=chosen.adjoint)
    plan = (b[:, None] * _columns(alpha, cost, b, gamma, k)).T
    return SparseTransportResult(plan, alpha, value, jnp.sum(jnp.abs(plan.sum(1) - a)), solve)
