"""Statuses and plans on costs that float32 carries badly, judged outside the library."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxiter as ji
from jaxiter import Status
from jaxiter.transport import (
    Grid,
    PointCloud,
    euclidean,
    mirror_sinkhorn,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_many,
)

UNIFORM = np.random.default_rng(0).uniform(size=(8, 8))


@functools.cache
def solver(method):
    return jax.jit(jax.vmap(lambda cost: sinkhorn(cost, epsilon=0.05, method=method)))


def exact_plan(cost, epsilon, steps=5000):
    """Sinkhorn's iteration in float64, uniform weights."""
    cost, g = np.asarray(cost, float), np.zeros(np.shape(cost)[1])
    n, m = cost.shape
    for _ in range(steps):
        f = -epsilon * scipy.special.logsumexp((g - cost) / epsilon, axis=1, b=n)
        g = -epsilon * scipy.special.logsumexp((f[:, None] - cost) / epsilon, axis=0, b=m)
    return np.exp((f[:, None] + g - cost) / epsilon)


def error_outside(f, g, cost, epsilon):
    """The marginal error, in float64, of what the returned floats stand for; uniform weights."""
    f, g, cost = (np.asarray(x, float) for x in (f, g, cost))
    plan = np.exp((f[:, None] + g - cost) / float(np.float32(epsilon)))
    return np.abs(plan.sum(1) - 1 / len(f)).sum() + np.abs(plan.sum(0) - 1 / len(g)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "log", "many"])
def test_a_constant_changes_no_plan(method):
    """Offsets of 10, 1e3 and 1e5; the potentials of the last two cannot hold the tolerance."""
    offsets = 0.0, 10.0, 1e3, 1e5
    costs = jnp.asarray(np.stack([UNIFORM + offset for offset in offsets]), jnp.float32)
    if method == "many":
        out = jax.jit(lambda costs: sinkhorn_many(costs, epsilon=0.05))(costs)
    else:
        out = solver(method)(costs)
    assert out.status.tolist() == [1, 1, 2, 2] and "PRECISION_FLOOR" in out.message()
    # Of plans: by vmap, as of any batched result.
    plans = jax.jit(jax.vmap(lambda out: out.plan()))(out)
    sums = jax.jit(jax.vmap(lambda out: out.apply(jnp.arange(8.0))))(out)
    for k, offset in enumerate(offsets):
        cost = np.asarray(costs[k], float)
        plan = exact_plan(cost, float(np.float32(0.05)))
        np.testing.assert_allclose(plans[k], plan, atol=3e-6)
        np.testing.assert_allclose(sums[k], plan @ np.arange(8.0), atol=1e-5)
        centred = np.sum(plan * (cost - offset))
        room = 2e-5 + 2e-7 * offset  # two digits of the value itself
        assert abs(float(out.transport_cost[k]) - offset - centred) < room
        outside = error_outside(out.f[k], out.g[k], cost, 0.05)
        np.testing.assert_allclose(out.solve.merit[k], outside, rtol=0.05, atol=3e-6)
        assert out.marginal_error[k] < 1.1e-5


