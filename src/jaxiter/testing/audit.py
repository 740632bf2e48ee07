"""A truth audit: random and degenerate problems, each answer judged in float64 by numpy.

A false CONVERGED is a status that the answer itself contradicts: the residual, computed in numpy
from the returned value, exceeds the tolerance that the status claims, with room for rounding and
for numbers below the smallest normal one, which processors treat as zero.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import linear
from jaxiter.bilevel import hypergradient, solve_inner
from jaxiter.diffusion import Denoiser, ddim, linear_beta_schedule, sample_parallel
from jaxiter.driver import fixed_point
from jaxiter.lanes import solve_many
from jaxiter.recurrence import solve_recurrence
from jaxiter.solution import Status
from jaxiter.stop import default_tolerances
from jaxiter.transport import sinkhorn

SPECIAL = (0.0, 1e-44, 1e-30, 1e30, 3e38, np.inf, np.nan)


class Verdict(NamedTuple):
    """Counts over a batch: solves, those that say CONVERGED, and the two kinds of lies.

    false: CONVERGED against the residual. silent: a gradient that is wrong, or not a number, where
    the solve says CONVERGED and the problem is well conditioned; in 16 bits, where a backward
    solve often cannot reach its tolerance, NaN is the honest answer and only numbers count.
    """

    family: str
    solves: int
    converged: int
    false: int
    silent: int


def random_maps(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear maps `[count, n, n]` and offsets: contractions, isometries, expansions, degenerate."""
    radius = rng.choice([0.0, 0.3, 0.9, 0.99, 1.0, 1.1], count)
    a = rng.normal(size=(count, size, size))
    a = np.where(rng.random((count, 1, 1)) < 0.3, np.triu(a) * 3, a)  # far from normal
    length = np.maximum(np.abs(np.linalg.eigvals(a)).max(1), 1e-6)
    a = a * (radius / length)[:, None, None]
    b = _offsets(rng, count, size)
    b[rng.random(count) < 0.05] = 0.0
    return a, b


