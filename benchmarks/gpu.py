"""One accelerator beside the peers: `python benchmarks/gpu.py [--quick] [--only PART ...]`.

Needs jax, equinox and optax; jaxopt, OTT-JAX and scikit-learn join where they are installed. Under
five minutes on an NVIDIA card; writes results/gpu_CARD.json. --quick: small sizes, for any CPU,
nothing written. Times are medians of interleaved warm calls in one process.
"""

import argparse
import importlib.util
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from harness import compile_all, save, show, time_all
from jaxiter.transport import sinkhorn, sinkhorn_histograms

TOL = 1e-4


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def never() -> Any:
    """A stop rule that no iterate meets: the loop runs its max_steps, norms included."""
    return ji.tolerance(rtol=0, atol=1e-37)


def problem(n: int, share: float) -> tuple[np.ndarray, float]:
    """Squared distances of two clouds in the plane, float32, and epsilon as a share of the mean."""
    rng = np.random.default_rng(n)
    x, y = rng.uniform(size=(2, n, 2)).astype(np.float32)
    cost = ((x[:, None, 0] - y[None, :, 0]) ** 2 + (x[:, None, 1] - y[None, :, 1]) ** 2)
    return cost, share * float(cost.mean())


def true_error(cost: np.ndarray, f: Any, g: Any, epsilon: float, b: Any = None) -> float:
    """The plan's l1 marginal error in float64, a block of rows at a time."""
    n = len(cost)
    f, g = np.asarray(f, np.float64), np.asarray(g, np.float64)
    rows, columns = np.zeros(n), np.zeros(n)
    for start in range(0, n, 1024):
        part = slice(start, start + 1024)
        plan = np.exp((f[part, None] + g[None] - cost[part]) / epsilon)
        rows[part] = plan.sum(1)
        columns += plan.sum(0)
    b = np.full(n, 1 / n) if b is None else np.asarray(b, np.float64)
    return float(np.abs(rows - 1 / n).sum() + np.abs(columns - b).sum())


def transports(epsilon: float) -> dict[str, Callable]:
    """cost -> (f, g, steps, converged) of every contender."""
    def ours(cost: jax.Array, method: str) -> tuple:
        out = sinkhorn(cost, epsilon=epsilon, method=method, max_steps=4000,
                       stop=ji.tolerance(rtol=0, atol=TOL))
        return out.f, out.g, out.solve.steps, out.converged

    contenders: dict[str, Callable] = {
        f"jaxiter {method}": lambda c, m=method: ours(c, m) for method in ("auto", "kernel")}
    if not installed("ott"):
        return contenders
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    def theirs(cost: jax.Array, **keywords: Any) -> tuple:
        solver = ott_sinkhorn.Sinkhorn(threshold=TOL, max_iterations=4000, **keywords)
        out = solver(linear_problem.LinearProblem(
            geometry.Geometry(cost_matrix=cost, epsilon=epsilon)))
        return out.f, out.g, out.n_iters, out.converged

    momentum = acceleration.Momentum(value=1.5)
    return contenders | {
        "ott log": theirs,
        "ott kernel": lambda c: theirs(c, lse_mode=False),
        "ott log, momentum": lambda c: theirs(c, momentum=momentum),
        "ott kernel, momentum": lambda c: theirs(c, lse_mode=False, momentum=momentum)}


def transport(quick: bool) -> list[dict]:
    """Seconds to a marginal error of 1e-4, and the true error of what was returned."""
    rows = []
    for n in (128,) if quick else (1024, 4096, 16384):
        for share in (0.05, 0.01):
            host, epsilon = problem(n, share)
            cost = jnp.asarray(host)
            contenders = transports(epsilon)
            if n > 10_000 and share < 0.05:  # log iterations of these take the whole budget
                contenders = {k: f for k, f in contenders.items() if "log" not in k}
            compiled, seconds = compile_all(contenders, cost, repeats=1)
            times = time_all(compiled, cost, repeats=3 if n > 10_000 else 7)
            for name, function in compiled.items():
                f, g, steps, converged = function(cost)
                rows.append({
                    "n": n, "epsilon/mean": share, "method": name, "steps": int(steps),
                    "converged": bool(converged), "error_float64": true_error(host, f, g, epsilon),
                    "ms": float(np.median(times[name]) * 1e3), "compile_s": seconds[name]})
    show(rows)
    return rows


