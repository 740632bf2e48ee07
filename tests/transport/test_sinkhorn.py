"""Sinkhorn against closed forms, a linear program, finite differences and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter import Status
from jaxiter.transport import sinkhorn

solve = jax.jit(sinkhorn, static_argnames=("method", "stop", "solver", "monitor"))
TIGHT = ji.tolerance(rtol=0, atol=1e-13)


def problem(n=7, m=5, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    arrays = rng.uniform(size=(n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def linear_program(cost, a, b):
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    out = scipy.optimize.linprog(np.ravel(cost), A_eq=np.vstack(rows), b_eq=np.r_[a, b])
    return out.fun


def test_small_epsilon_is_the_linear_program(x64):
    cost, a, b = problem(dtype=jnp.float64)
    out = solve(cost, a, b, epsilon=2e-3, max_steps=100_000, solver=ji.anderson(),
                stop=ji.tolerance(rtol=0, atol=1e-9))
    assert out.solve.converged
    exact = linear_program(cost, a, b)
    assert exact - 1e-8 <= out.transport_cost <= exact + 2e-3 * np.log(35)


def test_large_epsilon_is_independence():
    cost, a, b = problem()
    np.testing.assert_allclose(solve(cost, a, b, epsilon=1e4).plan(), np.outer(a, b), atol=1e-5)


def test_structure_duality_and_normalisation(x64):
    cost, a, b = problem(dtype=jnp.float64)
    epsilon = 0.1
    out = solve(cost, a, b, epsilon=epsilon, stop=TIGHT)
    plan = np.asarray(out.plan())
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-12)
    primal = np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan / np.outer(a, b)))
    np.testing.assert_allclose(out.dual_value, primal, rtol=1e-10)
    np.testing.assert_allclose(out.entropic_cost, primal, rtol=1e-10)
    np.testing.assert_allclose(out.transport_cost, np.sum(plan * cost), rtol=1e-12)
    assert out.marginal_error < 1e-12 and abs(np.mean(out.f)) < 1e-12
    x = np.arange(5.0)
    np.testing.assert_allclose(out.apply(x), plan @ x)
    np.testing.assert_allclose(out.apply(np.ones((7, 2)), axis=0), plan.T @ np.ones((7, 2)))
    scaled = solve(3 * cost, a, b, epsilon=3 * epsilon, stop=TIGHT)
    np.testing.assert_allclose(scaled.f, 3 * out.f, atol=1e-10)
    order = np.random.default_rng(0).permutation(7)
    permuted = solve(cost[order], a[order], b, epsilon=epsilon, stop=TIGHT)
    np.testing.assert_allclose(permuted.plan(), plan[order], atol=1e-10)


def test_rate_is_the_squared_singular_value(x64):
    """Plain Sinkhorn contracts the error by sigma_2^2 of the scaled plan."""
    cost, a, b = problem(dtype=jnp.float64)
    out = solve(cost, a, b, epsilon=0.15, stop=ji.tolerance(rtol=0, atol=1e-11), method="kernel",
                monitor=ji.record())
    plan = np.asarray(out.plan())
    sigma = np.linalg.svd(plan / np.sqrt(np.outer(a, b)), compute_uv=False)[1]
    merits = np.asarray(out.solve.trace["merit"])[: int(out.solve.steps)]
    rate = (merits[-1] / merits[-11]) ** 0.1
    np.testing.assert_allclose(rate, sigma**2, rtol=2e-2)


def test_gradients_are_finite_differences(x64):
    """Of plan, cost, dual and potentials by cost, weights and epsilon, from one compilation."""
    cost, a, b = problem(dtype=jnp.float64)
    rng = np.random.default_rng(4)
    w = rng.normal(size=(7, 5))

    def losses(cost, a, b, epsilon):
        out = sinkhorn(cost, a, b, epsilon=epsilon, stop=TIGHT)
        potentials = jnp.sum(jnp.sin(out.f) * w[:, 0]) + jnp.sum(out.g**2 * w[0])
        values = [jnp.sum(w * out.plan()), out.transport_cost, out.dual_value, potentials]
        return jnp.stack(values), out.plan()

    point = [cost, a, b, jnp.float64(0.2)]
    value = jax.jit(losses)
    gradients, plan = jax.jit(jax.jacrev(losses, argnums=(0, 1, 2, 3), has_aux=True))(*point)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=point[i].shape)
        if i in (1, 2):
            direction = 0.01 * (direction - direction.mean())  # keeps the mass
        h = 1e-6
        up, down = ([p + s * h * direction if j == i else p for j, p in enumerate(point)]
                    for s in (1, -1))
        np.testing.assert_allclose(
            np.sum((gradient * direction).reshape(4, -1), axis=1),
            (value(*up)[0] - value(*down)[0]) / (2 * h), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradients[0][2], plan, atol=1e-9)  # Danskin


@pytest.mark.slow
def test_float32_gradient_against_float64():
    """Loss <W, P>: 2e-5 relative at epsilon = 0.05 mean(C)."""
    def gradient(dtype):
        cost, a, b = problem(40, 40, 2, dtype)
        w = jnp.asarray(np.random.default_rng(1).normal(size=(40, 40)), dtype)
        atol = 1e-12 if dtype == jnp.float64 else 1e-6
        return np.asarray(jax.jit(jax.grad(lambda c: jnp.sum(w * sinkhorn(
            c, a, b, epsilon=0.05 * 0.5, stop=ji.tolerance(rtol=0, atol=atol),
            max_steps=20_000).plan())))(cost), np.float64)

    single = gradient(jnp.float32)
    with jax.enable_x64(True):
        double = gradient(jnp.float64)
    assert np.linalg.norm(single - double) < 1e-3 * np.linalg.norm(double)


@pytest.mark.slow
def test_hessian_of_the_cost(x64):
    cost, a, b = problem(4, 3, dtype=jnp.float64)

    @jax.jit
    def value(scale):
        return sinkhorn(scale * cost, a, b, epsilon=0.3, stop=TIGHT).dual_value

    h = 1e-4
    second = (value(1 + h) - 2 * value(1.0) + value(1 - h)) / h**2
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(1.0), second, rtol=1e-5)


@pytest.mark.slow
def test_zero_weights_forbidden_pairs_and_batches():
    cost, a, b = problem()
    a = a.at[2].set(0.0)
    a = a / jnp.sum(a)
    cost = cost.at[0, 1].set(jnp.inf)
    out = solve(cost, a, b, epsilon=0.1)
    plan = np.asarray(out.plan())
    assert out.solve.converged and np.all(plan[2] == 0) and plan[0, 1] == 0
    assert np.isneginf(out.f[2]) and np.all(np.isfinite(plan))
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-4)
    gradients = jax.jit(jax.grad(lambda c, a, b, e: sinkhorn(
        c, a, b, epsilon=e).transport_cost, argnums=(0, 1, 2, 3)))(cost, a, b, 0.1)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    epsilons = jnp.array([0.05, 0.2, 1.0])
    batch = jax.jit(jax.vmap(lambda e: sinkhorn(cost, a, b, epsilon=e)))(epsilons)
    one = jax.jit(lambda e: sinkhorn(cost, a, b, epsilon=e))
    single = [one(e) for e in epsilons]
    np.testing.assert_allclose(batch.dual_value, [s.dual_value for s in single], rtol=1e-4)
    assert np.all(np.abs(batch.solve.steps - jnp.stack([s.solve.steps for s in single])) <= 1)


def test_warm_start_and_small_epsilon_in_float32():
    cost, a, b = problem()
    first = solve(cost, a, b, epsilon=0.05)
    again = solve(cost, a, b, epsilon=0.05, init=first.g)
    assert again.solve.steps <= 2 and again.solve.converged
    tiny = solve(cost, a, b, epsilon=1e-5, max_steps=300)
    assert tiny.solve.status != Status.CONVERGED or tiny.marginal_error < 1e-4
    assert np.all(np.isfinite(tiny.plan()))
