"""Linear programs by products alone, against MPAX and HiGHS; certificates.

Claims: of the card's generator, 50 x 100 to 200 x 400, at MPAX's own recomputed relative error, at
most 0.8 of its iterations and 0.5 of its seconds in the median (float64, 1e-6); 1e-4 in float32 on
every one. Of 20 x 40 programs in float32 every infeasible one is proved so within 5,000 steps,
every unbounded one within 20,000, and none of 200 solvable ones, half of them in bad units.
`python benchmarks/linear_programs.py [solved] [single] [proved]` writes
results/linear_programs.json; SMALL=1 makes it short.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpax
import numpy as np
from scipy.optimize import linprog

import jaxiter as ji
from harness import run_parts, show, time_all
from jaxiter.operators import linear_program

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.linear_programs import (  # noqa: E402
    contradicting,
    in_bad_units,
    infeasible,
    solvable,
    unbounded,
)

SMALL = bool(os.environ.get("SMALL"))
SIZES = ((50, 100), (100, 200)) if SMALL else ((50, 100), (100, 200), (200, 400))
SEEDS = range(10, 12 if SMALL else 14)


def error(a: Any, b: Any, c: Any, x: Any, y: Any) -> float:
    """The largest relative error of x and the multipliers y of A x = b, in float64 by numpy."""
    a, b, c, x, y = (np.asarray(v, np.float64) for v in (a, b, c, x, y))
    primal, dual, norm = c @ x, b @ y, np.linalg.norm
    return float(max(
        norm(a @ x - b) / (1 + norm(b)), norm(np.minimum(x, 0)) / (1 + norm(x)),
        norm(np.minimum(c - a.T @ y, 0)) / (1 + norm(c)),
        abs(primal - dual) / (1 + abs(primal) + abs(dual))))


def highs(a: Any, b: Any, c: Any) -> np.ndarray:
    return linprog(c, A_eq=a, b_eq=b).x


def ours(a: jax.Array, b: jax.Array, c: jax.Array, rtol: jax.Array) -> Any:
    return linear_program(c, A=a, b=b, lower=0.0, stop=ji.tolerance(rtol=rtol, atol=0.0))


def theirs(solver: Callable) -> Callable:
    def run(program: Any) -> Any:
        return solver.optimize(program)

    return jax.jit(run)


def as_mpax(a: Any, b: Any, c: Any) -> Any:
    n = len(c)
    return mpax.create_lp(c, a, b, np.zeros((1, n)), -np.ones(1), np.zeros(n), np.full(n, np.inf))


def reached(data: tuple, program: Callable, goal: float) -> tuple[Any, float]:
    """Our answer at a recomputed error of at most `goal`: the tolerance is halved until it is."""
    rtol = goal
    while True:
        out = program(*data, rtol)
        last = error(*data, out.x, -out.equality_dual)
        if last <= goal or rtol < goal / 64:
            return out, rtol
        rtol /= 2


def solved() -> dict:
    """Iterations and seconds at the error that MPAX has reached, beside those at 1e-6."""
    rows = []
    settings = {"eps_abs": 1e-6, "eps_rel": 1e-6, "iteration_limit": 100_000, "verbose": False}
    with jax.enable_x64(True):
        for m, n in SIZES:
            program = jax.jit(ours)
            peers = {"r2HPDHG": theirs(mpax.r2HPDHG(**settings)),
                     "raPDHG": theirs(mpax.raPDHG(**settings))}
            for seed in SEEDS:
                a, b, c, _ = solvable(m, n, seed)
                data, posed = tuple(map(jnp.asarray, (a, b, c))), as_mpax(a, b, c)
                found = {name: peer(posed) for name, peer in peers.items()}
                errors = {name: error(a, b, c, f.primal_solution, f.dual_solution[:m])
                          for name, f in found.items()}
                goal = min(1e-6, errors["r2HPDHG"])
                plain, (best, rtol) = program(*data, 1e-6), reached(data, program, goal)
                seconds = time_all({
                    "jaxiter": lambda d=data, r=rtol, f=program: f(*d, r).x,
                    **{name: lambda f=peer, p=posed: f(p).primal_solution
                       for name, peer in peers.items()},
                    "HiGHS": lambda d=(a, b, c): highs(*d)}, repeats=2)
                seconds = {name: float(np.median(t)) for name, t in seconds.items()}
                rows.append({
                    "m": m, "n": n, "seed": seed, "status": ji.Status.name(best.status),
                    "steps at 1e-6": int(plain.solve.steps), "steps": int(best.solve.steps),
                    "error": error(a, b, c, best.x, -best.equality_dual),
                    **{f"{name} iterations": int(f.iteration_count) for name, f in found.items()},
                    **{f"{name} error": value for name, value in errors.items()},
                    **{f"{name} seconds": value for name, value in seconds.items()}})
                show([rows[-1]])
    ratios = {
        "iterations": [r["steps"] / r["r2HPDHG iterations"] for r in rows],
        "iterations of the better peer": [r["steps"] / min(
            r["r2HPDHG iterations"], r["raPDHG iterations"]) for r in rows],
        "seconds": [r["jaxiter seconds"] / r["r2HPDHG seconds"] for r in rows],
        "seconds of HiGHS": [r["jaxiter seconds"] / r["HiGHS seconds"] for r in rows]}
    medians = {name: float(np.median(values)) for name, values in ratios.items()}
    print(medians)
    return {"rows": rows, "median ratios": medians}


def single() -> dict:
    """Recomputed errors in float32 at a tolerance of 1e-4, and where 1e-7 ends."""
    rows = []
    for m, n in SIZES:
        program = jax.jit(ours)
        for seed in SEEDS:
            a, b, c, x = solvable(m, n, seed)
            data = tuple(jnp.asarray(v, jnp.float32) for v in (a, b, c))
            out, low = program(*data, jnp.float32(1e-4)), program(*data, jnp.float32(1e-7))
            rows.append({
                "m": m, "n": n, "seed": seed, "status": ji.Status.name(out.status),
                "steps": int(out.solve.steps),
                "error": error(a, b, c, out.x, -out.equality_dual),
                "objective": abs(float(c @ np.asarray(out.x, float) - c @ x)) / abs(c @ x),
                "floor": ji.Status.name(low.status), "floor steps": int(low.solve.steps),
                "floor error": error(a, b, c, low.x, -low.equality_dual)})
    show(rows)
    return {"rows": rows}


def statuses_of(results: Iterable) -> dict:
    """How often each status was said, and the fewest and most steps."""
    counts, steps = Counter(), []
    for result in results:
        counts[ji.Status.name(result.status)] += 1
        steps.append(int(result.solve.steps))
    return {"statuses": dict(counts), "steps": [min(steps), max(steps)]}


def proved() -> dict:
    """Certificates of float32, judged in float64; what solvable programs are called."""
    def asking(method: str) -> Callable:
        run = jax.jit(lambda a, b, c, most: linear_program(
            c, A=a, b=b, lower=0.0, max_steps=most, method=method))
        return lambda a, b, c, most: run(
            *(jnp.asarray(v, jnp.float32) for v in (a, b, c)), jnp.int32(most))

    ask, out = asking("halpern"), {}
    for name, make, most in (("infeasible", infeasible, 5000), ("unbounded", unbounded, 20_000)):
        results, worst = [], 0.0
        for seed in range(100, 120):
            a, b, c = make(20, 40, seed)
            result = ask(a, b, c, most)
            results.append(result)
            y, d = (np.asarray(v, np.float64) for v in (
                result.certificate.equality_dual, result.certificate.x))
            short, value = np.linalg.norm(np.minimum(a.T @ y, 0)), -(b @ y)
            if name == "unbounded":
                short, value = np.linalg.norm(a @ d) + np.linalg.norm(np.minimum(d, 0)), -(c @ d)
            worst = max(worst, float(short / value) if value > 0 else np.inf)
        out[name] = {**statuses_of(results), "residual": worst}
    seeds = range(100, 120 if SMALL else 200)
    plain = [solvable(20, 40, seed)[:3] for seed in seeds]
    out["solvable"] = statuses_of(ask(*data, 20_000) for data in plain)
    out["in bad units"] = statuses_of(
        ask(*in_bad_units(*data, seed), 20_000) for data, seed in zip(plain, seeds, strict=True))
    inner = asking("interior")
    for name, make in (("unbounded", unbounded), ("one row against two others", contradicting)):
        out[f"{name}, by \"interior\""] = statuses_of(
            inner(*make(20, 40, seed), 100) for seed in range(100, 164))
    show([{"kind": kind, "statuses": row["statuses"], "steps": row["steps"],
           "residual": row.get("residual", "")} for kind, row in out.items()])
    return out


if __name__ == "__main__":
    run_parts("linear_programs", {"solved": solved, "single": single, "proved": proved})
