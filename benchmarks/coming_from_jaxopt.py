"""The calls of jaxopt that docs/coming_from.md translates; see coming_from_peers.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from coming_from_row import Row, optional

jaxopt = optional("jaxopt")

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
