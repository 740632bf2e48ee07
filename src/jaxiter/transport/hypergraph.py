"""Entropic transport over the edges of a hypergraph, and the adversarial risk of a data set."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.known import check_positive, known
from jaxiter.numerics import floating, is_concrete, machine_epsilon, on_own_mesh, safe_log
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.solvers.anderson import anderson
from jaxiter.transport.balls import feasible_tuples
from jaxiter.transport.checks import MAX_STEPS


@reports
class HypergraphResult(NamedTuple):
    """What `hypergraph_sinkhorn` has found.

    Attributes:
      potentials: phi `[N]`, in units of the cost; 0 where a point has no mass.
      weights: the plan w `[E]`, `w_e = exp((sum of phi over e - cost_e) / epsilon)`.
      value: `<cost, w>`.
      marginal_error: `sum_i |sum of w over the edges of i - mass_i|`, the merit.
      solve: the Solution of the potentials.
    """

    potentials: jax.Array
    weights: jax.Array
    value: jax.Array
    marginal_error: jax.Array
    solve: Solution


@reused
@on_own_mesh
def hypergraph_sinkhorn(
    edges: jax.Array, mass: jax.Array, *, epsilon: Any, cost: Any = 1.0,
    **options: Unpack[SolveOptions],
) -> HypergraphResult:
    """Spread the mass of points over the edges that contain them, at the least cost.

    Minimises `<cost, w> + epsilon sum w (log w - 1)` over w >= 0 whose sums over the edges that
    contain point i are mass_i, part by part:

        phi_i <- phi_i + epsilon (log mass_i - log sum_{e contains i} w_e)

    The hypergraph is K-partite: an edge has at most one point of each part, as tuples with members
    of distinct classes have. Unlike in `multimarginal_sinkhorn` members may be absent, so the total
    of w is not known before. Where every point is an edge by itself, the potentials are unique and
    have implicit derivatives; without such edges those of potentials may be NaN.

    Args:
      edges: integers `[E, K]`; column k holds the edge's point of part k, or -1.
      mass: `[N]`, at least 0, integers are read as floats; a point of some mass must be in some
        edge.
      epsilon: regularisation in units of the cost, positive; may be traced.
      cost: of edges, `[E]` or a number.
      **options: those of `fixed_point`; by default 2000 steps.

    Returns:
      A `HypergraphResult`.

    Raises:
      ValueError: shapes; for concrete input a point outside 0..N - 1 or in two columns, one with
        mass but no edge, negative mass, epsilon <= 0. Under jit those of numbers are BAD_INPUT.

    Reference: Garcia Trillos, Jacobs and Kim, "The multimarginal optimal transport formulation of
    adversarial multiclass classification", 2022.

    >>> import jax.numpy as jnp
    >>> edges = jnp.array([[0, -1], [-1, 1], [0, 1]])  # two points, alone or together
    >>> out = hypergraph_sinkhorn(edges, jnp.array([0.5, 0.5]), epsilon=0.02)
    >>> out.weights.round(3).tolist(), bool(out.converged)
    ([0.0, 0.0, 0.5], True)
    """
    chosen = choose("hypergraph_sinkhorn", options, {}, max_steps=MAX_STEPS, solver=anderson())
    check_positive(epsilon=epsilon)
    if jnp.ndim(edges) != 2 or jnp.ndim(mass) != 1 or (
            not jnp.issubdtype(jnp.result_type(edges), jnp.integer)):
        raise ValueError(f"edges must be integers [E, K] and mass [N], got shapes "
                         f"{jnp.shape(edges)}, {jnp.shape(mass)} and {jnp.result_type(edges)}.")
    known(_check, edges, mass)
    mass, edges = floating(mass), jnp.asarray(edges, jnp.int32)
    cost = jnp.broadcast_to(jnp.asarray(cost, mass.dtype), edges.shape[:1])
    epsilon = jnp.asarray(epsilon, mass.dtype)
    problem = Problem(
        step=_step, merit=lambda phi, image, *args: _error(phi, *args),
        scale=lambda phi, image, edges, mass, *rest: jnp.sum(mass),
        floor=lambda phi, edges, mass, cost, epsilon: machine_epsilon(phi) * (
            jnp.sum(mass * (1 + edges.shape[1] * jnp.abs(phi) / epsilon))),
        valid=lambda phi, edges, mass, cost, epsilon: (epsilon > 0) & jnp.all(mass >= 0) & (
            trees.finite((mass, cost)) & (jnp.sum(mass) > 0) & _sound(edges, mass)))
    solve = fixed_point(problem, jnp.zeros_like(mass), edges, mass, cost, epsilon,
                        **chosen._asdict())
    phi = solve.value
    weights = jnp.exp(_log_weights(phi, edges, mass, cost, epsilon))
    return HypergraphResult(phi, weights, jnp.sum(cost * weights),
                            _error(phi, edges, mass, cost, epsilon), solve)


def _log_weights(
    phi: jax.Array, edges: jax.Array, mass: jax.Array, cost: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """The logarithms of w; -inf where a member has no mass."""
    at = jnp.maximum(edges, 0)
    logs = jnp.sum(jnp.where(edges >= 0, phi[at], 0), 1) - cost
    empty = jnp.any((edges >= 0) & (mass[at] <= 0), 1)
    return jnp.where(empty, -jnp.inf, logs / epsilon)


def _log_sums(logs: jax.Array, members: jax.Array, count: int) -> jax.Array:
    """For each of `count` points the log-sum-exp over the edges that it is the member of."""
    # An edge without a member sums into a point that is dropped.
    members = jnp.where(members >= 0, members, count)
    peak = jax.lax.stop_gradient(jax.ops.segment_max(logs, members, count + 1))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    sums = jax.ops.segment_sum(jnp.exp(logs - peak[members]), members, count + 1)
    return (safe_log(sums) + peak)[:-1]


def _step(
    phi: jax.Array, edges: jax.Array, mass: jax.Array, cost: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """The potentials of all parts, one part after the other."""
    for part in range(edges.shape[1]):
        logs = _log_weights(phi, edges, mass, cost, epsilon)
        sums = _log_sums(logs, edges[:, part], len(mass))
        here = jnp.isfinite(sums) & (mass > 0)  # points of this part
        gap = safe_log(mass) - jnp.where(here, sums, 0)
        phi = jnp.where(here, phi + epsilon * jnp.where(here, gap, 0), phi)
    return phi


def _error(
    phi: jax.Array, edges: jax.Array, mass: jax.Array, cost: jax.Array, epsilon: jax.Array
) -> jax.Array:
    weights = jnp.exp(_log_weights(phi, edges, mass, cost, epsilon))
    members = jnp.where(edges >= 0, edges, len(mass))
    held = sum((jax.ops.segment_sum(weights, members[:, part], len(mass) + 1)
                for part in range(edges.shape[1])), start=jnp.zeros(len(mass) + 1, mass.dtype))
    return jnp.sum(jnp.abs(held[:-1] - mass))


def _sound(edges: jax.Array, mass: jax.Array) -> jax.Array:
    """What `_check` says in words of edges, where they cannot be read."""
    count = len(mass)
    members = jnp.where(edges >= 0, edges, count)
    parts = jnp.zeros((edges.shape[1], count + 1), jnp.int32)
    parts = parts.at[jnp.arange(edges.shape[1]), members].set(1, mode="drop")
    columns = jnp.sum(parts, axis=0)[:-1]  # in how many each point is
    within = jnp.all((edges >= -1) & (edges < count))
    return within & jnp.all(columns <= 1) & jnp.all((columns > 0) | (mass <= 0))


def _check(edges: Any, mass: Any) -> None:
    edges, mass = np.asarray(edges), np.asarray(mass)
    if not np.all(mass >= 0) or not np.sum(mass) > 0:
        raise ValueError("mass must not be negative or NaN, and some of it positive; got from "
                         f"{mass.min()} to {mass.max()}.")
    if edges.min(initial=0) < -1 or edges.max(initial=-1) >= len(mass):
        raise ValueError(f"edges must hold points from 0 to {len(mass) - 1}, or -1; got from "
                         f"{edges.min()} to {edges.max()}.")
    columns = [np.unique(column[column >= 0]) for column in edges.T]
    points, seen = np.unique(np.concatenate([np.zeros(0, int), *columns]), return_counts=True)
    if np.any(seen > 1):
        raise ValueError(f"point {points[seen > 1][0]} is in two columns of edges; a column is one "
                         "part of a K-partite hypergraph.")
    alone = np.setdiff1d(np.flatnonzero(mass > 0), points)
    if len(alone):
        raise ValueError(f"infeasible: point {alone[0]} has mass and is in no edge; add the edge "
                         "of it alone.")


@reports
class AdversarialRisk(NamedTuple):
    """The least risk of any classifier of a data set under an adversary.

    Attributes:
      risk: between 0 and 1; `1 - <1, w>` for the best plan w.
      edges: the tuples that one point within the adversary's reach of all can stand for, `[E, K]`
        as in `hypergraph_sinkhorn`, numpy.
      weights: w `[E]`, what mass of each tuple the adversary merges.
      solve: the Solution.
    """

    risk: jax.Array
    edges: np.ndarray
    weights: jax.Array
    solve: Solution


def adversarial_risk(
    points: Any, labels: Any, radius: float, *, order: int = 3, epsilon: Any = 0.02,
    mass: jax.Array | None = None, **options: Unpack[SolveOptions],
) -> AdversarialRisk:
    """The optimal 0-1 risk where an adversary may move every point by at most a radius.

    `1 - min <1, w>` over measures w on tuples of points of distinct classes that fit into a ball
    of that radius, whose marginals are the data: no classifier does better, and one attains it.
    Tuples are enumerated on the host; the transport problem runs under the driver.

    Args:
      points: `[n, D]`, concrete.
      labels: integers `[n]`, concrete; any K different ones.
      radius: at least 0, in units of the points.
      order: most members of a tuple. Fewer than K makes the risk a lower bound, which is often
        tight at 3; all tuples of up to so many are looked at.
      epsilon: regularisation, in units of a probability of 1; it blurs the risk from below.
      mass: of points `[n]`, summing to 1; default uniform.
      **options: as in `hypergraph_sinkhorn`.

    Returns:
      An `AdversarialRisk`.

    Raises:
      ValueError: traced points or labels, shapes, a negative radius, order < 1, fewer than two
        classes, a class without mass.

    Reference: Garcia Trillos, Jacobs and Kim, "The multimarginal optimal transport formulation of
    adversarial multiclass classification", 2022.

    >>> out = adversarial_risk([[0.0], [1.0], [5.0]], [0, 1, 1], 0.6)  # two of three can be merged
    >>> round(float(out.risk), 3), out.edges.tolist()
    (0.333, [[0, -1], [-1, 1], [-1, 2], [0, 1]])
    """
    if not is_concrete((points, labels, radius)):
        raise ValueError("tuples are enumerated on the host: points, labels and radius must be "
                         "concrete; pass the edges of that to hypergraph_sinkhorn under jit.")
    points, labels = np.asarray(points, np.float64), np.asarray(labels)
    if points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"points must be [n, D] and labels [n], got shapes {points.shape}, "
                         f"{labels.shape}.")
    classes, parts = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or order < 1 or not radius >= 0 or not np.all(np.isfinite(points)):
        raise ValueError(f"needs at least two classes, order >= 1, radius >= 0 and finite points; "
                         f"got {len(classes)} classes, order {order}, radius {radius}.")
    if mass is None:
        mass = jnp.full(len(labels), 1 / len(labels), jnp.result_type(float))
    known(lambda mass: _check_classes(mass, parts, classes), mass)
    edges = feasible_tuples(points, parts, float(radius), order)
    result = hypergraph_sinkhorn(jnp.asarray(edges), mass, epsilon=epsilon, **options)
    return AdversarialRisk(1 - result.value, edges, result.weights, result.solve)


def _check_classes(mass: Any, parts: np.ndarray, classes: np.ndarray) -> None:
    mass = np.asarray(mass)
    if mass.shape != parts.shape or abs(mass.sum() - 1) > 1e-3:
        raise ValueError(f"mass must be of shape {parts.shape} and sum to 1, got {mass.shape} and "
                         f"{mass.sum()}.")
    held = np.bincount(parts, mass)
    if np.any(held <= 0):
        raise ValueError(f"class {classes[held <= 0][0]} is empty: it has no mass.")