def _offsets(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Vectors `[count, n]` of every scale, a third of them with an odd first entry."""
    b = rng.normal(size=(count, size)) * 10.0 ** rng.integers(-20, 20, (count, 1))
    odd = rng.random(count) < 0.3
    b[odd, 0] = rng.choice(SPECIAL, odd.sum())
    return b


def _curvatures(rng: np.random.Generator, count: int, size: int, odd: float) -> np.ndarray:
    """Symmetric matrices of condition up to 10,000; shares `odd` are singular, or indefinite."""
    basis = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    values = 10.0 ** -rng.uniform(0, 4, (count, size))
    values[rng.random(count) < odd, 0] = 0.0
    values[rng.random(count) < odd, 0] *= -1
    return (basis * values[:, None]) @ np.swapaxes(basis, 1, 2)


def _rounding(a: np.ndarray, x: np.ndarray, b: np.ndarray, epsilon: float) -> np.ndarray:
    """Norms `[count]` of what rounding may do to `a x + b`."""
    return epsilon * np.linalg.norm(
        np.einsum("kij,kj->ki", np.abs(a), np.abs(x)) + np.abs(b), axis=1)


def audit_fixed_point(seed: int, count: int, size: int, dtype: Any, solver: Any, name: str,
                      lanes: int | None = None) -> Verdict:
    """Linear maps with one solver and dtype; gradients by the offset against a dense solve.

    With `lanes`, through `solve_many` instead of `vmap(fixed_point)`.
    """
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        a, b = (jnp.asarray(part).astype(dtype) for part in random_maps(rng, count, size))

    def solve(a: jax.Array, b: jax.Array) -> Any:
        return fixed_point(lambda x, a, b: a @ x + b, jnp.zeros(size, dtype), a, b, solver=solver,
                           max_steps=200)

    def total(a: jax.Array, b: jax.Array) -> tuple:
        out = solve(a, b)
        return jnp.sum(out.value), out

    def through_lanes(a: jax.Array, b: jax.Array) -> tuple:
        out = solve_many(lambda x, a, b: a @ x + b, jnp.zeros((count, size), dtype), a, b,
                         solver=solver, max_steps=200, lanes=lanes or 1)
        return jnp.sum(out.value), out

    batched = jax.vmap(jax.value_and_grad(total, 1, has_aux=True))
    if lanes is not None:
        batched = jax.value_and_grad(through_lanes, 1, has_aux=True)
    (_, out), slope = jax.jit(batched)(a, b)
    a, b, x, slope = (np.asarray(part, float) for part in (a, b, out.value, slope))
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        image = np.einsum("kij,kj->ki", a, x) + b
        residual = np.linalg.norm(image - x, axis=1)
        scale = np.maximum(np.linalg.norm(x, axis=1), np.linalg.norm(image, axis=1))
        relative, absolute = default_tolerances(jnp.zeros(1, dtype))
        rounding = _rounding(a, x, b, float(jnp.finfo(dtype).eps))
        lies = good & ~(residual <= 1.05 * (absolute + relative * scale) + 8 * size * rounding)
        system = np.eye(size) - a
        # A backward solve to 1e-2, as in 16 bits, is right to about that times the condition.
        regular = np.linalg.cond(system) < (10 if jnp.finfo(dtype).bits == 16 else 1e3)
    exact = np.full_like(slope, np.nan)
    exact[regular] = np.linalg.solve(np.swapaxes(system[regular], 1, 2),
                                     np.ones((regular.sum(), size, 1)))[..., 0]
    wrong = np.linalg.norm(slope - exact, axis=1) > 2e-2 * np.linalg.norm(exact, axis=1) + (
        0.2 * np.linalg.norm(exact, axis=1) if jnp.finfo(dtype).bits == 16 else 0)
    number = np.isfinite(slope).all(1)
    silent = good & regular & (wrong if jnp.finfo(dtype).bits == 16 else wrong | ~number)
    front = "fixed_point" if lanes is None else "solve_many"
    return Verdict(f"{front}, {name}, {jnp.dtype(dtype).name}, n = {size}", count,
                   int(good.sum()), int(lies.sum()), int(silent.sum()))


def audit_linear(seed: int, count: int, size: int, solver: Any, name: str, symmetric: bool
                 ) -> Verdict:
    """Systems of every condition, singular ones, zero, huge and non-finite right-hand sides."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(count, size, size))
    basis = np.linalg.qr(a)[0]
    values = 10.0 ** (-rng.choice([0, 2, 6, 12], (count, 1)) * rng.random((count, size)))
    values[rng.random(count) < 0.15, 0] = 0.0
    right = basis if symmetric else np.linalg.qr(rng.normal(size=a.shape))[0]
    a = (basis * values[:, None]) @ np.swapaxes(right, 1, 2)
    b = _offsets(rng, count, size)
    with np.errstate(all="ignore"):
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    out = jax.jit(jax.vmap(lambda a, b: solver(lambda v: a @ v, b)))(a, b)
    a, b, x = (np.asarray(part, float) for part in (a, b, out.value))
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        residual = np.linalg.norm(np.einsum("kij,kj->ki", a, x) - b, axis=1)
        rounding = _rounding(a, x, b, 1.2e-7)
        limit = 1.05 * linear.default_rtol(jnp.zeros(1)) * np.linalg.norm(b, axis=1)
        lies = good & ~(residual <= limit + 8 * size * rounding + 1.2e-38 * size)
    return Verdict(f"linear.{name}, n = {size}", count, int(good.sum()), int(lies.sum()), 0)


def audit_sinkhorn(seed: int, count: int, method: str) -> Verdict:
    """Costs of every scale, forbidden pairs, zero weights, epsilons from huge to tiny."""
    rng = np.random.default_rng(seed)
    n, m = 6, 5
    cost = rng.uniform(size=(count, n, m)) * 10.0 ** rng.integers(-3, 4, (count, 1, 1))
    cost[rng.random(cost.shape) < 0.02] = np.inf
    odd = rng.random(count) < 0.1
    cost[odd, 0, 0] = rng.choice([0.0, np.inf, np.nan, 1e30], odd.sum())
    epsilon = 10.0 ** rng.uniform(-3, 1, count) * np.where(
        np.isfinite(cost), cost, 0).mean((1, 2)).clip(1e-6, 1e6)
    a, b = rng.dirichlet(np.ones(n), count), rng.dirichlet(np.ones(m), count)
    a[rng.random(count) < 0.2, 1] = 0.0
    a /= a.sum(1, keepdims=True)
    weights = rng.normal(size=cost.shape)
    arrays = [jnp.asarray(part, jnp.float32) for part in (cost, a, b, epsilon, weights)]

    def total(cost: jax.Array, a: jax.Array, b: jax.Array, e: jax.Array, w: jax.Array) -> tuple:
        out = sinkhorn(cost, a, b, epsilon=e, method=method, max_steps=400)
        return e * jnp.sum(w * out.plan()), (out.f, out.g, out.solve.status)

    (_, (f, g, status)), slope = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))(*arrays)
    cost, a, b, epsilon, f, g = (np.asarray(part, float) for part in (*arrays[:4], f, g))
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        plan = np.exp((f[:, :, None] + g[:, None] - cost) / epsilon[:, None, None])
        plan = np.where(np.isneginf(f)[:, :, None] | np.isneginf(g)[:, None], 0, plan)
        error = np.abs(plan.sum(2) - a).sum(1) + np.abs(plan.sum(1) - b).sum(1)
        reach = np.where(np.isfinite(cost), cost, 0).max((1, 2)) / epsilon
        relative, absolute = default_tolerances(jnp.zeros(1))
        lies = good & ~(error <= 2 * (absolute + relative) + 2e-6 + 1e-6 * reach)
    silent = np.zeros(count, bool)
    for k in np.flatnonzero(good & (reach < 1e4)):
        exact, gap = _plan_slope(plan[k], weights[k])
        far = np.abs(np.asarray(slope[k]) - exact).max() > (
            5e-2 * np.abs(exact).max() + 1e-5 + error[k])
        silent[k] = gap > 1e-3 and (far or not np.isfinite(slope[k]).all())
    return Verdict(f"sinkhorn, {method}", count, int(good.sum()), int(lies.sum()),
                   int(silent.sum()))


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


