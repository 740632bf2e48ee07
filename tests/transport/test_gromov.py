"""Gromov-Wasserstein against numpy's loop, a rotated copy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.testing import check_front
from jaxiter.transport import gromov_wasserstein, round_permutation
from tests.transport.beds import reference, weights

EPSILON = 0.05


def distances(points):
    square = ((points[:, None] - points[None]) ** 2).sum(-1)
    return square / square.max()


def spaces(n=7, m=6):
    rng = np.random.default_rng(0)
    return distances(rng.normal(size=(n, 2))), distances(rng.normal(size=(m, 3))), weights(n, m)


def rotated_copy(n):
    """Squared distances of points and of a rotated, permuted copy; the permutation; starts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]], np.float32)
    order = rng.permutation(n)
    starts = np.exp(rng.normal(size=(16, n, n))).astype(np.float32)
    return distances(x), distances((x @ turn.T)[order]), order, starts


def loop(cx, cy, a, b, epsilon, plan, cost=0.0, fused=0.0, steps=200):
    """The value and plan by alternation, in float64."""
    for _ in range(steps):
        cross = (cx**2 @ a)[:, None] + (cy**2 @ b)[None] - 2 * cx @ plan @ cy.T
        linear = (1 - fused) * cross + fused / 2 * cost
        f, g = reference(linear, a, b, epsilon, steps=2000)
        plan = np.outer(a, b) * np.exp((f[:, None] + g - linear) / epsilon)
    return (1 - fused) * np.sum(cross * plan) + fused * np.sum(cost * plan), plan


@pytest.fixture(scope="module")
def solve():
    """One program for the tests in float64, fused or not."""
    return jax.jit(lambda cx, cy, a, b, epsilon, cost, fused, init=None: gromov_wasserstein(
        cx, cy, a, b, epsilon=epsilon, cost=cost, fused=fused, init=init,
        stop=ji.tolerance(rtol=0, atol=1e-9)))


def test_it_is_that_of_the_alternation(x64, solve):
    cx, cy, (a, b) = spaces()
    cost = np.random.default_rng(1).uniform(size=(len(a), len(b)))
    for fused in (0.0, 0.4):  # a traced share of 0 is legal
        out = solve(cx, cy, a, b, EPSILON, cost, fused)
        value, plan = loop(cx, cy, a, b, EPSILON, np.outer(a, b), cost, fused)
        assert out.converged
        np.testing.assert_allclose(out.plan(), plan, atol=1e-8)
        np.testing.assert_allclose(out.value, value, rtol=1e-7)


def test_derivatives_are_those_of_finite_differences(x64, solve):
    cx, cy, (a, b) = spaces()
    rng = np.random.default_rng(2)
    args = [cx, cy, a, b, np.float64(EPSILON), rng.uniform(size=(7, 6)), np.float64(0.4)]
    w = rng.normal(size=(7, 6))

    def loss(*args):
        out = solve(*args)
        return jnp.sum(w * out.plan()) + out.value

    slopes = jax.jit(jax.grad(loss, tuple(range(7))))(*args)
    for place, (arg, slope) in enumerate(zip(args, slopes, strict=True)):
        d = rng.normal(size=np.shape(arg)) if np.ndim(arg) else np.float64(0.1)
        if place < 2:  # distances stay symmetric
            d = d + d.T
        if place in (2, 3):
            d = (d - d.mean()) / 10
        h = 1e-5
        finite = (loss(*args[:place], arg + h * d, *args[place + 1:])
                  - loss(*args[:place], arg - h * d, *args[place + 1:])) / (2 * h)
        np.testing.assert_allclose(np.sum(slope * d), finite, rtol=1e-5, err_msg=str(place))


def test_converged_does_not_say_which_optimum():
    """A rotated copy from 16 random starts: all end CONVERGED, the worst of them far off."""
    cx, cy, order, starts = rotated_copy(24)
    run = jax.jit(lambda init: gromov_wasserstein(
        cx, cy, epsilon=0.002, init=init, stop=ji.tolerance(rtol=1e-4, atol=0.0)))
    out = run(starts)
    assert out.values.shape == (16,) and out.converged
    np.testing.assert_allclose(out.value, out.values.min(), rtol=1e-5)
    assert out.values.max() > 1.5 * out.values.min()
    bad = run(starts[[int(out.values.argmax())]])
    assert bad.converged and np.mean(np.argmax(bad.plan(), 0) == order) < 0.5
    hard = round_permutation(jnp.log(jnp.maximum(out.plan(), 1e-30)))
    assert np.mean(np.argmax(hard, 0) == order) == 1


