"""Recurrences and parallel samples: every row of the returned trajectory, judged in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion import (
    Denoiser,
    absolute,
    ddim,
    exponential_multistep,
    linear_beta_schedule,
    log_snr_schedule,
    paratta,
    sample_parallel,
)
from jaxiter.recurrence import gauss_seidel, solve_recurrence
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import Verdict, cast, exactly, half_ulp, name, verdict

#: A residual is what it is said to be up to this factor and rounding.
ROOM = 1.2
#: Roundings of a row, relative to the magnitudes it adds; tanh alone is a few.
ROUNDINGS = 16
#: The default tolerance of a row, relative and absolute.
ROW_TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
SIZE, LENGTH = 3, 24


@cache
def _recurrence(method: str, window: int | None) -> Callable:
    chosen: dict[str, Any] = {"method": method, "window": window}
    if method == "gauss_seidel":  # the window is the length of its blocks
        chosen = {"method": gauss_seidel(window or 1)}

    def solve(w: jax.Array, xs: jax.Array) -> tuple:
        out = solve_recurrence(lambda s, x: jnp.tanh(w @ s + x), jnp.zeros(SIZE, xs.dtype), xs,
                               **chosen, max_steps=16)
        return out.value, out.status, out.residual

    return jax.jit(jax.vmap(solve))


def audit_recurrence(
    seed: int, count: int, method: str, window: int | None = None, dtype: Any = jnp.float32
) -> Verdict:
    """tanh recurrences from forgetful to chaotic, some with odd inputs.

    False also where the residual that is reported is less than that of all returned rows.
    """
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(count, SIZE, SIZE)) * rng.choice([0.1, 0.5, 1.0, 3.0], (count, 1, 1))
    xs = rng.normal(size=(count, LENGTH, SIZE))
    odd = rng.random(count) < 0.15
    xs[odd, LENGTH // 2, 0] = rng.choice([1e30, np.inf, np.nan], odd.sum())
    arrays = cast(dtype, w, xs)
    rows, status, said = _recurrence(method, window)(*arrays)
    w, xs, s, said = exactly(*arrays, rows, said)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        before = np.concatenate([np.zeros((count, 1, SIZE)), s[:, :-1]], 1)
        off = s - np.tanh(np.einsum("kij,ktj->kti", w, before) + xs)
        gap, total = np.abs(off).max(2), np.linalg.norm(off, axis=(1, 2))
        # tanh flattens large arguments, and with them their roundings.
        inside = np.einsum("kij,ktj->kti", np.abs(w), np.abs(before)) + np.abs(xs)
        room = ROUNDINGS * half_ulp(dtype) * (1 + np.minimum(inside.max(2), 20))
        limit = ROW_TOLERANCES[name(dtype)] * (1 + np.abs(s).max(2))
        kept = (gap <= ROOM * limit + room).all(1)
        told = total <= ROOM * said + np.linalg.norm(room, axis=1) * SIZE**0.5
    label = "" if window is None else f", window {window}"
    return verdict(f"solve_recurrence, {method}{label}, {name(dtype)}", status,
                   good & ~(kept & told))


def samplers() -> dict:
    """Samplers that reach one and three rows back."""
    schedule = log_snr_schedule(LENGTH)
    return {"ddim": ddim(linear_beta_schedule(LENGTH)),
            "third order": exponential_multistep(schedule, 3, currency="eps"),
            "third order in x0": exponential_multistep(schedule, 3)}


@cache
def _sampler(name: str) -> Any:
    return samplers()[name]


@cache
def _parallel(
    sampler: str, method: str, window: int | None, memory: int | None, scale: str
) -> Callable:
    chosen = method if memory is None else paratta(memory=memory)

    def solve(w: jax.Array, x: jax.Array, tolerance: jax.Array) -> tuple:
        model = Denoiser(lambda x, time: jnp.tanh(w @ x), "eps")
        out = sample_parallel(
            _sampler(sampler), model, x, method=chosen, window=window,
            tolerance=absolute(tolerance) if scale == "absolute" else tolerance)
        return out.trajectory, out.status, out.solve.residual

    return jax.jit(jax.vmap(solve, (0, 0, None)))


def _row_gaps(sampler: Any, w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares `[count, R]` of what rows are off the sampler's formula; magnitudes."""
    alpha, sigma = sampler.alpha[:, None], sampler.sigma[:, None]
    eps = np.tanh(np.einsum("kij,ktj->kti", w, x[:, :-1]))
    values, sizes = eps, np.ones_like(eps)
    if sampler.currency == "x0":
        values = (x[:, :-1] - sigma * eps) / alpha
        sizes = (np.abs(x[:, :-1]) + sigma) / alpha
    image = np.zeros_like(x[:, 1:])
    terms = np.abs(x[:, 1:])
    for table, rows, size in ((sampler.state, x[:, :-1], np.abs(x[:, :-1])),
                              (sampler.model, values, sizes)):
        for j in range(table.shape[1]):
            column = table[j:, j, None]
            image[:, j:] += column * rows[:, : rows.shape[1] - j]
            terms[:, j:] += np.abs(column) * size[:, : rows.shape[1] - j]
    off = x[:, 1:] - image
    return tuple(np.sqrt(np.mean(part**2, axis=2)) for part in (off, terms))  # type: ignore


def audit_sample(
    seed: int, count: int, method: str, window: int | None = None, sampler: str = "ddim",
    memory: int | None = None, dtype: Any = jnp.float32, tolerance: float = 1e-4,
    scale: str = "absolute", odd: bool = True,
) -> Verdict:
    """Samples with gentle and stiff models: the rows returned, and the residual reported.

    CONVERGED is false where a row is further off the sampler's formula than the tolerance, or
    than the residual that is reported.
    """
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(count, SIZE, SIZE)) * rng.choice([0.1, 1.0, 4.0], (count, 1, 1))
    x = rng.normal(size=(count, SIZE))
    strange = rng.random(count) < (0.15 if odd else 0)
    x[strange, 0] = rng.choice([1e30, np.inf, np.nan], strange.sum())
    arrays = cast(dtype, w, x, np.asarray(tolerance))
    solve = _parallel(sampler, method, window, memory, scale)
    trajectory, status, said = solve(*arrays)
    w, rows, said = exactly(arrays[0], trajectory, said)
    good = np.asarray(status) == Status.CONVERGED
    table = _sampler(sampler)
    unit = table.scale if scale == "noise" else np.ones(table.rows)
    with np.errstate(all="ignore"):
        gap, terms = _row_gaps(table, w, rows)
        room = ROUNDINGS * half_ulp(dtype) * terms
        kept = (gap <= ROOM * tolerance * unit + room).all(1)
        told = np.linalg.norm(gap, axis=1) * SIZE**0.5 <= ROOM * said + (
            np.linalg.norm(room, axis=1) * SIZE**0.5)
    label = method if memory is None else f"{method} {memory}"
    label += "" if window is None else f", window {window}"
    return verdict(f"sample_parallel, {label}, {sampler}, {name(dtype)}", status,
                   good & ~(kept & told))
