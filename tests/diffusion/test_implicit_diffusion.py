"""Implicit diffusion: Langevin particles on closed forms, the queue against the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter import Status
from jaxiter.diffusion import (
    Denoiser,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    implicit_denoising,
    implicit_diffusion,
    linear_beta_schedule,
    sample,
)


def gaussian(x, theta):
    return jnp.sum(jnp.square(x - theta)) / 2


def langevin(init, step, state, steps, seed=1):
    def body(state, key):
        state = step(state, key)
        return state, state.theta

    return jax.jit(lambda s, keys: jax.lax.scan(body, s, keys))(
        state, jax.random.split(jax.random.key(seed), steps))


def test_gaussian_reward():
    """The exact gradient is 2 (theta - c): |theta - c| from 2.1 to 0.08 in 50 steps, published."""
    goal = jnp.array([1.0, -0.5])
    init, step = implicit_diffusion(gaussian, lambda x: -jnp.sum(jnp.square(x - goal)),
                                    step_size=0.1, optimizer=optax.sgd(0.02))
    theta = goal + 2.1 * jnp.array([0.6, 0.8])
    state = init(theta + jax.random.normal(jax.random.key(0), (256, 2)), theta)
    end, path = langevin(init, step, state, 400)
    error = np.linalg.norm(np.asarray(path) - np.asarray(goal), axis=1)
    assert error[50] < 0.35 and error[100:].mean() < 0.15, (error[50], error[100:].mean())
    assert jnp.all(jnp.isfinite(end.particles))


def test_divergence_from_a_reference():
    """No reward, weight 1: theta goes to the reference's mean, never away from it."""
    reference = 1.5 + jax.random.normal(jax.random.key(3), (4000, 2))
    init, step = implicit_diffusion(gaussian, lambda x: jnp.sum(0 * x), step_size=0.1,
                                    optimizer=optax.sgd(0.02), reference=reference, weight=1.0)
    state = init(jax.random.normal(jax.random.key(0), (500, 2)), jnp.zeros(2))
    _, path = langevin(init, step, state, 600)
    np.testing.assert_allclose(path[300:].mean(0), reference.mean(0), atol=0.1)


@pytest.mark.slow
def test_hexagon_with_a_reward_that_jumps():
    """Six modes with weights exp(theta): reward 0.0725 at the start, 0.298 in the best mode."""
    angles = np.arange(6) * np.pi / 3
    centres = jnp.asarray(4 * np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)

    def energy(x, theta):
        square = jnp.sum(jnp.square(x - centres), axis=1)
        return -jax.nn.logsumexp(jax.nn.log_softmax(theta) - square / 2)

    def reward(x):
        near = jnp.exp(-jnp.sum(jnp.square(x - jnp.array([4.0, 3.8]))) / 20) / 2.5
        return jnp.where(x[0] >= 0, near, 0.0)

    grid = np.stack(np.meshgrid(*[np.linspace(-9, 9, 181)] * 2), -1).reshape(-1, 2)
    worth = np.asarray(jax.vmap(reward)(jnp.asarray(grid, jnp.float32)))
    modes = np.exp(-((grid[:, None] - np.asarray(centres)) ** 2).sum(-1) / 2)
    per_mode = (worth[:, None] * modes).sum(0) / modes.sum(0)

    def exact(theta):
        weight = np.exp(theta - theta.max())
        return float(per_mode @ weight / weight.sum())

    theta = jnp.array([1.5, 0, 1.5, 0, 1.5, 0])
    assert abs(exact(np.asarray(theta)) - 0.0725) < 0.004 and abs(per_mode.max() - 0.298) < 0.01
    init, step = implicit_diffusion(energy, reward, step_size=0.2, optimizer=optax.sgd(0.1))
    keys = jax.random.split(jax.random.key(0), 2)
    which = jax.random.categorical(keys[0], theta, shape=(1000,))
    state = init(centres[which] + jax.random.normal(keys[1], (1000, 2)), theta)
    _, path = langevin(init, step, state, 5000)
    rewards = [exact(np.asarray(path[k])) for k in (99, 999, 4999)]
    assert rewards[0] < rewards[1] < rewards[2] and rewards[2] > 0.18, rewards


