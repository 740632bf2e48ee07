"""Exponential integrators with polynomial history: one table for a family of solvers.

Between two rows, with lam = log(alpha / sigma) and h its step, the exact solution is an
integral of the model against an exponential. Replacing the model by the polynomial through its
last n values gives, with the phi functions of exponential integrators,

    x' = (alpha' / alpha) x - sigma' sum_k h^(k+1) phi_{k+1}(h) eps^(k)      (in eps)
    x' = (sigma' / sigma) x + alpha' sum_k h^(k+1) phi_{k+1}(-h) x0^(k)      (in x0)

DDIM is order 1, DPM-Solver++(2M) in its exact form order 2 in x0. Orders may differ from step
to step, and `search_orders` finds good ones.

Source: Liu, Ning, Lin, Yang and Wang, "A unified sampling framework for solver searching of
diffusion probabilistic models", 2024; Lu et al., "DPM-Solver++", 2022.
"""

from collections.abc import Sequence
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.sample import sample
from jaxiter.diffusion.samplers import Sampler, pairs, tables
from jaxiter.diffusion.schedules import NoiseSchedule, make_schedule

LARGEST_ORDER = 3


def exponential_multistep(
    schedule: NoiseSchedule, orders: int | Sequence[int] | np.ndarray = 2, *, currency: str = "x0"
) -> Sampler:
    """The exponential integrator of the given order, or of one order per step.

    Args:
      schedule: alpha and sigma positive on every row; the last sigma may be 0 in x0.
      orders: 1..3; steps without enough history take what there is.
      currency: "x0" (data prediction, as DPM-Solver++) or "eps" (as DPM-Solver).

    >>> from jaxiter.diffusion import vp_schedule
    >>> exponential_multistep(vp_schedule(8), 3).model.shape
    (8, 3)
    """
    if currency not in ("eps", "x0"):
        raise ValueError(f"currency must be 'eps' or 'x0', got {currency!r}.")
    count = schedule.steps
    wanted = np.broadcast_to(orders, (count,))
    if np.any(wanted < 1) or np.any(wanted > LARGEST_ORDER):
        raise ValueError(f"orders must be in 1..{LARGEST_ORDER}, got {orders}.")
    if np.any(schedule.alpha[:-1] <= 0) or (currency == "eps" and schedule.sigma[-1] == 0):
        raise ValueError("alpha must be positive on every row, and sigma too in eps.")
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    lam = schedule.lam
    sign, lead, state = (1, -sigma1, alpha1 / alpha) if currency == "eps" else (
        -1, alpha1, sigma1 / sigma)
    model = np.zeros((count, LARGEST_ORDER))
    for t in range(count):
        n = int(min(wanted[t], t + 1))
        if sigma1[t] == 0:  # an infinite step has no polynomial: the model's x0 itself
            model[t, 0] = alpha1[t]
            continue
        h = lam[t + 1] - lam[t]
        past = lam[t - n + 1: t + 1][::-1] - lam[t]  # 0 for the newest
        # The inverse has weights of the values for the k-th derivative of their polynomial over k!.
        moves = lead[t] * h ** np.arange(1, n + 1) * phi(sign * h, n)
        factorials = [factorial(k) for k in range(n)]
        model[t, :n] = moves * factorials @ np.linalg.inv(np.vander(past, increasing=True))
    return tables(schedule, [state], list(model.T), currency=currency)


def phi(z: float, count: int) -> np.ndarray:
    """phi_1(z) .. phi_count(z): `phi_k(z) = sum_j z^j / (j + k)!`, series near 0.

    >>> phi(0.0, 3).round(4).tolist()
    [1.0, 0.5, 0.1667]
    """
    if abs(z) < 1:
        return np.array([sum(z**j / factorial(j + k) for j in range(20))
                         for k in range(1, count + 1)])
    values = [np.expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - 1 / factorial(k)) / z)
    return np.array(values)


