"""Evaluations of the solvers on the sixty maps of `maps.py` and the problems of `fixed_point.py`.

Claim: how near each, and a rule that chooses by the residuals (`choosing.py`), comes to the best of
them. A map counts as solved at the first point whose true error meets its target; the problems of
`fixed_point.py`, whose answers are not known, at their own tolerance on the residual. Counts, not
times. The rule was tuned on one half of the maps, and fixed before the other was looked at.
`python benchmarks/auto.py` writes results/auto.json.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
import maps
from choosing import auto
from fixed_point import breast_cancer, deq, rotation, value_iteration
from harness import save
from jaxiter.stop import Stop

LIMIT = 20_000
PARTS = {
    "picard": ji.picard(), "damped(0.5)": ji.damped(0.5), "overrelaxed": ji.overrelaxed(),
    "squarem": ji.squarem(), "anderson": ji.anderson(), "halpern adaptive": ji.halpern("adaptive"),
}
SOLVERS = PARTS | {"auto": auto()}
#: How far from the best of its parts the choosing solver may be.
ALLOWED = 1.3


def within(answer: np.ndarray, target: float) -> Stop:
    """CONVERGED when the true error is at most the target; the answer in two parts of float32."""
    high = answer.astype(np.float32)
    low = (answer - high).astype(np.float32)

    def update(info: Any, state: Any) -> tuple:
        near = jnp.linalg.norm((info.x - high) - low) <= target
        return jnp.where(near, ji.Status.CONVERGED, ji.Status.RUNNING).astype(jnp.int32), state

    return Stop(lambda info: (), update)


def count(
    step: Callable, x0: Any, args: tuple, solver: Any, stop: Stop, limit: int
) -> int | None:
    """Evaluations until CONVERGED, or the float floor; None: not within the limit."""

    def solve(x0: Any, *args: Any) -> tuple:
        s = ji.fixed_point(step, x0, *args, solver=solver, stop=stop, max_steps=limit)
        return s.steps, s.status

    steps, status = jax.jit(solve)(jnp.asarray(x0), *args)
    good = int(status) in (ji.Status.CONVERGED, ji.Status.PRECISION_FLOOR)
    return int(steps) if good else None


def compared(name: str, half: str, counts: dict[str, int | None]) -> dict:
    """A row of the table: counts, and the ratio of every solver to the best of the parts."""
    best = min(counts[part] or 10 * LIMIT for part in PARTS)
    print(f"{name:24} {half:9}", *(f"{counts[s] or '-':>6}" for s in SOLVERS), flush=True)
    return {"map": name, "half": half, "evaluations": counts, "best": best,
            "ratio": {s: None if n is None else round(n / best, 3) for s, n in counts.items()}}


def rows_of_maps(half: str) -> list[dict]:
    return [compared(m.name, half, {
        name: count(m.step, m.x0, m.args, solver, within(m.answer, m.target), LIMIT)
        for name, solver in SOLVERS.items()}) for m in maps.all_maps(half)]


def rows_of_problems() -> list[dict]:
    problems = {
        "breast_cancer": (*breast_cancer(), 1e-5), "DEQ": (*deq(), 1e-4),
        "value iteration 0.99": (*value_iteration(0.99), 1e-4),
        "value iteration 0.999": (*value_iteration(0.999), 1e-2), "rotation": (*rotation(), 1e-5),
    }
    return [compared(name, "benchmark", {
        solver: count(step, x0, (), made, ji.tolerance(rtol=0, atol=tol), LIMIT)
        for solver, made in SOLVERS.items()}) for name, (step, x0, tol) in problems.items()]


def summary(rows: list[dict]) -> dict:
    """Of the ratios to the best part: median, worst, how many beyond 1.3, how many unsolved."""
    def numbers(name: str) -> dict:
        ratios = np.array([np.inf if r["ratio"][name] is None else r["ratio"][name] for r in rows])
        out = {"median": float(np.median(ratios)), "worst": float(ratios.max()),
               "ninth decile": float(np.sort(ratios)[int(np.ceil(0.9 * len(ratios))) - 1])}
        out = {key: None if value == np.inf else value for key, value in out.items()}
        return out | {"beyond": int((ratios > ALLOWED).sum()),
                      "unsolved": int(np.isinf(ratios).sum())}

    return {name: numbers(name) for name in SOLVERS}


def main() -> None:
    print(f"{'':34}", *(f"{s[:6]:>6}" for s in SOLVERS))
    rows = rows_of_maps("tune") + rows_of_maps("report") + rows_of_problems()
    halves = {half: summary([r for r in rows if r["half"] == half])
              for half in ("tune", "report", "benchmark")}
    for half, table in halves.items():
        for name, numbers in table.items():
            print(half, name, numbers)
    save("auto", {"rows": rows, "summary": halves, "allowed": ALLOWED})


if __name__ == "__main__":
    main()