def precision(quick: bool) -> list[dict]:
    """Products in the backend's default precision, in float32, and what histograms make of them.

    The trap: a backend that rounds the factors of a float32 product to ten bits.
    """
    n, width = (128, 8) if quick else (2048, 64)
    host, epsilon = problem(n, 0.05)
    kernel = np.exp(-host / epsilon).astype(np.float32)
    vectors = np.random.default_rng(1).uniform(size=(n, width)).astype(np.float32)
    exact = kernel.astype(np.float64) @ vectors.astype(np.float64)
    rows = []
    for name in ("default", "highest"):
        out = np.asarray(jnp.matmul(jnp.asarray(kernel), jnp.asarray(vectors), precision=name))
        rows.append({"what": f"K @ V, {name}", "error": float(
            np.max(np.abs(out - exact) / exact)), "converged": "-"})
    b = vectors.T / vectors.T.sum(1, keepdims=True)
    out = jax.jit(lambda c, b: sinkhorn_histograms(
        c, jnp.full((width, n), 1 / n), b, epsilon=epsilon,
        stop=ji.tolerance(rtol=0, atol=1e-5)))(jnp.asarray(host), jnp.asarray(b))
    worst = max(true_error(host, out.f[i], out.g[i], epsilon, b[i]) for i in range(width))
    rows.append({"what": f"{width} histograms to 1e-5", "error": worst,
                 "converged": f"{int(jnp.sum(out.converged))} of {width}"})
    show(rows)
    return rows


def solvers(quick: bool) -> list[dict]:
    """Microseconds per evaluation at a fixed count, over a hand-written loop of the same map."""
    count, rows = 100, []
    for size in (1000,) if quick else (1000, 1_000_000, 16_000_000):
        def step(x: jax.Array) -> jax.Array:
            return 0.999 * x + 0.001 * jnp.flip(x)

        def loop(x: jax.Array, step: Callable = step) -> tuple:
            def body(carry: tuple) -> tuple:
                x, k, _ = carry
                new = step(x)
                return new, k + 1, jnp.max(jnp.abs(new - x))

            return jax.lax.while_loop(
                lambda c: (c[1] < count) & (c[2] > -1.0), body, (x, 0, jnp.float32(1)))[:2]

        def ours(solver: Any, step: Callable = step) -> Callable:
            def run(x: jax.Array) -> tuple:
                # A floor of 0 and a rule that nothing meets: every step is taken.
                unbounded = ji.Problem(lambda x: step(x), floor=lambda x: 0.0)
                out = ji.fixed_point(unbounded, x, solver=solver, stop=never(), max_steps=count)
                return out.value, out.steps
            return run

        contenders: dict[str, Callable] = {
            "hand-written loop": loop, "jaxiter picard": ours(ji.picard()),
            "jaxiter anderson(5)": ours(ji.anderson(5))}
        if installed("jaxopt"):
            import jaxopt

            def peer(x: jax.Array, step: Callable = step) -> tuple:
                out = jaxopt.AndersonAcceleration(
                    step, history_size=5, maxiter=count, tol=1e-37).run(x)
                return out.params, out.state.iter_num

            contenders["jaxopt Anderson(5)"] = peer
        start = jnp.linspace(0.0, 1.0, size)
        compiled, seconds = compile_all(contenders, start, repeats=1)
        times = time_all(compiled, start, repeats=7)
        per = {k: t / max(int(compiled[k](start)[1]), 1) for k, t in times.items()}
        rows += [{"size": size, "method": k, "us_per_evaluation": float(np.median(t) * 1e6),
                  "ratio": float(np.median(t / per["hand-written loop"])),
                  "compile_s": seconds[k]} for k, t in per.items()]
    show(rows)
    return rows


