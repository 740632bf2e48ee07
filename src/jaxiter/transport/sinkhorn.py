"""Entropic optimal transport by Sinkhorn's iteration in the log domain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.adjoint import Adjoint
from jaxiter.driver import fixed_point
from jaxiter.monitor import Monitor
from jaxiter.numerics import HIGHEST, is_concrete, logsumexp, machine_epsilon, safe_log, strong
from jaxiter.problem import Problem
from jaxiter.solution import Solution
from jaxiter.stop import Stop

PyTree = Any


class TransportResult(NamedTuple):
    """The answer of an entropic transport problem, in the "P" convention.

    `P_ij = exp((f_i + g_j - C_ij) / epsilon)` minimises
    `<C, P> + epsilon * sum P (log P - 1)` subject to `P 1 = a`, `P^T 1 = b`.

    Attributes:
      f, g: potentials `[n]`, `[m]` in units of the cost; f has mean 0 over the support of
        a; -inf where the weight is 0.
      marginal_error: `sum |P 1 - a| + sum |P^T 1 - b|`.
      transport_cost: `<C, P>`.
      dual_value: `<a, f> + <b, g> - epsilon * sum P`, equal to the minimum at convergence.
      solve: the Solution of the potentials: status, steps, residual.
      cost, epsilon: as given.
    """

    f: jax.Array
    g: jax.Array
    marginal_error: jax.Array
    transport_cost: jax.Array
    dual_value: jax.Array
    solve: Solution
    cost: jax.Array
    epsilon: jax.Array

    def plan(self) -> jax.Array:
        """The transport plan P, `[n, m]`."""
        return _plan(self.f, self.g, self.cost, self.epsilon)

    def apply(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """Sum the plan against x over one axis.

        Args:
          x: `[m]` or `[m, k]` for axis 1, giving `P x`; `[n]` or `[n, k]` for axis 0,
            giving `P^T x`.
          axis: the axis of the plan that is summed.
        """
        if axis not in (0, 1):
            raise ValueError(f"axis must be 0 or 1, got {axis!r}.")
        plan = self.plan()
        return jnp.matmul(plan if axis == 1 else plan.T, x, precision=HIGHEST)


def _plan(f: jax.Array, g: jax.Array, cost: jax.Array, epsilon: jax.Array) -> jax.Array:
    exponent = f[:, None] + g[None, :] - _finite_cost(cost)
    allowed = jnp.isfinite(exponent) & (cost < jnp.inf)
    return jnp.where(allowed, jnp.exp(jnp.where(allowed, exponent, 0) / epsilon), 0)


def _finite_cost(cost: jax.Array) -> jax.Array:
    """The cost with 0 at forbidden pairs, which are masked: inf times 0 would be NaN."""
    return jnp.where(cost < jnp.inf, cost, 0)


def _potential(
    other: jax.Array, cost: jax.Array, weights: jax.Array, epsilon: jax.Array, axis: int
) -> jax.Array:
    """`-epsilon log sum_k weights_k exp((other_k - C) / epsilon)`, summed over one axis of C."""
    shape = (1, -1) if axis == 1 else (-1, 1)
    exponent = (other.reshape(shape) - _finite_cost(cost)) / epsilon
    exponent = jnp.where(cost < jnp.inf, exponent, -jnp.inf)
    potential = -epsilon * logsumexp(exponent, axis, weights.reshape(shape))
    # No admissible partner: only legal where the weight is 0, where any value serves.
    return jnp.where(jnp.isfinite(potential), potential, 0)


def _step(g: jax.Array, cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: Any) -> jax.Array:
    f = _potential(g, cost, b, epsilon, axis=1)
    g = _potential(f, cost, a, epsilon, axis=0)
    # Potentials are defined up to a constant; fixing it here makes the adjoint regular.
    return g - jnp.mean(g)


def _column_error(
    g: jax.Array, image: jax.Array, cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: Any
) -> jax.Array:
    """`sum |P^T 1 - b|` for the plan of (f(g), g), whose rows are exact.

    Its column sums are `b exp((g - g_next) / epsilon)`: no pass over the cost.
    Centring changed g_next by a constant, which the known total mass restores.
    """
    del cost
    exponent = (g - image) / epsilon
    columns = b * jnp.exp(exponent - jnp.max(exponent))
    return jnp.sum(jnp.abs(columns * (jnp.sum(a) / jnp.sum(columns)) - b))


def _floor(g: jax.Array, cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: Any) -> jax.Array:
    """Rounding of the potentials perturbs every entry of the plan by about eps max(C) / epsilon."""
    del b
    largest = jnp.max(jnp.abs(_finite_cost(cost)))
    return 0.1 * machine_epsilon(g) * jnp.sum(a) * (1 + largest / epsilon)


def _valid(g: jax.Array, cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: Any) -> jax.Array:
    del g
    weights = jnp.all(a >= 0) & jnp.all(b >= 0) & jnp.isfinite(jnp.sum(a) + jnp.sum(b))
    mass = jnp.sum(a) > 0
    costs = ~jnp.any(jnp.isnan(cost)) & ~jnp.any(cost == -jnp.inf)
    allowed = (cost < jnp.inf) & (b > 0)[None, :], (cost < jnp.inf) & (a > 0)[:, None]
    rows = jnp.all(jnp.any(allowed[0], axis=1) | (a <= 0))
    columns = jnp.all(jnp.any(allowed[1], axis=0) | (b <= 0))
    return weights & mass & costs & rows & columns & (epsilon > 0) & jnp.isfinite(epsilon)


def _mass_agrees(a: Any, b: Any, dtype: Any) -> Any:
    tolerance = float(np.sqrt(jnp.finfo(dtype).eps))
    return abs(a.sum() - b.sum()) <= tolerance * abs(a.sum())


def _check(cost: jax.Array, a: jax.Array, b: jax.Array, epsilon: jax.Array) -> None:
    """Errors for concrete input; what cannot be read here becomes BAD_INPUT."""
    if is_concrete(epsilon) and not np.all(np.asarray(epsilon) > 0):
        raise ValueError(f"epsilon must be positive, got {epsilon}.")
    for name, weights in (("a", a), ("b", b)):
        if is_concrete(weights):
            host = np.asarray(weights)
            if not np.all(host >= 0):
                raise ValueError(f"{name} has a negative or NaN entry: {host.min()}.")
            if host.sum() == 0:
                raise ValueError(f"{name} sums to 0; give it some mass.")
    if is_concrete(a, b) and not _mass_agrees(np.asarray(a), np.asarray(b), cost.dtype):
        raise ValueError(f"sum(a) = {float(a.sum())} differs from sum(b) = {float(b.sum())}; "
                         "normalise them to the same mass.")
    if is_concrete(cost):
        host = np.asarray(cost)
        if np.any(np.isnan(host)):
            raise ValueError("cost contains NaN.")
        if np.any(host == -np.inf):
            raise ValueError("cost contains -inf; only +inf (a forbidden pair) is allowed.")
        if is_concrete(a, b):
            allowed = host < np.inf
            support = np.asarray(a) > 0, np.asarray(b) > 0
            for side, ok, positive in (("row", allowed[:, support[1]].any(1), support[0]),
                                       ("column", allowed[support[0]].any(0), support[1])):
                if np.any(positive & ~ok):
                    raise ValueError(f"{side} {int(np.argmax(positive & ~ok))} has mass but no "
                                     "admissible partner: every cost there is +inf.")


def sinkhorn(
    cost: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    init: jax.Array | None = None,
    solver: optax.GradientTransformation | None = None,
    stop: Stop | None = None,
    adjoint: Adjoint | None = None,
    max_steps: Any = 2000,
    monitor: Monitor | None = None,
) -> TransportResult:
    """Entropic optimal transport between two weight vectors.

    One step updates both potentials in the log domain:
    `f_i <- -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)`, then g likewise.
    The merit is the l1 marginal error, its scale the total mass. Exact implicit
    derivatives of every output with respect to cost, a, b and epsilon, of any
    order; those of potentials are those of the stated normalisation. b is
    rescaled to the mass of a.

    Args:
      cost: `[n, m]`, +inf forbids a pair.
      a, b: weights `[n]`, `[m]` of equal sum; default uniform. Zeros are legal.
      epsilon: regularisation in units of the cost, positive; may be traced.
      init: a previous result's `g` `[m]` as warm start.
      solver, stop, adjoint, max_steps, monitor: as in `fixed_point`; `anderson()` helps
        when epsilon is small.

    Returns:
      A `TransportResult`; `.solve.status` says how the solve ended. float32 reaches a
      marginal error of about `1e-8 * max(C) / epsilon`, then says PRECISION_FLOOR.

    Raises:
      ValueError: wrong shapes, and, for concrete input, negative weights, unequal mass,
        NaN costs, epsilon <= 0, a row or column without partner. Under jit these
        become BAD_INPUT.

    Reference: Cuturi, "Sinkhorn distances", 2013.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.transport.sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> out.plan().round(3).tolist(), bool(out.solve.converged)
    ([[0.5, 0.0], [0.0, 0.5]], True)
    """
    cost = strong(cost)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a non-empty matrix [n, m], got shape {cost.shape}.")
    if not jnp.issubdtype(cost.dtype, jnp.floating):
        raise TypeError(f"cost must be floating point, got {cost.dtype}.")
    n, m = cost.shape
    a = jnp.full((n,), 1 / n, cost.dtype) if a is None else strong(a).astype(cost.dtype)
    b = jnp.full((m,), 1 / m, cost.dtype) if b is None else strong(b).astype(cost.dtype)
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights.shape != (size,):
            raise ValueError(f"cost is {cost.shape}, so {name} must have shape ({size},), got "
                             f"{weights.shape}.")
    epsilon = jnp.asarray(epsilon, cost.dtype)
    _check(cost, a, b, epsilon)
    start = jnp.zeros((m,), cost.dtype)
    if init is not None:
        if init.shape != (m,):
            raise ValueError(f"init must be potentials g of shape ({m},), got {init.shape}.")
        warm = jnp.asarray(init, cost.dtype) - epsilon * safe_log(b)
        start = jnp.where(jnp.isfinite(warm), warm, 0)

    agrees = _mass_agrees(a, b, cost.dtype)
    b = b * (jnp.sum(a) / jnp.sum(b))
    problem = Problem(
        step=_step, merit=_column_error, scale=lambda g, image, cost, a, *rest: jnp.sum(a),
        floor=_floor, valid=lambda g, *args: _valid(g, *args) & agrees,
    )
    solution = fixed_point(
        problem, start, cost, a, b, epsilon, solver=solver, stop=stop, adjoint=adjoint,
        max_steps=max_steps, monitor=monitor)

    f = _with_weights(_potential(solution.value, cost, b, epsilon, axis=1), a, epsilon)
    g = _with_weights(solution.value, b, epsilon)
    support = a > 0
    shift = jnp.sum(jnp.where(support, f, 0)) / jnp.sum(support.astype(f.dtype))
    f, g = f - shift, g + shift
    plan = _plan(f, g, cost, epsilon)
    error = jnp.sum(jnp.abs(plan.sum(1) - a)) + jnp.sum(jnp.abs(plan.sum(0) - b))
    dual = _weighted(a, f) + _weighted(b, g) - epsilon * jnp.sum(plan)
    return TransportResult(
        f, g, error, jnp.sum(plan * _finite_cost(cost)), dual, solution, cost, epsilon)


def _with_weights(potential: jax.Array, weights: jax.Array, epsilon: jax.Array) -> jax.Array:
    """`potential + epsilon log(weights)`, the "P" convention; -inf where the weight is 0."""
    positive = weights > 0
    return jnp.where(
        positive, potential + epsilon * jnp.log(jnp.where(positive, weights, 1)), -jnp.inf)


def _weighted(weights: jax.Array, potential: jax.Array) -> jax.Array:
    """`<weights, potential>` where 0 * -inf is 0."""
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, potential, 0), 0))
