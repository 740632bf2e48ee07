"""Calls from a prompt, outside of any jit: seconds of the first, milliseconds of the next.

Everything that can be made anew is: maps, rules, solvers, numbers. `python benchmarks/prompt.py`
writes results/prompt.json. Bounds: 1 ms for `sinkhorn`, 0.5 ms for `fixed_point`, 3 ms for its
gradient.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

import jaxiter as ji
from harness import save, show
from jaxiter.bilevel import solve_inner
from jaxiter.diffusion import Denoiser, ddim, linear_beta_schedule, sample_parallel
from jaxiter.recurrence import solve_recurrence
from jaxiter.transport import sinkhorn


def cases() -> dict[str, dict[str, Callable[[float], Any]]]:
    """Calls of a small number that changes each time, by library."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(4, 4)) * 0.2, jnp.float32)
    z, many = jnp.zeros(4), jnp.zeros((100, 4))
    cost = jnp.asarray(rng.uniform(size=(50, 50)), jnp.float32)
    schedule = linear_beta_schedule(20)

    def solved(w: Any, e: float) -> Any:
        return ji.fixed_point(lambda z, w: jnp.tanh(z @ w + 0.3), z, w, solver=ji.anderson(5),
                              stop=ji.tolerance(rtol=1e-4 + e)).value

    def plain(w: Any, e: float) -> Any:
        return ji.fixed_point(lambda z, w: jnp.tanh(z @ w + 0.3), z, w,
                              stop=ji.tolerance(rtol=1e-4 + e)).value

    def theirs(w: Any, e: float) -> Any:
        rule = optimistix.FixedPointIteration(rtol=1e-4 + e, atol=1e-6)
        return optimistix.fixed_point(lambda z, w: jnp.tanh(z @ w + 0.3), rule, z, w).value

    def jaxopts(w: Any, e: float) -> Any:
        return jaxopt.FixedPointIteration(
            lambda z, w: jnp.tanh(z @ w + 0.3), tol=1e-4 + e).run(z, w).params

    def slope(call: Callable) -> Callable:
        return lambda e: jax.grad(lambda w: jnp.sum(call(w, e) ** 2))(w)

    return {
        "fixed_point": {"jaxiter": lambda e: plain(w, e), "optimistix": lambda e: theirs(w, e),
                        "jaxopt": lambda e: jaxopts(w, e)},
        "fixed_point, anderson(5)": {"jaxiter": lambda e: solved(w, e)},
        "its gradient": {"jaxiter": slope(plain), "optimistix": slope(theirs),
                         "jaxopt": slope(jaxopts)},
        "root": {"jaxiter": lambda e: ji.root(
            lambda z, w, e: z + e - jnp.tanh(z @ w), z, w, jnp.float32(e)).value},
        "solve_many, 100": {"jaxiter": lambda e: ji.solve_many(
            lambda z, w: jnp.tanh(z @ w + 0.3), many, w, in_axes=None,
            stop=ji.tolerance(rtol=1e-4 + e)).value},
        "sinkhorn, 50 x 50": {
            "jaxiter": lambda e: sinkhorn(cost, epsilon=0.05 + e).f,
            "ott": lambda e: Sinkhorn()(LinearProblem(Geometry(cost, epsilon=0.05 + e))).f},
        "gradient of sinkhorn": {"jaxiter": lambda e: jax.grad(
            lambda c: sinkhorn(c, epsilon=0.05 + e).entropic_cost)(cost)},
        "solve_inner": {"jaxiter": lambda e: solve_inner(
            lambda w, y: jnp.sum(jnp.cosh(y @ w - 1)) + jnp.sum(y**2), z, w).value},
        "solve_recurrence": {"jaxiter": lambda e: solve_recurrence(
            lambda s, x: jnp.tanh(s @ w + x), z, many).value},
        "sample_parallel": {"jaxiter": lambda e: sample_parallel(
            ddim(schedule), Denoiser(lambda x, t: jnp.tanh(x), "eps"), z,
            tolerance=0.05 + e).value},
    }


def measure(call: Callable, repeats: int = 31) -> dict:
    times = []
    for k in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(1e-3 * k / repeats))
        times.append(time.perf_counter() - start)
    return {"first s": times[0], "next ms": float(np.median(times[1:]) * 1e3),
            "slowest ms": float(np.max(times[2:]) * 1e3)}


def main() -> None:
    jnp.sum(jnp.ones(3)).block_until_ready()
    rows = [{"call": name, "library": library, **measure(call, 31 if library == "jaxiter" else 7)}
            for name, calls in cases().items() for library, call in calls.items()]
    show(rows)
    save("prompt", {"rows": rows})


if __name__ == "__main__":
    main()
