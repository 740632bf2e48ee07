"""Fits against scipy, optimistix and jaxopt: NIST's data sets, 10,000 decays at once.

Claims: at least six certified digits on every set of lower and average difficulty from both starts
(float64); of 10,000 decays at most one in a thousand unsolved after retries, in at most the time of
optimistix's vmapped Levenberg-Marquardt, and 1.5 x faster by lanes than by vmap.
`python benchmarks/fits.py [strd] [decays]` writes results/fits.json; SMALL=1 makes it short.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix
import scipy.optimize

import jaxiter as ji
from harness import run_parts, show, time_all

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.strd import MODELS, Reference, load  # noqa: E402

SMALL = bool(os.environ.get("SMALL"))
SCIPY = {"scipy lm": {"method": "lm"}, "scipy trf": {"method": "trf"}}


def digits(one: Reference, value: object) -> float:
    value = np.asarray(value)
    return round(one.digits(value), 1) if np.isfinite(value).all() else -np.inf


def peers(one: Reference, residual: Callable, x: jax.Array, y: jax.Array) -> dict:
    """Digits and evaluations from each start, or NaN, by scipy, optimistix and jaxopt."""
    out: dict = {}
    jacobian = jax.jit(jax.jacfwd(residual))
    compiled = jax.jit(residual)
    for name, keywords in SCIPY.items():
        solved = [scipy.optimize.least_squares(
            lambda b: np.asarray(compiled(b, x, y)), start, x_scale="jac",
            jac=lambda b: np.asarray(jacobian(b, x, y)), max_nfev=1000, xtol=1e-10, ftol=1e-14,
            gtol=1e-14, **keywords) for start in one.starts]
        out[name] = [(digits(one, s.x), int(s.nfev)) for s in solved]
    rule = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-9)

    def one_fit(start: jax.Array) -> tuple:
        s = optimistix.least_squares(lambda b, _: residual(b, x, y), rule, start, max_steps=1000,
                                     throw=False)
        return s.value, s.stats["num_steps"]

    values, steps = jax.jit(jax.vmap(one_fit))(jnp.asarray(one.starts))
    out["optimistix"] = [(digits(one, v), int(n)) for v, n in zip(values, steps, strict=True)]
    solver = jaxopt.LevenbergMarquardt(lambda b: residual(b, x, y), maxiter=1000, tol=1e-12,
                                       xtol=1e-10)
    found = [solver.run(jnp.asarray(start)) for start in one.starts]
    out["jaxopt"] = [(digits(one, f.params), int(f.state.iter_num)) for f in found]
    return out


def strd() -> list[dict]:
    """Correct digits and evaluations of every set from both starts."""
    rows = []
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for name in list(MODELS)[:3] if SMALL else MODELS:
            one = load(name)
            x, y = jnp.asarray(one.x), jnp.asarray(one.y)

            def residual(b: jax.Array, x: jax.Array, y: jax.Array, model: Callable = one.model
                         ) -> jax.Array:
                return model(b, x) - y

            fits = jax.jit(jax.vmap(lambda b, f=residual, x=x, y=y: ji.least_squares(
                f, b, x, y).solve))(jnp.asarray(one.starts))
            ours = [(digits(one, v), int(n)) for v, n in zip(fits.value, fits.steps, strict=True)]
            row = {"set": name, "level": one.level, "jaxiter": ours,
                   "status": ji.Status.name(fits.status), **peers(one, residual, x, y)}
            rows.append(row)
            show([{key: str(value) for key, value in row.items()}])
    return rows


def decay(x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def decay_data(count: int) -> tuple[jax.Array, jax.Array]:
    """Decays `a exp(-b t) + c` with noise, b over a factor of 50, `[50]` and `[count, 50]`."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 4, 50)
    a, c = rng.uniform(0.5, 5, count), rng.uniform(-1, 1, count)
    b = np.exp(rng.uniform(np.log(0.1), np.log(5), count))
    y = a[:, None] * np.exp(-b[:, None] * t) + c[:, None]
    y += 0.02 * rng.normal(size=y.shape)
    return jnp.asarray(t, jnp.float32), jnp.asarray(y, jnp.float32)


def decays() -> dict:
    """Seconds, statuses and steps of 10,000 decays in float32 on one core."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    count = 500 if SMALL else 10_000
    t, y = decay_data(count)
    starts = jnp.ones((count, 3))
    retries = jnp.stack([jnp.tile(jnp.array([3.0, q, 0.0]), (count, 1)) for q in (0.3, 3.0)])
    options = {"max_steps": 100}
    rule = optimistix.LevenbergMarquardt(rtol=1e-5, atol=1e-6)

    def theirs(y: jax.Array) -> tuple:
        s = optimistix.least_squares(lambda x, y: decay(x, t, y), rule, jnp.ones(3), y,
                                     max_steps=100, throw=False)
        return s.value, s.result == optimistix.RESULTS.successful, s.stats["num_steps"]

    many = {"in_axes": (None, 0), **options}
    functions = {
        "vmap": jax.vmap(lambda y: ji.least_squares(decay, jnp.ones(3), t, y, **options).solve),
        "lanes": lambda y: ji.least_squares_many(decay, starts, t, y, **many).solve,
        "lanes, retries": lambda y: ji.least_squares_many(
            decay, starts, t, y, retries=retries, **many).solve,
        "optimistix, vmap": jax.vmap(theirs)}
    compiled, seconds = {}, {}
    for name, function in functions.items():
        begin = time.perf_counter()
        compiled[name] = jax.jit(function).lower(y).compile()
        seconds[name] = time.perf_counter() - begin
    times = time_all(compiled, y, repeats=3 if SMALL else 7)
    rows = []
    for name, function in compiled.items():
        out = function(y)
        row = {"method": name, "compile": seconds[name], "seconds": float(np.median(times[name])),
               "over_optimistix": float(np.median(times[name] / times["optimistix, vmap"]))}
        if name.startswith("optimistix"):
            steps = np.asarray(out[2])
            row |= {"unsolved": int((~out[1]).sum()), "floor": 0}
        else:
            steps = np.asarray(out.steps)
            row |= {"unsolved": int((out.status > ji.Status.PRECISION_FLOOR).sum()),
                    "floor": int((out.status == ji.Status.PRECISION_FLOOR).sum())}
        rows.append(row | {"mean_steps": float(steps.mean()), "most_steps": int(steps.max())})
    show(rows)
    return {"count": count, "rows": rows,
            "lanes_over_vmap": float(np.median(times["vmap"] / times["lanes"]))}


if __name__ == "__main__":
    run_parts("fits", {"strd": strd, "decays": decays})
