"""What is built on Sinkhorn, against linear programs, brute force and the measured tables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter.operators import projection_sparse_simplex
from jaxiter.transport import (
    mirror_sinkhorn,
    round_to_polytope,
    scale_by_mirror_sinkhorn,
    sinkhorn_divergence,
    sparse_transport,
)


def linear_program(cost, a, b):
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    return scipy.optimize.linprog(np.ravel(cost), A_eq=np.vstack(rows), b_eq=np.r_[a, b]).fun


def shifted_clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 1


def test_divergence_reproduces_the_table(x64):
    x, y = shifted_clouds()
    solve = jax.jit(lambda epsilon: sinkhorn_divergence(
        x, y, epsilon=epsilon, stop=ji.tolerance(rtol=0, atol=1e-9), max_steps=20_000))
    for epsilon, value in ((0.01, 0.76180), (0.1, 0.73565), (1.0, 0.66650), (10.0, 0.63567)):
        out = solve(epsilon)
        assert abs(float(out.value) - value) < 6e-6
        assert out.status == ji.Status.CONVERGED
        assert max(int(out.self_x.steps), int(out.self_y.steps)) <= 40


@pytest.mark.slow
def test_divergence_properties_and_derivatives(x64):
    x, y = shifted_clouds()
    x, y = x[:8], y[:8]  # one shape, one compilation
    a = np.random.default_rng(1).dirichlet(np.ones(8))
    keywords = {"epsilon": 0.3, "stop": ji.tolerance(rtol=0, atol=1e-12)}
    uniform = np.full(8, 1 / 8)

    def value(x, y, a, b):
        return sinkhorn_divergence(x, y, a, b, **keywords).value

    direction = np.random.default_rng(2).normal(size=x.shape)
    gradient = jax.jit(jax.grad(value))
    solve = jax.jit(value)
    np.testing.assert_allclose(solve(x, x, a, a), 0, atol=1e-10)
    np.testing.assert_allclose(solve(x, y, a, uniform), solve(y, x, uniform, a), rtol=1e-9)
    h = 1e-5
    slope = (solve(x + h * direction, y, a, uniform)
             - solve(x - h * direction, y, a, uniform)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient(x, y, a, uniform) * direction), slope, rtol=1e-6)
    unbalanced, static = jax.jit(lambda x, a: (
        sinkhorn_divergence(x, x, a, 2 * a, epsilon=0.3, rho=1.0),
        sinkhorn_divergence(x, y, a, epsilon=0.3, static_b=True)))(x, a)
    assert unbalanced.value > 1e-3
    assert static.self_y is None and static.value > solve(x, y, a, uniform)


def test_rounding_is_exact_and_close():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(4))
    plan = np.outer(a, b) * rng.uniform(0.5, 1.5, size=(6, 4))
    out = np.asarray(round_to_polytope(*(jnp.asarray(x, jnp.float32) for x in (plan, a, b))))
    violation = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    np.testing.assert_allclose(out.sum(1), a, atol=1e-6)
    np.testing.assert_allclose(out.sum(0), b, atol=1e-6)
    assert np.all(out >= 0) and np.abs(out - plan).sum() <= 2 * violation + 1e-6


@pytest.mark.slow
def test_mirror_sinkhorn_slope():
    """The gap to the linear program falls like t to a power within [-0.7, -0.4]."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(50, 2)), rng.uniform(size=(50, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    cost = cost / cost.max()
    a = np.full(50, 1 / 50)
    optimum = linear_program(cost, a, a)
    np.testing.assert_allclose(optimum, 0.01835, atol=1e-5)
    single = jnp.asarray(cost, jnp.float32)
    weights = jnp.asarray(a, jnp.float32)
    gaps = []
    for steps in (100, 1000, 10_000):
        out = mirror_sinkhorn(single, weights, weights, bound=1.0, max_steps=steps)
        np.testing.assert_allclose(out.average.sum(1), a, atol=1e-6)
        gaps.append(float(jnp.sum(single * out.average)) - optimum)
    slope = np.log(gaps[2] / gaps[0]) / np.log(100)
    np.testing.assert_allclose(gaps, [3.0e-2, 8.4e-3, 2.1e-3], rtol=0.1)
    assert -0.7 <= slope <= -0.4


