"""Entropic transport: offsets, scales, masses, far clouds, sharp epsilons, by every method."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.solution import Status
from jaxiter.testing.audit.maps import FAR_SCALES
from jaxiter.testing.audit.verdict import (
    WRONG,
    Verdict,
    cast,
    exactly,
    half_ulp,
    magnitudes,
    threshold,
    verdict,
)
from jaxiter.testing.audit.verdict import name as dtype_name
from jaxiter.transport import (
    Grid,
    PointCloud,
    euclidean,
    sinkhorn,
    sinkhorn_histograms,
    sinkhorn_many,
    squared_euclidean,
)

KINDS = ("odd", "offset", "scaled", "sharp", "far", "forbidding", "massive")
#: CONVERGED means a marginal error of at most this many times the tolerance's threshold.
ROOM = 1.2
ROWS, COLUMNS = 8, 7
#: Steps of every solve; those of Newton are many passes each.
MOST = {"log": 400, "kernel": 400, "auto": 200, "newton": 60}


class Problem(NamedTuple):
    """Costs `[count, n, m]`, weights, and epsilons `[count]`."""

    cost: Any
    a: Any
    b: Any
    epsilon: Any


def random_problems(rng: np.random.Generator, count: int, kind: str) -> Problem:
    """Small problems of one kind.

    "odd": forbidden pairs, zero weights, special numbers, any epsilon. "offset": a constant of
    1e-9 to 1e9 on costs of size 1. "scaled": costs of every scale. "sharp": epsilon down to 1e-6
    of the cost. "far": two clouds 1 to 1e4 of their sizes apart, squared. "forbidding": large
    finite costs that mean never, at most one a row. "massive": weights of every mass.
    """
    n, m = ROWS, COLUMNS
    cost = rng.uniform(size=(count, n, m))
    epsilon = 10.0 ** rng.uniform(-2, 0, count)
    a, b = rng.dirichlet(np.full(n, 3.0), count), rng.dirichlet(np.full(m, 3.0), count)
    if kind == "odd":
        cost, epsilon, a, b = _odd(rng, cost, a, b)
    elif kind == "offset":
        shift = magnitudes(rng, count, 9, (0.0, 10.0, 1e3, 1e5)) * rng.choice([-1, 1], count)
        cost = cost + shift[:, None, None]
    elif kind == "scaled":
        scale = magnitudes(rng, count, 9, FAR_SCALES)
        cost, epsilon = cost * scale[:, None, None], epsilon * scale
    elif kind == "sharp":
        epsilon = 10.0 ** rng.uniform(-6, -1, count)
    elif kind == "far":
        apart = 10.0 ** rng.uniform(0, 4, (count, 1, 1))
        x, y = rng.normal(size=(count, n, 2)), rng.normal(size=(count, m, 2)) + apart
        cost = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    elif kind == "forbidding":
        large = 10.0 ** rng.uniform(3, 32, (count, 1, 1))
        never = np.arange(m) == rng.integers(0, m, (count, n, 1))  # one column a row, or none
        cost = np.where(never & (rng.random((count, n, 1)) < 0.7), large, cost)
    elif kind == "massive":
        mass = magnitudes(rng, count)[:, None]
        a, b = a * mass, b * mass
    return Problem(cost, a, b, epsilon)


def _odd(rng: np.random.Generator, cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple:
    count = len(cost)
    cost = cost * 10.0 ** rng.integers(-3, 4, (count, 1, 1))
    cost[rng.random(cost.shape) < 0.02] = np.inf
    odd = rng.random(count) < 0.1
    cost[odd, 0, 0] = rng.choice([0.0, np.inf, np.nan, 1e30], odd.sum())
    sizes = np.where(np.isfinite(cost), cost, 0).mean((1, 2)).clip(1e-6, 1e6)
    a[rng.random(count) < 0.2, 1] = 0.0
    return cost, 10.0 ** rng.uniform(-3, 1, count) * sizes, a / a.sum(1, keepdims=True), b


def _ordinary(p: Problem, dtype: Any) -> np.ndarray:
    """Whether potentials of this dtype hold the plan, and Sinkhorn needs few steps.

    Costs that mean never count only for whether the others can carry all mass: row i with its
    one such column c is carried elsewhere if the rows like it weigh less than the rest of b.
    """
    with np.errstate(all="ignore"):
        least = np.abs(p.cost).min((1, 2), keepdims=True)
        never = np.abs(p.cost) - least > 200 * p.epsilon[:, None, None]
        largest = np.where(never, 0, np.abs(p.cost)).max((1, 2))
        held = 2 * half_ulp(dtype) * largest <= 2e-6 * p.epsilon
        alike = np.einsum("cij,ci->cj", never, p.a)
        carried = (never.sum(2).max(1) <= 1) & (alike <= 0.7 * (p.a.sum(1)[:, None] - p.b)).all(1)
        quick = held & carried & (largest - least[:, 0, 0] <= 8 * p.epsilon)
        return quick & (np.minimum(p.a.min(1), p.b.min(1)) > 0)


def plans(cost: np.ndarray, f: np.ndarray, g: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """`exp((f + g - C) / epsilon)` in more than float64; 0 where a potential is -inf."""
    cost, f, g, epsilon = (np.asarray(x, np.longdouble) for x in (cost, f, g, epsilon))
    none = np.isneginf(f)[:, :, None] | np.isneginf(g)[:, None]
    exponent = (f[:, :, None] + g[:, None] - cost) / epsilon[:, None, None]
    return np.where(none, 0, np.exp(np.where(none, 0, exponent))).astype(float)


def marginal_errors(plan: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`sum |P 1 - a| + sum |P^T 1 - b|`, `[count]`."""
    return np.abs(plan.sum(2) - a).sum(1) + np.abs(plan.sum(1) - b).sum(1)


