"""What a transport solve returns: potentials, values with exact derivatives, a plan on request."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.solution import Solution
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import Marginals


class TransportResult(NamedTuple):
    """The answer of an entropic transport problem, in the "P" convention.

    `P_ij = exp((f_i + g_j - C_ij) / epsilon)` minimises `<C, P> + epsilon sum P (log P - 1)`
    subject to `P 1 = a`, `P^T 1 = b`. With a finite rho it minimises `<C, P> +
    epsilon KL(P | a b^T) + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)` instead.

    Attributes:
      f, g: potentials `[n]`, `[m]` in units of the cost; balanced: f has mean 0 over the
        support of a. -inf where the weight is 0.
      marginal_error: `sum |P 1 - a| + sum |P^T 1 - b|`, measured on the returned potentials;
        unbalanced: against `a exp(-f' / rho_a)`, the first-order condition, f' = f - epsilon log a.
      transport_cost: `<C, P>`. entropic_cost: the objective above at P.
      dual_value: the dual objective at (f, g), a lower bound, equal to it at convergence.
        Its gradient needs no linear solve (Danskin); second derivatives are exact too.
      solve: the Solution of the potentials: status, steps, merit.
      geometry, epsilon: as given.
    """

    f: jax.Array
    g: jax.Array
    marginal_error: jax.Array
    transport_cost: jax.Array
    entropic_cost: jax.Array
    dual_value: jax.Array
    solve: Solution
    geometry: Geometry
    epsilon: jax.Array

    def plan(self) -> jax.Array:
        """The transport plan P, `[n, m]`."""
        return self.geometry.weigh(
            self.f, self.g, self.epsilon, jnp.eye(self.g.shape[0], dtype=self.g.dtype))

    def apply(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """Sum the plan against x over one axis; a point cloud's plan is never stored.

        Args:
          x: `[m]` or `[m, k]` for axis 1, giving `P x`; `[n]` or `[n, k]` for axis 0,
            giving `P^T x`.
          axis: the axis of the plan that is summed.
        """
        if axis not in (0, 1):
            raise ValueError(f"axis must be 0 or 1, got {axis!r}.")
        x, side = jnp.asarray(x, self.f.dtype), (self.f, self.g)[axis].shape[0]
        if x.ndim not in (1, 2) or x.shape[0] != side:
            raise ValueError(f"x must have shape [{side}] or [{side}, k] for axis={axis}, got "
                             f"{x.shape}.")
        columns = x[:, None] if x.ndim == 1 else x
        if axis == 1:
            out = self.geometry.weigh(self.f, self.g, self.epsilon, columns)
        else:
            out = self.geometry.T.weigh(self.g, self.f, self.epsilon, columns)
        return out[:, 0] if x.ndim == 1 else out


def assemble(
    potentials: tuple[jax.Array, jax.Array], solve: Solution, geometry: Geometry,
    marginals: Marginals,
) -> TransportResult:
    """The result for potentials ("ab" convention) whose derivatives are attached."""
    a, b, epsilon, rho_a, rho_b = marginals
    f, g = potentials
    shift = 0.0
    if marginals.balanced:
        f_plan = with_weights(f, a, epsilon)
        shift = jnp.sum(jnp.where(a > 0, f_plan, 0)) / jnp.sum((a > 0).astype(f.dtype))
    f, g = f - shift, g + shift
    fp, gp = with_weights(f, a, epsilon), with_weights(g, b, epsilon)

    ones = jnp.ones((b.shape[0], 1), f.dtype)
    rows = geometry.weigh(fp, gp, epsilon, ones)[:, 0]
    columns = geometry.T.weigh(gp, fp, epsilon, jnp.ones((a.shape[0], 1), f.dtype))[:, 0]
    cost = jnp.sum(geometry.weigh(fp, gp, epsilon, ones, cost=True))
    error = (jnp.sum(jnp.abs(rows - _target(f, a, rho_a)))
             + jnp.sum(jnp.abs(columns - _target(g, b, rho_b))))
    dual = dual_objective((f, g), (geometry, marginals))
    if marginals.balanced:  # from the "ab" to the "P" convention
        shift = weighted(a, _log(a)) + weighted(b, _log(b)) - jnp.sum(a) * jnp.sum(b)
        dual = dual + epsilon * shift
    # The primal value at P; its derivative is that of the dual, which needs no linear solve.
    if marginals.balanced:
        entropy = weighted(rows, fp) + weighted(columns, gp) - cost - epsilon * jnp.sum(rows)
        primal = cost + entropy
    else:
        entropy = weighted(rows, f) + weighted(columns, g) - cost
        primal = (cost + entropy + epsilon * (jnp.sum(a) * jnp.sum(b) - jnp.sum(rows))
                  + _penalty(rows, a, rho_a) + _penalty(columns, b, rho_b))
    primal = jax.lax.stop_gradient(primal) + dual - jax.lax.stop_gradient(dual)
    return TransportResult(fp, gp, error, cost, primal, dual, solve, geometry, epsilon)


def with_weights(potential: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    """`potential + epsilon log(weights)`, the "P" convention; -inf where the weight is 0."""
    positive = weights > 0
    return jnp.where(
        positive, potential + epsilon * jnp.log(jnp.where(positive, weights, 1)), -jnp.inf)


def _log(weights: jax.Array) -> jax.Array:
    return jnp.log(jnp.where(weights > 0, weights, 1))


def weighted(weights: jax.Array, potential: jax.Array) -> jax.Array:
    """`<weights, potential>` where 0 * -inf is 0."""
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, potential, 0), 0))


def _target(potential: jax.Array, weights: jax.Array, rho: Any) -> jax.Array:
    """The marginal that the first-order condition asks for."""
    return weights if rho is None else weights * jnp.exp(-potential / rho)


def _penalty(marginal: jax.Array, weights: jax.Array, rho: Any) -> jax.Array:
    """`rho KL(marginal | weights)`; 0 for a constraint."""
    if rho is None:
        return jnp.zeros_like(jnp.sum(marginal))
    positive = marginal > 0
    ratio = jnp.where(positive, marginal, 1) / jnp.where(weights > 0, weights, 1)
    return rho * (weighted(marginal, jnp.log(ratio)) - jnp.sum(marginal) + jnp.sum(weights))


@jax.custom_jvp
def dual_objective(potentials: tuple, operands: tuple) -> jax.Array:
    """The dual objective of "ab" potentials (f, g), stationary in them at the solution.

    `operands` is (geometry, marginals). Value of `<C, P> + epsilon KL(P | a b^T) + ...`.
    """
    return _dual_value(potentials, operands)


@dual_objective.defjvp
def _dual_rule(primals: tuple, tangents: tuple) -> tuple:
    """Danskin: the potentials' tangents drop out; as primals they carry second derivatives."""
    potentials, operands = primals
    _, tangent = jax.jvp(lambda o: _dual_value(potentials, o), (operands,), (tangents[1],))
    return dual_objective(*primals), tangent


def _dual_value(potentials: tuple, operands: tuple) -> jax.Array:
    (f, g), (geometry, marginals) = potentials, operands
    a, b, epsilon, rho_a, rho_b = marginals
    ones = jnp.ones((b.shape[0], 1), f.dtype)
    fp, gp = with_weights(f, a, epsilon), with_weights(g, b, epsilon)
    mass = jnp.sum(geometry.weigh(fp, gp, epsilon, ones))
    return (_conjugate(f, a, rho_a) + _conjugate(g, b, rho_b)
            - epsilon * (mass - jnp.sum(a) * jnp.sum(b)))


def _conjugate(potential: jax.Array, weights: jax.Array, rho: Any) -> jax.Array:
    """`-rho sum weights (exp(-potential / rho) - 1)`, and its limit for rho = inf."""
    if rho is None:
        return jnp.sum(weights * potential)
    return -rho * jnp.sum(weights * jnp.expm1(-potential / rho))
