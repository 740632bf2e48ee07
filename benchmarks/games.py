"""Games and sums of operators: steps, seconds, and what is left to win.

Claims: Kuhn's poker to an exploitability of 1e-5 max |A| in at most 400 steps, random games of
100 x 100 each in at most 600; the default of `matrix_game` chosen on ten games and reported
on ten others, beside HiGHS; on 20 turns of all speeds the last point's residual falls like
1 / sqrt(k), with an anchor like 1 / k; variance-reduced Halpern has at most 1/20 of extragradient's
residual after 1,000 epochs, and pays on least squares only beyond some n.
`python benchmarks/games.py [matrix] [rates] [sums] [projective]` writes results/games.json; SMALL=1
makes it short.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxiter as ji
from harness import run_parts, show, time_all
from jaxiter.operators import (
    finite_sum_inclusion,
    matrix_game,
    projective_splitting,
    prox_l1,
    simplices,
    variational_inequality,
)
from jaxiter.solvers.halpern import halpern
from jaxiter.stop import never

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.games import RPS, by_linear_program, gap, kuhn  # noqa: E402

SMALL = bool(os.environ.get("SMALL"))


def twenty_games() -> dict[str, np.ndarray]:
    """Poker, and uniform, normal, skew, low rank, sparse and integer games of five shapes."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape)

    def sparse(*shape: int) -> np.ndarray:
        return normal(*shape) * (uniform(*shape) < -0.6)

    def skew(n: int) -> np.ndarray:
        square = normal(n, n)
        return square - square.T

    def low(m: int, n: int) -> np.ndarray:
        return normal(m, 5) @ normal(5, n)

    games = {"kuhn": kuhn(), "uniform": uniform(27, 64), "normal": normal(27, 64),
             "sparse": sparse(27, 64), "large uniform 1": uniform(100, 100),
             "large uniform 2": uniform(100, 100), "large uniform 3": uniform(100, 100),
             "large normal 1": normal(100, 100), "large normal 2": normal(100, 100),
             "large sparse": sparse(100, 100), "skew 40": skew(40),
             "integers 40": rng.integers(-3, 4, (40, 40)).astype(float),
             "burglar 40": np.asarray(burglar(40)), "uniform 40": uniform(40, 40),
             "rank 5": low(40, 40), "wide uniform": uniform(20, 80), "wide normal": normal(20, 80),
             "wide rank 5": low(20, 80), "skew 10": skew(10), "uniform 10": uniform(10, 10)}
    return {f"{name}, {' x '.join(map(str, game.shape))}": game for name, game in games.items()}


def inequality(payoff: jax.Array, method: str) -> tuple:
    """A game by a method of variational inequalities, judged as `matrix_game` is."""
    m, n = payoff.shape
    out = variational_inequality(
        lambda z: (-jnp.matmul(payoff, z[1]), jnp.matmul(z[0], payoff)),
        (jnp.full(m, 1 / m), jnp.full(n, 1 / n)), method=method,
        resolvent=None if method == "mirror" else lambda v, step: simplices.project(v),
        stop=ji.tolerance(rtol=1e-6), max_steps=2000)
    return out.solve.steps, *out.value


def restarts(rule: float | str) -> Callable:
    return partial(matrix_game, solver=optax.chain(optax.scale(2.0), halpern(restart=rule)))


WAYS: dict[str, Callable] = {
    "default": matrix_game, "Halpern, restart 0.2": restarts(0.2),
    "anderson(20)": partial(matrix_game, solver=ji.anderson(20)),
    "picard": partial(matrix_game, solver=ji.picard())}


