"""Quadratic programs against qpax, jaxopt's BoxOSQP, OSQP and Clarabel.

Claims: 64 programs (n = 30, 40 inequalities) in one vmap take at most 1.2 x qpax's time, with a
worst relative error of 1e-4 and a median of 1e-6 in float32; 4,096 by lanes, a few of them
infeasible, beat vmap; gradients within 1e-3 of float64 differences.
`python benchmarks/programs.py [batch] [sizes] [many] [sides] [gradients]` writes
results/programs.json; SMALL=1 makes it short.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import clarabel
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import osqp
import qpax
import scipy.sparse

import jaxiter as ji
from harness import compile_all, run_parts, show, time_all
from jaxiter.operators.programs import quadratic_program, quadratic_program_many

SMALL = bool(os.environ.get("SMALL"))
N, M = 30, 40


def programs(count: int, n: int = N, m: int = M, seed: int = 0, scale: float = 1.0) -> tuple:
    """Q, q, G, h of the method card's generator, `[count, ...]`, in float32; x in mixed units."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(count, n, n))
    Q = np.einsum("bij,bkj->bik", roots, roots) / n + 0.05 * np.eye(n)
    q, G = rng.normal(size=(count, n)), rng.normal(size=(count, m, n))
    h = 0.5 * np.abs(rng.normal(size=(count, m)))
    h += np.einsum("bmn,bn->bm", G, 0.1 * rng.normal(size=(count, n)))
    units = scale ** rng.uniform(-1, 1, (count, n))
    Q, q, G = Q * units[:, None] * units[..., None], q * units, G * units[:, None]
    return tuple(jnp.asarray(part, jnp.float32) for part in (Q, q, G, h))


