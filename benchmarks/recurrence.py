"""Rounds of parallel recurrences against the loop: `python benchmarks/recurrence.py [part ...]`.

A GRU with gates of standard deviation scale / sqrt(fan in) and four normal drivers, from a
guess of zeros; a counter, the honest worst case; optimisers of a small network. A round
evaluates every row once. The part `adjoints` adds seconds of gradients, for a quiet machine.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from sklearn.datasets import load_digits

import jaxiter as ji
from harness import run_parts, show, time_all
from jaxiter.recurrence import parallel, parallel_optimize, sequential, solve_recurrence


def gru(size: int, scale: float, seed: int = 0) -> Any:
    """`step(h, x)` of a GRU without biases."""
    rng = np.random.default_rng(seed)

    def gate(inputs: int) -> jax.Array:
        return jnp.asarray(scale / np.sqrt(inputs) * rng.normal(size=(size, inputs)), jnp.float32)

    wz, wr, wh = (gate(4) for _ in range(3))
    uz, ur, uh = (gate(size) for _ in range(3))

    def step(h: jax.Array, x: jax.Array) -> jax.Array:
        z = jax.nn.sigmoid(wz @ x + uz @ h)
        r = jax.nn.sigmoid(wr @ x + ur @ h)
        return (1 - z) * h + z * jnp.tanh(wh @ x + uh @ (r * h))

    return step


CASES = [
    (8, 1000, 1.0, ("newton", "diagonal", "elk", "secant", "jacobi")),
    (16, 1000, 2.0, ("newton", "diagonal", "elk", "secant", "jacobi")),
    (64, 2000, 1.0, ("newton", "secant", "jacobi")),
    (64, 10_000, 1.0, ("newton", "secant")),
    (64, 1000, 3.0, ("newton", "secant")),
]


def networks() -> list[dict]:
    """Rounds to 1e-5 and the largest deviation from the loop."""
    rows = []
    for size, count, scale, methods in CASES:
        step = gru(size, scale)
        xs = jnp.asarray(np.random.default_rng(1).normal(size=(count, 4)), jnp.float32)
        h0 = jnp.zeros(size)
        # A chaotic chain gets 20 rounds to show that it does not finish.
        limit = 20 if scale > 2 else 100

        def loop(xs: Any, step: Any = step, h0: Any = h0) -> Any:
            return lax.scan(lambda h, x: (step(h, x),) * 2, h0, xs)[1]

        def solve(xs: Any, method: str, step: Any = step, h0: Any = h0, k: int = limit) -> Any:
            out = solve_recurrence(step, h0, xs, method=method, rtol=0.0, atol=1e-5, max_steps=k)
            return out.value, out.steps, out.status, xs.shape[0] - out.aux

        functions = {"loop": loop} | {
            m: (lambda xs, m=m, solve=solve: solve(xs, m)) for m in methods}
        compiled = {name: jax.jit(f).lower(xs).compile() for name, f in functions.items()}
        exact = np.asarray(compiled["loop"](xs))
        for name in methods:
            value, steps, status, unfinished = compiled[name](xs)
            rows.append({
                "d": size, "T": count, "scale": scale, "method": name, "rounds": int(steps),
                "status": ji.Status.name(status), "unfinished": int(unfinished),
                "deviation": float(np.max(np.abs(np.asarray(value) - exact)))})
    show(rows)
    return rows


def adjoints() -> list[dict]:
    """Gradient of a sum of squares by all weights, seconds over those through the scan."""
    size, count = 16, 2000
    step = gru(size, 1.0)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(count, 4)), jnp.float32)
    h0 = jnp.zeros(size)

    def loss(xs: Any, adjoint: Any) -> Any:
        return jnp.sum(solve_recurrence(step, h0, xs, adjoint=adjoint).value ** 2)

    def scan(xs: Any) -> Any:
        return jnp.sum(lax.scan(lambda h, x: (step(h, x),) * 2, h0, xs)[1] ** 2)

    functions = {"scan": scan, "parallel": lambda x: loss(x, parallel()),
                 "sequential": lambda x: loss(x, sequential())}
    compiled = {k: jax.jit(jax.grad(f)).lower(xs).compile() for k, f in functions.items()}
    times = time_all(compiled, xs, repeats=5)
    exact = np.asarray(compiled["scan"](xs))
    rows = [{"adjoint": name, "relative_error": float(
        np.linalg.norm(np.asarray(compiled[name](xs)) - exact) / np.linalg.norm(exact)),
        "seconds_over_scan": float(np.median(times[name] / times["scan"]))} for name in functions]
    show(rows)
    return rows


def optimisers() -> list[dict]:
    """400 steps on digits, a 64-32-10 network, batch 64: rounds of gradients and final loss."""
    features, labels = load_digits(return_X_y=True)
    features = jnp.asarray(features / 16, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(64, 32)) / 8, jnp.float32), "a": jnp.zeros(32),
              "v": jnp.asarray(rng.normal(size=(32, 10)) / 6, jnp.float32), "b": jnp.zeros(10)}

    def loss(p: Any, rows: Any) -> Any:
        logits = jax.nn.relu(features[rows] @ p["w"] + p["a"]) @ p["v"] + p["b"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    def gradient(p: Any, t: Any) -> Any:
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(0), t), (64,), 0, 1797)
        return jax.grad(loss)(p, rows)

    steps, everything = 400, jnp.arange(1797)
    rows = []
    for name, optimizer in {"adam(1e-3)": optax.adam(1e-3), "sgd(0.1)": optax.sgd(0.1)}.items():
        def loop(p: Any, optimizer: Any = optimizer) -> Any:
            def step(carry: Any, t: Any) -> Any:
                updates, state = optimizer.update(gradient(carry[0], t), carry[1], carry[0])
                return (optax.apply_updates(carry[0], updates), state), None
            return lax.scan(step, (p, optimizer.init(p)), jnp.arange(steps))[0][0]

        final = float(loss(jax.jit(loop)(params), everything))
        for window in (7, 20, 50):
            for tolerance in (1e-6, 1e-3):
                run = jax.jit(lambda p, o=optimizer, w=window, tol=tolerance: parallel_optimize(
                    o, gradient, p, steps=steps, window=w, tolerance=tol))(params)
                assert bool(run.converged)
                rows.append({"optimiser": name, "window": window, "tolerance": tolerance,
                             "rounds": int(run.rounds),
                             "steps_over_rounds": steps / int(run.rounds),
                             "loss": float(loss(run.params, everything)), "loop_loss": final})
    show(rows)
    return rows


def counter() -> list[dict]:
    """Every row depends fully on the one before: as many rounds as rows."""
    out = jax.jit(lambda: solve_recurrence(
        lambda s, x: s + 1, jnp.int32(0), length=256, method="jacobi"))()
    return [{"T": 256, "rounds": int(out.steps), "status": ji.Status.name(out.status)}]


if __name__ == "__main__":
    parts = {part.__name__: part for part in (networks, counter, optimisers, adjoints)}
    run_parts("recurrence", parts, ["networks", "counter", "optimisers"])
