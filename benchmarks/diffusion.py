"""Rounds of parallel sampling to the loop's sample: `python benchmarks/diffusion.py [part ...]`.

Exact mixture models and a network trained on digits, float32, the linear-beta grid with trailing
spacing. A round is one batched model call (jvp: two, one after the other). Rounds are those until
the last state is within 1e-3 (root mean square) of the loop's, over 16 seeds (4 for T > 200);
rivals start as their papers do. The sliding window stops by its own noise-scaled tolerance.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_rivals import chords, frozen_data_start, srds
from harness import run_parts, show
from jaxiter.diffusion import (
    Denoiser,
    ddim,
    ddpm,
    linear_beta_schedule,
    paratta,
    sample,
    sample_parallel,
)
from jaxiter.testing.diffusion import (
    digits,
    gmm64,
    hard64,
    mixture_denoiser,
    network_denoiser,
    trained_network,
)

BEDS = ("GMM64", "HARD64", "DIG", "MLP")
SAMPLERS = {"ODE": ddim, "SDE": ddpm}
TOLERANCE = 1e-3


def methods(steps: int) -> dict[str, dict]:
    """Keywords of every contender; None stands for all rows."""
    own = {"init": "copy"}
    return {
        "secant": {}, "secant + jvp": {"method": "jvp"},
        "Picard": {"method": "picard", **own},
        "exponential Picard": {"method": paratta(steps, memory=0), **own},
        "ParaTAA": {"method": paratta(steps, memory=2), **own},
        "ParaTAA, order 20": {"method": paratta(20, memory=2), **own},
    }


@cache
def network() -> Any:
    return trained_network()[0]


def model_of(bed: str, schedule: Any) -> Denoiser:
    if bed == "MLP":
        return network_denoiser(network(), linear_beta_schedule(1000))
    return mixture_denoiser({"GMM64": gmm64, "HARD64": hard64, "DIG": digits}[bed](), schedule)


def starts(seeds: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), seeds)
    return keys, jax.random.normal(jax.random.key(1), (seeds, 64))


def rounds_needed(solve: Any, exact: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds after which a seed is within the tolerance, by bisection, and which never get there.

    solve(n) takes one number of rounds per seed.
    """
    def good(rounds: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean((np.asarray(solve(rounds)) - exact) ** 2, 1)) < TOLERANCE

    low, high = np.zeros(len(exact), np.int32), np.full(len(exact), limit, np.int32)
    left = ~good(high)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        within = good(middle)
        low, high = np.where(within, low, middle), np.where(within, middle, high)
    return high, left


def full_window(steps: int, seeds: int) -> list[dict]:
    """Mean and largest number of rounds over the seeds, window T."""
    rows, schedule = [], linear_beta_schedule(steps)
    keys, x = starts(seeds)
    for bed in BEDS:
        model = model_of(bed, schedule)
        for kind, make in SAMPLERS.items():
            sampler = make(schedule)
            exact = np.asarray(jax.jit(jax.vmap(
                lambda x, k, s=sampler, m=model: sample(s, m, x, k)))(x, keys))
            for method, keywords in methods(steps).items():
                run = jax.jit(jax.vmap(
                    lambda x, k, n, s=sampler, m=model, kw=keywords: sample_parallel(
                        s, m, x, k, max_steps=n, tolerance=1e-6, **kw).value,
                    in_axes=(0, 0, 0)))
                needed, left = rounds_needed(lambda n, run=run: run(x, keys, n), exact, 60)
                rows.append(row(bed, kind, steps, method, needed, left))
            rows.append(parasolver(bed, kind, sampler, schedule, model, keys, x, exact))
            if kind == "ODE":
                eps = batched(model, schedule)
                depth = np.array([srds(eps, schedule, np.asarray(x[i], np.float64), exact[i],
                                       TOLERANCE) for i in range(seeds)])
                rows.append(row(bed, kind, steps, "SRDS (serial depth)", depth, depth < 0))
    show(rows)
    return rows


def row(bed: str, kind: str, steps: int, method: str, needed: Any, left: Any) -> dict:
    met = needed[~left]
    return {"problem": bed, "sampler": kind, "T": steps, "method": method,
            "mean_rounds": float(met.mean()) if len(met) else None,
            "max_rounds": int(met.max()) if len(met) else None, "not_reached": int(left.sum())}


