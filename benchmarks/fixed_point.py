"""Fixed points against jaxopt, optimistix and a hand-written loop.

Claims: evaluations on breast_cancer, DEQ, value iteration, a rotation, infeasible sets;
driver overhead; compile time. `python benchmarks/fixed_point.py` writes results/fixed_point.json.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
from jax import lax
from sklearn.datasets import load_breast_cancer

import jaxiter as ji
from harness import compile_all, save, show, time_all
from jaxiter.__main__ import logistic_map

LIMIT = 20_000


def hand_written(step: Callable, tol: float, limit: int) -> Callable:
    """The loop that one would write without a library."""

    def solve(x0: Any) -> tuple:
        def body(carry: tuple) -> tuple:
            x, _, k = carry
            image = step(x)
            return image, jnp.linalg.norm(image - x), k + 1

        x, error, k = lax.while_loop(
            lambda c: (c[1] > tol) & (c[2] < limit), body, (x0, jnp.inf, 0))
        return x, k, jnp.where(error <= tol, 1, 3)

    return solve


def ours(step: Callable, tol: float, limit: int, solver: Any, extra: Any = None) -> Callable:
    rule = ji.tolerance(rtol=0, atol=tol)
    rule = rule if extra is None else ji.any_of(rule, extra)

    def solve(x0: Any) -> tuple:
        s = ji.fixed_point(step, x0, solver=solver, stop=rule, max_steps=limit)
        return s.value, s.steps, s.status

    return solve


def jaxopt_solver(kind: Any, step: Callable, tol: float, limit: int, **keywords: Any) -> Callable:
    solver = kind(step, tol=tol, maxiter=limit, **keywords)

    def solve(x0: Any) -> tuple:
        params, state = solver.run(x0)
        # Evaluations are one per iteration, and one more in Anderson's init_state.
        evaluations = state.iter_num + (kind is jaxopt.AndersonAcceleration)
        return params, evaluations, jnp.where(state.error <= tol, 1, 3)

    return solve


def optimistix_solver(step: Callable, tol: float, limit: int) -> Callable:
    solver = optx.FixedPointIteration(rtol=0.0, atol=tol, norm=jnp.linalg.norm)

    def solve(x0: Any) -> tuple:
        s = optx.fixed_point(lambda x, _: step(x), solver, x0, max_steps=limit, throw=False)
        return s.value, s.stats["num_steps"], jnp.where(s.result == optx.RESULTS.successful, 1, 3)

    return solve


def contenders(step: Callable, tol: float, limit: int, hard: bool = True) -> dict[str, Callable]:
    out = {
        "hand-written loop": hand_written(step, tol, limit),
        "jaxiter picard": ours(step, tol, limit, ji.picard()),
        "jaxopt FixedPointIteration": jaxopt_solver(jaxopt.FixedPointIteration, step, tol, limit),
        "optimistix FixedPointIteration": optimistix_solver(step, tol, limit),
        "jaxiter halpern adaptive": ours(step, tol, limit, ji.halpern("adaptive")),
    }
    for memory in (5, 10, 20):
        out[f"jaxiter anderson({memory})"] = ours(step, tol, limit, ji.anderson(memory))
        if memory < 20:
            out[f"jaxopt Anderson({memory})"] = jaxopt_solver(
                jaxopt.AndersonAcceleration, step, tol, limit, history_size=memory)
            out[f"jaxopt Anderson({memory}), ridge 1e-10"] = jaxopt_solver(
                jaxopt.AndersonAcceleration, step, tol, limit, history_size=memory, ridge=1e-10)
    return out


def measure(name: str, functions: dict, x0: Any, step: Callable, repeats: int = 9) -> list[dict]:
    """Rows of the table: evaluations, compile and warm seconds, true residual, claimed status."""
    compiled, seconds = compile_all(functions, x0, repeats=3)
    times = time_all(compiled, x0, repeats=repeats)
    base = times["hand-written loop"] if "hand-written loop" in times else None
    base_steps = int(compiled["hand-written loop"](x0)[1]) if base is not None else 1
    rows = []
    for label, function in compiled.items():
        value, steps, status = function(x0)
        row = {
            "problem": name, "method": label, "evaluations": int(steps),
            "status": ji.Status.name(status),
            "residual": float(jnp.linalg.norm(step(value) - value)),
            "compile_s": seconds[label], "warm_s": float(np.median(times[label])),
        }
        if base is not None:
            per = times[label] / max(int(steps), 1) / (base / base_steps)
            row["time_per_evaluation_ratio"] = float(np.median(per))
            row["warm_ratio"] = float(np.median(times[label] / base))
        rows.append(row)
    show(rows)
    return rows


def breast_cancer() -> tuple[Callable, Any]:
    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    return logistic_map(features, 2.0 * labels - 1, 1e-3)


def deq() -> tuple[Callable, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    w = 0.9 * jax.random.normal(keys[0], (256, 256)) / 16
    u = jax.random.normal(keys[1], (256, 256)) / 16
    injected = jax.random.normal(keys[2], (64, 256)) @ u
    return lambda z: jnp.tanh(z @ w + injected), jnp.zeros((64, 256))


def value_iteration(gamma: float) -> tuple[Callable, Any]:
    rng = np.random.default_rng(0)
    p = np.zeros((100, 4, 100), np.float32)
    for s in range(100):
        for a in range(4):
            p[s, a, rng.choice(100, 5, replace=False)] = rng.dirichlet(np.ones(5))
    r = jnp.asarray(rng.uniform(size=(100, 4)), jnp.float32)
    p = jnp.asarray(p)
    return lambda v: jnp.max(r + gamma * p @ v, axis=1), jnp.zeros(100)


def rotation() -> tuple[Callable, Any]:
    angles = np.linspace(0.1, np.pi - 0.1, 10).astype(np.float32)
    c, s = np.cos(angles), np.sin(angles)
    centre = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.float32)

    def step(x: jax.Array) -> jax.Array:
        y = (x - centre).reshape(-1, 2)
        turned = jnp.stack([c * y[:, 0] - s * y[:, 1], s * y[:, 0] + c * y[:, 1]], axis=1)
        return turned.reshape(-1) + centre

    return step, jnp.zeros(20)


def discs(x: jax.Array) -> jax.Array:
    def project(y: jax.Array, centre: jax.Array, radius: float) -> jax.Array:
        away = y - centre
        return centre + away * jnp.minimum(1.0, radius / jnp.linalg.norm(away))

    first = project(x, jnp.zeros(2), 1.0)
    return x + project(2 * first - x, jnp.array([4.0, 1.0]), 1.5) - first


def infeasible() -> list[dict]:
    x0 = jnp.array([0.3, 2.0])
    found = ji.no_fixed_point()
    functions = {
        "hand-written loop": hand_written(discs, 1e-6, 2000),
        "jaxiter picard": ours(discs, 1e-6, 2000, ji.picard(), found),
        "jaxiter damped(0.5)": ours(discs, 1e-6, 2000, ji.damped(0.5), found),
        "jaxiter halpern": ours(discs, 1e-6, 2000, ji.halpern(), found),
        "jaxopt FixedPointIteration": jaxopt_solver(jaxopt.FixedPointIteration, discs, 1e-6, 2000),
        "optimistix FixedPointIteration": optimistix_solver(discs, 1e-6, 2000),
    }
    return measure("infeasible discs", functions, x0, discs)


def curves() -> dict:
    """Residual against evaluations on breast_cancer, for the plot."""
    step, x0 = breast_cancer()
    out = {}
    for name, solver in {"picard": ji.picard(), "anderson(5)": ji.anderson(5),
                         "anderson(10)": ji.anderson(10), "anderson(20)": ji.anderson(20),
                         "halpern adaptive": ji.halpern("adaptive")}.items():
        s = jax.jit(lambda x, s=solver: ji.fixed_point(
            step, x, solver=s, stop=ji.tolerance(rtol=0, atol=1e-5), max_steps=LIMIT,
            monitor=ji.record(LIMIT)))(x0)
        steps = np.unique(np.geomspace(1, int(s.steps), 120).astype(int)) - 1
        out[name] = {"evaluations": (steps + 1).tolist(),
                     "residual": np.asarray(s.trace["merit"])[steps].tolist()}
    return out


def overhead() -> list[dict]:
    """Time per evaluation over the hand-written loop at a fixed count of 200 evaluations."""
    rows = []
    memory_bound = lambda x: 0.999 * x + 0.001 * jnp.flip(x)  # noqa: E731
    for name, (step, x0) in {"DEQ": deq(), "memory-bound, 1e6": (memory_bound, jnp.zeros(10**6))
                             }.items():
        never = ji.Problem(lambda x, f=step: f(x), floor=lambda x: 0.0)
        functions = {
            "hand-written loop": hand_written(step, -1.0, 200),
            "jaxiter picard": ours(never, 1e-37, 200, ji.picard()),
            "jaxiter anderson(5)": ours(never, 1e-37, 200, ji.anderson(5)),
            "jaxopt Anderson(5)": jaxopt_solver(
                jaxopt.AndersonAcceleration, step, 1e-37, 200, history_size=5),
        }
        start = jnp.linspace(0.0, 1.0, x0.size).reshape(x0.shape)
        compiled, _ = compile_all(functions, start, repeats=1)
        times = time_all(compiled, start, repeats=15)
        per = {label: t / max(int(compiled[label](start)[1]), 1) for label, t in times.items()}
        for label, values in per.items():
            rows.append({"map": name, "method": label,
                         "microseconds_per_evaluation": float(np.median(values) * 1e6),
                         "ratio": float(np.median(values / per["hand-written loop"]))})
    show(rows)
    return rows


def main() -> None:
    problems = {
        "breast_cancer": (*breast_cancer(), 1e-5, LIMIT, 5),
        "DEQ": (*deq(), 1e-4, 1000, 15),
        "value iteration 0.99": (*value_iteration(0.99), 1e-4, LIMIT, 9),
        "value iteration 0.999": (*value_iteration(0.999), 1e-2, LIMIT, 5),
        "rotation": (*rotation(), 1e-5, 2000, 5),
    }
    rows = []
    for name, (step, x0, tol, limit, repeats) in problems.items():
        rows += measure(name, contenders(step, tol, limit), x0, step, repeats)
    rows += infeasible()
    save("fixed_point", {"rows": rows, "overhead": overhead(), "curves": curves()})


if __name__ == "__main__":
    main()
