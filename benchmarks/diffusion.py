"""Rounds of parallel sampling to the loop's sample: `python benchmarks/diffusion.py`.

Exact mixture models, float32, the linear-beta grid with trailing spacing. A round is one
batched model call. Rounds are those until the last state is within 1e-3 (root mean square) of
the loop's, over 16 seeds; the sliding window stops by its own noise-scaled tolerance of 0.1.
"""

from typing import Any

import jax
import numpy as np

from harness import save, show
from jaxiter.diffusion import ddim, ddpm, linear_beta_schedule, sample, sample_parallel
from jaxiter.testing.diffusion import digits, gmm64, hard64, mixture_denoiser

BEDS = {"GMM64": gmm64, "HARD64": hard64, "DIG": digits}
SAMPLERS = {"ODE": ddim, "SDE": ddpm}
METHODS = {"secant": 24, "jvp": 24, "gaussian": 40, "picard": 60}
SEEDS = 16


def starts() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return keys, jax.random.normal(jax.random.key(1), (SEEDS, 64))


def full_window(steps: int = 100) -> list[dict]:
    """Mean and largest number of rounds over the seeds."""
    rows, schedule = [], linear_beta_schedule(steps)
    keys, x = starts()
    for bed, mixture in BEDS.items():
        model = mixture_denoiser(mixture(), schedule)
        for kind, make in SAMPLERS.items():
            sampler = make(schedule)
            exact = np.asarray(jax.jit(jax.vmap(
                lambda x, k, s=sampler, m=model: sample(s, m, x, k)))(x, keys))
            for method, limit in METHODS.items():
                solve = jax.jit(jax.vmap(
                    lambda x, k, n, s=sampler, m=model, lin=method: sample_parallel(
                        s, m, x, k, max_steps=n, tolerance=1e-6, linearization=lin).value,
                    in_axes=(0, 0, None)))
                needed, left = np.zeros(SEEDS, int), np.ones(SEEDS, bool)
                for rounds in range(1, limit + 1):
                    error = np.sqrt(np.mean((np.asarray(solve(x, keys, rounds)) - exact) ** 2, 1))
                    done = left & (error < 1e-3)
                    needed[done], left = rounds, left & ~done
                    if not left.any():
                        break
                rows.append({"problem": bed, "sampler": kind, "T": steps, "method": method,
                             "mean_rounds": float(needed[~left].mean()) if (~left).any() else None,
                             "max_rounds": int(needed.max()), "not_reached": int(left.sum())})
    show(rows)
    return rows


def sliding_window(steps: int = 1000) -> list[dict]:
    """GMM64, SDE, tolerance 0.1: mean rounds and model calls by window."""
    rows, schedule = [], linear_beta_schedule(steps)
    sampler, model = ddpm(schedule), mixture_denoiser(gmm64(), schedule)
    keys, x = starts()
    for window in (20, 100, 1000):
        for method, init in (("secant", "auto"), ("picard", "copy")):
            out = jax.jit(jax.vmap(
                lambda x, k, w=window, m=method, i=init: sample_parallel(
                    sampler, model, x, k, window=w, tolerance=0.1, linearization=m, init=i)
            ))(x[:4], keys[:4])
            assert bool(out.converged.all())
            rows.append({"T": steps, "window": window, "method": method,
                         "mean_rounds": float(out.rounds.mean()),
                         "mean_evaluations": float(out.evaluations.mean())})
    show(rows)
    return rows


if __name__ == "__main__":
    save("diffusion", {"full_window": full_window(), "sliding_window": sliding_window()})
