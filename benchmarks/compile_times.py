"""Import time, and seconds to trace and compile: `python benchmarks/compile_times.py`.

Claim: `import jaxiter` takes at most 1.3 times the import of jax, optax and equinox together.
"""

import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import optax
import optimistix
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

import jaxiter as ji
from harness import compile_all, run_parts, show
from jaxiter.bilevel import solve_inner
from jaxiter.optim import cautious
from jaxiter.transport import sinkhorn


def imports(repeats: int = 7) -> dict:
    """Median seconds of a fresh interpreter, interleaved, less that of an empty one."""
    programs = {"nothing": "pass", "needed": "import jax, optax, equinox",
                "jaxiter": "import jaxiter"}
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            seconds[name].append(time.perf_counter() - start)
    middle = {name: sorted(times)[repeats // 2] for name, times in seconds.items()}
    ratio = (middle["jaxiter"] - middle["nothing"]) / (middle["needed"] - middle["nothing"])
    print(middle, ratio)
    return {"seconds": middle, "ratio": ratio}


def layer(z: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(z @ w + 1)


def optax_step(optimizer: Any) -> Any:
    def step(w: jax.Array) -> Any:
        return optimizer.update(w, optimizer.init(w), w)[0]

    return step


def families() -> list[dict]:
    """Forward and gradient of each family's main function, beside its peer's."""
    w, z, cost = jnp.eye(8) / 2, jnp.zeros(8), jnp.ones((16, 16)) - jnp.eye(16)

    def objective(y: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.cosh(y @ w - 1)) + jnp.sum(y**2)

    newton = optimistix.FixedPointIteration(rtol=1e-5, atol=1e-6)
    bfgs = optimistix.BFGS(rtol=1e-5, atol=1e-6)
    lbfgs = jaxopt.LBFGS(objective)
    cases = {
        "fixed_point": {
            "jaxiter": (lambda w: ji.fixed_point(layer, z, w).value, w),
            "jaxopt": (lambda w: jaxopt.FixedPointIteration(layer).run(z, w).params, w),
            "optimistix": (lambda w: optimistix.fixed_point(layer, newton, z, w).value, w)},
        "fixed_point, anderson": {
            "jaxiter": (lambda w: ji.fixed_point(layer, z, w, solver=ji.anderson(5)).value, w),
            "jaxopt": (lambda w: jaxopt.AndersonAcceleration(layer, history_size=5).run(
                z, w).params, w)},
        "sinkhorn": {
            "jaxiter": (lambda c: sinkhorn(c, epsilon=0.1).f, cost),
            "jaxiter, kernel": (lambda c: sinkhorn(c, epsilon=0.1, method="kernel").f, cost),
            "ott": (lambda c: Sinkhorn()(LinearProblem(Geometry(c, epsilon=0.1))).f, cost)},
        "solve_inner": {
            "jaxiter": (lambda w: solve_inner(lambda w, y: objective(y, w), z, w).value, w),
            "jaxopt LBFGS": (lambda w: lbfgs.run(z, w).params, w),
            "optimistix BFGS": (lambda w: optimistix.minimise(objective, bfgs, z, w).value, w)},
        "an optimiser's step": {
            "jaxiter": (optax_step(cautious(optax.adam(0.1))), w),
            "optax": (optax_step(optax.adam(0.1)), w)}}
    rows = []
    for family, contenders in cases.items():
        argument = next(iter(contenders.values()))[1]
        forward = {name: f for name, (f, _) in contenders.items()}
        backward = {name: jax.grad(lambda a, f=f: jnp.sum(f(a) ** 2))
                    for name, f in forward.items()}
        seconds = [compile_all(functions, argument)[1] for functions in (forward, backward)]
        rows += [{"family": family, "library": name, "forward s": seconds[0][name],
                  "gradient s": seconds[1][name]} for name in contenders]
    show(rows)
    return rows


if __name__ == "__main__":
    run_parts("compile_times", {"imports": imports, "families": families})