def by_clarabel(Q: np.ndarray, q: np.ndarray, G: np.ndarray, h: np.ndarray) -> np.ndarray:
    """x to 1e-12, in float64."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    cones = [clarabel.NonnegativeConeT(len(h))]
    return np.array(clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu(Q)), q, scipy.sparse.csc_matrix(G), h, cones,
        settings).solve().x)


def by_osqp(Q: np.ndarray, q: np.ndarray, G: np.ndarray, h: np.ndarray) -> np.ndarray:
    solver = osqp.OSQP()
    solver.setup(scipy.sparse.csc_matrix(np.triu(Q)), q, scipy.sparse.csc_matrix(G),
                 np.full(len(h), -np.inf), h, verbose=False, eps_abs=1e-5, eps_rel=1e-5)
    return solver.solve().x


def loop(solve: Callable, data: tuple) -> tuple[np.ndarray, float]:
    """Answers of all programs one after the other, and the seconds of the better of two runs."""
    wide = [np.asarray(part, float) for part in data]
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        answers = np.array([solve(*one) for one in zip(*wide, strict=True)])
        seconds.append(time.perf_counter() - begin)
    return answers, min(seconds)


def errors(x: Any, reference: np.ndarray) -> dict:
    """Relative errors of a batch of answers."""
    off = np.linalg.norm(np.asarray(x, float) - reference, axis=1)
    off = off / np.linalg.norm(reference, axis=1)
    return {"median_error": float(np.median(off)), "worst_error": float(off.max())}


def ours(method: str) -> Callable:
    return jax.vmap(lambda Q, q, G, h: quadratic_program(Q, q, G=G, h=h, method=method))


def by_qpax(Q: jax.Array, q: jax.Array, G: jax.Array, h: jax.Array) -> jax.Array:
    none = jnp.zeros((0, q.size), q.dtype), jnp.zeros(0, q.dtype)
    return qpax.solve_qp_primal(Q, q, *none, G, h, solver_tol=1e-4)


def by_box_osqp(Q: jax.Array, q: jax.Array, G: jax.Array, h: jax.Array) -> jax.Array:
    solver = jaxopt.BoxOSQP(tol=1e-4, maxiter=4000)
    return solver.run(None, params_obj=(Q, q), params_eq=G, params_ineq=(
        jnp.full_like(h, -jnp.inf), h)).params.primal[0]


def batch() -> list[dict]:
    """64 programs by everybody."""
    data = programs(64)
    reference, clarabel_seconds = loop(by_clarabel, data)
    functions = {"interior": ours("interior"), "admm": ours("admm"),
                 "qpax": jax.vmap(by_qpax), "jaxopt BoxOSQP": jax.vmap(by_box_osqp)}
    compiled, compile_seconds = compile_all(functions, *data, repeats=1)
    times = time_all(compiled, *data, repeats=5 if SMALL else 25)
    rows = []
    for name, function in compiled.items():
        out = function(*data)
        x = out.x if name in ("interior", "admm") else out
        row = {"method": name, "compile": compile_seconds[name],
               "milliseconds": 1e3 * float(np.median(times[name])),
               "over_qpax": float(np.median(times[name] / times["qpax"])), **errors(x, reference)}
        if name in ("interior", "admm"):
            row |= {"median_steps": float(np.median(out.solve.steps)),
                    "most_steps": int(np.max(out.solve.steps)),
                    "converged": int(np.sum(out.converged))}
        rows.append(row)
    answers, seconds = loop(by_osqp, data)
    once = float(np.median(times["qpax"]))
    rows.append({"method": "OSQP, float64, a loop", "milliseconds": 1e3 * seconds,
                 "over_qpax": seconds / once, **errors(answers, reference)})
    rows.append({"method": "Clarabel, float64, a loop", "milliseconds": 1e3 * clarabel_seconds,
                 "over_qpax": clarabel_seconds / once, "median_error": 0.0, "worst_error": 0.0})
    columns = {name: "" for row in rows for name in row}
    show([columns | row for row in rows])
    return rows


def sizes() -> list[dict]:
    """Unseen seeds, sizes and units: errors where x counts by the diagonal of Q, statuses."""
    rows = []
    kinds = [(2, 3, 1.0), (10, 15, 1.0), (30, 40, 1.0), (100, 120, 1.0), (30, 40, 1e3)]
    for n, m, scale in kinds[:2] if SMALL else kinds:
        data = programs(32, n, m, seed=100 + n, scale=scale)
        reference, _ = loop(by_clarabel, data)
        out = jax.jit(ours("interior"))(*data)
        units = np.sqrt(np.asarray(data[0], float)[:, np.arange(n), np.arange(n)])
        rows.append({"n": n, "m": m, "units": scale,
                     **errors(units * np.asarray(out.x, float), units * reference),
                     "converged": int(np.sum(out.converged)),
                     "floor": int(np.sum(out.status == ji.Status.PRECISION_FLOOR)),
                     "most_steps": int(np.max(out.solve.steps))})
    show(rows)
    return rows


def many() -> dict:
    """4,096 programs, every 256th infeasible, by lanes and by vmap."""
    count = 256 if SMALL else 4096
    Q, q, G, h = programs(count, 10, 15)
    bad = jnp.arange(count) % 256 == 7
    # Two rows that exclude each other.
    G = G.at[:, 1].set(jnp.where(bad[:, None], -G[:, 0], G[:, 1]))
    h = h.at[:, 1].set(jnp.where(bad, -h[:, 0] - 1, h[:, 1]))
    functions = {
        "vmap": ours("interior"),
        "lanes": lambda Q, q, G, h: quadratic_program_many(Q, q, G=G, h=h)}
    compiled = {name: jax.jit(f).lower(Q, q, G, h).compile() for name, f in functions.items()}
    times = time_all(compiled, Q, q, G, h, repeats=3 if SMALL else 7)
    out = {name: function(Q, q, G, h) for name, function in compiled.items()}
    steps = np.asarray(out["lanes"].solve.steps)
    plain = compiled["vmap"](*programs(count, 10, 15))
    same = [bool(np.array_equal(a[~bad], b[~bad])) for a, b in zip(
        plain[:6], out["vmap"][:6], strict=True)]
    result = {
        "count": count, "infeasible": int(bad.sum()),
        "falsely_converged": int((np.asarray(out["vmap"].converged) & np.asarray(bad)).sum()),
        "unsolved": int((~np.asarray(out["vmap"].converged) & ~np.asarray(bad)).sum()),
        "others_bitwise_equal": all(same), "mean_steps": float(steps.mean()),
        "most_steps": int(steps.max()),
        **{f"{name}_seconds": float(np.median(times[name])) for name in times},
        "lanes_over_vmap": float(np.median(times["vmap"] / times["lanes"]))}
    show([result])
    return result


def sides() -> dict:
    """256 right-hand sides of one program: a kept penalty factorises once."""
    Q, q, G, h = (part[0] for part in programs(1, 100, 120))
    rng = np.random.default_rng(1)
    qs = q + jnp.asarray(0.1 * rng.normal(size=(256, 100)), jnp.float32)

    def run(**options: Any) -> Callable:
        return jax.vmap(lambda q: quadratic_program(Q, q, G=G, h=h, **options))

    functions = {"interior": run(method="interior"), "admm": run(method="admm"),
                 "admm, kept penalty": run(method="admm", penalty=0.1)}
    compiled = {name: jax.jit(f).lower(qs).compile() for name, f in functions.items()}
    times = time_all(compiled, qs, repeats=3)
    best = np.asarray(compiled["interior"](qs).x, float)
    rows = [{"method": name, "milliseconds": 1e3 * float(np.median(times[name])),
             **errors(f(qs).x, best), "most_steps": int(np.max(f(qs).solve.steps)),
             "converged": int(np.sum(f(qs).converged))} for name, f in compiled.items()]
    show(rows)
    return {"rows": rows}


def gradients() -> dict:
    """Gradients of `w'x` by q, along a direction, against differences of Clarabel's answers."""
    count = 8 if SMALL else 64
    data = programs(count, seed=2)
    rng = np.random.default_rng(3)
    w, direction = (rng.normal(size=(count, N)) for _ in range(2))

    def loss(Q: jax.Array, q: jax.Array, G: jax.Array, h: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(w * quadratic_program(Q, q, G=G, h=h).x)

    found = jax.jit(jax.vmap(jax.grad(loss, argnums=1)))(*data, jnp.asarray(w, jnp.float32))
    found = np.sum(np.asarray(found, float) * direction, axis=1)
    wide = [np.asarray(part, float) for part in data]
    ends = [[by_clarabel(Q, q + sign * 1e-5 * d, G, h) for Q, q, G, h, d in zip(
        *wide, direction, strict=True)] for sign in (1, -1)]
    wanted = np.sum(w * (np.array(ends[0]) - np.array(ends[1])), axis=1) / 2e-5
    off = np.abs(found - wanted) / np.linalg.norm(w, axis=1) / np.linalg.norm(direction, axis=1)
    size = np.abs(wanted) / np.linalg.norm(w, axis=1) / np.linalg.norm(direction, axis=1)
    result = {"count": count, "median_error": float(np.median(off / size)),
              "worst_error": float(np.nanmax(off) / np.median(size)),
              "without": int(np.sum(~np.isfinite(found)))}
    show([result])
    return result


if __name__ == "__main__":
    run_parts("programs", {"batch": batch, "sizes": sizes, "many": many, "sides": sides,
                           "gradients": gradients})
