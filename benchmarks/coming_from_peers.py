"""The calls of the peers that docs/coming_from.md translates, on the problems of that page.

`PEERS[table][their cell]` is a `Row`. The packages are imported where they are installed; `n` holds
the names that the page defines. Tolerances are tight: what differs is ours, at its defaults.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


def optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


jaxopt, optx, lx, mpax, qpax = map(optional, ("jaxopt", "optimistix", "lineax", "mpax", "qpax"))


def answer(out: Any, n: Any) -> Any:
    """The answer within what a call of ours returns."""
    for name in ("value", "x"):
        out = getattr(out, name, out)
    return out


class Row(NamedTuple):
    """How one row of the page is compared.

    Attributes:
      package: which has to be installed.
      peer: `peer(n)`, the answer of their call.
      by: the name by which both are differentiated too; None where one cannot.
      read: `read(out, n)`, what of the result of our call that answer is.
      within: the relative difference that is accepted; more where our call names a tolerance
        that is looser than the default of float64.
      derivative_only: the answer is given, and only its gradient is computed.
    """

    package: str
    peer: Callable
    by: str | None = None
    read: Callable = answer
    within: float = 1e-6
    derivative_only: bool = False


# ---------------------------------------------------------------- jaxopt

TIGHT = {"tol": 1e-11, "maxiter": 20_000}
of_jaxopt = partial(Row, "jaxopt")


def picard(n: Any, **keywords: Any) -> jax.Array:
    return jaxopt.FixedPointIteration(n.T, **(TIGHT | keywords)).run(n.x0, n.theta).params


def aux(n: Any) -> jax.Array:
    solver = jaxopt.FixedPointIteration(
        lambda x, t: (n.T(x, t), x.sum()), has_aux=True, **TIGHT)
    return solver.run(n.x0, n.theta).state.aux


def lasso(n: Any, **keywords: Any) -> jax.Array:
    solver = jaxopt.ProximalGradient(n.f, jaxopt.prox.prox_lasso, **(TIGHT | keywords))
    return solver.run(n.x0, 0.1, n.theta).params


def block_lasso(n: Any) -> jax.Array:
    """Their objective is |X x - y|^2 / (2 n): with these X and y that is f."""
    root = jnp.sqrt(6 * (2 - n.theta))
    solver = jaxopt.BlockCoordinateDescent(
        jaxopt.objective.least_squares, jaxopt.prox.prox_lasso, **TIGHT)
    return solver.run(n.x0, 0.1, (jnp.diag(root), root * n.theta)).params


def mirror(n: Any) -> jax.Array:
    step = jaxopt.MirrorDescent.make_projection_grad(
        lambda y, _: jax.nn.softmax(y), lambda x: jnp.log(x))
    solver = jaxopt.MirrorDescent(n.f, step, stepsize=0.25, **TIGHT)
    return solver.run(jnp.full(3, 1 / 3), None, n.theta).params


def osqp(n: Any, equality: bool = True) -> Any:
    rows = {"params_eq": (n.A, n.right)} if equality else {}
    solver = jaxopt.OSQP(**TIGHT)
    return solver.run(params_obj=(n.Q, n.q), params_ineq=(n.G, n.h), **rows).params


def many_osqp(n: Any) -> jax.Array:
    def one(q: jax.Array) -> jax.Array:
        return jaxopt.OSQP(**TIGHT).run(params_obj=(n.Q, q), params_ineq=(n.G, n.h)).params.primal

    return jax.vmap(one)(jnp.stack([n.q, -n.q]))


def box_osqp(n: Any) -> jax.Array:
    solver = jaxopt.BoxOSQP(**TIGHT)
    return solver.run(params_obj=(n.Q, n.q), params_eq=n.A,
                      params_ineq=(-n.right, n.right)).params.primal[0]


def box_descent(n: Any) -> jax.Array:
    box = (jnp.zeros(3), jnp.ones(3))
    return jaxopt.BoxCDQP(**TIGHT).run(n.x0, params_obj=(n.Q, n.q), params_ineq=box).params


def decorated(decorator: Callable, n: Any) -> jax.Array:
    return decorator(lambda x0, theta: n.found)(n.x0, n.theta)


def trained(optimizer: optax.GradientTransformation, n: Any) -> jax.Array:
    """Where an optimizer of ours ends in a training loop."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(_: Any, carry: tuple) -> tuple:
        x, state = carry
        updates, state = optimizer.update(jax.grad(n.f)(x, n.theta), state, x)
        return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, 200, step, (n.x0, optimizer.init(n.x0)))[0]


