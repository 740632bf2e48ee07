"""What a transport solve returns: potentials, values with exact derivatives, a plan on request."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.transport.exact import Exact, exact_sum, with_derivative
from jaxiter.transport.geometry import Geometry, Reduced, Totals
from jaxiter.transport.iteration import Marginals, weighted


class Centred(NamedTuple):
    """A cost without what is the same for a whole row or column, and its potentials ("P")."""

    geometry: Geometry
    f: jax.Array
    g: jax.Array


@reports
class TransportResult(NamedTuple):
    """The answer of an entropic transport problem.

    The plan `P_ij = exp((f_i + g_j - C_ij) / epsilon)` minimises `<C, P> + epsilon KL(P | a b^T)`
    subject to `P 1 = a`, `P^T 1 = b`, or with the penalties `rho_a KL(P 1 | a) + rho_b
    KL(P^T 1 | b)` in place of the constraints, KL(p | q) being `sum p log(p / q) - p + q`.

    Attributes:
      f, g: potentials `[n]`, `[m]` in units of the cost; balanced: f has mean 0 over the
        support of a. -inf where the weight is 0.
      marginal_error: `sum |P 1 - a| + sum |P^T 1 - b|` of `plan()`; unbalanced: against
        `a exp(-f' / rho_a)`, the first-order condition, f' = f - epsilon log a.
      transport_cost: `<C, P>`. entropic_cost: the objective above at P, penalties included.
      dual_value: the dual objective at (f, g), a lower bound, equal to it at convergence.
        Its gradient needs no linear solve (Danskin); second derivatives are exact too.
      solve: the Solution: steps of all stages together, status, and as merit the marginal error
        of the plan that f and g, as floats, stand for: PRECISION_FLOOR where they cannot carry
        the tolerance, though `plan()` may be good.
      geometry, epsilon: as given.
      centred: the reduced cost and its potentials, from which `plan()` and `apply()` are computed.
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
    centred: Centred

    def plan(self) -> jax.Array:
        """The transport plan P, `[n, m]`."""
        return _plan(self.centred, self.epsilon)

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
        out = _weigh(self.centred, self.epsilon, columns, axis)
        return out[:, 0] if x.ndim == 1 else out


@reused
def _plan(centred: Centred, epsilon: jax.Array) -> jax.Array:
    """The plan, in one pass over the cost also where it is asked for at a prompt."""
    return centred.geometry.plan(centred.f, centred.g, epsilon)


@reused
def _weigh(centred: Centred, epsilon: jax.Array, columns: jax.Array, axis: int) -> jax.Array:
    geometry, f, g = centred
    if axis == 0:
        geometry, f, g = geometry.T, g, f
    return geometry.weigh(f, g, epsilon, columns)


def assemble(
    pair: tuple[jax.Array, jax.Array], solve: Solution, given: Geometry, parts: Reduced,
    marginals: Marginals, returned: tuple[Exact, Exact],
) -> TransportResult:
    """The result for reduced potentials ("ab" convention) whose derivatives are attached.

    `returned` are the floats that were judged: f and g to the last digit.
    """
    a, b, epsilon = marginals[:3]
    f, g = pair
    fp, gp = with_weights(f, a, epsilon), with_weights(g, b, epsilon)
    totals = parts.geometry.totals(fp, gp, epsilon)
    error = marginal_error(totals, marginals.held(f), marginals.T.held(g))
    shift = _shift_cost(totals, marginals)
    dual = dual_objective(pair, (parts.geometry, marginals))
    # The primal value at P; its derivative is that of the dual, which needs no linear solve.
    primal = (weighted(totals.rows, f) + weighted(totals.columns, g) + shift
              + epsilon * (jnp.sum(a) * jnp.sum(b) - jnp.sum(totals.rows))
              + _penalty(totals.rows, a, marginals.rho_a)
              + _penalty(totals.columns, b, marginals.rho_b))
    full_f, full_g = (with_derivative(judged.high, full.high) for judged, full in zip(
        returned, present(pair, parts, marginals), strict=True))
    return TransportResult(
        full_f, full_g, error, totals.cost + shift, with_derivative(primal, dual), dual, solve,
        given, epsilon, Centred(parts.geometry, fp, gp))


