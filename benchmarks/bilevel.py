"""Bilevel methods in oracle calls and seconds: `python benchmarks/bilevel.py [part ...]`.

A call is one sample's share of a gradient of inner or outer or of a Hessian product. The squared
hypergradient is computed apart, by Newton's method and a dense solve in numpy.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import optimistix

import jaxiter as ji
from harness import compile_all, run_parts, time_all
from jaxiter.bilevel import (
    bome,
    f2sa,
    f3sa,
    hypergradient,
    ift_neumann,
    mrbo,
    proximal_penalty,
    pzobo,
    run,
    saba,
    soba,
    solve_inner,
    srba,
    stocbio,
    ttsa,
    unrolled_hypergradient,
)
from jaxiter.linear import cg
from jaxiter.process import latest
from jaxiter.testing.bilevel import Cleaning, Selection, hyper_cleaning, regularisation

OUTER, INNER = Selection.outer, Selection.inner


def falling(rate: float, power: float = 0.5) -> Callable:
    return lambda k: rate * (k + 1.0) ** -power


def stochastic(factor: float) -> dict[str, tuple]:
    """Methods with their published or best rates, x's times factor, and batches per step."""
    sgd = optax.sgd
    return {
        "SOBA": (soba(OUTER, INNER, inner_optimizer=sgd(falling(1.0)),
                      outer_optimizer=sgd(falling(factor / 0.03))), 3),
        "SABA": (saba(OUTER, INNER, inner_optimizer=sgd(0.1),
                      outer_optimizer=sgd(factor * 0.1 / 0.03)), 3),
        "SRBA": (srba(OUTER, INNER, inner_optimizer=sgd(0.3),
                      outer_optimizer=sgd(factor * 0.3 / 0.03)), 9),
        "AmIGO": (soba(OUTER, INNER, inner_optimizer=sgd(0.1), inner_steps=10,
                       outer_optimizer=sgd(factor * 0.1 / 0.01), linear_steps=10), 22),
        "stocBiO": (stocbio(OUTER, INNER, inner_optimizer=sgd(0.3),
                            outer_optimizer=sgd(factor * 0.3 / 0.003), neumann_rate=0.3), 22),
        "IFT + Neumann": (ift_neumann(OUTER, INNER, inner_optimizer=sgd(0.3), neumann_rate=0.3,
                                      outer_optimizer=sgd(factor * 0.3 / 0.003),
                                      inner_steps=10), 31),
        "TTSA": (ttsa(OUTER, INNER, inner_optimizer=sgd(falling(1.0, 0.4)), neumann_rate=0.3,
                      outer_optimizer=sgd(falling(factor / 0.03, 0.6))), 7.5),
        "MRBO": (mrbo(OUTER, INNER, inner_optimizer=sgd(falling(0.3, 1 / 3)), neumann_rate=0.3,
                      outer_optimizer=sgd(falling(factor * 0.3 / 0.003, 1 / 3))), 26),
        "F2SA": (f2sa(OUTER, INNER, inner_rate=0.3, penalty_rate=0.3, outer_factor=333 * factor,
                      inner_steps=5), 18),
        "F3SA": (f3sa(OUTER, INNER, inner_rate=0.3, penalty_rate=0.3, outer_factor=333 * factor,
                      exponents=(1 / 3, 0.0)), 12),
        "proximal penalty": (proximal_penalty(OUTER, INNER, sigma=0.01, rate=10.0 * factor,
                                              inner_rate=0.3), 33),
        "BOME": (bome(OUTER, INNER, rate=10.0 * factor, inner_rate=0.3), 13),
        "PZOBO": (pzobo(OUTER, INNER, inner_rate=0.3, outer_optimizer=sgd(10.0 * factor)), 111),
    }


def reached(calls: list[float], squares: list[float], level: float) -> float | None:
    return next((c for c, s in zip(calls, squares, strict=True) if s < level), None)


def follow(problem: Selection, method: Any, per_step: float, budget: int, size: int) -> dict:
    """One run of a stochastic method: 24 points on its curve, and its warm seconds."""
    dim = problem.train[0].shape[1]
    points = 24
    steps = int(budget / size / per_step) // points * points

    @jax.jit
    def solve(key: Any) -> tuple:
        out = run(method, jnp.full(dim, -2.0), jnp.zeros(dim), problem.train, problem.validation,
                  key=key, batch_size=size, max_steps=steps, check_every=steps // points,
                  trace=lambda s: s.x)
        return out.trace, sum(jax.tree.leaves(out.calls)), out.status

    jax.block_until_ready(solve(jax.random.key(0)))
    start = time.perf_counter()
    xs, calls, status = jax.block_until_ready(solve(jax.random.key(0)))
    seconds = time.perf_counter() - start
    return {"calls": [float(c) * size for c in calls], "seconds": seconds,
            "status": ji.Status.name(status),
            "squares": [float(np.sum(problem.solve(x)[1] ** 2)) for x in xs]}