def audit_recurrence(seed: int, count: int, method: str) -> Verdict:
    """tanh recurrences from forgetful to chaotic, with odd inputs; rows judged one by one."""
    rng = np.random.default_rng(seed)
    d, length = 3, 24
    w = rng.normal(size=(count, d, d)) * rng.choice([0.1, 0.5, 1.0, 3.0], (count, 1, 1))
    xs = rng.normal(size=(count, length, d))
    odd = rng.random(count) < 0.15
    xs[odd, length // 2, 0] = rng.choice([1e30, np.inf, np.nan], odd.sum())
    w, xs = jnp.asarray(w, jnp.float32), jnp.asarray(xs, jnp.float32)
    out = jax.jit(jax.vmap(lambda w, xs: solve_recurrence(
        lambda s, x: jnp.tanh(w @ s + x), jnp.zeros(d), xs, method=method, max_steps=12)))(w, xs)
    w, xs, s = (np.asarray(part, float) for part in (w, xs, out.value))
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        before = np.concatenate([np.zeros((count, 1, d)), s[:, :-1]], 1)
        gap = np.abs(s - np.tanh(np.einsum("kij,ktj->kti", w, before) + xs)).max((1, 2))
        lies = good & ~(gap <= 1e-3)
    return Verdict(f"solve_recurrence, {method}", count, int(good.sum()), int(lies.sum()), 0)


def audit_hypergradient(seed: int, count: int, solve: str) -> Verdict:
    """Quadratic inner problems, some singular or indefinite; the adjoint's residual and grad."""
    rng = np.random.default_rng(seed)
    size = 4
    h = _curvatures(rng, count, size, odd=0.15)
    c = rng.normal(size=(count, size)) * 10.0 ** rng.integers(-10, 10, (count, 1))
    c[rng.random(count) < 0.1, 0] = np.nan
    arrays = [jnp.asarray(part, jnp.float32) for part in (h, c)]

    def one(h: jax.Array, c: jax.Array) -> Any:
        return hypergradient(lambda x, y: c @ y, lambda x, y: y @ (h @ y) / 2 - x @ y,
                             jnp.ones(size), jnp.ones(size), solve=solve)

    out = jax.jit(jax.vmap(one))(*arrays)
    h, c, v, grad = (np.asarray(part, float) for part in (*arrays, out.v, out.grad))
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        residual = np.linalg.norm(np.einsum("kij,kj->ki", h, v) - c, axis=1)
        rounding = _rounding(h, v, c, 1.2e-7)
        lies = good & ~(residual <= 2e-5 * np.linalg.norm(c, axis=1) + 64 * rounding)
    silent = good & ~np.isfinite(grad).all(1)
    return Verdict(f"hypergradient, {solve}", count, int(good.sum()), int(lies.sum()),
                   int(silent.sum()))


def audit_inner(seed: int, count: int) -> Verdict:
    """Quadratics of condition 1 to 10,000, flat or falling ones, odd right-hand sides."""
    rng = np.random.default_rng(seed)
    size = 4
    h = _curvatures(rng, count, size, odd=0.1)
    with np.errstate(all="ignore"):
        h, c = jnp.asarray(h, jnp.float32), jnp.asarray(_offsets(rng, count, size), jnp.float32)
    out = jax.jit(jax.vmap(lambda h, c: solve_inner(
        lambda c, y: y @ (h @ y) / 2 - c @ y, jnp.zeros(size), c, max_steps=300)))(h, c)
    h, c, y = (np.asarray(part, float) for part in (h, c, out.value))
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        step = 1 / np.abs(np.linalg.eigvalsh(h)).max(1)  # at most 1.3 times the one used
        gap = step * np.linalg.norm(np.einsum("kij,kj->ki", h, y) - c, axis=1)
        relative, absolute = default_tolerances(jnp.zeros(1))
        rounding = step * _rounding(h, y, c, 1.2e-7)
        lies = good & ~(gap <= 1.4 * (absolute + relative * np.linalg.norm(y, axis=1))
                        + 8 * size * rounding)
    return Verdict("solve_inner", count, int(good.sum()), int(lies.sum()), 0)


def audit_sample(seed: int, count: int, linearization: str) -> Verdict:
    """Trajectories of 16 DDIM steps with stiff models and odd starts; rows judged one by one."""
    rng = np.random.default_rng(seed)
    sampler, size = ddim(linear_beta_schedule(16)), 3
    w = rng.normal(size=(count, size, size)) * rng.choice([0.1, 1.0, 4.0], (count, 1, 1))
    x = rng.normal(size=(count, size))
    odd = rng.random(count) < 0.15
    x[odd, 0] = rng.choice([1e30, np.inf, np.nan], odd.sum())
    w, x = jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)

    def solve(w: jax.Array, x: jax.Array) -> Any:
        model = Denoiser(lambda x, time: jnp.tanh(w @ x), "eps")
        return sample_parallel(sampler, model, x, tolerance=1e-4, tolerance_scale="absolute",
                               linearization=linearization, max_steps=14)

    out = jax.jit(jax.vmap(solve))(w, x)
    w, rows = np.asarray(w, float), np.asarray(out.trajectory, float)
    good = np.asarray(out.status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        values = np.tanh(np.einsum("kij,ktj->kti", w, rows[:, :-1]))
        state, model = (np.asarray(part, float)[:, :1] for part in (sampler.state, sampler.model))
        image = state * rows[:, :-1] + model * values
        gap = np.abs(rows[:, 1:] - image).max((1, 2))
        lies = good & ~(gap <= 2e-3 * (1 + np.abs(rows).max((1, 2)) * 1e-3))
    return Verdict(f"sample_parallel, {linearization}", count, int(good.sum()), int(lies.sum()), 0)