def equilibrium(quick: bool) -> list[dict]:
    """A deep equilibrium layer and its gradient within 100 steps, in both precisions of products.

    In the backend's default precision the map itself may be rounded to three digits.
    """
    batch, width = (16, 32) if quick else (512, 1024)
    rng = np.random.default_rng(0)
    w = jnp.asarray(0.7 * rng.normal(size=(width, width)) / width**0.5 / 2, jnp.float32)
    x = jnp.asarray(rng.normal(size=(batch, width)), jnp.float32)
    rows = []
    for precision in ("default", "highest"):
        def cell(z: jax.Array, w: jax.Array, x: jax.Array, p: str = precision) -> jax.Array:
            return jnp.tanh(jnp.matmul(z, w, precision=p) + x)

        forward = layers(cell, jnp.zeros_like(x))
        backward = {name: jax.grad(lambda w, x, f=f: jnp.sum(f(w, x)[0] ** 2))
                    for name, f in forward.items()}
        fast, slow = (compile_all(f, w, x, repeats=1) for f in (forward, backward))
        times = [time_all(compiled, w, x, repeats=11) for compiled in (fast[0], slow[0])]
        for name, function in fast[0].items():
            z, steps = function(w, x)
            rows.append({
                "products": precision, "method": name, "steps": int(steps),
                "residual": float(jnp.linalg.norm(cell(z, w, x) - z)),
                "forward_ms": float(np.median(times[0][name]) * 1e3),
                "gradient_ms": float(np.median(times[1][name]) * 1e3),
                "forward_compile_s": fast[1][name], "gradient_compile_s": slow[1][name],
                "gradient_norm": float(jnp.linalg.norm(slow[0][name](w, x)))})
    show(rows)
    return rows


def layers(cell: Callable, start: jax.Array) -> dict[str, Callable]:
    """(w, x) -> (the layer's answer, steps) of every contender."""
    def ours(w: jax.Array, x: jax.Array) -> tuple:
        out = ji.fixed_point(cell, start, w, x, solver=ji.anderson(5), max_steps=100,
                             stop=ji.tolerance(rtol=0, atol=TOL))
        return out.value, out.steps

    contenders: dict[str, Callable] = {"jaxiter anderson(5)": ours}
    if installed("jaxopt"):
        import jaxopt

        def theirs(w: jax.Array, x: jax.Array) -> tuple:
            out = jaxopt.AndersonAcceleration(
                cell, history_size=5, tol=TOL, maxiter=100).run(start, w, x)
            return out.params, out.state.iter_num

        contenders["jaxopt Anderson(5)"] = theirs
    return contenders


def lanes(quick: bool) -> list[dict]:
    """Contractions of 10 to 2,000 steps: `solve_many` beside vmap."""
    count, size = (64, 8) if quick else (4096, 64)
    rng = np.random.default_rng(0)
    wanted = np.exp(rng.uniform(np.log(10), np.log(2000), count))
    turn = jnp.asarray(np.linalg.qr(rng.normal(size=(size, size)))[0], jnp.float32)
    rates = jnp.asarray(np.exp(np.log(1e-5) / wanted), jnp.float32)
    starts, answer = jnp.zeros((count, size)), jnp.full(size, size**-0.5)

    def step(x: jax.Array, q: jax.Array) -> jax.Array:
        return q * jnp.matmul(turn, x - answer, precision="highest") + answer

    options: dict[str, Any] = {"stop": ji.tolerance(rtol=0, atol=1e-5), "max_steps": 4000}
    contenders: dict[str, Callable] = {
        "vmap": jax.vmap(lambda x, q: ji.fixed_point(step, x, q, **options)),
        "solve_many": lambda x, q: ji.solve_many(step, x, q, **options)}
    for width in () if quick else (512, 1024, 2048):
        contenders[f"{width} lanes"] = lambda x, q, n=width: ji.solve_many(
            step, x, q, lanes=n, **options)
    compiled, seconds = compile_all(contenders, starts, rates, repeats=1)
    times = time_all(compiled, starts, rates, repeats=5)
    steps = np.asarray(compiled["vmap"](starts, rates).steps)
    rows = [{"method": name, "ms": float(np.median(t) * 1e3), "compile_s": seconds[name],
             "over_vmap": float(np.median(times["vmap"] / t)),
             "ideal": float(steps.max() / steps.mean())} for name, t in times.items()]
    show(rows)
    return rows


