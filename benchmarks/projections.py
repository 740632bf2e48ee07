"""The projection onto the simplex against a sort and the peers', in seconds and digits.

Claims: rows (256, 1000) in at most twice the time of a plain sort, gradient included; the digits of
float32 in a row of 1e5 entries, wherever it lies.
`python benchmarks/projections.py [seconds] [digits]` writes results/projections.json.
"""

import jax
import jax.numpy as jnp
import jaxopt.projection
import numpy as np
import optax.projections

from harness import compile_all, run_parts, show, time_all
from jaxiter.operators import (
    projection_capped_simplex,
    projection_exponential_cone,
    projection_simplex,
)

CONTENDERS = {
    "jaxiter": projection_simplex,
    "optax": jax.vmap(optax.projections.projection_simplex),
    "jaxopt": jax.vmap(jaxopt.projection.projection_simplex),
}


def seconds() -> list[dict]:
    """Warm seconds of each, and their ratio to a sort of the same rows."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(256, 1000)), jnp.float32)
    functions = {"sort": lambda v: jnp.sort(v, -1), **CONTENDERS} | {
        f"{name}, gradient": jax.grad(lambda v, f=f: jnp.sum(f(v) ** 2))
        for name, f in CONTENDERS.items()} | {
        "jaxiter, capped": lambda v: projection_capped_simplex(v, 0.1, 16.0),
        "jaxiter, exponential cones": lambda v: projection_exponential_cone(
            v.reshape(-1)[:85_332 * 3].reshape(-1, 3))}
    compiled, compiling = compile_all(functions, rows, repeats=1)
    times = time_all(compiled, rows, repeats=21)
    table = [{"what": name, "compile": compiling[name], "warm": float(np.median(times[name])),
              "of a sort": float(np.median(times[name] / times["sort"]))} for name in times]
    show(table)
    return table


def digits() -> list[dict]:
    """Largest error of an entry and of the sum, in rows of 1e5 entries around 0, 1e2 and 1e4."""
    table = []
    for center in (0.0, 1e2, 1e4):
        row = (np.random.default_rng(1).normal(size=100_000) + center).astype(np.float32)
        exact = row.astype(np.float64)
        falling = -np.sort(-exact)
        tau = np.max((np.cumsum(falling) - 1) / np.arange(1, len(row) + 1))
        expected = np.maximum(exact - tau, 0)
        for name, function in CONTENDERS.items():
            found = np.asarray(jax.jit(function)(row[None])[0], np.float64)
            table.append({"around": center, "what": name,
                          "error": float(np.abs(found - expected).max()),
                          "sum - 1": float(abs(found.sum() - 1))})
    show(table)
    return table


if __name__ == "__main__":
    run_parts("projections", {"seconds": seconds, "digits": digits})
