"""Barycentres against numpy's scaling loop, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.testing import check_front
from jaxiter.transport import Grid, barycentre, free_support_barycentre
from jaxiter.transport.checks import check_simplex
from tests.transport.beds import reference as potentials

N, EPSILON = 12, 0.02
LINE = np.linspace(0, 1, N)
COST = (LINE[:, None] - LINE) ** 2
SHARES = np.array([0.5, 0.3, 0.2])


def histograms():
    return np.random.default_rng(0).dirichlet(np.ones(N), size=3)


def reference(cost, histograms, shares, epsilon, steps=3000, debiased=False):
    """The textbook scalings in float64."""
    kernel = np.exp(-cost / epsilon)
    v, d = np.ones((len(shares), cost.shape[1])), np.ones(cost.shape[1])
    for _ in range(steps):
        held = (histograms / (v @ kernel.T)) @ kernel
        b = d * np.exp(shares @ np.log(held))
        v = b / held
        if debiased:
            d = np.sqrt(d * b / (kernel @ d))
    return b


@pytest.fixture(scope="module")
def solve():
    """One program for every test in float64."""
    return jax.jit(lambda cost, a, shares, epsilon: barycentre(
        cost, a, shares, epsilon=epsilon, max_steps=20_000,
        stop=ji.tolerance(rtol=0, atol=1e-12)))


def test_it_is_that_of_the_scaling_loop(x64, solve):
    a = histograms()
    out = solve(COST, a, SHARES, EPSILON)
    np.testing.assert_allclose(
        out.weights, reference(COST, a, SHARES, EPSILON), atol=1e-10)
    plans = np.exp((out.f[:, :, None] + out.g[:, None, :] - COST) / EPSILON)
    np.testing.assert_allclose(plans.sum(2), a, atol=1e-10)
    np.testing.assert_allclose(plans.sum(1), np.tile(out.weights, (3, 1)), atol=1e-10)
    assert out.converged and abs(float(out.weights.sum()) - 1) < 1e-12
    # Optimality: the potentials of the barycentre cancel, up to a constant.
    together = SHARES @ np.asarray(out.g)
    assert np.ptp(together) < 1e-9


def test_derivatives_are_those_of_finite_differences(x64, solve):
    rng = np.random.default_rng(1)
    w, args = rng.normal(size=N), [COST, histograms(), SHARES, EPSILON]
    gradient = jax.jit(jax.grad(lambda *args: w @ solve(*args).weights, (0, 1, 2, 3)))(*args)
    for place, (arg, slope) in enumerate(zip(args, gradient, strict=True)):
        d = rng.normal(size=np.shape(arg)) if place < 3 else np.float64(1)
        if place in (1, 2):  # along the simplex
            d = d - d.mean(-1, keepdims=True)
        h, ends = 1e-6, []
        for sign in (1, -1):
            ends.append(w @ solve(*args[:place], arg + sign * h * d, *args[place + 1:]).weights)
        finite = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(np.sum(slope * d), finite, rtol=1e-5)


def test_gaussians_meet_in_the_middle():
    """The mean is the mean of means; entropy adds to the variance, debiased it does not."""
    n, epsilon = 100, 0.004
    x = np.linspace(0, 1, n)
    a = np.exp(-((x - np.array([[0.3], [0.65]])) ** 2) / (2 * 0.05**2))
    a = jnp.asarray(a / a.sum(1, keepdims=True), jnp.float32)
    grid = Grid((jnp.asarray((x[:, None] - x) ** 2, jnp.float32),))
    blurred, sharp = (jax.jit(lambda grid, a, debiased=debiased: barycentre(
        grid, a, epsilon=epsilon, debiased=debiased))(grid, a) for debiased in (False, True))
    for out, variance in ((blurred, 0.05**2 + epsilon / 2), (sharp, 0.05**2)):
        b = np.asarray(out.weights, np.float64)
        assert out.converged
        np.testing.assert_allclose(b @ x, 0.475, atol=1e-4)
        np.testing.assert_allclose(b @ (x - 0.475) ** 2, variance, rtol=0.02)


def test_one_histogram_debiased_is_itself_where_epsilon_shows_its_detail():
    """Points of a distance h: at h^2 / 2 all of it is found, at 20 h^2 the objective is flat."""
    n = 20
    line = np.linspace(0, 1, n)
    cost = jnp.asarray((line[:, None] - line) ** 2, jnp.float32)
    a = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(n), size=1), jnp.float32)
    run = jax.jit(lambda epsilon: barycentre(cost, a, epsilon=epsilon, debiased=True))
    fine, blunt = (run(scale / (n - 1) ** 2) for scale in (0.5, 20.0))
    assert fine.converged and np.abs(fine.weights - a[0]).sum() < 1e-3
    assert blunt.solve.merit < 1e-3 and np.abs(blunt.weights - a[0]).sum() > 0.1


def test_a_kernel_in_float32_holds_where_the_plain_one_underflows():
    """Disjoint supports, epsilon of a five-hundredth of the square: NaN without absorption."""
    side = np.arange(10) / 10
    points = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    cost = ((points[:, None] - points) ** 2).sum(-1)
    corners = [np.exp(-((points - c) ** 2).sum(1) / 0.01) for c in ((0, 0), (0.9, 0.9), (0, 0.9))]
    a = np.stack([h * (h > 1e-4) for h in corners])
    a = a / a.sum(1, keepdims=True)
    expected = reference(cost, a, np.full(3, 1 / 3), 0.002)
    line = jnp.asarray((side[:, None] - side) ** 2, jnp.float32)
    for geometry in (jnp.asarray(cost, jnp.float32), Grid((line, line))):
        out = jax.jit(lambda geometry: barycentre(
            geometry, jnp.asarray(a, jnp.float32), epsilon=0.002))(geometry)
        assert out.converged and out.weights.dtype == np.float32
        assert np.abs(out.weights - expected).sum() < 1e-4


@pytest.mark.slow
def test_it_speaks_the_dialect():
    check_front(lambda cost, a, **options: barycentre(cost, a, epsilon=0.1, **options),
                jnp.asarray(COST, jnp.float32), jnp.asarray(histograms(), jnp.float32))


def test_bad_input_is_refused_or_has_a_status():
    cost, a = jnp.asarray(COST, jnp.float32), jnp.asarray(histograms(), jnp.float32)
    for message, arguments in (
            ("histograms\\[0\\] sums to 2", (cost, 2 * a)),
            ("histograms must have shape", (cost, a[:, 1:] / a[:, 1:].sum(1, keepdims=True))),
            ("negative", (cost, -a)),
            ("weights sums to 3", (cost, a, jnp.ones(3))),
            ("weights must have shape", (cost, a, jnp.full(2, 0.5))),
            ("NaN", (cost.at[0, 0].set(jnp.nan), a))):
        with pytest.raises(ValueError, match=message):
            barycentre(*arguments, epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        barycentre(cost, a, epsilon=0.0)
    with pytest.raises(ValueError, match="square"):
        barycentre(cost[:, 1:], a, epsilon=0.1, debiased=True)
    points = jnp.ones((2, 6, 2))
    for message, arguments in (
            ("weights sums", (points, 4, jnp.ones(2))), ("points must be", (points[0], 4)),
            ("pass a start", (points, 13)), ("k must be", (points, 0))):
        with pytest.raises(ValueError, match=message):
            free_support_barycentre(*arguments, epsilon=0.1)
    check_simplex("histograms", np.full((1, 300), 1 / 300, jnp.bfloat16))  # as exact as 16 bits are
    with pytest.raises(ValueError, match="sums to 1.5"):
        check_simplex("histograms", np.full((1, 300), 1 / 200, jnp.bfloat16))
    run = jax.jit(lambda cost, a, epsilon: barycentre(cost, a, epsilon=epsilon).status)
    assert run(cost, 2 * a, 0.1) == run(cost, a, -1.0) == ji.Status.BAD_INPUT
    assert run(cost * jnp.nan, a, 0.1) not in (ji.Status.CONVERGED, ji.Status.RUNNING)


def test_a_free_support_of_points_without_mass_or_equal():
    run = jax.jit(lambda points, masses: free_support_barycentre(
        points[..., None], 2, epsilon=0.01, masses=masses))
    light = jnp.array([[0.5, 0.5], [1.0, 0.0]])
    for points, masses, found in (
            ([[0.0, 1.0], [5.0, 6.0]], light, [2.5, 3.0]),
            ([[0.0, 1.0], [6.0, 5.0]], light, [3.0, 3.5]),
            # The first and the last of all points are one: the start is the first and another.
            ([[0.0, 1.0], [1.0, 0.0]], jnp.full_like(light, 0.5), [0.0, 1.0])):
        out = run(jnp.array(points), masses)
        assert out.converged
        np.testing.assert_allclose(jnp.sort(out.points[:, 0]), found, atol=1e-4)


@pytest.mark.slow
def test_points_without_mass_have_derivatives(x64):
    points, masses = jnp.array([[0.0, 1.0, 0.3], [5.0, 6.0, 7.0]]), jnp.array(
        [[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
    run = jax.jit(lambda masses: jnp.sum(jnp.square(free_support_barycentre(
        points[..., None], 2, epsilon=0.1, masses=masses, init=jnp.array([[2.0], [4.0]]),
        max_steps=5000, stop=ji.tolerance(rtol=0, atol=1e-11)).points)))
    way = jnp.array([[0.0, 0, 0], [-1, 0, 1]])
    slope = jnp.sum(jax.jit(jax.grad(run))(masses) * way)
    np.testing.assert_allclose(slope, (run(masses + 1e-6 * way) - run(masses)) / 1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_free_support_moves_to_the_mean_of_its_plans(x64):
    """Against numpy's alternation, and derivatives against finite differences."""
    rng = np.random.default_rng(0)
    points, shares, epsilon = rng.normal(size=(2, 6, 2)), np.array([0.7, 0.3]), 0.5
    points[1] += 2
    masses = rng.dirichlet(np.ones(6), size=2)
    y = init = points.reshape(-1, 2)[[0, 4, 8, 11]]
    solve = jax.jit(lambda points, masses, shares: free_support_barycentre(
        points, 4, shares, epsilon=epsilon, masses=masses, init=init, max_steps=5000,
        stop=ji.tolerance(rtol=0, atol=1e-10)))
    for _ in range(100):
        total = 0
        for x, b, share in zip(points, masses, shares, strict=True):
            cost = ((y[:, None] - x) ** 2).sum(-1)
            f, g = potentials(cost, np.full(4, 0.25), b, epsilon, steps=1000)
            total = total + share * (b * np.exp((f[:, None] + g - cost) / epsilon)) @ x
        y = total
    out = solve(points, masses, shares)
    assert out.converged
    np.testing.assert_allclose(out.points, y, atol=1e-8)
    w, d = rng.normal(size=y.shape), rng.normal(size=points.shape)
    slope = jax.jit(jax.grad(lambda p: jnp.sum(w * solve(p, masses, shares).points)))(points)
    ends = [np.sum(w * solve(points + h * d, masses, shares).points) for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(np.sum(slope * d), (ends[0] - ends[1]) / 2e-5, rtol=1e-5)
    assert solve(points * jnp.nan, masses, shares).status == ji.Status.BAD_INPUT