def _allowed(mass: np.ndarray, dtype: Any = jnp.float32) -> np.ndarray:
    """The largest marginal error with which a solve may say CONVERGED."""
    return ROOM * threshold(dtype, mass, mass)


@cache
def _program(method: str, solver: Any) -> Callable:
    """Potentials, plan, status, and the gradient of `epsilon <W, P>` by the cost."""
    def total(cost: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array, w: jax.Array) -> tuple:
        out = sinkhorn(cost, a, b, epsilon=e, method=method, solver=solver,
                       max_steps=MOST[method])
        plan = out.plan()
        return e * jnp.sum(w * plan), (out.f, out.g, plan, out.solve.status)

    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))


def audit_sinkhorn(
    seed: int, count: int, method: str, kind: str = "odd", solver: Any = None,
    solver_name: str = "", dtype: Any = jnp.float32,
) -> Verdict:
    """Dense costs of one kind, judged by the returned potentials and by the returned plan."""
    rng = np.random.default_rng(seed)
    drawn = random_problems(rng, count, kind)
    weights = rng.normal(size=drawn.cost.shape)
    arrays = cast(dtype, *drawn, weights)
    (_, (f, g, shown, status)), slope = _program(method, solver)(*arrays)
    p, w = Problem(*exactly(*arrays[:4])), exactly(arrays[4])[0]
    f, g, shown, slope = exactly(f, g, shown, slope)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        plan = plans(p.cost, f, g, p.epsilon)
        error, limit = marginal_errors(plan, p.a, p.b), _allowed(p.a.sum(1), dtype)
        false = good & ~((error <= limit) & (marginal_errors(shown, p.a, p.b) <= limit))
        reach = np.where(np.isfinite(p.cost), np.abs(p.cost), 0).max((1, 2)) / p.epsilon
    silent, lost = np.zeros(count, bool), np.zeros(count, bool)
    for k in np.flatnonzero(good & ~false & (reach < 1e4)):
        exact, gap = _plan_slope(plan[k], w[k])
        size = np.abs(exact).max()
        room = WRONG * size + 10 * error[k] * np.abs(w[k]).max() / gap
        number = np.isfinite(slope[k]).all()
        silent[k] = gap > 1e-3 and number and np.abs(slope[k] - exact).max() > room
        lost[k] = gap > 1e-3 and not number
    name = f"{method} {solver_name}".strip()
    sort = "" if dtype == jnp.float32 else f", {dtype_name(dtype)}"
    held = _ordinary(p, dtype) & (jnp.finfo(dtype).bits > 16)
    return verdict(f"sinkhorn, {name}, {kind} costs{sort}", status, false, silent=silent,
                   lost=lost, unsolved=~good & held)