JAXOPT = {
    "`FixedPointIteration(T).run(x0, theta)`": of_jaxopt(picard, "theta"),
    "`AndersonAcceleration(T, history_size=5).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.AndersonAcceleration(
            n.T, history_size=5, **TIGHT).run(n.x0, n.theta).params, "theta"),
    "`..., tol=1e-6, maxiter=500`": of_jaxopt(
        lambda n: picard(n, tol=1e-6, maxiter=500), "theta", within=1e-5),
    "`..., implicit_diff=False`": of_jaxopt(
        lambda n: picard(n, implicit_diff=False, maxiter=100), "theta"),
    "`..., implicit_diff_solve=solve_gmres`": of_jaxopt(
        lambda n: picard(n, implicit_diff_solve=partial(
            jaxopt.linear_solve.solve_gmres, tol=1e-10)), "theta"),
    "`..., implicit_diff_solve=partial(solve_gmres, ridge=-1e-3)`": of_jaxopt(
        lambda n: picard(n, implicit_diff_solve=partial(
            jaxopt.linear_solve.solve_gmres, tol=1e-10, ridge=-1e-3)), "theta"),
    "`.run(x0, theta=theta)`": of_jaxopt(
        lambda n: jaxopt.FixedPointIteration(n.T, **TIGHT).run(n.x0, theta=n.theta).params,
        "theta"),
    "`..., has_aux=True`": of_jaxopt(aux),
    "`Broyden(F).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.Broyden(n.F, **TIGHT).run(n.x0, n.theta).params, "theta"),
    '`ScipyRootFinding(method="hybr", F).run(x0, theta)`': of_jaxopt(
        lambda n: jaxopt.ScipyRootFinding(
            method="hybr", optimality_fun=n.F, tol=1e-12).run(n.x0, n.theta).params, "theta"),
    "`Bisection(f, lower, upper).run(None, theta)` (each entry by itself here)": of_jaxopt(
        lambda n: jax.vmap(lambda t: jaxopt.Bisection(
            lambda x, t: x**3 - t, 0.0, 2.0, tol=1e-12, maxiter=60, check_bracket=False).run(
                None, t).params)(n.theta), "theta"),
    "`GradientDescent(f).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.GradientDescent(n.f, **TIGHT).run(n.x0, n.theta).params, "theta"),
    "`LevenbergMarquardt(r).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.LevenbergMarquardt(n.r, **TIGHT).run(n.x0, n.theta).params, "theta"),
    "`GaussNewton(r).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.GaussNewton(n.r, **TIGHT).run(n.x0, n.theta).params, "theta"),
    "`ProximalGradient(f, prox_lasso).run(x0, 0.1, theta)`": of_jaxopt(lasso, "theta"),
    "`ProximalGradient(f, prox, stepsize=0.1).run(x0, w, theta)`": of_jaxopt(
        lambda n: lasso(n, stepsize=0.1), "theta"),
    "`ProjectedGradient(f, projection_simplex).run(x0, 1.0, theta)`": of_jaxopt(
        lambda n: jaxopt.ProjectedGradient(
            n.f, jaxopt.projection.projection_simplex, **TIGHT).run(
                n.x0, 1.0, n.theta).params, "theta"),
    "`BlockCoordinateDescent(f, prox).run(x0, w, theta)` (all blocks at once here)": of_jaxopt(
        block_lasso, "theta"),
    "`MirrorDescent(f, projection_grad).run(x0, None, theta)` on a simplex": of_jaxopt(
        mirror, "theta"),
    "`OSQP().run(params_obj=(Q, q), params_eq=(A, b), params_ineq=(G, h))`": of_jaxopt(
        lambda n: osqp(n).primal, "q"),
    "`BoxOSQP().run(params_obj=(Q, q), params_eq=A, params_ineq=(l, u))`": of_jaxopt(
        box_osqp, "q"),
    "`BoxCDQP().run(x0, params_obj=(Q, q), params_ineq=(l, u))`": of_jaxopt(box_descent, "q"),
    "`EqualityConstrainedQP().run(params_obj=(Q, q), params_eq=(A, b))`": of_jaxopt(
        lambda n: jaxopt.EqualityConstrainedQP(tol=1e-11).run(
            params_obj=(n.Q, n.q), params_eq=(n.A, n.right)).params.primal, "q"),
    "`OSQP(...).run(...).params.dual_eq`": of_jaxopt(lambda n: osqp(n).dual_eq, "q"),
    "`OSQP(...).run(...).params.dual_ineq`": of_jaxopt(lambda n: osqp(n).dual_ineq, "q"),
    "`vmap(OSQP().run)` with uneven programs": of_jaxopt(many_osqp, "q"),
    "`ProximalGradient(..., acceleration=False)`": of_jaxopt(
        lambda n: lasso(n, acceleration=False), "theta"),
    "`ProximalGradient(..., tol=1e-6, maxiter=500)`": of_jaxopt(
        lambda n: lasso(n, tol=1e-6, maxiter=500), "theta", within=1e-5),
    "`@custom_root(F)` on your solver": of_jaxopt(
        lambda n: decorated(jaxopt.implicit_diff.custom_root(n.F), n), "theta",
        derivative_only=True),
    "`@custom_fixed_point(T)` on your solver": of_jaxopt(
        lambda n: decorated(jaxopt.implicit_diff.custom_fixed_point(n.T), n), "theta",
        derivative_only=True),
    "`OptaxSolver(opt, f).run(x0, theta)`": of_jaxopt(
        lambda n: jaxopt.OptaxSolver(n.f, optax.adam(0.1), **TIGHT).run(n.x0, n.theta).params,
        "theta"),
    "`AndersonWrapper(solver)`": of_jaxopt(
        lambda n: jaxopt.AndersonWrapper(jaxopt.GradientDescent(n.f, **TIGHT)).run(
            n.x0, n.theta).params, read=trained),
    "`vmap(solver.run)` with uneven problems": of_jaxopt(
        lambda n: jax.vmap(lambda x, t: jaxopt.FixedPointIteration(n.T, **TIGHT).run(x, t).params)(
            n.starts, n.thetas), "thetas"),
}

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