def one_shape(games: dict[str, np.ndarray]) -> list[dict]:
    """Rows of games that are of one shape, which one program solves."""
    payoffs = jnp.asarray(np.stack(list(games.values())), jnp.float32)
    rows = [{"game": name} for name in games]
    for way, function in WAYS.items():
        outs = jax.jit(partial(jax.lax.map, partial(function, max_steps=5000)))(payoffs)
        for i, (row, payoff) in enumerate(zip(rows, games.values(), strict=True)):
            row[way] = int(outs.solve.steps[i]) if outs.converged[i] else None
            if way == "default":
                x, y = (np.asarray(z[i], float) for z in (outs.x, outs.y))
                row["exploitability"] = float(gap(payoff, x, y) / np.abs(payoff).max())
                row["value"] = float(outs.value[i])
    for method in ("mirror",):
        steps, x, y = jax.jit(partial(
            jax.lax.map, partial(inequality, method=method)))(payoffs)
        for i, (row, payoff) in enumerate(zip(rows, games.values(), strict=True)):
            won = gap(payoff, np.asarray(x[i], float), np.asarray(y[i], float))
            row[method], row[f"{method}, gap"] = int(steps[i]), float(won / np.abs(payoff).max())
    alone = jax.jit(matrix_game)
    for row, payoff, A in zip(rows, games.values(), payoffs, strict=True):
        row["seconds"] = float(np.median(time_all({"ours": alone}, A, repeats=5)["ours"]))
        began = time.perf_counter()
        row["error of the value"] = abs(row["value"] - by_linear_program(payoff)[1])
        row["HiGHS, seconds"] = time.perf_counter() - began
    return rows


def matrix() -> dict:
    """Steps of every way on twenty games, the even ones for choosing; seconds beside HiGHS."""
    games, rows = twenty_games(), []
    shapes = sorted({game.shape for game in games.values()})
    for shape in shapes[:2] if SMALL else shapes:
        rows += one_shape({name: game for name, game in games.items() if game.shape == shape})
    for place, row in enumerate(rows):
        row["half"] = "chosen on" if place % 2 == 0 else "reported"
    show(rows)
    most = {half: {way: [np.inf if row[way] is None else row[way] for row in rows
                         if row["half"] == half] for way in WAYS}
            for half in ("chosen on", "reported")}
    means, medians = ({half: {way: float(of(steps)) for way, steps in ways.items()}
                       for half, ways in most.items()} for of in (np.mean, np.median))
    show([{"half": half, "of": name, **values} for name, table in (
        ("mean", means), ("median", medians)) for half, values in table.items()])
    many = jnp.asarray(np.random.default_rng(42).uniform(
        -1, 1, (4 if SMALL else 20, 100, 100)), jnp.float32)
    outs = jax.jit(partial(jax.lax.map, matrix_game))(many)
    steps = np.asarray(outs.solve.steps)
    print("100 x 100:", sorted(steps.tolist()))
    return {"rows": rows, "means": means, "medians": medians, "random_100": {
        "steps": steps.tolist(), "median": float(np.median(steps)),
        "converged": int(outs.converged.sum())}}


def rates() -> dict:
    """Residuals of last points on 20 turns; gaps of means and last points on a cyclic game."""
    sizes = {"extragradient": 0.5, "past": 0.45, "reflected": 0.4, "optimistic": 0.45,
             "anchored": 0.408}
    steps = (10, 100, 1000) if SMALL else (10, 100, 1000, 10_000)
    turns, cycles, solve = [], [], variational_inequality
    with jax.enable_x64(True):
        speeds = jnp.logspace(-3, 0, 20)
        payoff = jnp.asarray(RPS)
        for method, size in sizes.items():
            run = jax.jit(lambda k, m=method, s=size: variational_inequality(
                lambda z: (speeds * z[1], -speeds * z[0]), (jnp.ones(20), jnp.ones(20)),
                method=m, step=s, restart=None, stop=never(), max_steps=k).residual)
            turns.append({"method": method, **{str(k): float(run(k)) for k in steps}})
            start = jnp.array([1.0, 0, 0]), jnp.array([0.0, 1, 0])
            for restart in (None, 0.2) if method == "anchored" else (None,):
                play = jax.jit(lambda k, m=method, s=size, r=restart, w=start: solve(
                    lambda z: (jnp.matmul(payoff, z[1]), -jnp.matmul(z[0], payoff)), w,
                    resolvent=lambda v, step: simplices.project(v), method=m, step=s / 3**0.5,
                    restart=r, average=True, stop=never(), max_steps=k))
                outs = {k: play(k) for k in steps}
                cycles.append({
                    "method": method + (", restarts" if restart else ""),
                    **{f"mean {k}": float(gap(RPS, *map(np.asarray, o.average)))
                       for k, o in outs.items()},
                    **{f"last {k}": float(gap(RPS, *map(np.asarray, o.value)))
                       for k, o in outs.items()}})
    show(turns)
    show(cycles)
    return {"turns": turns, "rock_paper_scissors": cycles}