def sampling(quick: bool) -> list[dict]:
    """A network trained on digits: the loop of 200 steps beside rounds of batched calls."""
    if not installed("sklearn"):
        return []
    from jaxiter.diffusion import ddim, ddpm, linear_beta_schedule, sample, sample_parallel
    from jaxiter.testing.diffusion import network_denoiser, trained_network

    width, steps = (32, 20) if quick else (2048, 200)
    schedule = linear_beta_schedule(steps)
    network = trained_network(50 if quick else 2000, width=width)[0]
    model = network_denoiser(network, linear_beta_schedule(1000))
    x, key, rows = jax.random.normal(jax.random.key(1), (64,)), jax.random.key(0), []
    one = jax.jit(model.fn)
    many = jax.jit(jax.vmap(model.fn))
    alone = time_all({"one": one}, x, jnp.float32(500), repeats=20)["one"]
    batch = time_all({"many": many}, jnp.tile(x, (steps, 1)), jnp.full(steps, 500.0),
                     repeats=20)["many"]
    for name, sampler in {"DDIM": ddim(schedule), "DDPM": ddpm(schedule)}.items():
        noise = {"key": key} if name == "DDPM" else {}

        def loop(x: jax.Array, sampler: Any = sampler, noise: dict = noise) -> jax.Array:
            return sample(sampler, model, x, **noise)

        def rounds(x: jax.Array, sampler: Any = sampler, noise: dict = noise) -> tuple:
            out = sample_parallel(sampler, model, x, tolerance=1e-3, **noise)
            return out.value, out.solve.steps, out.converged

        compiled, seconds = compile_all({"loop": loop, "parallel": rounds}, x, repeats=1)
        times = time_all(compiled, x, repeats=9)
        exact, (found, needed, converged) = compiled["loop"](x), compiled["parallel"](x)
        rows.append({
            "sampler": name, "steps": steps, "rounds": int(needed), "converged": bool(converged),
            "loop_ms": float(np.median(times["loop"]) * 1e3),
            "parallel_ms": float(np.median(times["parallel"]) * 1e3),
            "speedup": float(np.median(times["loop"] / times["parallel"])),
            "rms_difference": float(jnp.sqrt(jnp.mean((found - exact) ** 2))),
            "batched_over_single_call": float(np.median(batch) / np.median(alone)),
            "compile_s": seconds["parallel"]})
    show(rows)
    return rows


PARTS: dict[str, Callable[[bool], list[dict]]] = {
    "transport": transport, "precision": precision, "solvers": solvers,
    "equilibrium": equilibrium, "lanes": lanes, "sampling": sampling}


def main() -> None:
    parser = argparse.ArgumentParser(description="One accelerator beside the peers.")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    card, began, content = jax.devices()[0].device_kind, time.perf_counter(), {}
    for name in arguments.only:
        start = time.perf_counter()
        print(f"\n{name}")
        content[name] = PARTS[name](arguments.quick)
        print(f"{time.perf_counter() - start:.0f} s")
        if not arguments.quick:  # after every part: a run that is cut off keeps what it has
            slug = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
            save(f"gpu_{slug}", {"card": card, "seconds": time.perf_counter() - began, **content})


if __name__ == "__main__":
    main()
