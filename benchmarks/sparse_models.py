"""Sparse models: steps on unseen lassos, paths against scikit-learn, jaxopt, SCAD and MCP.

Claims: the default of `proximal_gradient` is never behind Picard's iteration at 1 / L on 48 lassos
and logistic lassos; the lasso of the method cards in at most 1 / 2.5 of its steps, and its
derivative in the penalty to 1e-4; 100 penalties in at most 1.2 x the time of scikit-learn's
lasso_path at equal objectives; SCAD and MCP in the ratios of Yang, Asgharian and Bhatnagar (2020).
`python benchmarks/sparse_models.py [unseen] [lasso] [path] [nonconvex]` writes
results/sparse_models.json; SMALL=1 makes it short.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from sklearn.linear_model import Lasso, lasso_path

import jaxiter as ji
from harness import compile_all, run_parts, show, time_all
from jaxiter.operators import (
    accelerated_nonconvex,
    mcp_concave,
    prox_l1,
    proximal_gradient,
    regularisation_path,
    scad_concave,
)
from jaxiter.stop import Stop

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.sparse_models import sparse_regression  # noqa: E402

SMALL = bool(os.environ.get("SMALL"))
SOLVERS = {
    "default": None, "picard": ji.picard(), "anderson": ji.anderson(),
    "anderson, period 1": ji.anderson(period=1),
    "inertial 0.9, restarted": ji.restarted(ji.inertial(0.9), increase=1.0),
}


def least_squares(x: jax.Array, a: jax.Array, b: jax.Array, lam: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((jnp.matmul(a, x) - b) ** 2)


def logistic(x: jax.Array, a: jax.Array, b: jax.Array, lam: jax.Array) -> jax.Array:
    return jnp.sum(jnp.logaddexp(0.0, -b * jnp.matmul(a, x)))


def threshold(v: jax.Array, step: jax.Array, a: jax.Array, b: jax.Array, lam: jax.Array
              ) -> jax.Array:
    return prox_l1(v, step, lam)


LOSSES = {"lasso": least_squares, "logistic lasso": logistic}


def card() -> tuple:
    """The lasso of the method cards."""
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(100, 200)), np.zeros(200)
    x[:10] = rng.normal(size=10)
    b = a @ x + 0.1 * rng.normal(size=100)
    return a, b, 0.1 * np.abs(a.T @ b).max()


def unseen_problems(count: int) -> list[tuple]:
    """`(kind, a, b, lam)`: wide, tall and square, correlated columns, uneven scales."""
    out = []
    for seed in range(count):
        rng = np.random.default_rng(100 + seed)
        m, n = ((100, 200), (200, 50), (50, 200), (150, 150))[seed % 4]
        rho, share = (0, 0.5, 0.9)[seed % 3], (0.3, 0.1, 0.03)[seed // 3 % 3]
        gram = float(rho) ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        a = rng.normal(size=(m, n)) @ np.linalg.cholesky(gram).T
        if seed % 5 == 0:
            a *= np.geomspace(1, 10, n)
        x, some = np.zeros(n), max(5, n // 10)
        x[rng.permutation(n)[:some]] = rng.normal(size=some)
        b = a @ x + 0.3 * rng.normal(size=m)
        out.append(("lasso", a, b, share * np.abs(a.T @ b).max()))
        signs = np.sign(b)
        out.append(("logistic lasso", a, signs, share * np.abs(a.T @ signs).max() / 2))
    return out


def unseen() -> dict:
    """Steps to the default tolerance in float32, by solver."""
    rows = []
    functions = {(kind, name): jax.jit(lambda *data, f=f, s=solver: proximal_gradient(
        f, threshold, jnp.zeros(data[0].shape[1]), *data, solver=s, max_steps=20_000))
        for kind, f in LOSSES.items() for name, solver in SOLVERS.items()}
    plain = {kind: jax.jit(lambda size, *data, f=f: proximal_gradient(
        f, threshold, jnp.zeros(data[0].shape[1]), *data, solver=ji.picard(), step=size,
        max_steps=20_000)) for kind, f in LOSSES.items()}
    for kind, a, b, lam in unseen_problems(2 if SMALL else 24):
        data = [jnp.asarray(v, jnp.float32) for v in (a, b, lam)]
        row: dict = {"problem": kind, "shape": str(a.shape)}
        for name in SOLVERS:
            out = functions[kind, name](*data)
            row[name] = int(out.solve.steps)
            row[f"{name}: status"] = ji.Status.name(out.status)
        curvature = np.linalg.norm(a, 2) ** 2 / (1 if kind == "lasso" else 4)
        out = plain[kind](jnp.float32(1 / curvature), *data)
        row |= {"1 / L": int(out.solve.steps), "1 / L: status": ji.Status.name(out.status)}
        rows.append(row)
    show([{key: value for key, value in row.items() if "status" not in key} for row in rows])
    ratios = {name: [row["1 / L"] / row[name] for row in rows] for name in (*SOLVERS, "1 / L")}
    summary = {name: {"median": float(np.median(r)), "least": float(np.min(r)),
                      "unsolved": sum(row[f"{name}: status"] != "CONVERGED" for row in rows)}
               for name, r in ratios.items()}
    show([{"solver": name, **row} for name, row in summary.items()])
    return {"rows": rows, "picard_at_1/L_over": summary}


def objective(x: object, a: np.ndarray, b: np.ndarray, lam: float) -> float:
    x = np.asarray(x, np.float64)
    return float(0.5 * np.sum((a @ x - b) ** 2) + lam * np.abs(x).sum())


def lasso() -> dict:
    """The card's lasso: steps, seconds, objective, derivative; jaxopt beside."""
    a, b, lam = card()
    data = [jnp.asarray(v, jnp.float32) for v in (a, b, lam)]
    best = Lasso(alpha=lam / 100, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(a, b).coef_
    least = objective(best, a, b, lam)
    functions: dict[str, Callable] = {
        name: lambda *data, s=solver: proximal_gradient(
            least_squares, threshold, jnp.zeros(200), *data, solver=s)
        for name, solver in SOLVERS.items()}
    functions["picard at 1 / L"] = lambda *data: proximal_gradient(
        least_squares, threshold, jnp.zeros(200), *data, solver=ji.picard(),
        step=1 / np.linalg.norm(a, 2) ** 2)
    for tol in (1e-3, 1e-2):
        theirs = jaxopt.ProximalGradient(
            lambda x, a, b: 0.5 * jnp.sum((jnp.matmul(a, x) - b) ** 2),
            prox=lambda v, w, step=1.0: jaxopt.prox.prox_lasso(v, w, step), maxiter=5000, tol=tol)
        functions[f"jaxopt, tol {tol:g}"] = lambda a, b, lam, s=theirs: s.run(
            jnp.zeros(200), lam, a, b)
    compiled, seconds = compile_all(functions, *data, repeats=1)
    times = time_all(compiled, *data, repeats=5 if SMALL else 25)
    rows = []
    for name, function in compiled.items():
        out = function(*data)
        ours = not name.startswith("jaxopt")
        x = out.value if ours else out.params
        rows.append({
            "solver": name, "steps": int(out.solve.steps if ours else out.state.iter_num),
            "status": ji.Status.name(out.status) if ours else "none",
            "relative excess": objective(x, a, b, lam) / least - 1,
            "zeros": int((np.asarray(x) == 0).sum()), "compile": seconds[name],
            "ms": 1e3 * float(np.median(times[name])),
            "over_default": float(np.median(times[name] / times["default"]))})
    show(rows)
    on = best != 0
    closed = np.zeros(200)
    closed[on] = -np.linalg.solve(a[:, on].T @ a[:, on], np.sign(best[on]))
    slopes = jax.jit(lambda lam, a, b: jax.jvp(lambda lam: proximal_gradient(
        least_squares, threshold, jnp.zeros(200), a, b, lam).value, (lam,),
        (jnp.ones_like(lam),))[1])(data[2], *data[:2])
    error = float(np.abs(np.asarray(slopes) - closed).max() / np.abs(closed).max())
    print(f"derivative in the penalty: relative error {error:.2g}")
    return {"rows": rows, "derivative_error": error}


def path() -> dict:
    """100 penalties from the largest to a hundredth of it; scikit-learn beside, as it is tuned."""
    a, b, _ = card()
    top = np.abs(a.T @ b).max()
    penalties = np.geomspace(top, 0.01 * top, 10 if SMALL else 100)
    exact = lasso_path(a, b, alphas=penalties / 100, tol=1e-12, max_iter=100_000)[1].T
    least = np.array([objective(x, a, b, w) for x, w in zip(exact, penalties, strict=True)])
    data = [jnp.asarray(v, jnp.float32) for v in (penalties, a, b)]

    def f(x: jax.Array, lam: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return least_squares(x, a, b, lam)

    def prox(v: jax.Array, step: jax.Array, lam: jax.Array, a: jax.Array, b: jax.Array
             ) -> jax.Array:
        return prox_l1(v, step, lam)

    def ours(rtol: float | None, penalties: jax.Array, a: jax.Array, b: jax.Array) -> tuple:
        stop = ji.tolerance(rtol=rtol)
        out = regularisation_path(f, prox, jnp.zeros(200), penalties, a, b, stop=stop)
        return out.value, out.solve.steps, out.status

    def batched(penalties: jax.Array, a: jax.Array, b: jax.Array) -> tuple:
        out = jax.vmap(lambda w: proximal_gradient(
            f, prox, jnp.zeros(200), w, a, b, stop=ji.tolerance(rtol=1e-4)))(penalties)
        return out.value, out.solve.steps, out.status

    functions = {f"path, rtol {rtol:g}": partial(ours, rtol) for rtol in (1e-3, 3e-4, 1e-4, 1e-5)}
    functions["vmap, rtol 0.0001"] = batched
    compiled: dict[str, Callable] = {
        name: jax.jit(function).lower(*data).compile() for name, function in functions.items()}
    single = [np.asarray(v, np.float32) for v in (a, b)]
    for tol in (1e-4, 1e-6):
        compiled[f"lasso_path, tol {tol:g}"] = lambda *_, tol=tol: lasso_path(
            a, b, alphas=penalties / 100, tol=tol)[1].T
        compiled[f"lasso_path in float32, tol {tol:g}"] = lambda *_, tol=tol: lasso_path(
            *single, alphas=penalties / 100, tol=tol)[1].T
    times = time_all(compiled, *data, repeats=3 if SMALL else 25)
    rows = []
    for name, function in compiled.items():
        out = function(*data)
        values = np.asarray(out if name.startswith("lasso_path") else out[0], np.float64)
        excess = np.array([objective(x, a, b, w) for x, w in zip(
            values, penalties, strict=True)]) / least - 1
        row = {"method": name, "ms": 1e3 * float(np.median(times[name])),
               "least ms": 1e3 * float(np.min(times[name])),
               "over_sklearn": float(np.median(times[name] / times["lasso_path, tol 0.0001"])),
               "worst excess": float(excess.max()), "mean excess": float(excess.mean())}
        row["steps"] = "" if name.startswith("lasso_path") else str(int(out[1].sum()))
        row["converged"] = "" if name.startswith("lasso_path") else str(
            int((np.asarray(out[2]) == ji.Status.CONVERGED).sum()))
        rows.append(row)
    show(rows)
    return {"penalties": len(penalties), "rows": rows}


def to_gap(value: Callable, best: Callable) -> Stop:
    """CONVERGED when the objective is within e^-7 of the best."""
    def update(info: object, state: tuple) -> tuple:
        near = value(info.x) <= best + np.exp(-7)
        return jnp.where(near, ji.Status.CONVERGED, ji.Status.RUNNING).astype(jnp.int32), state

    return Stop(lambda info: (), update)


def ghadimi_lan(gradient: Callable, prox: Callable, size: float) -> ji.Splitting:
    """The parameters of Ghadimi and Lan: alpha = 2 / (k + 1), long step k size / 2."""
    def step(s: tuple, k: jax.Array, *args: object) -> tuple:
        x, z = s
        alpha = 2 / (k + 1)
        y = x + alpha * (z - x)
        slope, long = gradient(y, *args), k * size / 2
        return (prox(y - size * slope, size, *args), prox(z - long * slope, long, *args)), k + 1

    return ji.Splitting(ji.Problem(step=step, memory=lambda s, *args: jnp.ones(())),
                        lambda x0, *args: (x0, x0), lambda s, k, *args: (s[0], None))


def counter(concave: Callable) -> Callable:
    """`run(best, bound, x, y, lam) -> {method: (gradients, objective)}`, in float64.

    Gradients to an objective within e^-7 of the best, for a loss of at most that curvature.
    """
    def f(b: jax.Array, x: jax.Array, y: jax.Array, lam: jax.Array) -> jax.Array:
        return jnp.sum((jnp.matmul(x, b) - y) ** 2) / (2 * len(y)) + concave(b, lam)

    def value(b: jax.Array, x: jax.Array, y: jax.Array, lam: jax.Array) -> jax.Array:
        return f(b, x, y, lam) + lam * jnp.sum(jnp.abs(b))

    gradient = jax.grad(f)

    @jax.jit
    def run(best: jax.Array, bound: jax.Array, *data: jax.Array) -> dict:
        start = jnp.zeros(data[0].shape[1])
        ways = {
            "accelerated_nonconvex": accelerated_nonconvex(
                gradient, threshold, step_size=0.99 / bound),
            "Ghadimi-Lan": ghadimi_lan(gradient, threshold, 0.5 / bound),
            "proximal gradient": ji.operators.forward_backward(
                gradient, threshold, step_size=1 / bound),
        }
        out = {}
        for name, split in ways.items():
            def at(s: object, pair: bool = name != "proximal gradient") -> jax.Array:
                return value(s[0] if pair else s, *data)

            solve = ji.solve_splitting(split, start, *data, max_steps=6000, stop=to_gap(at, best))
            out[name] = solve.solve.steps, value(solve.value, *data)
        solve = proximal_gradient(f, threshold, start, *data, max_steps=6000,
                                  stop=to_gap(lambda s: value(s, *data), best))
        out["proximal_gradient"] = solve.solve.steps, value(solve.value, *data)
        return out

    return run


def counts(run: Callable, curvature: float, rho: float, seed: int) -> dict[str, int]:
    """Gradients of every method, the best being what any of them found."""
    x, y, lam = sparse_regression(seed, rho)
    bound = max(np.linalg.norm(x, 2) ** 2 / len(y), curvature)
    data = [jnp.asarray(v) for v in (bound, x, y, lam)]
    best = min(float(v) for _, v in run(jnp.asarray(-jnp.inf), *data).values())
    return {name: int(steps) for name, (steps, _) in run(jnp.asarray(best), *data).items()}


def nonconvex() -> list[dict]:
    """Medians over ten seeds, and the ratios that the card asks for."""
    rows = []
    with jax.enable_x64(True):
        for name, concave, curvature in (
                ("SCAD", scad_concave, 1 / 2.7), ("MCP", mcp_concave, 1 / 3)):
            run = counter(concave)
            for rho in (0.5,) if SMALL else (0.1, 0.5, 0.9):
                found = [counts(run, curvature, rho, seed) for seed in range(
                    2 if SMALL else 10)]
                row = {"penalty": name, "rho": rho} | {
                    method: float(np.median([one[method] for one in found])) for method in found[0]}
                ours = row["accelerated_nonconvex"]
                row |= {"Ghadimi-Lan over": row["Ghadimi-Lan"] / ours,
                        "gradient over": row["proximal gradient"] / ours}
                rows.append(row)
        show(rows)
    return rows


if __name__ == "__main__":
    run_parts("sparse_models", {
        "unseen": unseen, "lasso": lasso, "path": path, "nonconvex": nonconvex})