def _plan_slope(plan: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Derivative of `epsilon <W, P>` by the cost, and how far P is from falling into blocks.

    The two marginals are linear equations for the potentials, solved densely; the gap is the
    second smallest eigenvalue of that system, scaled to a diagonal of ones.
    """
    rows, columns = plan.sum(1), plan.sum(0)
    live = np.concatenate([rows, columns]) > 0
    system = np.block([[np.diag(rows), plan], [plan.T, np.diag(columns)]])
    scale = 1 / np.sqrt(np.where(live, np.diag(system), 1))
    values = np.linalg.eigvalsh((scale[:, None] * system * scale)[np.ix_(live, live)])
    asked = weights * plan
    y = np.linalg.lstsq(system, np.concatenate([asked.sum(1), asked.sum(0)]), rcond=1e-10)[0]
    n = len(rows)
    return plan * (y[:n, None] + y[n:]) - asked, values[1] if len(values) > 1 else 1.0


@cache
def _unbalanced(method: str, both: bool) -> Callable:
    def solve(cost: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array, rho: jax.Array) -> tuple:
        more: dict[str, Any] = {"rho_b": rho} if both else {}
        out = sinkhorn(cost, a, b, epsilon=e, rho_a=rho, method=method, max_steps=MOST[method],
                       **more)
        return out.f, out.g, out.solve.status

    return jax.jit(jax.vmap(solve))


def audit_unbalanced(seed: int, count: int, method: str, kind: str, both: bool = True) -> Verdict:
    """Penalised marginals: the first-order condition `P 1 = a exp(-f' / rho)` must hold."""
    rng = np.random.default_rng(seed)
    drawn = random_problems(rng, count, kind)
    with np.errstate(all="ignore"):
        size = np.where(np.isfinite(drawn.cost), np.abs(drawn.cost), 0).mean((1, 2))
    rho = 10.0 ** rng.uniform(-1, 1, count) * np.maximum(size, 1e-9)
    arrays = cast(jnp.float32, *drawn, rho)
    f, g, status = _unbalanced(method, both)(*arrays)
    p, rho, f, g = Problem(*exactly(*arrays[:4])), *exactly(arrays[4], f, g)
    good = np.asarray(status) == Status.CONVERGED

    def target(potential: np.ndarray, weights: np.ndarray) -> np.ndarray:
        plain = potential - p.epsilon[:, None] * np.log(weights)
        return np.where(weights > 0, weights * np.exp(-plain / rho[:, None]), 0)

    with np.errstate(all="ignore"):
        plan = plans(p.cost, f, g, p.epsilon)
        error = marginal_errors(plan, target(f, p.a), target(g, p.b) if both else p.b)
        false = good & ~(error <= _allowed(p.a.sum(1)))
    sides = "both" if both else "one"
    return verdict(f"sinkhorn, {method}, {sides} unbalanced, {kind} costs", status, false)


COSTS = {"squared": squared_euclidean, "euclidean": euclidean}


@cache
def _clouds(cost: str, solver: Any) -> Callable:
    def solve(x: jax.Array, y: jax.Array, epsilon: jax.Array) -> tuple:
        out = sinkhorn(PointCloud(x, y, COSTS[cost]), epsilon=epsilon, solver=solver,
                       max_steps=MOST["log"])
        return out.f, out.g, out.plan(), out.solve.status

    return jax.jit(jax.vmap(solve))


def audit_clouds(
    seed: int, count: int, cost: str, solver: Any = None, solver_name: str = ""
) -> Verdict:
    """Two clouds of 20 points, 1 to 1e4 of their sizes apart and as far from the origin."""
    rng = np.random.default_rng(seed)
    size = 20
    unit = magnitudes(rng, count, 6)[:, None, None]
    middle = rng.normal(size=(count, 1, 2)) * rng.choice([0, 1, 1e2, 1e4], (count, 1, 1))
    apart = rng.normal(size=(count, 1, 2)) * 10.0 ** rng.uniform(-1, 4, (count, 1, 1))
    x = unit * (rng.normal(size=(count, size, 2)) + middle)
    y = unit * (rng.normal(size=(count, size, 2)) + middle + apart)
    epsilon = 10.0 ** rng.uniform(-2, 0.5, count) * unit[:, 0, 0] ** (
        2 if cost == "squared" else 1)
    arrays = cast(jnp.float32, x, y, epsilon)
    f, g, shown, status = _clouds(cost, solver)(*arrays)
    x, y, epsilon, f, g, shown = exactly(*arrays, f, g, shown)
    good = np.asarray(status) == Status.CONVERGED
    distance = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    distance = distance if cost == "squared" else np.sqrt(distance)
    uniform = np.full((count, size), 1 / size)
    limit = _allowed(np.ones(count))
    with np.errstate(all="ignore"):
        error = marginal_errors(plans(distance, f, g, epsilon), uniform, uniform)
        false = good & ~((error <= limit) & (marginal_errors(shown, uniform, uniform) <= limit))
    name = f", {solver_name}" if solver_name else ""
    return verdict(f"sinkhorn, {cost} clouds{name}", status, false)


@cache
def _grids() -> Callable:
    def solve(first: jax.Array, second: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array
              ) -> tuple:
        out = sinkhorn(Grid((first, second)), a, b, epsilon=e, max_steps=MOST["log"])
        return out.f, out.g, out.plan(), out.solve.status

    return jax.jit(jax.vmap(solve))


def audit_grids(seed: int, count: int, kind: str) -> Verdict:
    """Sums of a cost of one kind on the first axis and a small one on the second."""
    rng = np.random.default_rng(seed)
    drawn = random_problems(rng, count, kind)
    first = drawn.cost[:, :3, :4]
    with np.errstate(all="ignore"):
        second = first[:, :2, 1:3] * rng.uniform(0, 1, (count, 2, 2))
    a, b = rng.dirichlet(np.full(6, 3.0), count), rng.dirichlet(np.full(8, 3.0), count)
    arrays = cast(jnp.float32, first, second, a, b, drawn.epsilon)
    f, g, shown, status = _grids()(*arrays)
    first, second, a, b, epsilon, f, g, shown = exactly(*arrays, f, g, shown)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        cost = first[:, :, None, :, None] + second[:, None, :, None, :]
        plan, limit = plans(cost.reshape(count, 6, 8), f, g, epsilon), _allowed(a.sum(1))
        false = good & ~((marginal_errors(plan, a, b) <= limit)
                         & (marginal_errors(shown, a, b) <= limit))
    return verdict(f"sinkhorn, grids, {kind} costs", status, false)


@cache
def _batched(front: str) -> Callable:
    def many(cost: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array) -> tuple:
        out = sinkhorn_many(cost, a, b, epsilon=e, lanes=64, max_steps=MOST["kernel"])
        return out.f, out.g, out.solve.status

    def histograms(cost: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array) -> tuple:
        out = sinkhorn_histograms(cost, a, b, epsilon=e, max_steps=MOST["kernel"])
        return out.f, out.g, out.solve.status

    return jax.jit(many if front == "sinkhorn_many" else histograms)


def audit_batched(seed: int, count: int, front: str, kind: str) -> Verdict:
    """`sinkhorn_many` on a batch, or `sinkhorn_histograms` on 20 costs of 1 / 20 of it each."""
    rng = np.random.default_rng(seed)
    p = random_problems(rng, count, kind)
    if front == "sinkhorn_histograms":
        groups = 20
        first = np.arange(count) // max(count // groups, 1) * max(count // groups, 1)
        p = p._replace(cost=p.cost[first], epsilon=p.epsilon[first])
    arrays = Problem(*cast(jnp.float32, *p))
    if front == "sinkhorn_many":
        f, g, status = _batched(front)(*arrays)
    else:
        width = max(count // groups, 1)
        parts = [_batched(front)(arrays.cost[k], arrays.a[k: k + width], arrays.b[k: k + width],
                                 arrays.epsilon[k]) for k in range(0, count, width)]
        f, g, status = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(3))
    p, f, g = Problem(*exactly(*arrays)), *exactly(f, g)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        error = marginal_errors(plans(p.cost, f, g, p.epsilon), p.a, p.b)
        false = good & ~(error <= _allowed(p.a.sum(1)))
    return verdict(f"{front}, {kind} costs", status, false,
                   unsolved=~good & _ordinary(p, jnp.float32))
