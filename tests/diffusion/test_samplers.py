"""Schedules, conversions and tables against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.diffusion import (
    Denoiser,
    cosine_schedule,
    ddim,
    ddpm,
    dpm_solver_2,
    dpm_solver_pp_2m,
    edm_stochastic,
    flow_matching_schedule,
    guided,
    heun,
    ipndm,
    karras_schedule,
    linear_beta_schedule,
    log_snr_schedule,
    make_schedule,
    sample,
    ve_schedule,
    vp_schedule,
)
from jaxiter.testing.diffusion import Mixture, mixture_denoiser, mixture_values

MIX = Mixture(np.random.default_rng(0).normal(size=(6, 4)), 0.4)


def exact(x, alpha, sigma):
    """(eps, x0) of MIX in numpy."""
    v = alpha**2 * MIX.std**2 + sigma**2
    logits = -((x - alpha * MIX.means) ** 2).sum(1) / (2 * v)
    w = np.exp(logits - logits.max())
    m = (w / w.sum()) @ MIX.means
    return sigma / v * (x - alpha * m), m + alpha * MIX.std**2 / v * (x - alpha * m)


def test_schedules_are_their_formulas():
    linear = linear_beta_schedule(100)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    index = [round(1000 - t * 10) - 1 for t in range(100)]
    np.testing.assert_allclose(linear.alpha[:-1] ** 2, abar[index], rtol=1e-12)
    assert linear.alpha[-1] == 1 and linear.sigma[-1] == 0
    for schedule in (linear, cosine_schedule(40), vp_schedule(40), log_snr_schedule(40),
                     linear_beta_schedule(30, scaled=True, spacing="leading")):
        np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-12)
        assert np.all(np.diff(schedule.alpha / np.maximum(schedule.sigma, 1e-30)) > 0)
    np.testing.assert_allclose(np.diff(log_snr_schedule(9).lam), 11 / 9)
    t = vp_schedule(5).time
    np.testing.assert_allclose(
        vp_schedule(5).alpha ** 2, np.exp(-(0.1 * t + 19.9 * t**2 / 2)), rtol=1e-12)
    assert ve_schedule(7).sigma[0] == 50 and karras_schedule(7).sigma[-1] == 0
    flow = flow_matching_schedule(8, shift=3.0)
    np.testing.assert_allclose(flow.alpha + flow.sigma, 1)
    np.testing.assert_allclose(flow.alpha[4], 0.5 / (3 - 2 * 0.5))
    assert linear_beta_schedule(3, spacing="linspace").time.tolist() == [999, 500, 0, -1]


def test_conversions_agree(x64):
    schedule = vp_schedule(10)
    x = jnp.asarray(np.random.default_rng(1).normal(size=4))
    for row in (0, 5, 9):
        alpha, sigma, time = (float(t[row]) for t in schedule)
        eps, x0 = exact(np.asarray(x), alpha, sigma)
        np.testing.assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-10)
        for prediction in ("eps", "x0", "v", "score"):
            model = mixture_denoiser(MIX, schedule, prediction)
            got = model.convert(x, alpha, sigma, time)
            np.testing.assert_allclose(got[0], eps, rtol=1e-7)
            np.testing.assert_allclose(got[1], x0, rtol=1e-7)
    flow = flow_matching_schedule(10)
    got = mixture_denoiser(MIX, flow, "velocity").convert(x, 0.3, 0.7, 0.3)
    np.testing.assert_allclose(got, exact(np.asarray(x), 0.3, 0.7), rtol=1e-7)

    def raw(y, log_noise):  # the network that makes the preconditioned model exact
        q = jnp.exp(4 * log_noise)
        total = jnp.sqrt(q**2 + 0.25)
        _, x0 = mixture_values(MIX, y * total, 1.0, q)
        return (x0 - 0.25 / total**2 * y * total) * total / (q * 0.5)

    got = Denoiser(raw, "edm").convert(x, 0.5, 0.8, 0.0)
    np.testing.assert_allclose(got, exact(np.asarray(x), 0.5, 0.8), rtol=1e-7)
    assert guided(lambda x, t: 3 * x, lambda x, t: x, 1.5)(2.0, 0) == 8.0


def ddim_loop(schedule, x, noise, eta):
    a, b = schedule.alpha**2, None
    for t in range(schedule.steps):
        a, b = schedule.alpha[t] ** 2, schedule.alpha[t + 1] ** 2
        n = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        eps, x0 = exact(x, np.sqrt(a), np.sqrt(1 - a))
        x = np.sqrt(b) * x0 + np.sqrt(max(1 - b - n**2, 0)) * eps + n * noise[t]
    return x


def heun_loop(schedule, x, noise, churn):
    q = schedule.sigma / schedule.alpha
    y, n = x / schedule.alpha[0], schedule.steps
    for t in range(n):
        gamma = min(churn / n, np.sqrt(2) - 1) if 0.05 <= q[t] <= 50 and t > 0 else 0.0
        raised = q[t] * (1 + gamma)
        if t > 0:
            y = y + np.sqrt(raised**2 - q[t] ** 2) * 1.003 * noise[2 * t - 1]
        k1 = exact(y, 1.0, raised)[0]
        move = y + (q[t + 1] - raised) * k1
        if q[t + 1] > 0:
            k2 = exact(move, 1.0, q[t + 1])[0]
            move = y + (q[t + 1] - raised) * (k1 + k2) / 2
        y = move
    return y * schedule.alpha[-1]


def second_order_loop(schedule, x):
    lam = schedule.lam
    for t in range(schedule.steps):
        h = lam[t + 1] - lam[t]
        middle = lam[t] + h / 2
        am, sm = 1 / np.sqrt(1 + np.exp(-2 * middle)), 1 / np.sqrt(1 + np.exp(2 * middle))
        u = am / schedule.alpha[t] * x - sm * np.expm1(h / 2) * exact(
            x, schedule.alpha[t], schedule.sigma[t])[0]
        x = schedule.alpha[t + 1] / schedule.alpha[t] * x - schedule.sigma[t + 1] * np.expm1(
            h) * exact(u, am, sm)[0]
    return x


def multistep_loop(schedule, x):
    lam, old = schedule.lam, None
    for t in range(schedule.steps):
        h = lam[t + 1] - lam[t]
        x0 = exact(x, schedule.alpha[t], schedule.sigma[t])[1]
        d = x0
        if t > 0 and t < schedule.steps - 1:
            r = (lam[t] - lam[t - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - old / (2 * r)
        x = schedule.sigma[t + 1] / schedule.sigma[t] * x - schedule.alpha[t + 1] * np.expm1(-h) * d
        old = x0
    return x


def adams_loop(schedule, x):
    q, past = schedule.sigma / schedule.alpha, []
    y = x / schedule.alpha[0]
    weights = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for t in range(schedule.steps):
        past.insert(0, exact(y, 1.0, q[t])[0])
        w = weights[min(t, 3)]
        y = y + (q[t + 1] - q[t]) * sum(c * e for c, e in zip(w, past, strict=False))
    return y * schedule.alpha[-1]


def run(sampler, schedule, x, noise=None):
    model = mixture_denoiser(MIX, schedule)
    return jax.jit(lambda x: sample(sampler, model, x, noise=noise))(jnp.asarray(x))


def test_tables_are_the_textbook_loops(x64):
    rng = np.random.default_rng(2)
    x = rng.normal(size=4)
    linear, smooth = linear_beta_schedule(25), log_snr_schedule(12)
    noise = jnp.asarray(rng.normal(size=(25, 4)))
    for eta in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(run(ddim(linear, eta), linear, x, noise),
                                   ddim_loop(linear, x, np.asarray(noise), eta), atol=1e-8)
    np.testing.assert_array_equal(ddpm(linear).noise, ddim(linear, 1.0).noise)
    # A model that knows every noise level: the midpoint lies between two rows.
    model = Denoiser(lambda x, lam: mixture_values(
        MIX, x, 1 / jnp.sqrt(1 + jnp.exp(-2 * lam)), 1 / jnp.sqrt(1 + jnp.exp(2 * lam)))[0])
    np.testing.assert_allclose(
        jax.jit(lambda x: sample(dpm_solver_2(smooth), model, x))(jnp.asarray(x)),
        second_order_loop(smooth, x), atol=1e-8)
    np.testing.assert_allclose(
        run(dpm_solver_pp_2m(smooth), smooth, x), multistep_loop(smooth, x), atol=1e-8)
    np.testing.assert_allclose(run(ipndm(smooth), smooth, x), adams_loop(smooth, x), atol=1e-8)
    karras = karras_schedule(10)
    start = 80 * x
    np.testing.assert_allclose(
        run(heun(karras), karras, start), heun_loop(karras, start, None or np.zeros((30, 4)), 0.0),
        atol=1e-7)


def test_stochastic_heun_is_algorithm_two(x64):
    """Noise levels between the rows need a model that knows every sigma: time is sigma."""
    karras = karras_schedule(10)
    sampler = edm_stochastic(karras, churn=4.0)
    rng = np.random.default_rng(3)
    noise = jnp.asarray(rng.normal(size=(sampler.rows, 4)))
    model = Denoiser(lambda x, time: mixture_values(MIX, x, 1.0, time)[0], "eps")
    start = 80 * rng.normal(size=4)
    ours = jax.jit(lambda x: sample(sampler, model, x, noise=noise))(jnp.asarray(start))
    np.testing.assert_allclose(ours, heun_loop(karras, start, np.asarray(noise), 4.0), atol=1e-8)


@pytest.mark.parametrize("make, order", [
    (ddim, 1), (dpm_solver_pp_2m, 2), (heun, 2), (dpm_solver_2, 2)])
def test_orders(make, order, x64):
    """The error to the exact flow of Gaussian data falls with the sampler's order."""
    std = np.array([0.3, 0.8, 1.2, 2.0])
    mean = np.array([1.0, -0.5, 0.3, 0.0])

    def gaussian(schedule):
        def fn(x, lam):
            alpha = 1 / jnp.sqrt(1 + jnp.exp(-2 * lam))
            sigma = 1 / jnp.sqrt(1 + jnp.exp(2 * lam))
            return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return Denoiser(fn, "eps")

    def flow(schedule, x):
        spread = [np.hypot(schedule.alpha[i] * std, schedule.sigma[i]) for i in (0, -1)]
        return schedule.alpha[-1] * mean + spread[1] / spread[0] * (x - schedule.alpha[0] * mean)

    x = np.array([0.5, -1.0, 0.7, 1.5])
    errors = []
    for steps in (80, 160, 320):
        schedule = log_snr_schedule(steps, start=-5.5, end=6.0)
        out = jax.jit(lambda x, s=schedule: sample(make(s), gaussian(s), x))(jnp.asarray(x))
        errors.append(np.linalg.norm(np.asarray(out) - flow(schedule, x)))
    fitted = np.log2(errors[0] / errors[2]) / 2
    assert abs(fitted - order) < 0.1, (fitted, errors)


