"""The peers of transport.py behind one face: OTT-JAX, and POT's numpy solvers in float64."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
from ott.geometry import epsilon_scheduler, geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn


def ott(cost: Any, a: Any, b: Any, epsilon: float, lse: bool, **keywords: Any) -> Any:
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=cost, epsilon=epsilon), a, b)
    return sinkhorn.Sinkhorn(lse_mode=lse, **keywords)(problem)


def ott_scheduled(
    cost: Any, a: Any, b: Any, epsilon: Any, lse: bool, **keywords: Any
) -> Any:
    """With epsilon falling from ten times its end by a tenth every ten steps."""
    schedule = epsilon_scheduler.Epsilon(target=epsilon, init=10.0, decay=0.9)
    return ott(cost, a, b, schedule, lse, **keywords)


def pot_rows(
    cost: Any, a: Any, b: Any, epsilon: float, tol: float, log: bool = True
) -> list[dict]:
    """POT's Sinkhorns, stopped at the same error (the slow log one after 300), and its exact LP."""
    common = {"stopThr": tol, "log": True, "warn": False}
    methods: dict[str, Callable] = {
        "POT stabilized, float64": lambda: ot.bregman.sinkhorn_stabilized(
            a, b, cost, epsilon, numItermax=2000, print_period=10**9, **common),
        "POT log, float64": lambda: ot.bregman.sinkhorn_log(
            a, b, cost, epsilon, numItermax=300, **common),
        "POT emd (exact)": lambda: ot.lp.emd(a, b, cost, numItermax=10**6, log=True)}
    if not log:
        methods.pop("POT log, float64")
    rows = []
    for name, method in methods.items():
        start = time.perf_counter()
        plan, log = method()
        seconds = time.perf_counter() - start
        error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
        rows.append({
            "method": name, "steps": int(log.get("n_iter", 0)), "error_float64": float(error),
            "status": "converged" if error < 2 * tol else "not converged", "seconds": seconds,
            "transport_cost": float(np.sum(plan * cost)), "ott_best_over_this": float("nan")})
    return rows


def pot_batch_seconds(costs: Any, epsilon: float, tol: float) -> float:
    """POT's batched log Sinkhorn on numpy arrays `[batch, n, n]`."""
    from ot.batch import solve_batch

    start = time.perf_counter()
    solve_batch(costs, epsilon, max_iter=5000, tol=tol, method="log_sinkhorn")
    return time.perf_counter() - start
