"""What is built on samplers: policies, consistency, inversion, weighted particles, fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.diffusion import (
    Denoiser,
    cosine_schedule,
    ddim,
    ddpm,
    invert_flow,
    largest_step_size,
    linear_beta_schedule,
    picard_consistency_loss,
    picard_iterates,
    receding_horizon,
    sample,
    sample_switching,
    uniinv,
    warm_start_steps,
)
from jaxiter.diffusion.picard_consistency import picard_map
from jaxiter.diffusion.table import tabulate
from jaxiter.solvers import anderson, guard
from jaxiter.testing.diffusion import Mixture, mixture_denoiser, mixture_values
from tests.diffusion.flows import FLOW_MIX, flow

MIX = Mixture(np.random.default_rng(0).normal(size=(6, 4)), 0.4)
LINEAR = linear_beta_schedule(30)


def test_picard_map_is_its_sum(x64):
    sampler, model = ddpm(LINEAR), mixture_denoiser(MIX, LINEAR)
    rng = np.random.default_rng(1)
    path, noise = rng.normal(size=(31, 4)), rng.normal(size=(30, 4))
    table = tabulate(sampler, jnp.asarray(path[0]), None, jnp.asarray(noise))
    ours = jax.jit(lambda x: picard_map(sampler, model, x, table))(jnp.asarray(path))
    state = path[0]
    for t in range(30):
        eps = model.convert(jnp.asarray(path[t]), *(float(a[t]) for a in LINEAR))[0]
        move = (sampler.state[t, 0] - 1) * path[t] + sampler.model[t, 0] * np.asarray(eps)
        state = state + move + sampler.noise[t] * noise[t]
        np.testing.assert_allclose(ours[t + 1], state, atol=1e-9)


def test_the_loss_is_that_of_the_noise_of_the_iterates():
    """As many rounds as rows end in the fixed point: no loss there, under its own noise only."""
    sampler, base, x = ddpm(linear_beta_schedule(8)), Denoiser(lambda x, t: 0.3 * x), jnp.ones(4)

    def loss(mine, other):
        path = picard_iterates(sampler, base, x, mine, max_steps=9)
        return picard_consistency_loss(sampler, base, path, jnp.int32(8), other)

    run = jax.jit(loss)
    mine, other = jax.random.split(jax.random.key(0))
    assert run(mine, mine) < 1e-8 < 1e-3 < run(mine, other)


def test_switching_is_exact_and_no_switching_is_not():
    sampler, base = ddim(LINEAR), mixture_denoiser(MIX, LINEAR)
    biased = Denoiser(lambda x, t: 1.05 * base.fn(x, t))
    x = jax.random.normal(jax.random.key(0), (4,))
    exact = jax.jit(lambda x: sample(sampler, base, x))(x)
    out = jax.jit(lambda x: sample_switching(sampler, base, biased, x, tolerance=1e-5))(x)
    assert out.converged
    np.testing.assert_allclose(out.value, exact, atol=1e-4)
    stuck = jax.jit(lambda x: sample_switching(
        sampler, base, biased, x, tuned_steps=20, stiffness=0.0, allow_inexact=True))(x)
    assert not stuck.converged and float(jnp.max(jnp.abs(stuck.value - exact))) > 5e-3
    # With the base model as both, the first rounds are plain Picard rounds.
    plain = jax.jit(lambda x: picard_iterates(sampler, base, x, max_steps=3))(x)
    same = jax.jit(lambda x: sample_switching(
        sampler, base, base, x, tuned_steps=3, stiffness=0.5, allow_inexact=True))(x)
    np.testing.assert_allclose(same.trajectory, plain[-1], atol=1e-5)
    with pytest.raises(ValueError, match="stiffness must be at least 1"):
        sample_switching(sampler, base, base, x, stiffness=0.5)


def test_training_brings_early_iterates_nearer():
    """A correction of the base model learnt by the loss: mean error of the next Picard round."""
    sampler, base = ddim(LINEAR), mixture_denoiser(MIX, LINEAR)
    starts = jax.random.normal(jax.random.key(0), (24, 4))
    paths = jax.jit(jax.vmap(lambda x: picard_iterates(sampler, base, x, max_steps=30)))(starts)
    exact = jax.jit(jax.vmap(lambda x: sample(sampler, base, x, trajectory=True)))(starts)
    np.testing.assert_allclose(paths[:, -1], exact, atol=1e-4)

    def tuned(params):
        return Denoiser(lambda x, t: base.fn(x, t) + (params["w"] @ x + params["b"]) * t / 1000)

    def loss(params, paths, k):
        return jnp.mean(jax.vmap(lambda path: picard_consistency_loss(
            sampler, tuned(params), path, k))(paths))

    params = {"w": jnp.zeros((4, 4)), "b": jnp.zeros(4)}
    value = jax.jit(lambda p, paths: loss(p, paths, jnp.int32(1)))
    update = jax.jit(lambda p, paths: jax.tree.map(
        lambda a, g: a - 0.02 * g, p, jax.grad(loss)(p, paths, jnp.int32(1))))
    before = value(params, paths[16:])
    for _ in range(60):
        params = update(params, paths[:16])
    assert value(params, paths[16:]) < 0.95 * before  # unseen starts


def test_warm_started_policy_keeps_its_mode():
    """Two moving sine modes: twenty times fewer calls, no mode switches, no larger error."""
    schedule, ticks = cosine_schedule(100), 60
    row = jnp.arange(8, dtype=jnp.float32)

    def mean(k):
        return jnp.sin(0.15 * (k + row))[:, None]

    def policy(k):
        def fn(x, t):
            alpha, sigma = (jnp.interp(t, *(jnp.asarray(column[::-1], x.dtype)
                                            for column in (schedule.time, table)))
                            for table in schedule[:2])
            modes = jnp.stack([mean(k) + 1.5, mean(k) - 1.5])
            v = alpha**2 * 0.05**2 + sigma**2
            w = jax.nn.softmax(-jnp.sum((x - alpha * modes) ** 2, (1, 2)) / (2 * v))
            offset = x - alpha * jnp.tensordot(w, modes, 1)
            return sigma / v * offset
        return Denoiser(fn)

    times = jnp.arange(ticks, dtype=jnp.float32)
    start = jax.random.normal(jax.random.key(0), (8, 1))
    run = jax.jit(lambda x, key: receding_horizon(
        policy, schedule, times, x, key, steps=(4, 3, 2, 1, 0)))
    chunks = np.asarray(run(start, jax.random.key(1)))
    each = jax.vmap(lambda k, x, key: sample(ddpm(schedule), policy(k), x, key))
    full = np.asarray(jax.jit(each)(
        times, jax.random.normal(jax.random.key(2), (ticks, 8, 1)),
        jax.random.split(jax.random.key(3), ticks)))

    def judge(chunks):
        middle = np.sin(0.15 * (np.arange(ticks)[:, None] + np.arange(8)))
        side = np.sign(chunks[:, 0, 0] - middle[:, 0])
        error = np.abs(chunks[:, :, 0] - middle - 1.5 * side[:, None]).mean()
        return error, int(np.sum(side[1:] != side[:-1]))

    ours, independent = judge(chunks), judge(full)
    assert ours[1] == 0 and independent[1] > 10
    assert ours[0] < 1.1 * independent[0], (ours, independent)


def test_policy_snaps_grippers_and_checks_steps():
    schedule = cosine_schedule(20)

    def still(target):
        return Denoiser(lambda x, t: 0 * x + jnp.array([0.3, -0.1]) * target, "x0")

    chunks = jax.jit(lambda x: receding_horizon(
        still, schedule, jnp.ones(4), x, jax.random.key(0), discrete=[False, True]))(
            jnp.zeros((3, 2)))
    np.testing.assert_allclose(chunks[:, :, 0], 0.3, atol=1e-6)
    np.testing.assert_array_equal(chunks[:, :, 1], -1.0)
    for steps, text in (((0, 1), "strictly decrease"), ((25, 0), "reach 25"), ((), "strictly")):
        with pytest.raises(ValueError, match=text):
            receding_horizon(still, schedule, jnp.ones(2), jnp.zeros((3, 2)), jax.random.key(0),
                             steps=steps)
    few, many = warm_start_steps(schedule, 0.02), warm_start_steps(schedule, 0.5)
    assert len(few) < len(many) and schedule.sigma[:-1][::-1][many[0]] >= 0.5
    assert schedule.sigma[:-1][::-1][many[0] - 1] < 0.5


def test_inversion_of_a_flow():
    def velocity(x, t):
        eps, x0 = mixture_values(FLOW_MIX, x, t, 1 - t)
        return x0 - eps

    hidden = jax.random.normal(jax.random.key(0), (20, 8))
    y = jax.jit(jax.vmap(flow))(hidden)
    start = jax.jit(jax.vmap(lambda y: uniinv(velocity, y)))(y)
    solve = jax.jit(jax.vmap(lambda y, z: invert_flow(flow, y, z, step_size=0.1, max_steps=30)))
    fast = jax.jit(jax.vmap(lambda y, z: invert_flow(
        flow, y, z, step_size=0.1, max_steps=30, solver=guard(anderson(3)))))

    def error(z):
        return float(jnp.sqrt(jnp.mean((jax.jit(jax.vmap(flow))(z) - y) ** 2)))

    errors = [error(start), error(solve(y, start).value), error(fast(y, start).value)]
    assert errors[1] < 0.5 * errors[0] and errors[2] < errors[1], errors


def test_inversion_of_a_gaussian_flow_and_its_derivative(x64):
    matrix = jnp.diag(jnp.array([0.5, 1.0, 2.0]))
    y = jnp.array([1.0, -2.0, 0.5])

    def solve(y):
        return invert_flow(lambda z: matrix @ z + 1, y, y, step_size=0.9 * 2 / 2.0, max_steps=200,
                           solver=guard(anderson(3))).value

    np.testing.assert_allclose(jax.jit(solve)(y), np.linalg.solve(matrix, y - 1), atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.jacrev(solve))(y), np.linalg.inv(matrix), atol=1e-7)
    a, b = jax.random.normal(jax.random.key(0), (2, 40, 3))
    bound = largest_step_size(lambda z: matrix @ z + 1, a, b)
    assert 2 / 2.0 <= bound <= 2 / 0.5
    with pytest.raises(ValueError, match="not monotone"):
        largest_step_size(lambda z: -z, a, b)
    with pytest.raises(ValueError, match="one shape"):
        invert_flow(lambda z: z[:2], y, y)
    with pytest.raises(ValueError, match="step_size must be positive"):
        invert_flow(lambda z: z, y, y, step_size=0.0)