def present(
    pair: tuple[jax.Array, jax.Array], parts: Reduced, marginals: Marginals
) -> tuple[Exact, Exact]:
    """The potentials of the given cost, in the "P" convention; balanced: f has mean 0."""
    a, b, epsilon = marginals[:3]
    fp, gp = with_weights(pair[0], a, epsilon), with_weights(pair[1], b, epsilon)
    middle = jnp.zeros((), fp.dtype)
    if marginals.balanced:
        total = jnp.where(a > 0, fp, 0) + jnp.where(a > 0, parts.shifts[0], 0)
        middle = jnp.sum(total) / jnp.sum((a > 0).astype(fp.dtype))
    return (exact_sum(fp, parts.shift_rows, parts.rows.high, -middle, parts.rows.low),
            exact_sum(gp, parts.shift_columns, parts.columns.high, middle, parts.columns.low))


def marginal_error(totals: Totals, a: jax.Array, b: jax.Array) -> jax.Array:
    """The l1 error of both marginals, against what they should be."""
    return jnp.sum(jnp.abs(totals.rows - a)) + jnp.sum(jnp.abs(totals.columns - b))


def _shift_cost(totals: Totals, marginals: Marginals) -> jax.Array:
    """What the shifts cost, `<rows, P 1> + <columns, P^T 1>`."""
    rows, columns = marginals.rows, marginals.columns
    if rows is None or columns is None:
        return jnp.zeros_like(totals.cost)
    value = jnp.sum(rows * totals.rows) + jnp.sum(columns * totals.columns)
    if not marginals.balanced:
        return value
    # The marginals are given: a large shift must not multiply the rounding of their derivatives.
    return with_derivative(value, jnp.sum(rows * marginals.a) + jnp.sum(columns * marginals.b))


def with_weights(potential: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    """`potential + epsilon log(weights)`, the "P" convention; -inf where the weight is 0."""
    positive = weights > 0
    return jnp.where(
        positive, potential + epsilon * jnp.log(jnp.where(positive, weights, 1)), -jnp.inf)


def _penalty(marginal: jax.Array, weights: jax.Array, rho: Any) -> jax.Array:
    """`rho KL(marginal | weights)`; 0 for a constraint."""
    if rho is None:
        return jnp.zeros_like(jnp.sum(marginal))
    positive = marginal > 0
    ratio = jnp.where(positive, marginal, 1) / jnp.where(weights > 0, weights, 1)
    return rho * (weighted(marginal, jnp.log(ratio)) - jnp.sum(marginal) + jnp.sum(weights))


@jax.custom_jvp
def dual_objective(potentials: tuple, operands: tuple) -> jax.Array:
    """The dual objective of reduced potentials (f, g), stationary in them at the solution.

    `operands` is (geometry, marginals). Value of `<C, P> + epsilon KL(P | a b^T) + ...` for the
    given cost C.
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
    a, b, epsilon = marginals[:3]
    totals = geometry.totals(
        with_weights(f, a, epsilon), with_weights(g, b, epsilon), epsilon)
    return (_conjugate(marginals.given(f), a, marginals.rho_a)
            + _conjugate(marginals.T.given(g), b, marginals.rho_b)
            - epsilon * (jnp.sum(totals.rows) - jnp.sum(a) * jnp.sum(b)))


def _conjugate(potential: jax.Array, weights: jax.Array, rho: Any) -> jax.Array:
    """`-rho sum weights (exp(-potential / rho) - 1)`, and its limit for rho = inf."""
    if rho is None:
        return jnp.sum(weights * potential)
    return -rho * jnp.sum(weights * jnp.expm1(-potential / rho))
