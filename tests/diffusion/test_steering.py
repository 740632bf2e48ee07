"""Particles, adjoint matching, and the applications on parallel samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import Status
from jaxiter.diffusion import (
    Denoiser,
    adjoint_matching_loss,
    ddim,
    feynman_kac_sample,
    flow_matching_schedule,
    invert_flow,
    lean_adjoint,
    memoryless_path,
    sample_parallel,
    vp_schedule,
)
from jaxiter.diffusion.feynman_kac import systematic
from jaxiter.testing.diffusion import Mixture, mixture_denoiser
from tests.diffusion.flows import FLOW_MIX, flow

GRID = np.linspace(-5, 5, 4001)
LEFT = Mixture(np.array([[-1.0], [-1.0], [1.2]]), 0.5)
RIGHT = Mixture(np.array([[0.2], [1.5]]), 0.6)


def log_density(mixture):
    z = -((GRID[:, None] - mixture.means[:, 0]) ** 2) / (2 * mixture.std**2)
    return np.log(np.exp(z).mean(1)) - np.log(mixture.std)


@pytest.mark.parametrize("case", [
    "reward", *(pytest.param(name, marks=pytest.mark.slow)
                for name in ("product", "anneal", "guidance"))])
def test_weighted_particles_against_quadrature(case):
    schedule = vp_schedule(200, beta_max=12.0)
    models = [mixture_denoiser(m, schedule) for m in (LEFT, RIGHT)]
    logs = [log_density(m) for m in (LEFT, RIGHT)]
    a, reward = {"anneal": ([2.0], None), "product": ([1.0, 1.0], None),
                 "guidance": ([-0.5, 1.5], None),
                 "reward": ([1.0], lambda x: -jnp.sum((x - 1.0) ** 2))}[case]
    target = sum(w * q for w, q in zip(a, logs, strict=False))
    if reward is not None:
        target = target - (GRID - 1.0) ** 2
    p = np.exp(target - target.max())
    p /= p.sum()
    n, runs = 4000, 4
    noise = jax.random.normal(jax.random.key(0), (runs, n, 1)) / np.sqrt(sum(a))
    run = jax.jit(jax.vmap(lambda x, key: feynman_kac_sample(
        schedule, models[: len(a)], a, x, key, reward=reward)))
    out = run(noise, jax.random.split(jax.random.key(1), runs))
    w = np.asarray(jax.nn.softmax(out.log_weights, axis=1))
    x = np.asarray(out.x)[..., 0]
    for function in (lambda x: x, lambda x: (x < 0.0) * 1.0, lambda x: x**2):
        ours, exact = (w * function(x)).sum(1), (p * function(GRID)).sum()
        assert abs(ours.mean() - exact) < 0.035 + 3 * ours.std() / np.sqrt(runs), (
            case, ours, exact)
    assert out.ess.shape == (runs, 200)
    if case == "product":  # without weights the particles miss the target by far
        plain = np.asarray(jax.jit(jax.vmap(lambda x, key: feynman_kac_sample(
            schedule, models, a, x, key, resample_below=0.0)))(
                noise, jax.random.split(jax.random.key(1), runs)).x)
        assert abs(plain.mean() - (p * GRID).sum()) > 0.2


def test_particles_say_how_they_ended():
    """Nothing measures how near the target is: never CONVERGED; NaN keeps what was before."""
    schedule, key = vp_schedule(20), jax.random.key(0)
    x = jax.random.normal(key, (64, 1))

    def run(x, end, worst):
        model = Denoiser(lambda x, t: 0.1 * x + jnp.where(t < end, jnp.nan, 0.0), "eps")
        return feynman_kac_sample(schedule, [model], [1.0], x, key,
                                  reward=lambda x: jnp.where(x[0] > 0, 0.0, worst))

    solve = jax.jit(run)
    good, broken = solve(x, -1.0, -1.0), solve(x, 0.5, -1.0)
    assert good.status == Status.MAX_STEPS and not good.converged
    assert good.message().startswith("MAX_STEPS") and np.all(np.isfinite(good.ess))
    lost = int(np.argmax(schedule.time < 0.5))
    for out in (broken, solve(x.at[3].set(jnp.nan), -1.0, -1.0), solve(x, -1.0, jnp.nan),
                solve(x, -1.0, jnp.inf)):
        assert out.status == Status.NONFINITE and not out.converged
        with pytest.raises(RuntimeError, match="NONFINITE"):
            out.check()
    assert np.all(np.isfinite(broken.x)) and np.all(np.isfinite(broken.log_weights))
    np.testing.assert_array_equal(np.isnan(broken.ess), np.arange(20) >= lost)
    np.testing.assert_array_equal(broken.ess[:lost], good.ess[:lost])


def test_systematic_resampling():
    w = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(50)), jnp.float32)
    counts = np.bincount(np.asarray(systematic(w, jax.random.key(0))), minlength=50)
    assert counts.sum() == 50 and np.all(np.abs(counts - 50 * np.asarray(w)) < 1 + 1e-4)
    schedule, unit = vp_schedule(3), Denoiser(lambda x, t: x)
    x, key = jnp.ones((4, 1)), jax.random.key(0)
    for call, text in [
        (lambda: feynman_kac_sample(schedule, [unit], [-1.0], x, key), "positive sum"),
        (lambda: feynman_kac_sample(schedule, [unit], [1.0, 1.0], x, key), "one entry per model"),
        (lambda: feynman_kac_sample(schedule, [unit], [1.0], x[:1], key), "two particles"),
        (lambda: feynman_kac_sample(schedule, [unit], [1.0], x, key, strength=[0.0]), "4 entries"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="x_init must be floating point, got int32"):
        feynman_kac_sample(schedule, [unit], [1.0], jnp.arange(4)[:, None], key)


def gaussian_velocity(mean, variance):
    def velocity(x, t):
        total = t**2 * variance + (1 - t) ** 2
        offset = x - t * mean
        return mean + (t * variance - (1 - t)) / total * offset
    return velocity


def test_adjoint_matching_tilts_a_gaussian():
    """Base N(0.5, 0.3), reward 1.2 x: the target is N(0.86, 0.3) and the control deterministic."""
    mean, variance, c, steps = 0.5, 0.3, 1.2, 400
    base = gaussian_velocity(mean, variance)
    x = jax.random.normal(jax.random.key(0), (4000, 1))
    keys = jax.random.split(jax.random.key(1), 4000)
    plain = jax.jit(jax.vmap(lambda x, k: memoryless_path(base, x, k, steps)))(x, keys)
    np.testing.assert_allclose(plain[:, -1].mean(), mean, atol=0.03)
    adjoint = jax.jit(jax.vmap(lambda p: lean_adjoint(base, p, lambda x: c * x[0])))(plain[:2])
    np.testing.assert_allclose(adjoint[0], adjoint[1], rtol=1e-4)  # a linear drift: no noise in it
    t = np.arange(steps) / steps
    noise = jnp.asarray(np.sqrt(2 * (1 - t + 1 / steps) / (t + 1 / steps)), jnp.float32)

    def controlled(x, t):
        i = jnp.round(t * steps).astype(jnp.int32)
        return base(x, t) - noise[i] ** 2 * adjoint[0, i] / 2

    tilted = jax.jit(jax.vmap(lambda x, k: memoryless_path(controlled, x, k, steps)))(x, keys)
    np.testing.assert_allclose(tilted[:, -1].mean(), mean + variance * c, atol=0.03)
    np.testing.assert_allclose(tilted[:, -1].var(), variance, atol=0.03)
    loss = jax.jit(lambda p, a: adjoint_matching_loss(controlled, base, p, a))
    assert float(loss(tilted[0], adjoint[0])) < 1e-6
    assert float(jax.jit(lambda p, a: adjoint_matching_loss(base, base, p, a))(
        tilted[0], adjoint[0])) > 0.1


def test_adjoint_matching_trains():
    """Gradient steps on two numbers of the velocity find the tilted Gaussian."""
    base = gaussian_velocity(0.5, 0.3)

    def velocity(params):  # the tilt moves the mean; the family contains the answer
        return gaussian_velocity(0.5 + params, 0.3)

    @jax.jit
    def gradient(params, key):
        x = jax.random.normal(key, (64, 1))
        paths = jax.vmap(lambda x, k: memoryless_path(velocity(params), x, k, 50))(
            x, jax.random.split(key, 64))
        adjoints = jax.vmap(lambda p: lean_adjoint(base, p, lambda x: 1.2 * x[0]))(paths)
        return jax.grad(lambda params: jnp.mean(jax.vmap(
            lambda p, a: adjoint_matching_loss(velocity(params), base, p, a))(paths, adjoints)))(
                params)

    params = jnp.float32(0.0)
    for i in range(60):
        params = params - 0.05 * gradient(params, jax.random.key(i))
    np.testing.assert_allclose(params, 0.36, atol=0.05)


def test_parallel_samples_serve_the_applications():
    """The inversion of a flow that is itself solved in parallel."""
    schedule = flow_matching_schedule(10)
    model = mixture_denoiser(FLOW_MIX, schedule, "velocity")
    y = flow(jnp.ones(8) / 2)
    solve = jax.jit(lambda y: invert_flow(
        lambda z: sample_parallel(ddim(schedule), model, z, tolerance=1e-5).value, y, y,
        step_size=0.1, max_steps=10).value)
    loop = jax.jit(lambda y: invert_flow(flow, y, y, step_size=0.1, max_steps=10).value)
    np.testing.assert_allclose(solve(y), loop(y), atol=1e-3)


def test_an_inversion_that_does_not_move_is_not_one():
    """z - T(z) is 0 for steps below an epsilon of z, however far the flow is from y."""
    out = jax.jit(lambda size: invert_flow(
        lambda z: z + 1, jnp.ones(3), jnp.full(3, 2.0), step_size=size))
    stuck, moved = out(1e-8), out(0.5)
    assert not stuck.converged and float(stuck.merit) > 3
    assert moved.converged and float(jnp.abs(moved.value).max()) < 1e-4


def test_half_precision_draws_every_particle():
    """Of 3,000 particles of one weight bfloat16 kept 579, some of them twenty times."""
    counts = np.bincount(np.asarray(systematic(
        jnp.full(3000, 1 / 3000, jnp.bfloat16), jax.random.key(3))), minlength=3000)
    assert counts.max() <= 2 and (counts > 0).sum() > 2900