def test_ddpm_finds_the_modes():
    """Two far modes of weight one half each: mass and spread of 400 samples."""
    pair = Mixture(np.array([[1.5, 0.0], [-1.5, 0.0]]), 0.2)
    schedule = linear_beta_schedule(250)
    model = mixture_denoiser(pair, schedule)
    keys = jax.random.split(jax.random.key(0), 400)
    x = jax.random.normal(jax.random.key(1), (400, 2))
    out = np.asarray(jax.jit(jax.vmap(lambda x, k: sample(ddpm(schedule), model, x, k)))(x, keys))
    right = out[:, 0] > 0
    assert 0.4 < right.mean() < 0.6
    np.testing.assert_allclose(np.abs(out[:, 0]).mean(), 1.5, atol=0.05)
    np.testing.assert_allclose(out[:, 1].std(), 0.2, atol=0.03)


def test_flow_matching_starts_at_pure_noise():
    schedule = flow_matching_schedule(50)
    model = mixture_denoiser(MIX, schedule, "velocity")
    x = np.random.default_rng(4).normal(size=4)
    out = run_with(ddim(schedule), model, x)
    y, t = x.copy(), schedule.time
    for i in range(50):  # Euler on the velocity
        eps, x0 = exact(y, t[i], 1 - t[i])
        y = y + (t[i + 1] - t[i]) * (x0 - eps)
    np.testing.assert_allclose(out, y, atol=1e-3)


