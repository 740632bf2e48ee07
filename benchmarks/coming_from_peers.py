"""The calls of the peers that docs/coming_from.md translates, on the problems of that page.

`PEERS[table][their cell]` is a `Row`. The packages are imported where they are installed; `n` holds
the names that the page defines. Tolerances are tight: what differs is ours, at its defaults.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coming_from_jaxopt import JAXOPT
from coming_from_row import Row, optional

optx, lx, mpax, qpax = map(optional, ("optimistix", "lineax", "mpax", "qpax"))

# ---------------------------------------------------------------- optimistix

of_optimistix = partial(Row, "optimistix")


def solver_of(name: str, **keywords: Any) -> Any:
    return getattr(optx, name)(**({"rtol": 1e-10, "atol": 1e-11} | keywords))


def optimistix(front: str, function: str, solver: str, n: Any, **keywords: Any) -> Any:
    return getattr(optx, front)(getattr(n, function), solver_of(solver), n.x0, n.theta,
                                **({"max_steps": 20_000} | keywords))


def value(*names: str, **keywords: Any) -> Callable:
    return lambda n: optimistix(*names, n, **keywords).value


def batch(front: str, function: str, solver: str) -> Callable:
    return lambda n: jax.vmap(lambda x, t: getattr(optx, front)(
        getattr(n, function), solver_of(solver), x, t).value)(n.starts, n.thetas)


def bisection(n: Any) -> jax.Array:
    return jax.vmap(lambda t: optx.root_find(
        lambda x, t: x**3 - t, solver_of("Bisection"), jnp.array(1.0), t,
        options={"lower": 0.0, "upper": 2.0}).value)(n.theta)


def krylov(n: Any) -> jax.Array:
    solver = solver_of("Newton", linear_solver=lx.GMRES(rtol=1e-10, atol=1e-12))
    return optx.root_find(n.F, solver, n.x0, n.theta).value


PICARD = ("fixed_point", "T", "FixedPointIteration")


def steps(n: Any) -> jax.Array:
    """At the tolerances that ours has by default."""
    solver = solver_of("FixedPointIteration", rtol=1e-8, atol=1e-9)
    return optx.fixed_point(n.T, solver, n.x0, n.theta).stats["num_steps"]


OPTIMISTIX = {
    "`fixed_point(T, FixedPointIteration(rtol, atol), x0, theta)`": of_optimistix(
        value(*PICARD), "theta", within=1e-5),
    "`root_find(F, Newton(rtol, atol), x0, theta)`": of_optimistix(
        value("root_find", "F", "Newton"), "theta"),
    "`root_find(F, Dogleg(rtol, atol), x0, theta)`": of_optimistix(
        value("root_find", "F", "Dogleg"), "theta"),
    "`root_find(F, Chord(rtol, atol), x0, theta)`": of_optimistix(
        value("root_find", "F", "Chord"), "theta"),
    "`root_find(F, Newton(..., linear_solver=lx.GMRES(...)), x0, theta)`": of_optimistix(
        krylov, "theta"),
    '`root_find(f, Bisection(rtol, atol), x, theta, options={"lower": a, "upper": b})`':
        of_optimistix(bisection, "theta"),
    "`vmap` of `root_find` with uneven problems": of_optimistix(
        batch("root_find", "F", "Newton"), "thetas"),
    "`minimise(f, BFGS(rtol, atol), x0, theta)`": of_optimistix(
        value("minimise", "f", "BFGS"), "theta"),
    "`least_squares(r, LevenbergMarquardt(rtol, atol), x0, theta)`": of_optimistix(
        value("least_squares", "r", "LevenbergMarquardt"), "theta", within=1e-5),
    "`least_squares(r, GaussNewton(rtol, atol), x0, theta)`": of_optimistix(
        value("least_squares", "r", "GaussNewton"), "theta"),
    "`vmap(least_squares)` with uneven fits": of_optimistix(
        batch("least_squares", "r", "LevenbergMarquardt"), "thetas"),
    "`adjoint=ImplicitAdjoint(lx.GMRES(...))`": of_optimistix(
        lambda n: optimistix(*PICARD, n, adjoint=optx.ImplicitAdjoint(
            lx.GMRES(rtol=1e-10, atol=1e-12))).value, "theta"),
    "`adjoint=RecursiveCheckpointAdjoint()`": of_optimistix(
        lambda n: optimistix(*PICARD, n, max_steps=100,
                             adjoint=optx.RecursiveCheckpointAdjoint()).value, "theta"),
    "`max_steps=256, throw=False`": of_optimistix(
        value(*PICARD, max_steps=256, throw=False), "theta"),
    "`solution.result == RESULTS.successful`": of_optimistix(
        lambda n: optimistix(*PICARD, n).result == optx.RESULTS.successful),
    '`solution.stats["num_steps"]`': of_optimistix(steps),
}

# ---------------------------------------------------------------- scipy, MPAX, qpax

of_scipy, of_mpax, of_qpax = (partial(Row, name) for name in ("scipy", "mpax", "qpax"))


def fitted(n: Any, **keywords: Any) -> Any:
    from scipy.optimize import least_squares

    tight = {"xtol": 1e-13, "ftol": 1e-13, "gtol": 1e-13, "jac": "3-point"}
    return least_squares(lambda x, theta: np.asarray(n.r(x, theta)), np.asarray(n.x0),
                         args=(n.theta,), **(tight | keywords))


def fit_fields(n: Any) -> tuple:
    fit = fitted(n)
    return fit.x, fit.cost, fit.fun, fit.jac


def covariance(n: Any) -> np.ndarray:
    """Of the model whose residuals are r: the points x and x^2 / 10 are measured as theta and 0."""
    from scipy.optimize import curve_fit

    return curve_fit(lambda t, *x: np.asarray(n.r(np.array(x), 0.0)), np.arange(6.0),
                     np.concatenate([n.theta, np.zeros(3)]), p0=np.asarray(n.x0), xtol=1e-13)[1]


def highs(n: Any) -> np.ndarray:
    from scipy.optimize import linprog

    return linprog(n.q, A_ub=n.G, b_ub=n.h, A_eq=n.A, b_eq=n.right, bounds=(0, None)).x


def by_products(solver: str, quadratic: bool, n: Any) -> jax.Array:
    """MPAX, whose inequalities are G x >= h."""
    rows = (n.A, n.right, -n.G, -n.h, jnp.zeros(3), jnp.full(3, jnp.inf))
    posed = mpax.create_qp(n.Q, n.q, *rows) if quadratic else mpax.create_lp(n.q, *rows)
    tight = {"eps_abs": 1e-9, "eps_rel": 1e-9}
    return getattr(mpax, solver)(**tight).optimize(posed).primal_solution


def program(n: Any) -> tuple:
    return n.Q, n.q, n.A, n.right, n.G, n.h


def point_and_duals(n: Any) -> tuple:
    x, _, inequality, equality, *_ = qpax.solve_qp(*program(n), solver_tol=1e-10)
    return x, inequality, equality


SCIPY = {
    "`least_squares(r, x0, args=(theta,))`": of_scipy(lambda n: fitted(n).x),
    "`..., bounds=(0, 0.5)`": of_scipy(lambda n: fitted(n, bounds=(0, 0.5)).x),
    '`..., loss="huber", f_scale=0.02`': of_scipy(
        lambda n: fitted(n, loss="huber", f_scale=0.02).x),
    '`..., method="lm"`': of_scipy(lambda n: fitted(n, method="lm").x),
    "`..., xtol=1e-6, max_nfev=100`": of_scipy(lambda n: fitted(n, xtol=1e-6, max_nfev=100).x),
    "`.x, .cost, .fun, .jac`": of_scipy(fit_fields, read=lambda fit, n: (
        fit.value, fit.cost, fit.residuals, fit.jacobian)),
    "`curve_fit(model, t, y)[1]`": of_scipy(covariance),
}

PROGRAMS = {
    "`r2HPDHG(eps_abs=e, eps_rel=e).optimize(create_lp(c, A, b, G, h, l, u))`": of_mpax(
        partial(by_products, "r2HPDHG", False), within=1e-4),
    "`raPDHG(...).optimize(create_qp(Q, c, A, b, G, h, l, u))`": of_mpax(
        partial(by_products, "raPDHG", True)),
    "`qpax.solve_qp(Q, q, A, b, G, h)`": of_qpax(point_and_duals, read=lambda out, n: (
        out.x, out.inequality_dual, out.equality_dual)),
    "`qpax.solve_qp_primal(Q, q, A, b, G, h)`": of_qpax(
        lambda n: qpax.solve_qp_primal(
            *program(n), solver_tol=1e-10, target_kappa=1e-9), "q"),
    "`scipy.optimize.linprog(c, A_ub=G, b_ub=h, A_eq=A, b_eq=b, bounds=(0, None))`": of_scipy(
        highs, within=1e-5),
}

PEERS: dict[str, dict[str, Row]] = {
    "jaxopt": JAXOPT, "optimistix": OPTIMISTIX, "scipy.optimize": SCIPY,
    "MPAX, qpax, HiGHS": PROGRAMS}