def batched(model: Denoiser, schedule: Any) -> Any:
    tables = [jnp.asarray(t[:-1], jnp.float32) for t in schedule]
    run = jax.jit(jax.vmap(lambda x, i: model.convert(x, *(t[i] for t in tables))[0]))
    return lambda x, i: np.asarray(run(jnp.asarray(x, jnp.float32), jnp.asarray(i)), np.float64)


def parasolver(
    bed: str, kind: str, sampler: Any, schedule: Any, model: Any, keys: Any, x: Any, exact: Any
) -> dict:
    """Picard from a frozen-x0 start; its first call counts as a round."""
    eps, drawn = batched(model, schedule), None
    if kind == "SDE":
        drawn = jax.vmap(lambda k: jax.vmap(lambda t: jax.random.normal(
            jax.random.fold_in(k, t), (64,)))(jnp.arange(sampler.rows)))(keys)
    first = jnp.asarray(np.stack([frozen_data_start(
        eps, schedule, sampler, np.asarray(x[i], np.float64),
        None if drawn is None else np.asarray(drawn[i], np.float64)) for i in range(len(x))]),
        jnp.float32)
    run = jax.jit(jax.vmap(lambda x, k, init, n: sample_parallel(
        sampler, model, x, k, max_steps=n, tolerance=1e-6, method="picard",
        init=init).value, in_axes=(0, 0, 0, 0)))
    needed, left = rounds_needed(lambda n: run(x, keys, first, n), exact, 60)
    return row(bed, kind, schedule.steps, "ParaSolver's start", needed + 1, left)


def sliding_window(steps: int, seeds: int = 4) -> list[dict]:
    """GMM64, SDE, tolerance 0.1: mean rounds and model calls by window."""
    rows, schedule = [], linear_beta_schedule(steps)
    sampler, model = ddpm(schedule), model_of("GMM64", schedule)
    keys, x = starts(seeds)
    for window in sorted({8, 20, 50, 100, steps} & set(range(1, steps + 1))):
        for method, init in (("secant", "auto"), ("picard", "copy")):
            out = jax.jit(jax.vmap(partial(
                sample_parallel, sampler, model, window=window, tolerance=0.1,
                method=method, init=init)))(x, keys)
            assert bool(out.converged.all())
            rows.append({"T": steps, "window": window, "method": method,
                         "mean_rounds": float(out.rounds.mean()),
                         "mean_evaluations": float(out.solve.calls["model"].mean())})
    show(rows)
    return rows


def eight_workers(seeds: int = 8) -> list[dict]:
    """T = 50, ODE, eight model calls at a time: CHORDS' first sample and a window of 8 to 0.01."""
    rows, schedule = [], linear_beta_schedule(50)
    sampler = ddim(schedule)
    keys, x = starts(seeds)
    for bed in BEDS:
        model = model_of(bed, schedule)
        eps = batched(model, schedule)
        exact = np.asarray(jax.jit(jax.vmap(lambda x, m=model: sample(sampler, m, x)))(x))
        arrivals = [chords(eps, schedule, np.asarray(x[i], np.float64),
                           [0, 2, 4, 8, 16, 24, 32, 40]) for i in range(seeds)]
        out = jax.jit(jax.vmap(lambda x, m=model: sample_parallel(
            sampler, m, x, window=8, tolerance=0.01)))(x)
        for method, rounds, value in (
            ("CHORDS, first", np.mean([a[0][0] for a in arrivals]),
             np.stack([a[0][1] for a in arrivals])),
            ("CHORDS, last", np.mean([a[-1][0] for a in arrivals]),
             np.stack([a[-1][1] for a in arrivals])),
            ("secant, window 8", out.rounds.mean(), np.asarray(out.value)),
        ):
            error = np.sqrt(np.mean((value - exact) ** 2, 1))
            rows.append({"problem": bed, "method": method, "mean_rounds": float(rounds),
                         "mean_error": float(error.mean()), "max_error": float(error.max())})
    show(rows)
    return rows


def full_windows() -> list[dict]:
    counts = {25: 16, 100: 16, 200: 16, 500: 4, 1000: 4}
    return [entry for steps, seeds in counts.items() for entry in full_window(steps, seeds)]


if __name__ == "__main__":
    run_parts("diffusion", {"full_window": full_windows,
                            "sliding_window": partial(sliding_window, 1000),
                            "eight_workers": eight_workers})