def implicit_steps(problem: Selection, library: str, rate: float) -> Callable:
    """`(x, y, v) -> (x', y', v')`: warm-started inner solve, implicit gradient, one step of x."""
    train, validation = problem.train, problem.validation

    def outer(x: Any, y: Any) -> Any:
        return OUTER(x, y, validation)

    def inner(x: Any, y: Any) -> Any:
        return INNER(x, y, train)

    if library == "jaxiter":
        features = np.asarray(train[0])
        smooth = float(np.linalg.eigvalsh(features.T @ features / len(features))[-1]) / 4

        def step(x: Any, y: Any, v: Any) -> tuple:
            # The curvature of a logistic loss is known; the default would estimate it each time.
            y = solve_inner(inner, y, x, step_size=1 / (smooth + jnp.exp(jnp.max(x))),
                            stop=ji.tolerance(rtol=0, atol=1e-4)).value
            out = hypergradient(outer, inner, x, y, v_init=v, solve=cg(rtol=1e-2, max_steps=30))
            return x - rate * out.grad, y, out.v
    elif library == "jaxopt":
        def step(x: Any, y: Any, v: Any) -> tuple:
            solver = jaxopt.LBFGS(fun=lambda y, x: inner(x, y), tol=1e-4, maxiter=500)

            def objective(x: Any) -> tuple:
                new = solver.run(y, x).params
                return outer(x, new), new

            grad, y = jax.grad(objective, has_aux=True)(x)
            return x - rate * grad, y, v
    else:
        def step(x: Any, y: Any, v: Any) -> tuple:
            def objective(x: Any) -> tuple:
                new = optimistix.minimise(
                    lambda y, x: inner(x, y), optimistix.BFGS(rtol=1e-4, atol=1e-4), y, x,
                    adjoint=optimistix.ImplicitAdjoint(), throw=False).value
                return outer(x, new), new

            grad, y = jax.grad(objective, has_aux=True)(x)
            return x - rate * grad, y, v
    return step


def double_loop(problem: Selection, library: str, steps: int, rate: float) -> dict:
    """Gradient descent on F with a library's implicit gradient; seconds are warm."""
    step = jax.jit(implicit_steps(problem, library, rate))
    dim = problem.train[0].shape[1]
    start = (jnp.full(dim, -2.0), jnp.zeros(dim), jnp.zeros(dim))
    jax.block_until_ready(step(*start))
    state, squares, seconds = start, [], [0.0]
    for _ in range(steps):
        begin = time.perf_counter()
        state = jax.block_until_ready(step(*state))
        seconds.append(seconds[-1] + time.perf_counter() - begin)
        squares.append(float(np.sum(problem.solve(state[0])[1] ** 2)))
    return {"seconds": seconds[1:], "squares": squares}


def selection() -> dict:
    """B3: every method on breast_cancer, the finite-sum ones on a set of ijcnn1's shape."""
    out, rows = {}, []
    for name, problem, budget, size, level, factor in (
            ("breast_cancer", regularisation(), 400_000, 32, 1e-5, 1.0),
            # Useless features drive their penalties up, and inner steps of 0.3 with them.
            ("synthetic 49,990 x 22", regularisation(49_990), 3_000_000, 64, 1e-6, 0.1)):
        curves = {}
        for method, (made, per_step) in stochastic(factor).items():
            curve = follow(problem, made, per_step, budget, size)
            curves[method] = curve
            rows.append({"problem": name, "method": method,
                         "final": curve["squares"][-1], "calls": curve["calls"][-1],
                         "calls to level": reached(curve["calls"], curve["squares"], level),
                         "seconds": curve["seconds"]})
            print(rows[-1], flush=True)
        out[name] = {"curves": curves, "level": level}
        for library in ("jaxiter", "jaxopt", "optimistix"):
            curve = double_loop(problem, library, 60, 100.0)
            at = reached(curve["seconds"], curve["squares"], level)
            rows.append({"problem": name, "method": f"implicit, {library}",
                         "final": curve["squares"][-1], "calls": None, "calls to level": None,
                         "seconds": at, "seconds per step": curve["seconds"][-1] / 60})
            out[name][f"implicit, {library}"] = curve
            print(rows[-1], flush=True)
    return {"problems": out, "rows": rows}


