"""Costs of points and grids, lanes, warm starts, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special

import jaxiter as ji
from jaxiter import Status
from jaxiter.transport import (
    Dense,
    Grid,
    PointCloud,
    PowerNorm,
    SquaredNorm,
    cosine,
    epsilon_scaling,
    euclidean,
    sinkhorn,
    sinkhorn_histograms,
    sinkhorn_many,
)
from tests.transport.beds import TIGHT, clouds, weights

COSTS = {
    "squared": (None, "sqeuclidean"),
    "euclidean": (euclidean, "euclidean"),
    "power": (PowerNorm(1.0), "cityblock"),
    "cosine": (cosine, "cosine"),
}


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, np.inf])
def test_half_squared_norms(p):
    x, y = np.float32([1e-30, 3.0, -2.0]), np.float32([0.0, -1.0, 1.0])
    cost = SquaredNorm(p)
    np.testing.assert_allclose(
        cost(jnp.asarray(x), jnp.asarray(y)), np.linalg.norm(x - y, p) ** 2 / 2, rtol=1e-6)
    slope = jax.grad(cost)(jnp.asarray(x), jnp.asarray(y))
    h = 1e-6 * np.eye(3)
    wide = np.asarray(x, float)
    differences = [(np.linalg.norm(wide + e - y, p) ** 2 - np.linalg.norm(wide - e - y, p) ** 2)
                   / 4e-6 for e in h]
    np.testing.assert_allclose(slope[1:], differences[1:], rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(cost)(jnp.asarray(x), jnp.asarray(x)), 0)
    # Neither a square nor a power overflows.
    np.testing.assert_allclose(cost(jnp.float32([1e18, 1e18]), jnp.zeros(2)),
                               1e36 * np.linalg.norm(np.ones(2), p) ** 2 / 2, rtol=1e-5)


def test_costs_of_nan_are_nan():
    costs = euclidean, cosine, PowerNorm(1.5), SquaredNorm(1.5), SquaredNorm(np.inf)
    run = jax.jit(jax.vmap(lambda x: jnp.stack([
        part for cost in costs for part in (cost(x, jnp.ones(2)), cost(jnp.ones(2), x))])))
    values = run(jnp.array([[jnp.nan, 1.0], [jnp.nan, jnp.nan], [1.0, 1.0]]))
    assert np.all(np.isnan(values[:2]))
    np.testing.assert_array_equal(values[2], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
def test_point_clouds_are_their_dense_costs(name, x64):
    x, y = clouds(11, 3)
    y = y[:7]
    a, b = weights(11, 7)
    cost, metric = COSTS[name]
    keywords = {} if cost is None else {"cost": cost}
    cloud = PointCloud(jnp.asarray(x), jnp.asarray(y), block=4, **keywords)
    exact = scipy.spatial.distance.cdist(x, y, metric)
    np.testing.assert_allclose(cloud.matrix(), exact, atol=1e-12)
    np.testing.assert_allclose(cloud.T.matrix(), exact.T, atol=1e-12)
    assert cloud.shape == (11, 7)
    v = np.random.default_rng(2).normal(size=(7, 2))

    def loss(geometry):
        out = sinkhorn(geometry, a, b, epsilon=0.1, stop=TIGHT)
        return jnp.sum(out.apply(v) ** 2) + out.dual_value + out.transport_cost, out

    value, out = jax.jit(loss)(cloud)
    other, _ = jax.jit(loss)(Dense(jnp.asarray(exact)))
    np.testing.assert_allclose(value, other, rtol=1e-8)
    np.testing.assert_allclose(out.apply(np.ones(11), axis=0), b, atol=1e-9)

    moved = jax.jit(lambda x: loss(PointCloud(x, jnp.asarray(y), block=4, **keywords))[0])
    direction = np.random.default_rng(4).normal(size=x.shape)
    h = 1e-6
    finite = (moved(x + h * direction) - moved(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(
        np.sum(jax.jit(jax.grad(moved))(jnp.asarray(x)) * direction), finite, rtol=1e-5)


@pytest.mark.slow
def test_grids_are_their_dense_costs(x64):
    rng = np.random.default_rng(0)
    costs = tuple(jnp.square(jnp.arange(float(s))[:, None] - jnp.arange(float(t)))
                  for s, t in ((3, 4), (5, 2)))
    a, b = rng.dirichlet(np.ones(15)), rng.dirichlet(np.ones(8))
    a[3], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    v = rng.normal(size=(8, 2))

    def loss(geometry):
        out = sinkhorn(geometry, a, b, epsilon=0.5, stop=TIGHT)
        return jnp.sum(out.apply(v) ** 2) + out.transport_cost + out.dual_value, out.f

    (value, f), gradient = jax.jit(jax.value_and_grad(
        lambda c: loss(Grid(c)), has_aux=True))(costs)
    (other, dense_f), reference = jax.jit(jax.value_and_grad(
        lambda c: loss(Dense(Grid(c).matrix())), has_aux=True))(costs)
    np.testing.assert_allclose(value, other, rtol=1e-9)
    np.testing.assert_allclose(f, dense_f, atol=1e-9)
    for ours, dense in zip(gradient, reference, strict=True):
        np.testing.assert_allclose(ours, dense, atol=1e-8)


def test_far_from_the_origin_in_float32():
    """|x|^2 + |y|^2 - 2 x.y cancels unless the points are centred."""
    x, y = clouds(30)
    solve = jax.jit(lambda x, y: sinkhorn(PointCloud(x, y), epsilon=0.1))
    near = solve(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    far = solve(jnp.asarray(x + 64, jnp.float32), jnp.asarray(y + 64, jnp.float32))
    np.testing.assert_allclose(far.transport_cost, near.transport_cost, rtol=1e-3)


@pytest.mark.slow
def test_small_epsilon_newton_in_float32():
    """Where 3,000 plain iterations do not reach 2e-5, Newton does, and the plan beyond that."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 5)), 0.7 * rng.normal(size=(150, 5)) + 1
    cost = np.sum((x[:, None] - y[None]) ** 2, -1)
    epsilon = 0.002 * cost.mean()
    keywords = {"epsilon": epsilon, "stop": ji.tolerance(rtol=0, atol=2e-5), "max_steps": 3000}
    single = jnp.asarray(cost, jnp.float32)
    plain = jax.jit(lambda c: sinkhorn(c, method="kernel", **keywords))(single)
    newton = jax.jit(lambda c: sinkhorn(c, method="newton", **keywords))(single)
    auto = jax.jit(lambda c: sinkhorn(c, **keywords))(single)
    assert plain.solve.status == Status.MAX_STEPS
    assert newton.solve.converged and newton.solve.steps < 240  # 200 of them plain
    assert auto.solve.converged
    # Potentials of size max(C) cannot say the plan better than eps max(C) / epsilon; `plan()` can.
    assert newton.marginal_error < 5e-6 and auto.marginal_error <= 2e-5
    plan = np.exp((np.asarray(newton.f, float)[:, None] + np.asarray(newton.g, float)
                   - np.asarray(single, float)) / np.float32(epsilon))
    outside = np.abs(plan.sum(1) - 1 / 150).sum() + np.abs(plan.sum(0) - 1 / 150).sum()
    assert outside <= 2e-5
    np.testing.assert_allclose(newton.solve.merit, outside, rtol=0.2)