def burglar(n: int) -> jax.Array:
    w, i = np.abs(np.random.RandomState(1).normal(size=n)), np.arange(n)
    return jnp.asarray(w[:, None] * (1 - np.exp(-0.8 * np.abs(i[:, None] - i))))


def one_row(z: tuple, row: tuple) -> tuple:
    """Of n F_i with mean (A y, -A' x), that of row and column i."""
    (x, y), (place, into, out) = z, row
    return x.size * y[place] * into, -x.size * x[place] * out


def policeman() -> list[dict]:
    """Residuals after 10, 100 and 1,000 epochs of n evaluations of components, n = 100."""
    A, n = burglar(100), 100
    z = jnp.full(n, 1 / n), jnp.full(n, 1 / n)
    data, op, rows = (jnp.arange(n), A.T, A), jnp.linalg.norm(A, 2), []
    near = lambda v, step: simplices.project(v)  # noqa: E731

    def residual(z: tuple) -> float:
        (x, y), back = z, simplices.project((z[0] - jnp.matmul(A, z[1]),
                                             z[1] + jnp.matmul(z[0], A)))
        return float(jnp.sqrt(jnp.sum((x - back[0]) ** 2) + jnp.sum((y - back[1]) ** 2)))

    epochs = (10, 100) if SMALL else (10, 100, 1000)
    for method, share in (("extragradient", 0.9), ("extragradient", 5.0), ("anchored", 0.408)):
        run = jax.jit(lambda k, m=method, s=share: variational_inequality(
            lambda z: (jnp.matmul(A, z[1]), -jnp.matmul(z[0], A)), z, resolvent=near, method=m,
            restart=None, step=s / op, stop=never(), max_steps=k).value)
        calls = 2 if method == "extragradient" else 1
        rows.append({"method": f"{method}, step {share} / |A|",
                     **{str(e): residual(run(e // calls)) for e in epochs}})
    for method, scale, period in (("single", 1.0, None), ("single", 4.0, None),
                                  ("single", 20.0, None), ("nested", 5.0, None)):
        run = jax.jit(lambda k, key, m=method, s=scale, p=period: finite_sum_inclusion(
            one_row, z, data, resolvent=near, lipschitz=jnp.linalg.norm(A), step_scale=s, method=m,
            period=p, key=key, stop=never(), max_steps=k))
        each = int(run(1, jax.random.key(0)).components) / n
        rows.append({"method": f"{method}, step_scale {scale}", **{str(e): float(np.median([
            residual(run(max(1, int(e / each)), jax.random.key(k)).value) for k in range(3)]))
            for e in epochs}})
    show(rows)
    return rows


def crossover() -> list[dict]:
    """Components evaluated until |F| is a hundredth of its start: least squares in n rows."""
    rows = []
    for n in (100, 1000) if SMALL else (100, 1000, 10_000):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(n, 20)) * np.logspace(0, -1.5, 20)
        data = jnp.asarray(a), jnp.asarray(a @ rng.normal(size=20) + 0.1 * rng.normal(size=n))
        full = np.linalg.norm(a, 2) ** 2 / n
        # (1/n) sum (a_i a_i')^2 <= L (1/n) sum a_i a_i', the smallest such L.
        root = np.linalg.cholesky(np.linalg.inv(a.T @ a / n))
        square = np.einsum("i,ij,ik->jk", (a**2).sum(1), a, a) / n
        average = np.linalg.eigvalsh(root.T @ square @ root).max()
        start = np.linalg.norm(np.asarray(a.T @ data[1]) / n)

        def spent(scale: float, lipschitz: float, data=data, start=start
                  ) -> int | None:
            out = finite_sum_inclusion(
                lambda z, one: one[0] * (jnp.vdot(one[0], z) - one[1]), jnp.zeros(20), data,
                lipschitz=lipschitz, step_scale=scale, key=jax.random.key(0),
                stop=ji.tolerance(rtol=0.0, atol=0.01 * start * scale / (4 * lipschitz)),
                max_steps=1000 if SMALL else 20_000)
            return int(out.components) if out.converged else None

        def anchored(lipschitz: float, data=data, start=start, n=n) -> int | None:
            a, b = data
            out = ji.fixed_point(
                lambda z: z - 2 / lipschitz * jnp.matmul(jnp.matmul(a, z) - b, a) / n,
                jnp.zeros(20), solver=halpern(), max_steps=20_000,
                stop=ji.tolerance(rtol=0.0, atol=0.01 * start * 2 / lipschitz))
            return int(out.steps) * n if out.converged else None

        row = {"rows": n, "average over full": average / full,
               "deterministic": anchored(full)}
        row |= {f"single, step_scale {scale}": spent(scale, average)
                for scale in ((4.0, 16.0) if SMALL else (1.0, 4.0, 16.0))}
        rows.append(row)
    show(rows)
    return rows


def sums() -> dict:
    with jax.enable_x64(True):
        return {"policeman": policeman(), "crossover": crossover()}


def projective() -> list[dict]:
    """Steps and activations of blocks to 1e-3 and 1e-6 of the lasso's objective."""
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(100, 200)), np.zeros(200)
    x[:10] = rng.normal(size=10)
    b = a @ x + 0.1 * rng.normal(size=100)
    lam, best = 0.1 * np.abs(a.T @ b).max(), 123.274923
    ways = [(1, 1.0, 1.0), (4, 1.0, 1.0), (4, 0.5, 1.0), (4, 0.25, 1.0),
            (4, 0.5, ((1.2, 2.4), (0.75, 0.25)))]
    rows = []
    with jax.enable_x64(True):
        for count, probability, relaxation in ways[:2] if SMALL else ways:
            blocks = jnp.asarray(a.reshape(count, -1, 200)), jnp.asarray(b.reshape(count, -1))

            def objectives(key, blocks=blocks, p=probability, r=relaxation):
                out = projective_splitting(
                    lambda v, step: prox_l1(v, step, lam),
                    lambda v, step, block: (v + step * block[1]) / (1 + step),
                    lambda x, block: jnp.matmul(block[0], x), jnp.zeros(200), blocks, key=key,
                    probability=p, relaxation=r, stop=never(), max_steps=1000,
                    monitor=ji.record(1000, value=lambda state: 0.5 * jnp.sum(
                        (jnp.matmul(jnp.asarray(a), state.a) - b) ** 2)
                        + lam * jnp.sum(jnp.abs(state.a))))
                return out.solve.trace["value"]

            trace = np.asarray(jax.jit(objectives)(jax.random.key(0)))
            row = {"blocks": count, "probability": probability, "relaxation": str(relaxation)}
            for error in (1e-3, 1e-6):
                met = np.flatnonzero(trace <= best * (1 + error))
                row[f"{error:g}"] = int(met[0]) if met.size else None
                row[f"{error:g}, work"] = int(met[0] * probability) if met.size else None
            rows.append(row)
    show(rows)
    return rows


if __name__ == "__main__":
    run_parts("games", {
        "matrix": matrix, "rates": rates, "sums": sums, "projective": projective})