def cleaners() -> dict[str, tuple]:
    """Methods for hyper-cleaning, batches of 64, and batches per step."""
    sgd, (outer, inner) = optax.sgd, (Cleaning.outer, Cleaning.inner)
    return {
        "F2SA": (f2sa(outer, inner, inner_rate=1.0, penalty_rate=0.5, outer_factor=1e3,
                      inner_steps=2), 9),
        "proximal penalty": (proximal_penalty(outer, inner, sigma=0.02, rate=20.0, inner_rate=0.5,
                                              inner_steps=2, mixing=1.0), 9),
        "SOBA": (soba(outer, inner, inner_optimizer=sgd(0.5), outer_optimizer=sgd(100.0)), 3),
        "AmIGO": (soba(outer, inner, inner_optimizer=sgd(0.5), outer_optimizer=sgd(300.0),
                       inner_steps=5, linear_steps=5), 12),
        "stocBiO": (stocbio(outer, inner, inner_optimizer=sgd(0.5), outer_optimizer=sgd(100.0),
                            neumann_rate=0.5, inner_steps=5, terms=6), 12),
        "IFT + Neumann": (ift_neumann(outer, inner, inner_optimizer=sgd(0.5), neumann_rate=0.5,
                                      outer_optimizer=sgd(100.0), inner_steps=5, terms=20), 26),
        "SABA": (saba(outer, inner, inner_optimizer=sgd(0.2), outer_optimizer=sgd(30.0)),
                 3),
        "SRBA": (srba(outer, inner, inner_optimizer=sgd(0.5), outer_optimizer=sgd(100.0)), 9),
        "TTSA": (ttsa(outer, inner, inner_optimizer=sgd(falling(1.0, 0.4)), neumann_rate=0.5,
                      outer_optimizer=sgd(falling(300.0, 0.6))), 7.5),
        "MRBO": (mrbo(outer, inner, inner_optimizer=sgd(falling(1.0, 1 / 3)), neumann_rate=0.5,
                      outer_optimizer=sgd(falling(300.0, 1 / 3)), terms=6), 16),
        "F3SA": (f3sa(outer, inner, inner_rate=0.5, penalty_rate=0.25, outer_factor=1e3,
                      exponents=(1 / 3, 0.0)), 12),
        "BOME": (bome(outer, inner, rate=1.0, inner_rate=0.5, inner_steps=5), 8),
        "PZOBO": (pzobo(outer, inner, inner_rate=0.5, outer_optimizer=sgd(30.0), inner_steps=5),
                  56),
    }


def cleaning() -> dict:
    """B4 on two splits: calls until sigmoid(x) detects right labels with AUC 0.95."""
    rows, curves = [], {}
    points, budget, size = 100, 1_500_000, 64
    for name, (method, per_step) in cleaners().items():
        found = []
        for seed in (0, 1):
            problem = hyper_cleaning(seed=seed)
            steps = int(budget / size / per_step) // points * points
            solve = jax.jit(lambda key, problem=problem, method=method, steps=steps: run(
                method, jnp.zeros(1000), jnp.zeros((65, 10)), problem.train, problem.validation,
                key=key, batch_size=size, max_steps=steps, check_every=steps // points,
                trace=lambda s: (s.x, s.y))[1:3])
            jax.block_until_ready(solve(jax.random.key(seed)))
            start = time.perf_counter()
            (xs, ys), spent = jax.block_until_ready(solve(jax.random.key(seed)))
            seconds = time.perf_counter() - start
            areas = [problem.detection(x) for x in xs]
            calls = [float(c) * size for c in sum(jax.tree.leaves(spent))]
            found.append((calls, areas, problem.accuracy(ys[-1]), seconds,
                          float(spent["products"][-1]) * size))
        calls = found[0][0]
        areas = np.mean([f[1] for f in found], axis=0)
        curves[name] = {"calls": calls, "area": areas.tolist()}
        first = next((i for i, area in enumerate(areas) if area >= 0.95), None)
        rows.append({
            "method": name, "best AUC": float(areas.max()), "final AUC": float(areas[-1]),
            "accuracy": float(np.mean([f[2] for f in found])),
            "calls to 0.95": None if first is None else calls[first],
            "seconds to 0.95": None if first is None else float(
                np.mean([f[3] for f in found]) * (first + 1) / points),
            "products": found[0][4]})
        print(rows[-1], flush=True)
    return {"rows": rows, "curves": curves}


def warm() -> list[dict]:
    """Products of CG over 100 steps of size 0.1 on B3, from the last v and from zero."""
    problem, rows = regularisation(), []

    def outer(x: Any, y: Any) -> Any:
        return OUTER(x, y, problem.validation)

    def inner(x: Any, y: Any) -> Any:
        return INNER(x, y, problem.train)

    for rtol in (1e-2, 1e-5):
        def total(warmly: bool, rtol: float = rtol) -> int:
            def step(carry: tuple, _: None) -> tuple:
                x, y, v = carry
                y = solve_inner(inner, y, x, stop=ji.tolerance(rtol=0, atol=1e-6)).value
                out = hypergradient(outer, inner, x, y, v_init=v if warmly else None,
                                    solve=cg(rtol=rtol, max_steps=100))
                return (x - 0.1 * out.grad, y, out.v), out.calls["products"]

            start = (jnp.full(30, -2.0), jnp.zeros(30), jnp.zeros(30))
            return int(jnp.sum(jax.jit(
                lambda s: jax.lax.scan(step, s, None, length=100)[1])(start)))

        warmed, cold = total(True), total(False)
        rows.append({"rtol": rtol, "warm": warmed, "cold": cold, "ratio": warmed / cold})
        print(rows[-1], flush=True)
    return rows


