"""Balanced layers: `python benchmarks/balanced_layers.py [--quick]`.

- attention: doubly stochastic attention beside softmax attention, 8 heads of 512 tokens: seconds,
  and what a half-step takes of a softmax. Claim: at most 1.15 of one.
- routing: steps to an overload of 5 percent for scores of several kinds, plain and with Anderson
  acceleration, beside the published rules of the biases; how far from the linear program.
- quantisation: the share of codes in use after one assignment, and during training from a
  codebook that has collapsed, beside nearest neighbours.

Writes results/balanced_layers.json. --quick: smaller sizes, nothing written.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxiter as ji
from harness import save, show, time_all
from jaxiter.transport import balanced_topk, sinkhorn_attention, sinkhorn_quantise

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.routing import linear_program, steps_to_balance  # noqa: E402

QUICK = "--quick" in sys.argv


def softmax_attention(q: Any, k: Any, v: Any) -> Any:
    scores = jnp.einsum("...id,...jd->...ij", q, k, precision="highest") / np.sqrt(q.shape[-1])
    return jnp.einsum("...ij,...je->...ie", jax.nn.softmax(scores), v, precision="highest")


def attention() -> dict:
    heads, n, d = (2, 128, 32) if QUICK else (8, 512, 64)
    q, k, v = (jax.random.normal(key, (heads, n, d))
               for key in jax.random.split(jax.random.key(0), 3))
    # One number a token: what is left is the matrix and its normalisations.
    narrow = q[..., :1], k[..., :1], v[..., :1]
    rows = []
    for name, operands in (("attention", (q, k, v)), ("matrix", narrow)):
        functions = {"softmax": softmax_attention} | {
            steps: lambda q, k, v, steps=steps: sinkhorn_attention(q, k, v, max_steps=steps)
            for steps in (1, 3, 5)}
        compiled = {key: jax.jit(f).lower(*operands).compile() for key, f in functions.items()}
        times = time_all(compiled, *operands, repeats=5 if QUICK else 25)
        for steps in (1, 3, 5):
            ratio = times[steps] / times["softmax"]
            rows.append({
                "part": name, "half_steps": steps, "seconds": float(np.median(times[steps])),
                "times_softmax": float(np.median(ratio)),
                "times_softmax_a_half_step": float(np.median(ratio)) / steps})
    show(rows)
    return {"heads": heads, "tokens": n, "width": d, "rows": rows}


def scores_of(tokens: int, experts: int, kind: str, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    raw = spread * rng.normal(size=experts) + rng.normal(size=(tokens, experts))
    if kind == "sigmoid":
        raw = 1 / (1 + np.exp(-raw))
    elif kind == "softmax":
        raw = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    return raw.astype(np.float32)


def routing() -> dict:
    cases = [(512, 16, 2, "sigmoid", 0.8), (512, 16, 2, "softmax", 0.8), (512, 16, 2, "raw", 2.0)]
    if not QUICK:
        cases += [(4096, 64, 8, "sigmoid", 0.8), (4096, 64, 8, "softmax", 0.8),
                  (4096, 64, 1, "softmax", 0.8), (4096, 256, 8, "sigmoid", 0.8),
                  (8192, 128, 4, "softmax", 1.5)]
    rows = []
    for tokens, experts, k, kind, spread in cases:
        scores = jnp.asarray(scores_of(tokens, experts, kind, spread))
        row = {"tokens": tokens, "experts": experts, "k": k, "scores": kind}
        greedy = np.bincount(np.asarray(jax.lax.top_k(scores, k)[1]).ravel(), minlength=experts)
        row["greedy_overload"] = float(greedy.max() * experts / (tokens * k) - 1)
        for name, solver in (("anderson", ji.anderson()), ("plain", None)):
            solve = jax.jit(lambda s, k=k, solver=solver: balanced_topk(s, k, solver=solver))
            out = solve(scores)
            times = time_all({name: solve}, scores, repeats=5)[name]
            row |= {f"{name}_steps": int(out.solve.steps),
                    f"{name}_overload": float(out.solve.merit),
                    f"{name}_status": ji.Status.name(out.status),
                    f"{name}_seconds": float(np.median(times))}
        if tokens == 512:
            best = linear_program(np.asarray(scores), k)
            tight = balanced_topk(scores, k, stop=ji.tolerance(rtol=0.0, atol=0.01))
            row |= {"dual_over_program": float(out.dual_value) / best - 1,
                    "value_over_program": float(out.value) / best - 1,
                    "tight_steps": int(tight.solve.steps),
                    "tight_value_over_program": float(tight.value) / best - 1}
        rows.append(row)
        print(row)
    scores = jnp.asarray(scores_of(512, 16, "sigmoid", 0.8))
    rules = [{"rule": rule, "rate": rate, "steps": steps_to_balance(scores, 2, rate, rule, 1000)}
             for rule, rate in (("constant", 0.02), ("harmonic", 1.0), ("root", 0.1),
                                ("sign", 1e-3), ("sign", 1e-2))]
    show(rules)
    return {"rows": rows, "rules": rules}


def nearest(z: jax.Array, codebook: jax.Array) -> jax.Array:
    return jnp.argmin(jnp.sum((z[:, None] - codebook[None]) ** 2, -1), axis=1)


def quantisation() -> dict:
    rows = []
    for seed in range(2 if QUICK else 5):
        rng = np.random.default_rng(seed)
        z, codes = (jnp.asarray(rng.normal(size=size), jnp.float32)
                    for size in ((4096, 16), (256, 16)))
        for name, codebook in (("matched", codes), ("collapsed", 0.1 * codes + 3)):
            rows.append({
                "seed": seed, "codebook": name,
                "nearest": len(np.unique(nearest(z, codebook))) / 256,
                "balanced": float(sinkhorn_quantise(z, codebook).usage)})
    show(rows)
    trained = {"nearest": train(False), "balanced": train(True)}
    print("usage in training", trained)
    return {"rows": rows, "swiss_roll_usage": trained}


def train(balanced: bool) -> list[float]:
    """Usage by nearest neighbours of 64 codes on a roll, every ten Adam steps, from a collapse."""
    rng = np.random.default_rng(0)
    turn = 1.5 * np.pi * (1 + 2 * rng.uniform(size=2048))
    roll = jnp.asarray(np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 10, jnp.float32)
    codebook = jnp.asarray(0.1 * rng.normal(size=(64, 2)) + 2, jnp.float32)
    optimiser = optax.adam(0.2)

    def loss(codebook: Any) -> Any:
        if balanced:
            return sinkhorn_quantise(roll, codebook, beta=1.0).loss
        return jnp.mean((roll - codebook[nearest(roll, codebook)]) ** 2)

    @jax.jit
    def step(codebook: Any, state: Any) -> tuple:
        update, state = optimiser.update(jax.grad(loss)(codebook), state)
        return optax.apply_updates(codebook, update), state

    state, usage = optimiser.init(codebook), []
    for count in range(101):
        if count % 10 == 0:
            usage.append(len(np.unique(nearest(roll, codebook))) / 64)
        codebook, state = step(codebook, state)
    return usage


def main() -> None:
    parts = {part.__name__: part() for part in (attention, routing, quantisation)}
    if not QUICK:
        save("balanced_layers", parts)


if __name__ == "__main__":
    main()