def test_mirror_sinkhorn_as_an_optax_transformation():
    """A stochastic quadratic objective; the transform composes with optax.chain."""
    rng = np.random.default_rng(1)
    a = jnp.asarray(rng.dirichlet(np.ones(5)), jnp.float32)
    b = jnp.asarray(rng.dirichlet(np.ones(4)), jnp.float32)
    target = jnp.asarray(rng.uniform(size=(5, 4)) / 20, jnp.float32)
    transform = optax.chain(optax.clip(1.0), scale_by_mirror_sinkhorn(a, b, 1.0))
    plan = a[:, None] * b[None]
    state = transform.init(plan)
    for _ in range(4):
        update, state = transform.update(plan - target, state, plan)
        plan = plan + update
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-6)  # the fourth step scaled the rows

    def noisy(plan, key):
        return plan - target + 0.01 * jax.random.normal(key, plan.shape)

    def objective(plan):
        return float(jnp.sum((plan - target) ** 2))

    out = mirror_sinkhorn(noisy, a, b, bound=0.3, max_steps=2000, key=jax.random.key(0))
    best = scipy.optimize.minimize(
        lambda p: np.sum((p.reshape(5, 4) - np.asarray(target, np.float64)) ** 2),
        np.outer(a, b).ravel(), bounds=[(0, None)] * 20, method="SLSQP",
        constraints=[{"type": "eq", "fun": lambda p: np.r_[
            p.reshape(5, 4).sum(1) - np.asarray(a, np.float64),
            p.reshape(5, 4).sum(0) - np.asarray(b, np.float64)][:-1]}])
    assert objective(out.average) < best.fun + 1e-3
    with pytest.raises(ValueError, match="positive"):
        mirror_sinkhorn(target, a.at[0].set(0.0), b, bound=1.0, max_steps=3)


def test_sparse_simplex_projection_is_the_best_support():
    rng = np.random.default_rng(0)
    for k in (1, 2, 4, 6):
        x = rng.normal(size=6)
        best = np.inf
        for support in itertools.combinations(range(6), k):
            p = np.zeros(6)
            u = np.sort(x[list(support)])[::-1]
            count = np.flatnonzero(u > (np.cumsum(u) - 1) / np.arange(1, k + 1))[-1] + 1
            p[list(support)] = np.maximum(x[list(support)] - (u[:count].sum() - 1) / count, 0)
            best = min(best, np.sum((p - x) ** 2))
        ours = np.asarray(projection_sparse_simplex(jnp.asarray(x, jnp.float32), k))
        np.testing.assert_allclose(np.sum((ours - x) ** 2), best, rtol=1e-5)
        assert np.count_nonzero(ours) <= k and abs(ours.sum() - 1) < 1e-6
    with pytest.raises(ValueError, match="between 1"):
        projection_sparse_simplex(jnp.ones(3), 4)


@pytest.mark.slow
def test_quadratic_transport_against_a_quadratic_program(x64):
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(6, 5))
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(5))
    gamma = 0.5
    exact = scipy.optimize.minimize(
        lambda p: p @ cost.ravel() + gamma / 2 * p @ p, np.outer(a, b).ravel(),
        jac=lambda p: cost.ravel() + gamma * p, bounds=[(0, None)] * 30, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
        constraints=[{"type": "eq", "fun": lambda p: np.r_[
            p.reshape(6, 5).sum(1) - a, p.reshape(6, 5).sum(0) - b][:-1]}])
    stop = ji.tolerance(rtol=0, atol=1e-9)

    def solve(cost, k=None):
        return sparse_transport(cost, a, b, gamma=gamma, k=k, stop=stop)

    solved = jax.jit(solve)
    out = solved(cost)
    np.testing.assert_allclose(out.dual_value, exact.fun, rtol=1e-6)
    np.testing.assert_allclose(out.plan, exact.x.reshape(6, 5), atol=1e-4)
    assert out.row_violation < 1e-8
    w = rng.normal(size=cost.shape)
    direction = rng.normal(size=cost.shape)
    h = 1e-6
    ahead, behind = solved(cost + h * direction), solved(cost - h * direction)
    for loss in (lambda out: jnp.sum(w * out.plan), lambda out: out.dual_value):
        finite = (loss(ahead) - loss(behind)) / (2 * h)
        gradient = jax.jit(jax.grad(lambda c, loss=loss: loss(solve(c))))(jnp.asarray(cost))
        np.testing.assert_allclose(np.sum(gradient * direction), finite, rtol=1e-4)
    sparse, wider = (jax.jit(lambda c, k=k: solve(c, k))(cost) for k in (2, 3))
    assert sparse.dual_value >= wider.dual_value >= out.dual_value - 1e-9
    assert np.all(np.count_nonzero(sparse.plan, axis=0) <= 2)
    np.testing.assert_allclose(sparse.plan.sum(0), b, atol=1e-12)
    np.testing.assert_allclose(sparse.rounded(jnp.asarray(a), jnp.asarray(b)).sum(1), a, atol=1e-12)
    with pytest.raises(ValueError, match=r"k\*m < n"):
        sparse_transport(jnp.ones((6, 2)), gamma=1.0, k=2)