def test_two_clouds_far_apart():
    """Squared distances of 90,000, of which one or two matter."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(20, 2)) + away, jnp.float32) for away in (0.0, 212.0))
    cost = np.sum((np.asarray(x, float)[:, None] - np.asarray(y, float)) ** 2, -1)
    # The slope is exact at any distance: 2 (x_i / n - sum_j P_ij y_j).
    value, slope = jax.jit(jax.value_and_grad(
        lambda x: sinkhorn(PointCloud(x, y), epsilon=2.0).dual_value))(x)
    plan = exact_plan(cost, 2.0, 500)
    np.testing.assert_allclose(slope, 2 * (np.asarray(x) / 20 - plan @ np.asarray(y)), rtol=1e-5)
    log = np.log(400 * plan)
    np.testing.assert_allclose(value, np.sum(plan * (cost + 2 * log)), rtol=3e-7)
    for epsilon in (0.02, 2.0):
        out = jax.jit(lambda x, e: sinkhorn(PointCloud(x, y), epsilon=e))(x, epsilon)
        outside = error_outside(out.f, out.g, cost, epsilon)
        np.testing.assert_allclose(out.solve.merit, outside, rtol=0.01)
        assert out.status != Status.CONVERGED and out.marginal_error < 5e-3
    assert out.status == Status.PRECISION_FLOOR and out.marginal_error < 1.1e-5
    np.testing.assert_allclose(out.plan(), plan, atol=2e-6)


@pytest.mark.slow
def test_a_large_cost_may_mean_never():
    """1e32 forbids as infinity does, and costs no digits."""
    large = np.where(np.random.default_rng(4).random((8, 8)) < 0.3, 1e32, UNIFORM)
    infinite = np.where(large > 1, np.inf, large)
    for method in ("log", "auto"):
        both = solver(method)(jnp.asarray(np.stack([large, infinite] * 2), jnp.float32))
        assert np.all(both.converged)
        plan = jax.jit(jax.vmap(lambda out: out.plan()))(both)
        np.testing.assert_allclose(plan[0], exact_plan(np.minimum(large, 1e3), 0.05), atol=3e-6)
        np.testing.assert_allclose(plan[0], plan[1], atol=1e-6)
        np.testing.assert_allclose(both.transport_cost[0], both.transport_cost[1], rtol=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sinkhorn(jnp.asarray(1e6 * UNIFORM, jnp.float32), epsilon=0.05, method="log", max_steps=3)
    assert "inf for costs of forbidden pairs" in str(caught[0].message)


@pytest.mark.slow
def test_the_hessian_of_a_divergence_is_finite():
    """Where a plan nearly is a permutation; against second differences in float64."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    x = np.asarray(x, np.float32)
    hessian = np.asarray(jax.jit(jax.hessian(lambda z: sinkhorn_divergence(
        z[:6], z[6:], epsilon=0.1, cost=euclidean).value))(np.concatenate([x, x + 0.1])))

    def transport(x, y):
        cost = np.sqrt(np.sum((x[:, None] - y) ** 2, -1))
        plan = exact_plan(cost, 0.1, 400)
        return np.sum(plan * (cost + 0.1 * np.log(36 * plan)))

    def value(step):
        z = np.concatenate([x, x + np.float32(0.1)]).astype(float)
        z += step
        x1, y1 = z[:6], z[6:]
        return transport(x1, y1) - transport(x1, x1) / 2 - transport(y1, y1) / 2

    assert np.all(np.isfinite(hessian))
    np.testing.assert_allclose(hessian.sum(2), 0, atol=1e-5)  # a common shift changes nothing
    h = 1e-3
    for i, j in ((0, 6), (2, 2)):
        e, d = np.zeros((2, 12, 2))
        e[i, 0], d[j, 1] = h, h
        second = (value(e + d) - value(e - d) - value(d - e) + value(-e - d)) / (4 * h * h)
        np.testing.assert_allclose(hessian[i, 0, j, 1], second, atol=2e-3)


def test_epsilon_a_billionth_of_the_costs():
    """Costs to 2,401 at epsilon 2e-6: larger epsilons come first, and the value is nearly exact."""
    places = np.arange(50.0)
    a, b = (np.exp(-((places - middle) ** 2) / 50) for middle in (15, 20))
    a, b = (jnp.asarray(w / w.sum(), jnp.float32) for w in (a, b))
    cost = (places[:, None] - places) ** 2
    out = jax.jit(lambda cost: sinkhorn(cost, a, b, epsilon=2e-6, max_steps=3000))(
        jnp.asarray(cost, jnp.float32))
    assert out.status != Status.CONVERGED and out.solve.steps <= 3000
    monotone = np.interp(  # in one dimension quantiles are matched
        np.linspace(0, 1, 200_001)[1:-1], np.cumsum(np.asarray(a, float)), places)
    other = np.interp(np.linspace(0, 1, 200_001)[1:-1], np.cumsum(np.asarray(b, float)), places)
    np.testing.assert_allclose(out.transport_cost, np.mean((monotone - other) ** 2), rtol=0.02)


def test_steps_and_traces_are_those_of_all_stages():
    cost = jnp.asarray(UNIFORM, jnp.float32)

    def solve(method, schedule=None):
        out = sinkhorn(cost, epsilon=0.02, method=method, epsilon_schedule=schedule,
                       monitor=ji.record(), max_steps=300)
        return out.solve.trace, out.solve.steps

    kinds = [jax.eval_shape(functools.partial(solve, method))
             for method in ("auto", "log", "kernel", "newton")]
    assert all(kind == kinds[0] for kind in kinds)
    trace, steps = jax.jit(functools.partial(solve, "newton", np.array([0.5, 0.1])))()
    merits = np.asarray(trace["merit"])
    assert 0 < steps < 300 and np.all(np.isfinite(merits[:steps]))
    assert not np.any(np.isfinite(merits[steps:]) & (merits[steps:] != 0))
    with pytest.raises(ValueError, match="method='log'"):
        sinkhorn(cost, epsilon=0.1, method="newton", adjoint=ji.unrolled())