class SolverSearch(NamedTuple):
    """Answer of `search_orders`: the sampler, its error, that of the best seed, all choices."""

    sampler: Sampler
    schedule: NoiseSchedule
    error: float
    seed_error: float
    orders: np.ndarray


def search_orders(
    schedule: NoiseSchedule, denoiser: Denoiser, x: jax.Array, reference: jax.Array, steps: int, *,
    currency: str = "x0", population: int = 64, max_steps: int = 10, seed: int = 0,
) -> SolverSearch:
    """Rows and orders of `steps` steps that come nearest to reference samples, by evolution.

    A candidate is a set of rows of the schedule and an order per step; all candidates of a
    generation are run at once, as tables under one vmap. The seeds are evenly spread rows with
    orders 1, 2 and 3, so the answer is never worse than these on the given starts.

    Args:
      schedule: the fine grid, at least `steps` steps. The first and the last row are kept.
      denoiser: told the schedule's times.
      x, reference: starts and samples to match, `[B, ...]`.
      population: candidates of a generation. max_steps: generations. seed: of numpy's draws.

    Returns:
      A `SolverSearch`; `error` is the root mean square on the given starts. Report it on others.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be in 1..{schedule.steps}, the schedule's, got {steps}.")
    if x.shape != reference.shape:
        raise ValueError(f"x and reference must have one shape, got {x.shape}, {reference.shape}.")
    rng = np.random.default_rng(seed)
    inner = schedule.steps - 1

    def build(rows: np.ndarray, orders: np.ndarray) -> tuple[Sampler, NoiseSchedule]:
        part = make_schedule(*(table[rows] for table in schedule))
        return exponential_multistep(part, orders, currency=currency), part

    def mutate(rows: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shifts = rng.integers(-2, 3, steps - 1) * (rng.random(steps - 1) < 0.5)
        moved = np.unique(np.clip(rows[1:-1] + shifts, 1, inner))
        free = np.setdiff1d(np.arange(1, inner + 1), moved)
        moved = np.append(moved, rng.choice(free, steps - 1 - len(moved), replace=False))
        changed = np.where(rng.random(steps) < 0.3, rng.integers(1, LARGEST_ORDER + 1, steps),
                           orders)
        return np.concatenate([[0], np.sort(moved), [inner + 1]]).astype(int), changed

    @jax.jit
    @jax.vmap
    def errors(table: dict) -> jax.Array:
        sampler = Sampler(noise=np.zeros(steps), currency=currency, **table)
        out = jax.vmap(lambda x: sample(sampler, denoiser, x))(x)
        return jnp.sqrt(jnp.mean(jnp.square(out - reference)))

    def score(candidates: list) -> np.ndarray:
        built = [build(*candidate)[0] for candidate in candidates]
        found = np.asarray(errors({
            name: jnp.asarray(np.stack([getattr(sampler, name) for sampler in built]), x.dtype)
            for name in ("state", "model", "alpha", "sigma", "time", "scale")}))
        return np.where(np.isfinite(found), found, np.inf)

    even = np.round(np.linspace(0, schedule.steps, steps + 1)).astype(int)
    seeds = [(even, np.full(steps, order)) for order in range(1, LARGEST_ORDER + 1)]
    pool = seeds + [mutate(*seeds[i % 3]) for i in range(population - len(seeds))]
    scores = score(pool)
    best_seed = float(scores[: len(seeds)].min())
    for _ in range(max_steps):
        ranked = np.argsort(scores, kind="stable")[: max(population // 4, 1)]
        children = [mutate(*pool[rng.choice(ranked)]) for _ in range(population)]
        merged, both = pool + children, np.append(scores, score(children))
        kept = np.argsort(both, kind="stable")[:population]
        pool, scores = [merged[i] for i in kept], both[kept]
    winner = int(np.argmin(scores))
    sampler, part = build(*pool[winner])
    return SolverSearch(sampler, part, float(scores[winner]), best_seed, pool[winner][1])
