"""What OTT and POT call the quantities of a transport result, compared by value.

`python benchmarks/migration.py` evaluates every row of the table in docs/coming_from.md, on 30
and 20 weighted points, and writes results/migration.json; tests/transport/test_migration.py runs
the same rows where both libraries are installed.
"""

import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import tolerance
from jaxiter.transport import PointCloud, sinkhorn, sinkhorn_divergence, squared_euclidean

sys.path.insert(0, str(Path(__file__).parent))

from coming_from_row import cells  # noqa: E402

EPSILON, RHO = 0.5, 1.0


def rows() -> list[tuple[str, str, str, str]]:
    """Quantity and the expressions of jaxiter, OTT and POT ("" where there is no equal)."""
    found = []
    for name, *calls in cells("What OTT and POT call it"):
        parts = [re.fullmatch(r"`(.*)`", call) for call in calls]
        found.append((name, *("" if part is None else part.group(1) for part in parts)))
    return found


def namespace() -> dict[str, Any]:
    """The names that the table uses: the same problems, solved by all three."""
    import ot
    from ott.geometry import geometry, pointcloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn
    from ott.tools import sinkhorn_divergence as ott_divergence

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), 0.8 * rng.normal(size=(20, 3)) + 0.5
    a, b = rng.dirichlet(np.full(30, 3.0)), rng.dirichlet(np.full(20, 3.0))
    x, y, a, b = (jnp.asarray(part, jnp.float32) for part in (x, y, a, b))
    cost, e, rho = PointCloud(x, y).matrix(), EPSILON, RHO
    tight = tolerance(rtol=3e-6)
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both libraries cast what is float64 by default
        solve, geom = Sinkhorn(threshold=1e-6, max_iterations=5000), geometry.Geometry(
            cost, epsilon=e)
        tau = rho / (rho + e)
        ott_out, ott_unbalanced = (jax.jit(lambda keywords=keywords: solve(
            LinearProblem(geom, a, b, **keywords)))() for keywords in (
                {}, {"tau_a": tau, "tau_b": tau}))
        divergence = ott_divergence.sinkhorn_divergence(
            pointcloud.PointCloud, x, y, a=a, b=b, epsilon=e)
    host = {name: np.asarray(part, float) for name, part in (
        ("a", a), ("b", b), ("M", cost), ("x", x), ("y", y))}
    host |= {"a": host["a"] / host["a"].sum(), "b": host["b"] / host["b"].sum()}
    solved = ot.solve(host["M"], host["a"], host["b"], reg=e)
    plan, log = ot.sinkhorn(host["a"], host["b"], host["M"], e, method="sinkhorn_log",
                            stopThr=1e-10, numItermax=10_000, log=True)
    shared = {"e": e, "rho": rho, "jnp": jnp, "np": np}
    return {
        "jaxiter": shared | {
            "sinkhorn": sinkhorn, "sinkhorn_divergence": sinkhorn_divergence, "a": a, "b": b,
            "squared_euclidean": squared_euclidean, "x": x, "y": y, "cost": cost,
            "out": sinkhorn(cost, a, b, epsilon=e, stop=tight),
            "unbalanced": sinkhorn(cost, a, b, epsilon=e, rho_a=rho, rho_b=rho, stop=tight),
            "cross": sinkhorn(PointCloud(x, y), a, b, epsilon=e, stop=tight),
            "own_x": sinkhorn(PointCloud(x, x), a, a, epsilon=e, stop=tight),
            "own_y": sinkhorn(PointCloud(y, y), b, b, epsilon=e, stop=tight)},
        "ott": shared | {"out": ott_out, "unbalanced": ott_unbalanced, "a": a, "b": b,
                         "divergence": divergence[0]},
        "pot": shared | host | {
            "ot": ot, "plan": plan, "log": log, "solved": solved,
            "unbalanced": ot.unbalanced.sinkhorn_unbalanced(
                host["a"], host["b"], host["M"], e, rho, stopThr=1e-10, numItermax=10_000)},
    }


def compare() -> list[dict]:
    """One row a quantity: the largest value, and the largest relative difference to each peer."""
    names, found = namespace(), []
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for quantity, *expressions in rows():
            ours, *theirs = (
                None if text == "" else np.asarray(eval(text, dict(scope)), float)
                for text, scope in zip(expressions, names.values(), strict=True))
            size = np.max(np.abs(ours))
            found.append({"quantity": quantity, "largest": float(size)} | {
                peer: None if value is None else float(np.max(np.abs(value - ours)) / size)
                for peer, value in zip(("ott", "pot"), theirs, strict=True)})
    return found


if __name__ == "__main__":
    from harness import save

    table = compare()
    for row in table:
        print(row)
    save("migration", {"rows": table, "peers": {
        name: version(name) for name in ("ott-jax", "POT")}})