def test_mirror_descent_says_how_it_ended():
    weights = jnp.full(3, 1 / 3)
    out = mirror_sinkhorn(jnp.eye(3), weights, weights, bound=1.0, max_steps=20)
    assert out.status == Status.MAX_STEPS and out.solve.steps == 20 and not out.converged
    with pytest.raises(RuntimeError, match="MAX_STEPS"):
        out.check()

    def bad(plan):
        return jnp.where(plan < 0.1, jnp.nan, 1.0 - jnp.eye(3))

    out = mirror_sinkhorn(bad, weights, weights, bound=1.0, max_steps=20)
    assert out.status == Status.NONFINITE and np.all(np.isfinite(out.average))


@pytest.mark.slow
def test_grids_and_half_precision():
    line = np.square(np.arange(3.0)[:, None] - np.arange(3.0)).astype(np.float32)
    lines = jnp.asarray(np.stack([line, np.where(line > 1, np.nan, line), line + 1e4]))
    out = jax.jit(jax.vmap(lambda c: sinkhorn(Grid((c, c)), epsilon=1.0)))(lines)
    assert out.status.tolist() == [Status.CONVERGED, Status.BAD_INPUT, Status.PRECISION_FLOOR]
    plans = jax.jit(jax.vmap(lambda out: out.plan()))(out)
    np.testing.assert_allclose(plans[0], plans[2], atol=2e-6)
    np.testing.assert_allclose(out.transport_cost[2] - 2e4, out.transport_cost[0], atol=4e-3)

    costs = jnp.asarray(np.random.default_rng(1).uniform(size=(64, 4, 4)), jnp.bfloat16)
    epsilon = jnp.asarray(np.geomspace(0.01, 4, 64), jnp.bfloat16)
    out = jax.jit(jax.vmap(lambda c, e: sinkhorn(c, epsilon=e, method="kernel")))(costs, epsilon)
    errors = [error_outside(*parts) for parts in zip(
        out.f, out.g, costs, np.asarray(epsilon, float), strict=True)]
    assert np.all(np.array(errors)[np.asarray(out.converged)] <= 1.1e-2)
    assert np.all(np.asarray(out.status) != Status.RUNNING) and np.min(errors) < 1e-1


def test_a_large_penalty_is_nearly_a_constraint():
    """One objective for all rho: `<C, P> + epsilon KL(P | a b^T)` and the penalties."""
    cost = jnp.asarray(UNIFORM, jnp.float32)
    solve = jax.jit(lambda rho: sinkhorn(cost, epsilon=0.2, rho_a=rho, rho_b=rho).entropic_cost)
    exact = sinkhorn(cost, epsilon=0.2).entropic_cost
    np.testing.assert_allclose(solve(1e3), exact, rtol=1e-3)
    assert solve(1.0) < solve(10.0) < exact


@pytest.mark.parametrize("method", [
    "kernel", *(pytest.param(name, marks=pytest.mark.slow) for name in ("auto", "newton"))])
def test_histograms_with_tails_of_no_weight(method):
    """Two bells on a line, their tails down to 1e-45: the nearest bins carry next to nothing."""
    places = np.arange(100.0)
    cost = (places[:, None] - places) ** 2
    weights = [np.exp(-((places - middle) ** 2) / (2 * width**2))
               for middle, width in ((20, 5), (60, 2))]
    a, b = (jnp.asarray(w / w.sum(), jnp.float32) for w in weights)
    out = sinkhorn(jnp.asarray(cost, jnp.float32), a, b, epsilon=10.0, method=method,
                   stop=ji.tolerance(rtol=1e-4, atol=0))  # potentials of 3,000 hold 2e-5
    assert out.converged, out.message()
    left, right = (np.log(np.maximum(np.asarray(w, float), 1e-300)) for w in (a, b))
    g = np.zeros(100)
    for _ in range(200):
        f = -10 * scipy.special.logsumexp((g - cost) / 10 + right, axis=1)
        g = -10 * scipy.special.logsumexp((f[:, None] - cost) / 10 + left[:, None], axis=0)
    plan = np.exp((f[:, None] + g - cost) / 10 + left[:, None] + right)
    np.testing.assert_allclose(out.transport_cost, np.sum(plan * cost), rtol=1e-3)
    np.testing.assert_allclose(out.plan(), plan, atol=1e-4)
