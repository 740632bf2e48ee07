"""Bridges through snapshots: an Ornstein-Uhlenbeck truth, numpy's Sinkhorn, Lotka and Volterra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import jaxiter as ji
from jaxiter.transport import refine_reference

from .beds import reference

TIMES = np.array([0, 0.5, 1, 1.5, 2])
SIGMA = 0.5


def linear(theta, x, t):
    return theta[0] - theta[1] * x


def ornstein_uhlenbeck(n):
    """The quantiles of `dX = (2 - X) dt + 0.5 dW` from N(-1, 0.25) on, with their exact spread."""
    levels = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    levels = levels / levels.std()
    mean = 2 - 3 * np.exp(-TIMES)
    spread = 0.25 * np.exp(-2 * TIMES) + SIGMA**2 / 2 * (1 - np.exp(-2 * TIMES))
    return (mean[:, None] + np.sqrt(spread)[:, None] * levels)[..., None].astype(np.float32)


@pytest.mark.slow
def test_drift_is_recovered_and_the_first_plans_are_brownian():
    snapshots = ornstein_uhlenbeck(40)
    solve = jax.jit(lambda snapshots, max_steps: refine_reference(
        snapshots, TIMES.astype(np.float32), linear, jnp.zeros(2), sigma=SIGMA,
        max_steps=max_steps))
    out = solve(snapshots, 100)
    assert out.converged and out.solve.steps <= 10
    np.testing.assert_allclose(out.theta, [2, 1], rtol=0.05)
    np.testing.assert_allclose(out.plans.sum(2), 1 / 40, rtol=1e-3)
    # Paths begin and end at the snapshots, and hold the spread between them.
    np.testing.assert_allclose(out.paths[:, :, 0], snapshots[:-1], atol=1e-5)
    gaps = np.abs(np.asarray(out.paths[:, :, -1]) - snapshots[1:, None, :, 0])
    assert np.all(gaps.min(-1) < 1e-4)
    middle = 0.75  # of the second interval
    np.testing.assert_allclose(
        out.paths[1, :, 5].mean(), 2 - 3 * np.exp(-middle), atol=0.05)
    brownian = solve(snapshots, 0)
    x = snapshots.astype(float)[..., 0]
    uniform = np.full(40, 1 / 40)
    for k in range(4):
        cost = (x[k][:, None] - x[k + 1]) ** 2 / (2 * SIGMA**2 * 0.5)
        f, g = reference(cost, uniform, uniform, 1.0, steps=500)
        plan = np.exp(f[:, None] + g - cost) / 40**2
        np.testing.assert_allclose(brownian.plans[k], plan, atol=2e-5)
    failed = solve(snapshots * np.nan, 100)
    assert failed.status == ji.Status.BAD_INPUT


def test_bad_input():
    x = jnp.ones((4, 2))
    solve = partial(refine_reference, drift=linear, theta=jnp.zeros(2))
    for snapshots, times, more, message in (
            ([x], [0.0], {}, "two snapshots"), ([x, x], [1.0, 0.0], {}, "ascend"),
            ([x, x], [0.0], {}, "one for each"), ([x, x[:, :1]], [0.0, 1.0], {}, "of one D"),
            ([x, x * jnp.nan], [0.0, 1.0], {}, "snapshot 1 contains NaN"),
            ([x, x], [0.0, 1.0], {"sigma": 0.0}, "sigma"),
            ([x, x], [0.0, 1.0], {"substeps": 0}, "substeps")):
        with pytest.raises(ValueError, match=message):
            solve(snapshots, jnp.array(times), **{"sigma": 0.1, **more})
    whole = x.astype(int)  # legal, as floats
    out = jax.eval_shape(lambda x: solve([x, x], jnp.arange(2.0), sigma=0.1, substeps=1), whole)
    assert out.plans.dtype == jnp.float32


def predator_prey(theta, x, t):
    return jnp.stack([theta[0] * x[0] - theta[1] * x[0] * x[1],
                      theta[3] * x[0] * x[1] - theta[2] * x[1]])


def populations(rng, theta, n, dt=0.002):
    x = np.stack([rng.uniform(5, 5.1, n), rng.uniform(4, 4.1, n)], 1)
    out = [x]
    for _ in range(8):
        for _ in range(round(1 / dt)):
            u, v = x.T
            drift = np.stack([theta[0] * u - theta[1] * u * v, theta[3] * u * v - theta[2] * v], 1)
            x = x + dt * drift + 0.1 * np.sqrt(dt) * rng.normal(size=x.shape)
        out.append(x)
    return np.array(out, np.float32)


@pytest.mark.slow
def test_refinement_predicts_what_was_held_out():
    """Lotka-Volterra, 5 snapshots of 50, 4 held out: W1 below half of a Brownian reference's."""
    truth = np.array([1.0, 0.4, 0.4, 0.1])
    snapshots = populations(np.random.default_rng(0), truth, 50)

    def held_out(out):
        errors = []
        for k in range(4):
            distances = cdist(out.paths[k, :, 5], snapshots[2 * k + 1])
            errors.append(distances[linear_sum_assignment(distances)].mean())
        return np.mean(errors)

    solve = jax.jit(lambda steps: refine_reference(
        snapshots[::2], jnp.arange(0.0, 9.0, 2.0), predator_prey, jnp.full(4, 1e-5), sigma=0.1,
        max_steps=steps))
    refined = solve(50)
    assert refined.converged
    np.testing.assert_allclose(refined.theta, truth, rtol=0.15)
    assert held_out(refined) < 0.5 * held_out(solve(0))


@pytest.mark.slow
def test_derivatives_against_differences(x64):
    """Of theta in sigma and the points, snapshots of several sizes."""
    x = [part.astype(float) for part in ornstein_uhlenbeck(5)[:3]]
    x[1] = x[1][:4]

    @jax.jit
    def value(x, sigma):
        out = refine_reference(x, TIMES[:3], linear, jnp.zeros(2), sigma=sigma, substeps=3,
                               stop=ji.tolerance(rtol=1e-10))
        return out.theta @ jnp.array([1.0, -0.5])

    slopes = jax.grad(value, argnums=(0, 1))(x, 0.5)
    rng = np.random.default_rng(0)
    ways = jax.tree.map(lambda p: rng.normal(size=np.shape(p)), (x, 0.5))
    up, down = (value(*jax.tree.map(lambda p, w, h=h: p + h * w, (x, 0.5), ways))
                for h in (1e-4, -1e-4))
    slope = sum(np.sum(g * w) for g, w in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(ways), strict=True))
    np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-4)
