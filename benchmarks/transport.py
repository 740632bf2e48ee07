"""Sinkhorn against OTT-JAX and POT: cost per iteration, seconds to tolerance, Newton, gradients.

`python benchmarks/transport.py [part ...]` writes the parts (default all) of
results/transport.json; `memory` wants a process of its own. float32 unless said. One "read" is the
time of `K @ v` for the same kernel in the same interleaved run.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxiter as ji
from harness import compile_all, run_parts, save, show, time_all
from jaxiter.transport import Dense, PointCloud, sinkhorn, sinkhorn_histograms, sinkhorn_many
from jaxiter.transport.iteration import Marginals, kernel_problem
from jaxiter.transport.newton import newton_problem
from transport_peers import ott, pot_batch_seconds, pot_rows
from transport_problems import grid, named, rand, uni2

TOL = 1e-4


def forever() -> Any:
    """A stop rule that no iterate can meet: the loop runs its max_steps, norms included."""
    return ji.tolerance(rtol=0, atol=1e-30)


def per_iteration(sizes: tuple = (200, 1000, 2000, 8192)) -> list[dict]:
    """Time of one iteration by the difference of a long and a short run."""
    rows = []
    for n in sizes:
        cost = jnp.asarray(uni2(n), jnp.float32)
        epsilon = 0.05 * float(cost.mean())
        weights = jnp.full(n, 1 / n)
        short, long = (20, 60) if n > 5000 else (20, 220)
        kernel, v = jnp.exp(-cost / epsilon), jnp.ones(n)

        def ours(cost: Any, steps: int, method: str, e: float = epsilon) -> Any:
            return sinkhorn(
                cost, epsilon=e, method=method, stop=forever(), max_steps=steps).solve.value

        def theirs(cost: Any, steps: int, lse: bool, e: float = epsilon, w: Any = weights) -> Any:
            out = ott(cost, w, w, e, lse, threshold=0.0, min_iterations=0, max_iterations=steps)
            return out.f, out.g

        def product(cost: Any, steps: int, kernel: Any = kernel, v: Any = v) -> Any:
            del cost
            return lax.fori_loop(0, steps, lambda i, v: 1e-3 * (kernel @ v) + 1e-3, v)

        methods: dict[str, Callable] = {
            "one read": product,
            "jaxiter kernel": lambda c, s: ours(c, s, "kernel"),
            "jaxiter log": lambda c, s: ours(c, s, "log"),
            "ott log": lambda c, s: theirs(c, s, True),
            "ott kernel": lambda c, s: theirs(c, s, False)}
        if n > 5000:
            for slow in ("jaxiter log", "ott log", "ott kernel"):
                del methods[slow]
        compiled = {}
        for name, function in methods.items():
            for steps in (short, long):
                compiled[name, steps] = jax.jit(
                    lambda c, f=function, s=steps: f(c, s)).lower(cost).compile()
        times = time_all(compiled, cost, repeats=9)
        one = {name: (times[name, long] - times[name, short]) / (long - short) for name in methods}
        for name in methods:
            rows.append({
                "n": n, "method": name, "ms_per_iteration": float(np.median(one[name]) * 1e3),
                "reads": float(np.median(one[name]) / np.median(one["one read"])),
                "times_jaxiter_kernel": float(
                    np.median(one[name]) / np.median(one["jaxiter kernel"]))})
    show(rows)
    return rows


def one_read(sizes: tuple = (2048, 4096, 8192)) -> list[dict]:
    """Both products of an iteration by blocks of rows, read once, against the plain pair."""

    def pair(kernel: Any, v: Any) -> Any:
        return (1 / (kernel @ v)) @ kernel

    def blocked(rows: int) -> Callable:
        def product(kernel: Any, v: Any) -> Any:
            def body(i: Any, w: Any) -> Any:
                block = lax.dynamic_slice_in_dim(kernel, i * rows, rows, 0)
                return w + (1 / (block @ v)) @ block

            return lax.fori_loop(0, kernel.shape[0] // rows, body, jnp.zeros_like(v))

        return product

    table = []
    for n in sizes:
        kernel = jnp.asarray(np.random.default_rng(0).uniform(size=(n, n)), jnp.float32)
        v = jnp.ones(n)
        functions = {"one read": lambda k, v: k @ v, "plain pair": pair} | {
            f"blocks of {rows}": blocked(rows) for rows in (64, 128, 256)}
        compiled = {
            name: jax.jit(lambda k, v, f=f: lax.fori_loop(
                0, 10, lambda i, v: 1 / f(k, v), v)).lower(kernel, v).compile()
            for name, f in functions.items()}
        times = time_all(compiled, kernel, v, repeats=9)
        table += [{"n": n, "method": name,
                   "reads": float(np.median(times[name] / times["one read"]))}
                  for name in functions]
    show(table)
    return table


def to_tolerance() -> list[dict]:
    """Seconds to an l1 marginal error of 1e-4, and the error of the plan recomputed in float64."""
    rows = []
    for name, n in (("RAND", 1000), ("UNI2", 1000), ("GAU5", 1000), ("GRID", 784)):
        cost64, a64, b64 = named(name, n)
        cost, a, b = (jnp.asarray(x, jnp.float32) for x in (cost64, a64, b64))
        for share in (0.05, 0.01, 0.002):
            epsilon = share * float(cost64.mean())

            def ours(cost: Any, method: str, e: float = epsilon, a: Any = a, b: Any = b) -> Any:
                out = sinkhorn(cost, a, b, epsilon=e, method=method, max_steps=4000,
                               stop=ji.tolerance(rtol=0, atol=TOL))
                return out.f, out.g, out.solve.steps, out.solve.status

            def theirs(cost: Any, lse: bool, e: float = epsilon, a: Any = a, b: Any = b) -> Any:
                out = ott(cost, a, b, e, lse, threshold=TOL, max_iterations=4000)
                return out.f, out.g, out.n_iters, out.converged

            functions = {
                "jaxiter auto": lambda c: ours(c, "auto"),
                "jaxiter kernel": lambda c: ours(c, "kernel"),
                "jaxiter newton": lambda c: ours(c, "newton"),
                "ott log": lambda c: theirs(c, True),
                "ott kernel": lambda c: theirs(c, False)}
            compiled = {k: jax.jit(f).lower(cost).compile() for k, f in functions.items()}
            times = time_all(compiled, cost, repeats=3)
            best = np.inf
            for key, function in compiled.items():
                f, g, steps, status = (np.asarray(x, np.float64) for x in function(cost))
                plan = np.exp((f[:, None] + g - cost64) / epsilon)
                error = np.abs(plan.sum(1) - a64).sum() + np.abs(plan.sum(0) - b64).sum()
                seconds = float(np.median(times[key]))
                peer = key.startswith("ott")
                if peer and bool(status) and error < 10 * TOL:
                    best = min(best, seconds)
                rows.append({
                    "problem": name, "epsilon/mean": share, "method": key, "steps": int(steps),
                    "status": ("converged" if status else "not converged") if peer
                    else ji.Status.name(int(status)),
                    "error_float64": float(error), "seconds": seconds,
                    "transport_cost": float(np.sum(plan * cost64))})
            for row in rows[-5:]:
                row["ott_best_over_this"] = float(best / row["seconds"])
            rows += [{"problem": name, "epsilon/mean": share} | row
                     for row in pot_rows(cost64, a64, b64, epsilon, TOL)]
    show([{k: row.get(k, "") for k in rows[0]} for row in rows])
    return rows


def newton_table() -> list[dict]:
    """Passes over the matrix to 1e-8 in float64 at eta = 1200: Newton against plain Sinkhorn."""
    rows = []
    n = 500
    problems = {"RAND(500)": (rand(n), np.full(n, 1 / n), np.full(n, 1 / n)),
                "W2 DIGIT": grid("W2", "DIGIT"), "W2 RING-BAR": grid("W2", "RING")}
    with jax.enable_x64(True):
        stop = ji.tolerance(rtol=0, atol=1e-8)
        for name, (cost, a, b) in problems.items():
            cost, a, b = (jnp.asarray(x) for x in (cost / cost.max(), a, b))
            operands = (Dense(cost), Marginals(a, b, jnp.float64(1 / 1200)))
            plain = jax.jit(lambda g, *o: ji.fixed_point(
                kernel_problem(), g, *o, stop=stop, max_steps=60_000, adjoint=ji.frozen()))
            warm = jax.jit(lambda g, *o: ji.fixed_point(
                kernel_problem(), g, *o, stop=ji.tolerance(rtol=0.1, atol=0.0), max_steps=200,
                adjoint=ji.frozen()))

            def second(g: Any, geometry: Any, marginals: Any) -> Any:
                f = geometry.softmin(g, marginals.b, marginals.epsilon)
                x = (f + marginals.epsilon * jnp.log(marginals.a),
                     g + marginals.epsilon * jnp.log(marginals.b))
                return ji.fixed_point(newton_problem(), x, geometry, marginals, stop=stop,
                                      max_steps=100, adjoint=ji.frozen())

            newton = jax.jit(second)
            start = jnp.min(cost, axis=0)
            slow, first = plain(start, *operands), warm(start, *operands)
            fast = newton(first.value, *operands)
            begin = time.perf_counter()
            fast = jax.block_until_ready(newton(warm(start, *operands).value, *operands))
            seconds = time.perf_counter() - begin
            passes = int(fast.state.memory.products) + 2 * int(first.steps)
            rows.append({
                "problem": name, "sinkhorn_iterations": int(slow.steps),
                "sinkhorn_status": ji.Status.name(slow.status), "warm_up": int(first.steps),
                "newton_steps": int(fast.steps), "newton_passes": passes,
                "newton_status": ji.Status.name(fast.status),
                "ratio_of_passes": 2 * int(slow.steps) / passes, "newton_seconds": seconds})
    show(rows)
    return rows


def gradients() -> list[dict]:
    """Float32 error of the gradient of <W, P> by the cost, against ours in float64; times."""
    rows = []
    rng = np.random.default_rng(0)
    n = 128
    x, y, w = rng.uniform(size=(n, 2)), rng.uniform(size=(n, 2)), rng.normal(size=(n, n))
    cost64 = ((x[:, None] - y[None]) ** 2).sum(-1)
    for share in (0.5, 0.05, 0.005):
        epsilon = share * float(cost64.mean())

        def ours(cost: Any, atol: float, method: str = "auto", e: float = epsilon) -> Any:
            out = sinkhorn(cost, epsilon=e, method=method, max_steps=50_000,
                           stop=ji.tolerance(rtol=0, atol=atol))
            return jnp.sum(jnp.asarray(w, cost.dtype) * out.plan())

        def theirs(cost: Any, e: float = epsilon) -> Any:
            weights = jnp.full(n, 1 / n)
            out = ott(cost, weights, weights, e, True, threshold=2e-6, max_iterations=50_000)
            return jnp.sum(jnp.asarray(w, cost.dtype) * jnp.exp(
                (out.f[:, None] + out.g[None] - cost) / e))

        with jax.enable_x64(True):
            truth = np.asarray(jax.jit(jax.grad(lambda c: ours(c, 1e-13, "newton")))(
                jnp.asarray(cost64)))
        cost = jnp.asarray(cost64, jnp.float32)
        functions = {"jaxiter": lambda c: ours(c, 2e-6), "ott implicit": theirs}
        forward, _ = compile_all(functions, cost, repeats=1)
        backward, _ = compile_all({k: jax.grad(f) for k, f in functions.items()}, cost, repeats=1)
        for name in functions:
            row: dict = {"epsilon/mean": share, "method": name}
            try:
                times = time_all({"F": forward[name], "B": backward[name]}, cost, repeats=7)
                gradient = np.asarray(backward[name](cost), np.float64)
                error = np.linalg.norm(gradient - truth) / np.linalg.norm(truth)
                row |= {
                    "relative_error": float(error),
                    "forward_ms": float(np.median(times["F"]) * 1e3),
                    "gradient_over_forward": float(np.median(times["B"] / times["F"]))}
            except Exception as error:  # what a user of the peer would see
                row |= {"relative_error": type(error).__name__, "forward_ms": float("nan"),
                        "gradient_over_forward": float("nan")}
            rows.append(row)
    show(rows)
    return rows


def batches() -> list[dict]:
    """vmap over equal problems against a loop; lanes against vmap on uneven ones."""
    n, count = 200, 64
    rng = np.random.default_rng(0)
    costs = jnp.asarray(rng.uniform(size=(count, n, n)), jnp.float32)
    stop = ji.tolerance(rtol=0, atol=TOL)

    def solve(cost: Any, epsilon: Any) -> Any:
        return sinkhorn(
            cost, epsilon=epsilon, method="kernel", stop=stop, max_steps=5000).solve.steps

    even = jnp.full(count, 0.01)
    uneven = jnp.asarray(np.geomspace(0.1, 0.001, count), jnp.float32)
    vmapped = jax.jit(jax.vmap(solve)).lower(costs, even).compile()
    single = jax.jit(solve).lower(costs[0], even[0]).compile()
    lanes = jax.jit(lambda c, e: sinkhorn_many(
        c, epsilon=e, stop=stop, max_steps=5000, lanes=8).solve.steps).lower(costs, even).compile()
    parts = [(costs[i], even[i]) for i in range(count)]
    functions = {"vmap": lambda c, e: vmapped(c, e),
                 "loop": lambda c, e: [single(*part) for part in parts]}
    times = time_all(functions, costs, even, repeats=5)
    other = time_all({"vmap": vmapped, "lanes": lanes}, costs, uneven, repeats=5)
    same = bool(jnp.all(vmapped(costs, even) == jnp.stack([single(*part) for part in parts])))
    steps = np.asarray(vmapped(costs, uneven))
    cost, b = costs[0], jnp.asarray(rng.dirichlet(np.ones(n), size=count), jnp.float32)
    a = jnp.full(n, 1 / n)
    shared = jax.jit(lambda c, b: sinkhorn_histograms(
        c, a, b, epsilon=0.05, stop=stop).solve.steps).lower(cost, b).compile()
    each = jax.jit(lambda c, b: jax.vmap(lambda b: sinkhorn(
        c, a, b, epsilon=0.05, stop=stop, method="kernel").solve.steps)(b)).lower(cost, b).compile()
    histograms = time_all({"shared": shared, "vmap": each}, cost, b, repeats=5)
    pot = pot_batch_seconds(np.asarray(costs, np.float64), 0.01, TOL)
    rows = [{
        "pot_batch_over_vmap": pot / float(np.median(times["vmap"])),
        "vmap_over_histograms": float(np.median(histograms["vmap"] / histograms["shared"])),
        "vmap_over_loop": float(np.median(times["vmap"] / times["loop"])), "same_steps": same,
        "uneven_steps": f"{steps.min()}..{steps.max()}",
        "same_steps_lanes": bool(np.all(np.asarray(lanes(costs, uneven)) == steps)),
        "vmap_over_lanes": float(np.median(other["vmap"] / other["lanes"]))}]
    show(rows)
    return rows


def memory() -> list[dict]:
    """Two iterations on 100,000 x 100,000 points in 3 dimensions, in this fresh process."""
    n = 100_000
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.uniform(size=(n, 3)), jnp.float32) for _ in range(2))
    start = time.perf_counter()
    out = jax.jit(lambda x, y: sinkhorn(
        PointCloud(x, y), epsilon=0.05, stop=forever(), max_steps=2).solve.value)(x, y)
    assert bool(jnp.all(jnp.isfinite(out)))
    rows = [{"points": n, "iterations": 2, "seconds": time.perf_counter() - start,
             "peak_resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}]
    show(rows)
    return rows


def relaxation() -> list[dict]:
    """Iterations of the kernel method to 1e-4 (relative) with each acceleration."""
    cost = jnp.asarray(uni2(500), jnp.float32)
    epsilon = 0.01 * float(cost.mean())
    rows = []
    for name, solver in (("plain", ji.picard()), ("overrelaxed", ji.overrelaxed()),
                         ("anderson", ji.anderson())):
        out = jax.jit(lambda c, s=solver: sinkhorn(
            c, epsilon=epsilon, method="kernel", solver=s, max_steps=4000,
            stop=ji.tolerance(rtol=0, atol=TOL)).solve)(cost)
        rows.append({"solver": name, "iterations": int(out.steps),
                     "status": ji.Status.name(out.status)})
    show(rows)
    return rows


PARTS = {"per_iteration": per_iteration, "one_read": one_read, "to_tolerance": to_tolerance,
         "newton": newton_table, "relaxation": relaxation, "gradients": gradients,
         "batches": batches}


def main() -> None:
    if sys.argv[1:] == ["memory"]:
        save("transport_memory", {"memory": memory()})
        return
    run_parts("transport", PARTS)


if __name__ == "__main__":
    main()
