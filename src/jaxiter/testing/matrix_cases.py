"""The rows of `jaxiter.testing.matrix`, but for those of transport."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxiter as ji
from jaxiter import bilevel, diffusion, recurrence

POINTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
COST = jnp.sum((POINTS[:, None] - POINTS[::-1] + 0.3) ** 2, -1)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
TIGHT = ji.tolerance(rtol=1e-6, atol=1e-7)


def _map(x: jax.Array, theta: jax.Array) -> jax.Array:
    return 0.5 * jnp.sin(theta * x[::-1]) + theta


def _solve(**keywords: Any) -> Callable:
    return lambda theta: jnp.sum(ji.fixed_point(
        _map, jnp.zeros(3), theta, stop=TIGHT, max_steps=60, **keywords).value ** 2)


def cost_of(theta: jax.Array) -> jax.Array:
    """A cost `[4, 4]` of three numbers."""
    return COST * (1 + theta[0]) + theta[1] * WEIGHTS**2 + theta[2]


def _many(theta: jax.Array) -> jax.Array:
    rates = jnp.linspace(0.2, 1.0, 5)
    out = ji.solve_many(lambda x, q, theta: _map(q * x, theta), jnp.zeros((5, 3)), rates, theta,
                        in_axes=(0, None), lanes=2, stop=TIGHT)
    return jnp.sum(out.value**2)


def _gru(state: jax.Array, x: jax.Array, theta: jax.Array) -> jax.Array:
    return jnp.tanh(theta * state[::-1] + x)


def _recurrence(theta: jax.Array, **keywords: Any) -> jax.Array:
    xs = jnp.linspace(-1, 1, 12)[:, None] * jnp.ones(3)
    out = recurrence.solve_recurrence(
        lambda s, x: _gru(s, x, theta), jnp.zeros(3), xs, **keywords)
    return jnp.sum(out.value**2)


def _sample(theta: jax.Array, solve: Callable = diffusion.sample) -> jax.Array:
    model = diffusion.Denoiser(lambda x, time: jnp.tanh(theta * x), prediction="eps")
    sampler = diffusion.ddim(diffusion.linear_beta_schedule(8))
    return jnp.sum(solve(sampler, model, jnp.ones(3)) ** 2)


def _fit(theta: jax.Array) -> jax.Array:
    t = jnp.linspace(0.0, 2.0, 8)
    out = ji.least_squares(
        lambda x, theta: x[0] * jnp.exp(-x[1] * t) + theta[2] - jnp.cos(theta[0] * t),
        jnp.ones(2), theta, lower=-2.0, loss=ji.soft_l1(0.5))
    return jnp.sum(out.value**2)


def _inner(theta: jax.Array) -> jax.Array:
    out = bilevel.solve_inner(
        lambda t, y: jnp.sum(jnp.cosh(y - t)) + 0.1 * jnp.sum(y) ** 2, jnp.zeros(3), theta,
        stop=TIGHT)
    return jnp.sum(out.value**3)


def _foreign(theta: jax.Array) -> jax.Array:
    root = jnp.cbrt(lax.stop_gradient(theta))
    return jnp.sum(jnp.sin(ji.attach_implicit(lambda x, t: x**3 - t, root, theta)))


def _flow(theta: jax.Array) -> jax.Array:
    out = diffusion.invert_flow(lambda x: x + 0.3 * jnp.tanh(theta * x), jnp.ones(3),
                                jnp.ones(3), step_size=0.7, max_steps=60)
    return jnp.sum(out.value**2)


def _split(splitting: ji.Splitting) -> Callable:
    return lambda theta: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(ji.solve_splitting(
        splitting, jnp.zeros(3), theta, stop=TIGHT)[:2]))


def _projective(theta: jax.Array) -> jax.Array:
    out = ji.operators.projective_splitting(
        lambda v, step, t: ji.operators.prox_l1(v, step, t[2]),
        lambda v, step, block, t: (v + step * block * t[:2]) / (1 + step), lambda x, block: x,
        jnp.zeros(2), POINTS, theta, key=jax.random.key(0), stop=TIGHT)
    return jnp.sum(out.value**2) + jnp.sum(out.dual**2)


def _metric(x: jax.Array) -> jax.Array:
    return jnp.matmul(jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]]), x)


def _energy(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sum(x * _metric(x)) / 2 - jnp.sum(t * x) + jnp.sum(x**4) / 8


def _maml(theta: jax.Array) -> jax.Array:
    tasks = jnp.array([[0.1, 0.2, 0.3], [0.5, 0.1, 0.2]])
    out = bilevel.implicit_maml(
        lambda y, task: jnp.sum((y - task) ** 2), lambda y, task: jnp.sum(jnp.sin(y + task)),
        theta, tasks)
    return jnp.sum(out.value)


def _linear_program(theta: jax.Array) -> jax.Array:
    rows = jnp.array([[1.0, 2.0], [3.0, 1.0]]) + 0.1 * theta[2]
    out = ji.operators.linear_program(
        jnp.array([-1.0, -1.0]) - 0.1 * theta[:2], G=rows, h=jnp.array([4.0, 6.0]) + theta[:2],
        lower=0.0, stop=ji.tolerance(rtol=1e-5, atol=0.0))
    return jnp.sum(out.x**2) + jnp.sum(out.inequality_dual**2) + out.objective


def _program(theta: jax.Array) -> jax.Array:
    out = ji.operators.quadratic_program(
        _metric(jnp.eye(3)), -theta, A=jnp.ones((1, 3)), b=theta[:1], G=WEIGHTS[:2, :3],
        h=0.1 + theta[1:], lower=-1.0, upper=theta[1])
    return jnp.sum(out.x**2) + jnp.sum(out.inequality_dual) + out.objective


def _worst_case(theta: jax.Array) -> jax.Array:
    out = ji.operators.worst_case_prox(
        lambda x, t: jnp.sum((x - WEIGHTS[:3, :2] * t[:2]) ** 2, 1), POINTS[0], theta, 1 + theta[2],
        theta, stop=TIGHT)
    return jnp.sum(out.x**2) + jnp.sum(WEIGHTS[0, :3] * jnp.exp(out.logits))


def _dual_bound(theta: jax.Array) -> jax.Array:
    rows = jnp.array([[1.0, 2.0], [3.0, 1.0]]) + 0.1 * theta[2]
    guess = {"equality_dual": theta[:1], "inequality_dual": theta[:2],
             "A": jnp.ones((1, 2)), "b": jnp.ones(1), "G": rows, "h": jnp.array([4.0, 6.0])}
    guess |= {"lower": -1.0, "upper": 1 + theta[1]}
    out = ji.operators.complete_dual(-3 * theta[1:], **guess)
    return ji.operators.dual_bound(jnp.cos(theta[:2]), **guess) + jnp.sum(out.lower_dual**2) + (
        jnp.sum(out.upper_dual**2))


HALVES = tuple(
    lambda v, b, i=i: ji.operators.projection_halfspace(v, jnp.abs(POINTS[i:i + 3, 0]) + 0.1, b[i])
    for i in range(2))


CASES: dict[str, Callable] = {
    "fixed_point": _solve(),
    "fixed_point, anderson": _solve(solver=ji.anderson(3)),
    "fixed_point, implicit(mode='vjp')": _solve(adjoint=ji.implicit(mode="vjp")),
    "fixed_point, neumann": _solve(adjoint=ji.neumann(30)),
    "fixed_point, one_step": _solve(adjoint=ji.one_step(30)),
    "fixed_point, unrolled": _solve(adjoint=ji.unrolled()),
    "root": lambda t: jnp.sum(ji.root(
        lambda x, t: x**3 + x - t, jnp.zeros(3), t, stop=TIGHT).value ** 2),
    "least_squares": _fit,
    "attach_implicit": _foreign,
    "solve_many": _many,
    "projection_sparse_simplex": lambda t: jnp.sum(jnp.sin(
        ji.operators.projection_sparse_simplex(3 * t * POINTS[:3, 0], 2))),
    "forward_backward, prox_l1": _split(ji.operators.forward_backward(
        lambda x, t: _metric(x) - t, lambda v, step, t: ji.operators.prox_l1(v, step, 0.3))),
    "douglas_rachford, prox_quadratic, prox_box": _split(ji.operators.douglas_rachford(
        lambda v, step, t: ji.operators.prox_quadratic(v, step, _metric, -t),
        lambda v, step, t: ji.operators.prox_box(v, step, 0.1, 0.4), step_size=0.7)),
    "variational_inequality": lambda t: jnp.sum(ji.operators.variational_inequality(
        lambda z, t: _metric(z) + jnp.roll(z, 1) - jnp.roll(z, -1) - t, jnp.zeros(3), t,
        resolvent=lambda v, step, t: jnp.clip(v, 0.05, 0.4), stop=TIGHT).value ** 2),
    "minimax": lambda t: jnp.sum(ji.operators.minimax(
        lambda x, y, t: jnp.sum(jnp.cosh(x - t) + y * x - y**2), jnp.zeros(3), jnp.zeros(3), t,
        stop=TIGHT).y ** 3),
    "matrix_game": lambda t: jnp.sum(jnp.stack(ji.operators.matrix_game(
        jnp.eye(2) + 0.3 * WEIGHTS[:2, :2] * t[0] + t[1])[:2]) ** 2 * t[2]),
    "matrix_game, temperature": lambda t: jnp.sum(ji.operators.matrix_game(
        WEIGHTS * t[0] + t[1] * WEIGHTS.T, temperature=t[2], stop=TIGHT).x ** 2),
    "projective_splitting": _projective,
    "finite_sum_inclusion": lambda t: jnp.sum(ji.operators.finite_sum_inclusion(
        lambda z, row, t: z - row * t, jnp.zeros(2), POINTS, t[:2], lipschitz=1.0, step_scale=4.0,
        key=jax.random.key(0), max_steps=1000).value ** 2),
    "davis_yin": _split(ji.operators.davis_yin(
        lambda v, step, t: ji.operators.prox_l1(v, step, 0.3),
        lambda v, step, t: ji.operators.prox_box(v, step, 0.1, 0.4), lambda x, t: _metric(x) - t)),
    "admm": _split(ji.operators.admm(
        lambda v, step, t: ji.operators.prox_quadratic(v, step, _metric, -t),
        lambda v, step, t: ji.operators.prox_box(v, step, 0.1, 0.4))),
    "primal_dual": _split(ji.operators.primal_dual(
        lambda v, step, t: (v + step * t) / (1 + step),
        lambda v, step, t: ji.operators.prox_l1(v, step, 0.1), lambda x, t: jnp.diff(x))),
    "tseng": _split(ji.operators.tseng(
        lambda z, t: _metric(z) + 0.5 * (jnp.roll(z, 1) - jnp.roll(z, -1)) - t,
        lambda v, step, t: ji.operators.prox_box(v, step, 0.1, 0.4))),
    "proximal_gradient": lambda t: jnp.sum(ji.operators.proximal_gradient(
        _energy, lambda v, step, t: ji.operators.prox_l1(v, step, 0.3), jnp.zeros(3), t,
        stop=TIGHT).value ** 2),
    "regularisation_path": lambda t: jnp.sum(ji.operators.regularisation_path(
        lambda x, w, t: _energy(x, t), lambda v, step, w, t: ji.operators.prox_l1(v, step, w),
        jnp.zeros(3), jnp.array([0.5, 0.2]) * t[0], t, stop=TIGHT).value ** 2),
    "quadratic_program": _program,
    "projection_simplex, projection_capped_simplex": lambda t: jnp.sum(jnp.sin(
        ji.operators.projection_simplex(t) + ji.operators.projection_capped_simplex(t, 0.55))),
    "projection_psd, prox_nuclear": lambda t: jnp.sum(WEIGHTS * ji.operators.projection_psd(
        cost_of(t) - 5 + ji.operators.prox_nuclear(cost_of(t), 0.3))),
    "projection_exponential_cone, prox_entropy": lambda t: jnp.sum(jnp.sin(
        ji.operators.projection_exponential_cone(t) + ji.operators.prox_entropy(t, 0.5))),
    "project_intersection": lambda t: jnp.sum(jnp.sin(ji.operators.project_intersection(
        HALVES, 3 * t, jnp.sin(t), stop=TIGHT).value)),
    "linear_program, halpern": _linear_program,
    "worst_case_prox": _worst_case,
    "complete_dual, dual_bound": _dual_bound,
    "solve_recurrence": _recurrence,
    "solve_recurrence, sequential adjoint":
        lambda t: _recurrence(t, adjoint=recurrence.sequential()),
    "sample": _sample,
    "sample_parallel": lambda t: _sample(
        t, lambda *args: diffusion.sample_parallel(*args).value),
    "invert_flow": _flow,
    "solve_inner": _inner,
    "implicit_maml": _maml,
}