@pytest.mark.slow
def test_a_hundred_points_of_a_rotated_copy():
    """Matches by argmax 70, 87 and 93 percent; all of them once the plan is rounded."""
    cx, cy, order, starts = rotated_copy(100)
    run = jax.jit(lambda epsilon: gromov_wasserstein(
        cx, cy, epsilon=epsilon, init=starts, stop=ji.tolerance(rtol=1e-4, atol=0.0)))
    for epsilon, share in ((0.005, 0.70), (0.002, 0.87), (0.001, 0.93)):
        out = run(epsilon)
        best, second = np.sort(out.values)[:2]
        assert out.converged and second - best < 1e-4 * best
        assert abs(np.mean(np.argmax(out.plan(), 0) == order) - share) < 0.03
        assert out.values.max() > 1.15 * best
        hard = round_permutation(jnp.log(jnp.maximum(out.plan(), 1e-30)))
        assert np.mean(np.argmax(hard, 0) == order) == 1


@pytest.mark.slow
def test_it_speaks_the_dialect():
    cx, cy, (a, b) = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), spaces())
    check_front(lambda *args, **options: gromov_wasserstein(*args, epsilon=0.1, **options),
                cx, cy, a, b)


def test_bad_input_is_refused_or_has_a_status():
    cx, cy, (a, b) = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), spaces())
    for message, arguments in (
            ("cx must be a square", (cx[:3], cy)),
            ("cy is not symmetric", (cx, cy.at[0, 1].add(1))),
            ("NaN", (cx * jnp.nan, cy)), ("a has negative", (cx, cy, -a, b)),
            ("differs from", (cx, cy, a, 2 * b)), ("b must have shape", (cx, cy, a, a))):
        with pytest.raises(ValueError, match=message):
            gromov_wasserstein(*arguments, epsilon=0.1)
    for message, keywords in (
            ("epsilon must be positive", {"epsilon": 0.0}),
            ("needs both", {"epsilon": 0.1, "fused": 0.5}),
            ("cost must have shape", {"epsilon": 0.1, "fused": 0.5, "cost": cx}),
            ("init must be plans", {"epsilon": 0.1, "init": cx}),
            ("unroll", {"epsilon": 0.1, "adjoint": ji.unrolled()})):
        with pytest.raises(ValueError, match=message):
            gromov_wasserstein(cx, cy, **keywords)
    cost, share = jnp.ones((7, 6)), 0.5
    for wrong in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="cost contains NaN or infinity"):
            gromov_wasserstein(cx, cy, epsilon=0.1, fused=share, cost=cost.at[0, 0].set(wrong))
    with pytest.raises(TypeError, match="cx must be floating point, got int32"):
        gromov_wasserstein(jnp.ones((7, 7), jnp.int32), cy, epsilon=0.1)
    run = jax.jit(lambda cx, cy, a, b, epsilon, cost, fused: gromov_wasserstein(
        cx, cy, a, b, epsilon=epsilon, cost=cost, fused=fused)[:4])
    good = [cx, cy, a, b, 0.1, cost, share]
    for place, value in ((4, -1.0), (2, -a), (0, cx * jnp.nan), (3, 2 * b), (6, 1.5), (6, -0.1),
                         (6, jnp.nan), (5, cost.at[0, 0].set(jnp.nan)),
                         (5, cost.at[0, 0].set(jnp.inf))):
        *_, solve = run(*good[:place], value, *good[place + 1:])
        assert solve.status == ji.Status.BAD_INPUT, (place, value)
    # Points without mass, however far out, change nothing.
    a, b = (weights.at[0].set(0.0) / jnp.sum(weights[1:]) for weights in (a, b))
    plan, value, _, solve = run(cx, cy, a, b, 0.02, cost, share)
    cx, cy = (d.at[0, 1:].add(9).at[1:, 0].add(9) for d in (cx, cy))
    far, far_value, _, far_solve = run(cx, cy, a, b, 0.02, cost, share)
    assert solve.status == far_solve.status == ji.Status.CONVERGED
    np.testing.assert_allclose(far, plan, atol=1e-4)
    np.testing.assert_allclose(far_value, value, rtol=1e-4)
