"""Uneven problems on one and two CPU devices: `python benchmarks/throughput.py`.

8,192 problems of 10 to 2,000 steps, sorted by difficulty: in blocks the second device would get all
the hard ones; dealt, each gets its share. Claim: at least 1.6 times one device, on two free cores.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import jaxiter as ji
from harness import save, show, time_all


def main() -> None:
    count, size = 8192, 64
    rng = np.random.default_rng(0)
    wanted = np.sort(np.exp(rng.uniform(np.log(10), np.log(2000), count)))
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    turn, answer = jnp.asarray(turn, jnp.float32), jnp.full(size, size**-0.5)
    rates = jnp.asarray(np.exp(np.log(1e-5) / wanted), jnp.float32)
    starts = jnp.zeros((count, size))

    def one(x: Any, q: Any) -> ji.Solution:
        return ji.solve_many(
            lambda x, q: q * (turn @ (x - answer)) + answer, x, q, max_steps=4000,
            stop=ji.tolerance(rtol=0, atol=1e-5))

    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    two = ji.over_mesh(one, mesh, "d")
    functions = {
        "one device": one, "one device, hardest first": lambda x, q: one(x[::-1], q[::-1]),
        "two, in blocks": two, "two, dealt": lambda x, q: two(x, q, difficulty=q)}
    compiled = {name: jax.jit(f).lower(starts, rates).compile() for name, f in functions.items()}
    times = time_all(compiled, starts, rates, repeats=9)
    steps = np.asarray(compiled["one device"](starts, rates).steps)
    same = bool((np.asarray(compiled["two, dealt"](starts, rates).steps) == steps).all())
    rows = [{"run": name, "seconds": float(np.median(t)),
             "speedup": float(np.median(times["one device"] / t))} for name, t in times.items()]
    show(rows)
    save("throughput", {"rows": rows, "same_steps": same,
                        "cores": len(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