@pytest.mark.slow
def test_lanes_warm_starts_and_schedules():
    rng = np.random.default_rng(5)
    costs = jnp.asarray(rng.uniform(size=(6, 8, 8)), jnp.float32)
    epsilons = jnp.asarray(np.geomspace(0.03, 0.3, 6), jnp.float32)

    def with_gradient(solve):
        def total(costs):
            out = solve(costs)
            return jnp.sum(out.transport_cost), out
        (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(costs)
        return out, gradient

    many, gradient = with_gradient(lambda c: sinkhorn_many(c, epsilon=epsilons, lanes=2))
    batch, other = with_gradient(lambda c: jax.vmap(
        lambda c, e: sinkhorn(c, epsilon=e, method="kernel"))(c, epsilons))
    # A refill rebuilds the kernel, so iterates differ by rounding.
    np.testing.assert_allclose(many.solve.steps, batch.solve.steps, rtol=5e-3)
    np.testing.assert_array_equal(many.solve.status, batch.solve.status)
    np.testing.assert_allclose(many.f, batch.f, atol=1e-5)
    np.testing.assert_allclose(gradient, other, atol=1e-4)

    schedule = epsilon_scaling(1.0, 0.1)
    scaled = jax.jit(lambda c: sinkhorn(c, epsilon=0.1, epsilon_schedule=schedule,
                                        method="kernel"))(costs[0])
    plain = jax.jit(lambda c: sinkhorn(c, epsilon=0.1, method="kernel"))(costs[0])
    np.testing.assert_allclose(scaled.dual_value, plain.dual_value, rtol=1e-4)
    assert scaled.solve.converged and scaled.solve.steps <= plain.solve.steps + 1
    again = jax.jit(lambda c, g: sinkhorn(
        c, epsilon=0.1, init=g, stop=ji.tolerance(rtol=2e-5), method="kernel"))(costs[0], plain.g)
    assert again.solve.steps <= 2


def test_merit_is_the_marginal_error_also_when_scalings_overflow():
    """At tiny epsilon scalings leave the float range between two absorptions: no false success."""
    rng = np.random.default_rng(6)
    cost = jnp.asarray(rng.uniform(size=(20, 20)), jnp.float32)
    solve = jax.jit(lambda e: sinkhorn(cost, epsilon=e, method="kernel", max_steps=400))
    for epsilon in (1e-2, 1e-3, 2e-4):
        out = solve(epsilon)
        reach = float(cost.max()) / epsilon
        true = np.asarray(out.marginal_error)
        assert abs(true - out.solve.merit) < 2e-7 * reach + 2e-6
        assert np.all(np.isfinite(out.plan()))


def test_second_derivatives_of_a_plan(x64):
    """Forward over reverse against finite differences of the gradient."""
    x, y = clouds(5)
    w = np.random.default_rng(1).normal(size=(5, 5))

    def loss(x):
        cost = jnp.sum((x[:, None] - y[None]) ** 2, -1)
        return jnp.sum(w * sinkhorn(cost, epsilon=0.1, stop=TIGHT, method="kernel").plan())

    direction = np.random.default_rng(2).normal(size=x.shape)
    gradient = jax.jit(jax.grad(loss))
    _, second = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,)))(jnp.asarray(x))
    h = 1e-5
    finite = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(second, finite, rtol=1e-4, atol=1e-6)


