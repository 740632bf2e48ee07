"""A primal-dual method's default steps on objectives in other units.

c (f(x) + g(x) + h(K x)) has the same x for every c, and a dual that is c times as large. Total
variation, lassos, a random K in place of differences, a string over an obstacle, and fused lassos
with their squares as the gradient, eight seeds each that no step was tuned on, float32, errors
against scipy, scikit-learn and a splitting in numpy. Claim: the default finds its steps, so that
steps and error do not depend on c; no answer that says CONVERGED is 1 percent off.
`python benchmarks/splittings.py` writes results/splittings.json.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import lsq_linear
from sklearn.linear_model import Lasso

import jaxiter as ji
from harness import run_parts, show
from jaxiter.operators import primal_dual, prox_l1

UNITS, SEEDS, MOST = (1e-6, 1e-3, 1.0, 1e3, 1e6), range(40, 48), 10_000
SOLVERS = {"plain": ji.picard(), "anderson": ji.anderson()}


def squares(v: jax.Array, step: jax.Array, p: dict) -> jax.Array:
    return (v + step * p["c"] * p["b"]) / (1 + step * p["c"])


def weighted(v: jax.Array, step: jax.Array, p: dict) -> jax.Array:
    return prox_l1(v, step, p["c"] * p["weight"])


def pushed(v: jax.Array, step: jax.Array, p: dict) -> jax.Array:
    return jnp.maximum(v + step * p["c"] * p["push"], p["floor"])


def spring(v: jax.Array, step: jax.Array, p: dict) -> jax.Array:
    return v / (1 + step * p["c"])


def slope(x: jax.Array, p: dict) -> jax.Array:
    return p["c"] * jnp.matmul(jnp.matmul(p["a"], x) - p["b"], p["a"])


FAMILIES = {"total variation": (squares, weighted, None), "random": (squares, weighted, None),
            "lasso": (weighted, squares, None), "obstacle": (pushed, spring, None),
            "fused lasso, gradient": (weighted, weighted, slope)}


def fused(a: np.ndarray, b: np.ndarray, k: np.ndarray, weight: float) -> np.ndarray:
    """`argmin |A x - b|^2 / 2 + weight (|x|_1 + |K x|_1)` by alternating directions."""
    rows = np.vstack([np.eye(a.shape[1]), k])
    inverse = np.linalg.inv(a.T @ a + rows.T @ rows)
    z = u = np.zeros(len(rows))
    x = inverse @ (a.T @ b)
    for _ in range(50_000):
        v = rows @ x + u
        z = np.sign(v) * np.maximum(np.abs(v) - weight, 0)
        u = v - z
        x, before = inverse @ (a.T @ b + rows.T @ (z - u)), x
        if np.linalg.norm(x - before) < 1e-14 * np.linalg.norm(x):
            break
    return x


def drawn(family: str, seed: int) -> tuple[dict, np.ndarray]:
    """The numbers of a problem, and its answer."""
    rng, n = np.random.default_rng(seed), 30
    k = np.diff(np.eye(n), axis=0)
    p = {"k": k, "a": np.eye(1), "b": np.zeros(1), "push": np.zeros(1), "floor": np.zeros(1)}
    weight = float(rng.choice([0.2, 1.0, 3.0]))
    if family == "obstacle":
        k = np.diff(np.eye(n + 2), axis=0)[:, 1:-1]
        push, floor = -0.05 * np.abs(rng.normal(size=n)), -0.5 - rng.uniform(size=n)
        root = np.linalg.cholesky(k.T @ k)
        x = lsq_linear(root.T, np.linalg.solve(root, push), (floor, np.inf), "bvls", tol=1e-14).x
        return {**p, "k": k, "push": push, "floor": floor, "weight": weight}, x
    if family.startswith("fused"):
        a = rng.normal(size=(40, n)) * float(rng.choice([1.0, 10.0]))
        b = a @ np.repeat(rng.normal(size=6), 5) + 0.3 * rng.normal(size=40)
        return {**p, "a": a, "b": b, "weight": weight}, fused(a, b, k, weight)
    if family == "lasso":
        k, x = rng.normal(size=(25, n)), np.zeros(n)
        x[:4] = rng.normal(size=4)
        b = k @ x + 0.1 * rng.normal(size=25)
        weight = 0.1 * np.abs(k.T @ b).max()
        fit = Lasso(alpha=weight / 25, fit_intercept=False, tol=1e-14, max_iter=10**6)
        return {**p, "k": k, "b": b, "weight": weight}, fit.fit(k, b).coef_
    if family == "random":
        k = rng.normal(size=(20, n)) * np.exp(0.7 * rng.normal(size=(20, 1)))
        weight = weight / 10
    b = np.repeat(3 * rng.normal(size=6), 5) + 0.5 * rng.normal(size=n)
    dual = lsq_linear(k.T, b, (-weight, weight), "bvls", tol=1e-14).x
    return {**p, "k": k, "b": b, "weight": weight}, b - k.T @ dual


@partial(jax.jit, static_argnums=(0, 1, 2))
@partial(jax.vmap, in_axes=(None, None, None, 0))
def solved(family: str, solver: str, given: bool, p: dict) -> tuple:
    g, h, gradient = FAMILIES[family]
    size = 0.99 / jnp.linalg.norm(p["k"], 2)
    # Without units: sigma |K| = 1, and the longest tau.
    tau = 1 / (1 / size + (0 if gradient is None else p["c"] * jnp.linalg.norm(p["a"], 2) ** 2))
    split = primal_dual(
        g, h, (lambda x, p: jnp.matmul(p["k"], x), lambda y, p: jnp.matmul(y, p["k"])),
        gradient=gradient, **({"tau": 0.99 * tau, "sigma": size} if given else {}))
    out = ji.solve_splitting(split, jnp.zeros(p["k"].shape[1]), p, solver=SOLVERS[solver],
                             max_steps=MOST)
    return out.value, out.status, out.solve.steps


def units() -> list[dict]:
    """Median steps and worst relative error for each c; what says CONVERGED and is 1 % off."""
    table = []
    for family in FAMILIES:
        problems, answers = zip(*(drawn(family, seed) for seed in SEEDS), strict=True)
        batch = {name: jnp.asarray(np.stack([p[name] for p in problems]), jnp.float32)
                 for name in problems[0]}
        for solver in SOLVERS:
            for given in (False, True):
                row = {"problem": family, "solver": solver,
                       "steps by": "1 / |K|" if given else "default", "unsolved": 0, "false": 0}
                for c in UNITS:
                    x, status, steps = map(np.asarray, solved(
                        family, solver, given,
                        {**batch, "c": jnp.full(len(answers), c, jnp.float32)}))
                    error = np.linalg.norm(x - answers, axis=1) / np.linalg.norm(answers, axis=1)
                    claimed = status == ji.Status.CONVERGED
                    row[f"{c:g}"] = [float(np.median(steps)), float(error.max())]
                    row["unsolved"] += int(np.sum(~claimed))
                    row["false"] += int(np.sum(claimed & (error > 1e-2)))
                table.append(row)
    show(table)
    return table


if __name__ == "__main__":
    run_parts("splittings", {"units": units})
