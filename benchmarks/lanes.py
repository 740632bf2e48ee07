"""Refilled lanes against vmap: 2,048 contractions whose steps spread over 10..2,000.

Claim: at least 80 percent of the ideal speed-up, which is the slowest lane's steps over the
mean. `python benchmarks/lanes.py` writes results/lanes.json.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from harness import save, show, time_all


def main() -> None:
    # Both contenders run on one core; on two, the runtime's hand-over of tiny operations
    # between threads costs the lanes up to a third (measured), and vmap nothing.
    os.sched_setaffinity(0, {0})
    count, size = 2048, 64
    rng = np.random.default_rng(0)
    wanted = np.exp(rng.uniform(np.log(10), np.log(2000), count))
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    turn = jnp.asarray(turn, jnp.float32)
    starts = jnp.zeros((count, size))
    stop = ji.tolerance(rtol=0, atol=1e-5)
    # The distance to the answer, of length 1, falls like q^k: q is chosen to need `wanted` steps.
    answer = jnp.ones(size) / np.sqrt(size).astype(np.float32)
    rates = jnp.asarray(np.exp(np.log(1e-5) / wanted), jnp.float32)

    def step(x: jax.Array, q: jax.Array) -> jax.Array:
        return q * (turn @ (x - answer)) + answer

    keywords = {"stop": stop, "max_steps": 4000}
    functions = {"vmap": jax.vmap(lambda x, q: ji.fixed_point(step, x, q, **keywords))}
    for lanes in (32, 64, 128, 256):
        for every in (4, 16, 32):
            functions[f"{lanes} lanes, refill {every}"] = (
                lambda x, q, n=lanes, k=every: ji.solve_many(
                    step, x, q, lanes=n, refill_every=k, **keywords))
    compiled = {name: jax.jit(f).lower(starts, rates).compile() for name, f in functions.items()}
    times = time_all(compiled, starts, rates, repeats=7)
    reference = compiled["vmap"](starts, rates)
    steps = np.asarray(reference.steps)
    ideal = float(steps.max() / steps.mean())
    rows = []
    for name, function in compiled.items():
        out = function(starts, rates)
        speedup = float(np.median(times["vmap"] / times[name]))
        rows.append({
            "method": name, "seconds": float(np.median(times[name])), "speedup": speedup,
            "share_of_ideal": speedup / ideal,
            "same_status": bool(jnp.all(out.status == reference.status)),
            "same_steps": bool(jnp.all(out.steps == reference.steps)),
            "largest_difference": float(jnp.max(jnp.abs(out.value - reference.value))),
        })
    show(rows)
    print(f"ideal {ideal:.2f}: steps {steps.min()}..{steps.max()}, mean {steps.mean():.0f}")
    save("lanes", {"rows": rows, "ideal": ideal, "steps": sorted(steps.tolist())})


if __name__ == "__main__":
    main()
