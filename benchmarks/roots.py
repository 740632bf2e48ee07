"""Roots against scipy, optimistix and jaxopt: how many systems are solved, and how long it takes.

`python benchmarks/roots.py [solved] [times] [brackets]` writes results/roots.json. `solved`: every
case of `roots_problems`, judged by numpy in float64; a claim is false that it contradicts. `times`:
small systems, compiled and from a prompt. `brackets`: 10,000 equations of Kepler and cubics.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix
from scipy.optimize import root as scipy_root

import jaxiter as ji
from harness import run_parts, show, time_all
from roots_problems import System, problems, solved

STEPS = 1000


def contenders(dtype: Any) -> dict[str, Callable]:
    """`solve(system) -> (x, claimed)`."""
    tight = 1e-8 if dtype == np.float64 else 1e-5

    def ours(method: str) -> Callable:
        def solve(system: System) -> tuple:
            out = jax.jit(lambda x: ji.root(
                lambda x: system.f(jnp, x), x, method=method, max_steps=STEPS))(start(system))
            return out.value, out.converged

        return solve

    def theirs(rule: Any) -> Callable:
        def solve(system: System) -> tuple:
            def run(x: jax.Array) -> tuple:
                out = optimistix.root_find(
                    lambda x, _: system.f(jnp, x), rule, x, max_steps=STEPS, throw=False)
                return out.value, out.result == optimistix.RESULTS.successful

            return jax.jit(run)(start(system))

        return solve

    def scipys(system: System) -> tuple:
        out = scipy_root(lambda x: system.f(np, x), system.start, method="hybr")
        return out.x, out.success

    def jaxopts(system: System) -> tuple:
        run = jaxopt.Broyden(lambda x: system.f(jnp, x), tol=tight, maxiter=STEPS)
        out = run.run(start(system))
        return out.params, out.state.error <= tight

    def start(system: System) -> jax.Array:
        return jnp.asarray(system.start.astype(dtype))

    return {
        "jaxiter hybrid": ours("hybrid"), "jaxiter krylov": ours("krylov"),
        "jaxiter anderson": ours("anderson"),
        "optimistix Newton": theirs(optimistix.Newton(tight, tight)),
        "optimistix Dogleg": theirs(optimistix.Dogleg(tight, tight)),
        "scipy hybr (float64)": scipys, "jaxopt Broyden": jaxopts}


def count(few: int | None = None) -> list[dict]:
    rows = []
    for dtype, digits in ((np.float64, 1e-5), (np.float32, 1e-3)):
        with jax.enable_x64(dtype == np.float64):
            chosen = list(problems().items())[:few]
            for name, solve in contenders(dtype).items():
                good, claims, false = [], 0, []
                for case, system in chosen:
                    try:
                        with warnings.catch_warnings(), np.errstate(all="ignore"):
                            warnings.simplefilter("ignore")
                            x, claimed = solve(system)
                    except Exception as error:  # noqa: BLE001, a peer that raises has not solved it
                        print(case, name, type(error).__name__)
                        continue
                    fine = solved(system, np.asarray(x), digits)
                    claims += bool(claimed)
                    good += [case] if fine else []
                    false += [case] if claimed and not fine else []
                jax.clear_caches()
                rows.append({"method": name, "dtype": np.dtype(dtype).name, "cases": len(chosen),
                             "solved": len(good), "claimed": claims, "false": len(false),
                             "false_cases": false})
                show([{k: v for k, v in rows[-1].items() if k != "false_cases"}])
    return rows


MATRIX = np.asarray(np.eye(8) + 0.1 * np.random.default_rng(0).normal(size=(8, 8)), np.float32)
SMALL = {
    "square root": (lambda x, a: x * x - a, np.float32(1), np.float32(2)),
    "Rosenbrock": (lambda x, a: jnp.stack([10 * (x[1] - x[0] ** 2), a - x[0]]),
                   np.array([-1.2, 1], np.float32), np.float32(1)),
    "tanh, 8": (lambda x, a: x - jnp.tanh(MATRIX @ x + a), np.zeros(8, np.float32),
                np.float32(0.3)),
    "sines, 20": (lambda x, a: x + 0.3 * jnp.sin(x[::-1]) - a, np.zeros(20, np.float32),
                  np.float32(0.7)),
}


def times() -> list[dict]:
    """Microseconds, compiled and from a prompt, in one run."""
    rows = []
    for name, (f, x0, a) in SMALL.items():
        rule = optimistix.Newton(1e-5, 1e-6)
        calls = {
            "jaxiter hybrid": lambda x, a, f=f: ji.root(f, x, a).value,
            "jaxiter anderson": lambda x, a, f=f: ji.root(f, x, a, method="anderson").value,
            "optimistix Newton": lambda x, a, f=f, rule=rule: optimistix.root_find(
                f, rule, x, a, throw=False).value}
        x0, a = jnp.asarray(x0), jnp.asarray(a)
        compiled = time_all({k: jax.jit(c) for k, c in calls.items()}, x0, a, repeats=301)
        prompt = time_all(calls, x0, a, repeats=15)
        rows += [{"system": name, "method": k, "compiled us": float(np.median(compiled[k]) * 1e6),
                  "prompt us": float(np.median(prompt[k]) * 1e6)} for k in calls]
    show(rows)
    return rows


def brackets() -> list[dict]:
    """Largest error in ulp of float32, and seconds of a warm call, of 10,000 in one."""
    rng, n, rows = np.random.default_rng(0), 10000, []
    e, m = (rng.uniform(0, high, n).astype(np.float32) for high in (0.8, np.pi))
    p, q = (10 ** rng.uniform(-3, 3, n)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    families = {"Kepler": (lambda x, e, m, np=jnp: x - e * np.sin(x) - m, e, m),
                "cubic": (lambda x, p, q, np=jnp: x * (x * x + p) - q, p, q)}
    for name, (f, *args) in families.items():
        run = jax.jit(lambda *args, f=f: ji.bracketed_root(f, -5.0, 5.0, *args))
        out = jax.block_until_ready(run(*args))
        begun = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds = time.perf_counter() - begun
        low, high = np.full(n, -5.0), np.full(n, 5.0)
        for _ in range(100):
            middle = (low + high) / 2
            above = f(middle, *(arg.astype(float) for arg in args), np) > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        off = np.abs(np.asarray(out.value, float) - low) / np.spacing(np.abs(low).astype("f4"))
        rows.append({"family": name, "converged": int(out.converged.sum()),
                     "largest ulp": float(off.max()), "mean steps": float(out.steps.mean()),
                     "most steps": int(out.steps.max()), "seconds": seconds})
    show(rows)
    return rows


if __name__ == "__main__":
    run_parts("roots", {"solved": count, "times": times, "brackets": brackets})