def test_errors_and_warnings():
    cost = np.ones((3, 3), np.float32)
    for keywords, text in [
        ({"method": "exact"}, "method must be one of"),
        ({"method": "newton", "rho_a": 1.0}, "balanced problems"),
        ({"rho_a": -1.0}, "rho_a must be positive"),
        ({"b": np.full(3, 2.0, np.float32)}, "pass rho_a/rho_b"),
    ]:
        with pytest.raises(ValueError, match=text):
            sinkhorn(cost, epsilon=0.1, **keywords)
    points = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="dimensions"):
        sinkhorn(PointCloud(points, jnp.zeros((3, 4))), epsilon=0.1)
    with pytest.raises(ValueError, match="PointCloud avoids"):
        sinkhorn(PointCloud(points, points), epsilon=0.1, method="kernel")
    with pytest.warns(UserWarning, match="floating-point floor"):
        sinkhorn(cost, epsilon=1e-4, method="log", stop=ji.tolerance(rtol=0, atol=1e-7),
                 max_steps=1)
    with pytest.raises(ValueError, match="factor"):
        epsilon_scaling(1.0, 0.1, factor=2.0)


def test_a_kernel_step_reads_the_kernel_twice():
    """Step and merit ask for the same product: XLA must compute it once."""
    def solve(cost, a, b, epsilon):
        return sinkhorn(cost, a, b, epsilon=epsilon, method="kernel").solve.value

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((40, 40), (40,), (40,), ())]
    text = jax.jit(solve).lower(*shapes).compile().as_text()
    assert text.count(" dot(") + text.count("custom-call") <= 2


@pytest.mark.slow
def test_histograms_share_one_kernel():
    rng = np.random.default_rng(8)
    cost = jnp.asarray(rng.uniform(size=(9, 8)), jnp.float32)
    a = jnp.asarray(rng.dirichlet(np.ones(9)), jnp.float32)
    b = rng.dirichlet(np.ones(8), size=3)
    b[1, 2] = 0.0
    b = jnp.asarray(b / b.sum(1, keepdims=True), jnp.float32)

    def shared(cost, b, epsilon=0.1):
        return sinkhorn_histograms(cost, a, b, epsilon=epsilon)

    def single(cost, b):
        return jax.vmap(lambda b: sinkhorn(cost, a, b, epsilon=0.1, method="kernel"))(b)

    def with_gradient(solve):
        def total(cost):
            out = solve(cost, b)
            return jnp.sum(out.transport_cost), out
        (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(cost)
        return out, gradient

    (ours, gradient), (reference, other) = with_gradient(shared), with_gradient(single)
    np.testing.assert_array_equal(ours.solve.status, Status.CONVERGED)
    np.testing.assert_array_equal(ours.solve.steps, reference.solve.steps)
    np.testing.assert_allclose(ours.f, reference.f, atol=1e-5)
    assert np.isneginf(ours.g[1, 2])
    np.testing.assert_allclose(gradient, other, atol=1e-5)
    def potentials(cost, b, epsilon):
        out = shared(cost, b, epsilon)
        return out.f, out.g, out.solve.converged

    solve = jax.jit(potentials).lower(cost, b, jnp.float32(0.1)).compile()
    text = solve.as_text()
    body = [line for line in text.splitlines() if "while/body" in line and "f32[3,9,8]" in line]
    assert not body and "dot(" in text  # no kernel of its own for a histogram
    # Far below what one kernel can represent: no false success.
    f, g, converged = (np.asarray(x) for x in solve(cost, b, jnp.float32(2e-4)))
    with np.errstate(all="ignore"):
        plan = np.exp((f[:, :, None].astype(float) + g[:, None] - np.asarray(cost)) / 2e-4)
        errors = np.abs(plan.sum(2) - a).sum(1) + np.abs(plan.sum(1) - b).sum(1)
    wrong = ~(errors < 1e-2)
    assert not np.any(wrong & converged) and np.any(wrong)
    with pytest.raises(ValueError, match="expected weights"):
        sinkhorn_histograms(cost, a, b[0], epsilon=0.1)