def run_with(sampler, model, x):
    return jax.jit(lambda x: sample(sampler, model, x))(jnp.asarray(x, jnp.float32))


def test_bad_input():
    with pytest.raises(ValueError, match="abar must decrease with noise"):
        make_schedule([0.5, 0.4], [0.5, 0.6], [1, 0])
    with pytest.raises(ValueError, match="sigma_min must be positive"):
        karras_schedule(5, sigma_min=0.0)
    with pytest.raises(ValueError, match="rho must be positive"):
        karras_schedule(5, rho=0)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        ddim(vp_schedule(4), 1.5)
    with pytest.raises(ValueError, match="spacing must be"):
        linear_beta_schedule(4, spacing="even")
    with pytest.raises(ValueError, match="unknown prediction type"):
        sample(ddim(vp_schedule(2)), Denoiser(lambda x, t: x, "noise"), jnp.ones(2))
    with pytest.raises(ValueError, match="pass a key"):
        sample(ddpm(vp_schedule(2)), Denoiser(lambda x, t: x), jnp.ones(2))
    with pytest.raises(ValueError, match="one row for each of the 2 steps"):
        sample(ddpm(vp_schedule(2)), Denoiser(lambda x, t: x), jnp.ones(2), noise=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="returned shape"):
        sample(ddim(vp_schedule(2)), Denoiser(lambda x, t: x[:1]), jnp.ones(2))
    with pytest.raises(ValueError, match="divides by alpha"):
        heun(flow_matching_schedule(4))


def test_a_model_serves_samplers_of_other_schedules(x64):
    """Trained on the discrete grid, called by variance-exploding and flow samplers."""
    train = linear_beta_schedule(1000)
    model = mixture_denoiser(MIX, train)._replace(schedule=train)
    x = np.random.default_rng(6).normal(size=4)
    for alpha, sigma in ((1.0, 0.5), (0.4, 0.6), (1.0, 7.0)):
        for ours, known in zip(model.convert(jnp.asarray(x), alpha, sigma, -99.0),
                               exact(x, alpha, sigma), strict=True):
            np.testing.assert_allclose(ours, known, atol=2e-4)  # between rows of the grid
    karras = karras_schedule(10, sigma_max=20.0)
    own = Denoiser(lambda x, q: mixture_values(MIX, x, 1.0, q)[0])
    ends = [jax.jit(lambda x, m=m: sample(heun(karras), m, x))(20 * jnp.asarray(x))
            for m in (model, own)]
    np.testing.assert_allclose(*ends, atol=1e-3)