def model(theta):
    """Exact eps of data N(theta, 1): the marginal is N(alpha theta, 1)."""
    schedule = linear_beta_schedule(12)
    alpha, time = jnp.asarray(schedule.alpha), jnp.asarray(schedule.time)

    def eps(x, t):
        level = jnp.interp(t, time[::-1], alpha[::-1]).astype(x.dtype)
        return jnp.sqrt(1 - level**2) * (x - level * theta)

    return Denoiser(eps)


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_queue_is_the_gradient_of_the_loop(sampler):
    """theta stands still while the queue fills: its first slope is that of the plain loop."""
    rows, key, theta = sampler(linear_beta_schedule(12)), jax.random.key(5), jnp.array([0.3, -0.2])

    def loss(x):
        return jnp.sum(jnp.square(jnp.mean(x, 0) - 1.5))

    init, step = implicit_denoising(rows, model, loss, optimizer=optax.sgd(1.0), particles=4,
                                    shape=(2,), key=key)
    filled = jax.jit(lambda s: jax.lax.fori_loop(0, 2 * rows.rows, lambda _, s: step(s), s))(
        init(theta))

    def noise(row):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), row + 1), (4, 2))

    def sequential(theta):
        z = jnp.stack([noise(row) for row in range(rows.rows)], 1)
        return loss(jax.vmap(lambda x, z: sample(rows, model(theta), x, noise=z))(noise(-1), z))

    expected = jax.jit(jax.grad(sequential))(theta)
    np.testing.assert_allclose(theta - filled.theta, expected, rtol=1e-4, atol=1e-6)


def test_queue_settles_at_the_closed_form():
    """The mean of the samples is affine in theta: the queue finds where it is 1.5."""
    rows = ddpm(linear_beta_schedule(12))

    def mean(theta):
        return sample(rows, model(jnp.full(1, theta)), jnp.zeros(1),
                      noise=jnp.zeros((rows.rows, 1)))[0]

    low, high = (float(jax.jit(mean)(jnp.float32(t))) for t in (0.0, 1.0))
    best = (1.5 - low) / (high - low)
    init, step = implicit_denoising(
        rows, model, lambda x: jnp.square(jnp.mean(x) - 1.5) / 2, optimizer=optax.sgd(0.02),
        particles=500, shape=(1,), key=jax.random.key(2))
    _, path = jax.jit(lambda s: jax.lax.scan(
        lambda s, _: (step(s), s.theta), s, None, length=1000))(init(jnp.zeros(1)))
    assert abs(float(path[500:].mean()) - best) < 0.03, (path[500:].mean(), best)


def test_bad_input():
    with pytest.raises(ValueError, match="step_size must be positive"):
        implicit_diffusion(gaussian, gaussian, step_size=0.0, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs reference"):
        implicit_diffusion(gaussian, gaussian, step_size=0.1, optimizer=optax.sgd(0.1), weight=1.0)
    init, step = implicit_diffusion(gaussian, lambda x: jnp.sum(x) / 0, step_size=0.1,
                                    optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="at least 2 particles"):
        init(jnp.zeros((1, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="last state only"):
        implicit_denoising(dpm_solver_pp_2m(linear_beta_schedule(5)), model, jnp.sum, particles=2,
                           optimizer=optax.sgd(0.1), shape=(2,), key=jax.random.key(0))


def test_statuses_of_the_loop():
    """RUNNING while all is finite; NONFINITE keeps the state before, whatever comes later."""
    def reward(x):
        return -jnp.sum(jnp.square(x - jnp.where(jnp.max(x) > 40, jnp.nan, 1.0)))

    init, step = implicit_diffusion(gaussian, reward, step_size=0.1,
                                    optimizer=optax.sgd(0.1, momentum=0.9))
    run = jax.jit(step)
    start = init(jnp.ones((4, 2)), jnp.zeros(2))
    state = run(start, jax.random.key(0))
    assert start.status == state.status == Status.RUNNING and not state.converged
    assert state.message().startswith("RUNNING")
    for bad in (50.0, jnp.nan, jnp.inf):
        before = state._replace(particles=state.particles.at[2, 1].set(bad))
        lost = run(before, jax.random.key(1))
        again = run(lost._replace(particles=state.particles), jax.random.key(2))
        assert lost.status == again.status == Status.NONFINITE
        for held in (lost, again):
            np.testing.assert_array_equal(held.theta, state.theta)
        np.testing.assert_array_equal(lost.particles, before.particles)
        np.testing.assert_array_equal(again.particles, state.particles)


def test_statuses_of_the_queue():
    """NaN in a batch: theta and the last whole batch stay; a queue that fills is no failure."""
    schedule = linear_beta_schedule(4)

    def network(theta):
        # Not finite at the zeros of batches that were never born.
        return Denoiser(lambda x, t: theta * x / jnp.linalg.norm(x))

    init, step = implicit_denoising(
        ddim(schedule), network, lambda x: jnp.mean(x**2), optimizer=optax.sgd(0.1), particles=3,
        shape=(2,), key=jax.random.key(0))
    run = jax.jit(step)
    state = init(jnp.ones(2))
    for _ in range(9):
        state = run(state)
        assert np.all(np.isfinite(state.finished))  # also before the first batch has ended
    assert state.status == Status.RUNNING and not np.array_equal(state.theta, np.ones(2))
    held = state
    state = state._replace(x=state.x.at[1].set(jnp.nan))
    for _ in range(4):
        state = run(state)
    assert state.status == Status.NONFINITE and np.all(np.isfinite(state.theta))
    assert np.all(np.isfinite(state.finished)) and not np.array_equal(held.time, state.time)