def memory() -> list[dict]:
    """Bytes of temporaries of one hypergradient after 10, 100 and 1,000 inner steps."""
    rows = []
    y0 = jnp.zeros((65, 10))
    problem = hyper_cleaning()

    def outer(x: Any, y: Any) -> Any:
        return Cleaning.outer(x, y, problem.validation)

    def inner(x: Any, y: Any) -> Any:
        return Cleaning.inner(x, y, problem.train)

    def descent(x: Any, y: Any) -> Any:
        return y - 0.5 * jax.grad(inner, 1)(x, y)

    for steps in (10, 100, 1000):
        def implicit(x: Any, steps: int = steps) -> Any:
            y = solve_inner(inner, y0, x, step_size=0.5, max_steps=steps,
                            solver=ji.picard()).value
            return hypergradient(outer, inner, x, y).grad

        def first_order(x: Any, steps: int = steps) -> Any:
            method = f2sa(Cleaning.outer, Cleaning.inner, inner_rate=1.0, penalty_rate=0.5,
                          inner_steps=steps)
            return run(method, x, y0, problem.train, problem.validation, max_steps=1,
                       key=jax.random.key(0)).state.x

        def unrolled(x: Any, steps: int = steps) -> Any:
            return unrolled_hypergradient(outer, descent, x, y0, steps=steps).grad

        for name, function in (("implicit", implicit), ("F2SA", first_order),
                               ("unrolled", unrolled)):
            analysis = jax.jit(function).lower(jnp.zeros(1000)).compile().memory_analysis()
            rows.append({"method": name, "steps": steps, "bytes": analysis.temp_size_in_bytes})
            print(rows[-1], flush=True)
    return rows


def driver() -> list[dict]:
    """Seconds of `iterate`, looking at every step or every 100th, over those of a scan by hand."""
    rows, steps = [], 2000
    selecting, clean = regularisation(), hyper_cleaning()
    falling_rate = falling(1.0)
    cases = {
        "SOBA, breast_cancer": (
            soba(OUTER, INNER, inner_optimizer=optax.sgd(falling_rate),
                 outer_optimizer=optax.sgd(falling(1 / 0.03))), selecting, 32,
            (jnp.full(30, -2.0), jnp.zeros(30))),
        "F2SA, breast_cancer": (
            stochastic(1.0)["F2SA"][0], selecting, 32,
            (jnp.full(30, -2.0), jnp.zeros(30))),
        "SOBA, hyper-cleaning": (cleaners()["SOBA"][0], clean, 64,
                                 (jnp.zeros(1000), jnp.zeros((65, 10)))),
        "SABA, hyper-cleaning": (cleaners()["SABA"][0], clean, 64,
                                 (jnp.zeros(1000), jnp.zeros((65, 10)))),
    }
    for name, (method, problem, size, start) in cases.items():
        data = ji.Batches(problem.train, size), ji.Batches(problem.validation, size)

        def driven(
            every: int, key: Any, method: Any = method, start: Any = start, data: Any = data
        ) -> Any:
            return latest(ji.iterate(
                method, start, *data, key=key, max_steps=steps, check_every=every)).x

        def by_hand(key: Any, method: Any = method, start: Any = start, data: Any = data) -> Any:
            def once(state: Any, k: Any) -> tuple:
                return method.step(state, jax.random.fold_in(key, k), *data), None

            return jax.lax.scan(once, method.init(start, *data), jnp.arange(steps))[0].x

        compiled, compiling = compile_all(
            {"every": partial(driven, 1), "hundredth": partial(driven, 100), "scan": by_hand},
            jax.random.key(0))
        times = time_all(compiled, jax.random.key(0), repeats=9)
        rows.append({
            "case": name, "ratio": float(np.median(times["every"] / times["scan"])),
            "ratio, every 100 steps": float(np.median(times["hundredth"] / times["scan"])),
            "microseconds a step": float(np.median(times["every"])) / steps * 1e6,
            "compile ratio": compiling["every"] / compiling["scan"]})
        print(rows[-1], flush=True)
    return rows


PARTS = {"selection": selection, "cleaning": cleaning, "warm": warm, "memory": memory,
         "driver": driver}


if __name__ == "__main__":
    run_parts("bilevel", PARTS)
