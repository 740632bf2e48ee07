"""Inner solves as differentiable fixed points."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from jaxiter.bilevel import solve_inner
from jaxiter.linear import cg
from jaxiter.testing.bilevel import Selection
from tests.bilevel.problems import B2, B3, error


def test_solve_inner(x64):
    problem = B2
    x = jnp.asarray(problem.x)
    solve = jax.jit(lambda x, y0: solve_inner(problem.inner, y0, x, max_steps=3000))
    out = solve(x, jnp.zeros(20))
    assert out.converged and error(out.value, problem.argmin(problem.x)) < 1e-6
    assert int(solve(x, out.value).steps) < int(out.steps) / 3  # warm
    grads = jax.jit(jax.grad(lambda x, y0: problem.outer(
        x, solve_inner(problem.inner, y0, x, max_steps=3000).value), (0, 1)))(x, jnp.zeros(20))
    assert error(grads[0], problem.gradient(problem.x)) < 1e-6
    np.testing.assert_array_equal(grads[1], 0)
    aux = jax.jit(lambda x: solve_inner(
        lambda x, y: (problem.inner(x, y), y.sum()), jnp.zeros(20), x, has_aux=True))(x)
    np.testing.assert_allclose(aux.aux, aux.value.sum(), rtol=1e-3)


def test_a_batch_of_problems_by_vmap_and_lanes_is_the_loop():
    """256 starts x, F(x) and its gradient: lanes, vmap, one by one."""
    xs = 0.5 * jax.random.normal(jax.random.key(0), (256, 30)) - 1
    shrink = 0.3

    def descent(y, x):
        return y - shrink * jax.grad(Selection.inner, 1)(x, y, B3.train)

    stop = ji.tolerance(rtol=0, atol=3e-6)  # two solves differ by what they may be off
    options = {"stop": stop, "solver": ji.anderson(5), "adjoint": ji.implicit(cg())}

    def lanes(xs):
        ys = ji.solve_many(descent, jnp.zeros((256, 30)), xs, lanes=64, **options).value
        return jnp.sum(jax.vmap(lambda x, y: Selection.outer(x, y, B3.validation))(xs, ys))

    def single(x):
        y = ji.fixed_point(descent, jnp.zeros(30), x, **options).value
        return Selection.outer(x, y, B3.validation)

    by_lanes = jax.jit(jax.grad(lanes))(xs)
    by_vmap = jax.jit(jax.vmap(jax.grad(single)))(xs)
    one = jax.jit(jax.grad(single))
    scale = float(jnp.abs(by_vmap).max())
    np.testing.assert_allclose(by_lanes, by_vmap, atol=1e-4 * scale)
    for i in (0, 100, 255):
        np.testing.assert_allclose(one(xs[i]), by_vmap[i], atol=1e-4 * scale)
        np.testing.assert_allclose(one(xs[i]), B3.solve(xs[i])[1], atol=2e-3 * scale)


def test_a_ridge_goes_on_top_of_the_hessian():
    slope = jax.grad(lambda x: jnp.sum(solve_inner(
        lambda x, y: 0.5 * jnp.sum((y - x) ** 2), jnp.zeros(2), x,
        adjoint=ji.implicit(ji.linear.cg(), ridge=0.25)).value))(jnp.ones(2))
    np.testing.assert_allclose(slope, 0.8, rtol=1e-5)


def test_a_flat_start_may_be_the_answer():
    out = solve_inner(lambda x, y: x * jnp.sum(y**4), jnp.zeros(2), jnp.float32(1))
    assert out.converged and not out.value.any()
