"""Samplers for few steps: momentum, acceleration, exponential integrators, chosen rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.diffusion import (
    Denoiser,
    accelerated_ddim,
    accelerated_ddpm,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    euler_solver,
    exponential_multistep,
    ghvb,
    heavy_ball,
    integrate,
    ipndm,
    karras_schedule,
    linear_beta_schedule,
    log_snr_schedule,
    make_schedule,
    nesterov,
    optimal_steps,
    sample,
    sample_parallel,
    search_orders,
    search_solver,
    straightening_pairs,
    vp_schedule,
)
from jaxiter.diffusion.momentum import adams_bashforth
from jaxiter.diffusion.timesteps import shortest_path
from jaxiter.testing.diffusion import Mixture, mixture_denoiser, mixture_values

MIX = Mixture(np.random.default_rng(0).normal(size=(6, 4)), 0.4)


def eps_of(x, alpha, sigma):
    """eps of MIX in numpy."""
    v = alpha**2 * MIX.std**2 + sigma**2
    logits = -((x - alpha * MIX.means) ** 2).sum(1) / (2 * v)
    w = np.exp(logits - logits.max())
    return sigma / v * (x - alpha * (w / w.sum()) @ MIX.means)


def momentum_loop(schedule, x, kind, order, beta):
    """The paper's loop, with its velocity as a state."""
    q, y = schedule.sigma / schedule.alpha, x / schedule.alpha[0]
    values, velocities, v = [], [], None
    for t in range(schedule.steps):
        e = eps_of(schedule.alpha[t] * y, schedule.alpha[t], schedule.sigma[t])
        values.insert(0, e)
        k = min(t + 1, order)
        if kind == "ghvb":
            v = e if v is None else (1 - beta) * v + beta * e
            velocities.insert(0, v)
            u = sum(w * past for w, past in zip(adams_bashforth(k, beta), velocities, strict=False))
        else:
            p = sum(w * past for w, past in zip(adams_bashforth(k), values, strict=False))
            v = p if v is None else (1 - beta) * v + beta * p
            u = v if kind == "heavy_ball" else (1 - beta) * v + beta * p
        y = y + (q[t + 1] - q[t]) * u
    return schedule.alpha[-1] * y


@pytest.mark.parametrize("make, kind, order, beta", [
    (lambda s: ghvb(s, 2.3), "ghvb", 3, 0.3), (lambda s: ghvb(s, 4.5), "ghvb", 5, 0.5),
    (lambda s: heavy_ball(s, 4, 0.6), "heavy_ball", 4, 0.6),
    (lambda s: nesterov(s, 3, 0.7), "nesterov", 3, 0.7)])
def test_momentum_is_the_loop_of_its_velocity(make, kind, order, beta, x64):
    schedule = linear_beta_schedule(20)
    x = np.random.default_rng(1).normal(size=4)
    model = mixture_denoiser(MIX, schedule)
    ours = jax.jit(lambda x: sample(make(schedule), model, x))(jnp.asarray(x))
    np.testing.assert_allclose(ours, momentum_loop(schedule, x, kind, order, beta), atol=1e-8)
    out = jax.jit(lambda x: sample_parallel(make(schedule), model, x, tolerance=1e-9))(
        jnp.asarray(x))
    np.testing.assert_allclose(out.value, ours, atol=1e-7)


def test_whole_order_is_ipndm(x64):
    schedule = linear_beta_schedule(9)
    for order in (1, 4):
        ours, plain = ghvb(schedule, order), ipndm(schedule, order)
        np.testing.assert_allclose(ours.state.sum(1), plain.state.sum(1), rtol=1e-12)
        np.testing.assert_allclose(ours.model, plain.model, atol=1e-12)


def scalar_order(make):
    """Fitted order on dy/dq = -y with constant steps, y = x, from q = 1 to 0.1."""
    errors = []
    for n in (160, 320, 640):
        sigma = np.linspace(1, 0.1, n + 1)
        schedule = make_schedule(np.ones(n + 1), sigma, sigma)
        out = jax.jit(lambda x, s=schedule: sample(
            make(s), Denoiser(lambda x, t: jnp.sin(x) - t * x), x))(jnp.ones(1))
        errors.append(float(out[0]))
    return np.log2((errors[0] - errors[1]) / (errors[1] - errors[2]))


@pytest.mark.parametrize("make, order", [
    (lambda s: ghvb(s, 0.5), 1), (lambda s: ghvb(s, 1.8), 2), (lambda s: ghvb(s, 2), 2),
    (lambda s: heavy_ball(s, 4, 0.8), 1), (lambda s: nesterov(s, 4, 0.8), 1)])
def test_orders_of_momentum(make, order, x64):
    assert abs(scalar_order(make) - order) < 0.1


def stability_limit(make):
    """Largest |lam dq| that does not blow up on dy/dq = -lam y, by bisection over runs."""
    low, high = 0.05, 8.0
    n = 200
    for _ in range(14):
        middle = (low + high) / 2
        sigma = np.linspace(n * middle + 1, 1, n + 1)
        s = make(make_schedule(np.ones(n + 1), sigma, sigma))
        states, values = np.zeros(s.state.shape[1]), np.zeros(s.model.shape[1])
        states[0] = 1.0
        for t in range(n):  # eps = +y here: q falls
            values = np.append(states[0], values[:-1])
            states = np.append(s.state[t] @ states + s.model[t] @ values, states[:-1])
        low, high = (middle, high) if abs(states[0]) < 1e3 else (low, middle)
    return low


def test_momentum_is_more_stable_than_plms():
    """Real-axis limits, known in closed form for one eps: 2 (2 - beta) / beta."""
    for make, limit in [(lambda s: ghvb(s, 1), 2.0), (lambda s: ghvb(s, 0.5), 6.0),
                        (lambda s: ghvb(s, 1.5), 1.5), (lambda s: heavy_ball(s, 2, 0.5), 3.0),
                        (lambda s: ghvb(s, 4), 0.3), (lambda s: heavy_ball(s, 4, 0.5), 0.9)]:
        assert abs(stability_limit(make) / limit - 1) < 0.12, limit


PAIR = Mixture(np.array([[1.0], [-1.0]]), 0.3)


def quadratic_schedule(steps, floor, curve):
    """abar(t) = exp(-(floor + curve t^2)), told lam."""
    t = np.linspace(1, 0, steps + 1)
    abar = np.exp(-(floor + curve * t**2))
    lam = 0.5 * np.log(abar / (1 - abar))
    return make_schedule(np.sqrt(abar), np.sqrt(1 - abar), lam)


def by_lam(mixture):
    def fn(x, lam):
        alpha, sigma = 1 / jnp.sqrt(1 + jnp.exp(-2 * lam)), 1 / jnp.sqrt(1 + jnp.exp(2 * lam))
        return mixture_values(mixture, x, alpha, sigma)[0]
    return Denoiser(fn)


def test_accelerated_ddim_is_second_order(x64):
    x = jnp.linspace(-2, 2, 41)[:, None]

    def run(make, steps):
        s = make(quadratic_schedule(steps, 1e-3, 8.0))
        return np.asarray(jax.jit(jax.vmap(lambda x: sample(s, by_lam(PAIR), x)))(x))

    exact = run(accelerated_ddim, 4000)
    plain, fast = ([np.abs(run(make, n) - exact).mean() for n in (50, 100, 200)]
                   for make in (ddim, accelerated_ddim))
    assert 0.85 < np.log2(plain[0] / plain[2]) / 2 < 1.15
    assert np.log2(fast[0] / fast[2]) / 2 > 1.6 and plain[1] > 10 * fast[1], (plain, fast)
    # The first step has one row, all others two: of one step, in one unit.
    rows = accelerated_ddim(quadratic_schedule(9, 1e-3, 8.0))
    np.testing.assert_array_equal(rows.scale[1::2], rows.scale[2::2])


def test_accelerated_ddpm_is_nearer_to_the_law(x64):
    """Exact laws by propagating a density on a grid: total variation to the data's density."""
    grid = np.linspace(-4, 4, 801)
    width = grid[1] - grid[0]

    def density(alpha, sigma):
        v = alpha**2 * PAIR.std**2 + sigma**2
        return sum(np.exp(-((grid - alpha * m) ** 2) / (2 * v)) for m in (1.0, -1.0)) / (
            2 * np.sqrt(2 * np.pi * v))

    def distance(make, schedule):
        sampler = make(schedule)
        raised = make is accelerated_ddpm  # its first state has the first half of the noise
        half = raised * (1 - (schedule.alpha[0] / schedule.alpha[1]) ** 2) / 2
        p = density(schedule.alpha[0], np.sqrt(schedule.sigma[0] ** 2 + half))
        for t in range(sampler.rows):
            a, s = sampler.alpha[t], sampler.sigma[t]
            v = a**2 * PAIR.std**2 + s**2
            mean = np.tanh(a * grid / v)  # of the two means, weighted
            centre = sampler.state[t, 0] * grid + sampler.model[t, 0] * s / v * (grid - a * mean)
            noise = max(sampler.noise[t], width)
            kernel = np.exp(-((grid[:, None] - centre) ** 2) / (2 * noise**2))
            p = (kernel / kernel.sum(0) * p * 1.0).sum(1)
            p /= p.sum() * width
        return 0.5 * np.abs(p - density(schedule.alpha[-1], schedule.sigma[-1])).sum() * width

    for steps in (40, 80):
        schedule = quadratic_schedule(steps, 1e-2, 16.0)
        assert distance(accelerated_ddpm, schedule) < 0.6 * distance(ddpm, schedule)


def test_exponential_integrators(x64):
    schedule = log_snr_schedule(12)
    x = jnp.asarray(np.random.default_rng(3).normal(size=4))
    first = exponential_multistep(schedule, 1)
    np.testing.assert_allclose(first.model[:, 0], dpm_solver_pp_2m(schedule).model.sum(1))
    eps = jax.jit(lambda x: sample(exponential_multistep(schedule, 1, currency="eps"),
                                   by_lam(MIX), x))(x)
    np.testing.assert_allclose(eps, jax.jit(lambda x: sample(ddim(schedule), by_lam(MIX), x))(x),
                               rtol=1e-9)


@pytest.mark.parametrize("order, currency", [(2, "x0"), (3, "x0"), (2, "eps")])
def test_orders_of_exponential_integrators(order, currency, x64):
    x = jnp.asarray([0.5, -1.0, 0.7, 1.5])

    def run(make, steps):
        schedule = log_snr_schedule(steps, start=-2.0, end=2.0)
        return np.asarray(jax.jit(lambda x: sample(make(schedule), by_lam(MIX), x))(x))

    def make(schedule):
        # History of the full order needs a good start: small first steps.
        return exponential_multistep(schedule, order, currency=currency)

    outs = [run(make, n) for n in (80, 160, 320)]
    fitted = np.log2(np.linalg.norm(outs[0] - outs[1]) / np.linalg.norm(outs[1] - outs[2]))
    assert fitted > min(order, 2) - 0.15, fitted  # the low-order first steps limit order 3 to 2
    assert fitted < order + 0.3


def test_search_is_never_worse_than_its_seeds():
    schedule = linear_beta_schedule(60)
    model = mixture_denoiser(MIX, schedule)
    x = jax.random.normal(jax.random.key(0), (48, 4))
    exact = jax.jit(jax.vmap(lambda x: sample(ddim(linear_beta_schedule(1000)), mixture_denoiser(
        MIX, linear_beta_schedule(1000)), x)))(x)
    found = search_orders(schedule, model, x[:32], exact[:32], 5, population=24, max_steps=4)
    assert found.error <= found.seed_error and found.sampler.rows == 5
    out = jax.jit(jax.vmap(lambda x: sample(found.sampler, model, x)))(x[32:])
    error = float(jnp.sqrt(jnp.mean((out - exact[32:]) ** 2)))
    assert error < 2 * found.error  # unseen starts
    # The error told is that of the sampler returned.
    again = jax.jit(jax.vmap(lambda x: sample(found.sampler, model, x)))(x[:32])
    np.testing.assert_allclose(
        jnp.sqrt(jnp.mean((again - exact[:32]) ** 2)), found.error, rtol=1e-3)


def test_shortest_path_is_brute_force():
    rng = np.random.default_rng(4)
    cost = np.where(np.arange(12)[:, None] < np.arange(12), rng.random((12, 12)), np.inf)
    for edges, discount in ((3, 1.0), (4, 1.15), (11, 1.0), (1, 1.0)):
        best = min(((0, *inner, 11) for inner in itertools.combinations(range(1, 11), edges - 1)),
                   key=lambda p: sum(discount**k * cost[p[k], p[k + 1]] for k in range(edges)))
        rows, total = jax.jit(shortest_path, static_argnums=1)(
            jnp.asarray(cost, jnp.float32), edges, discount)
        assert tuple(np.asarray(rows)) == best
        np.testing.assert_allclose(
            total, sum(discount**k * cost[best[k], best[k + 1]] for k in range(edges)), rtol=1e-5)


def test_optimal_steps_beat_the_usual_spacings():
    """Sixteen-dimensional mixture, Euler, six steps: endpoint error against 1,000 steps."""
    mix = Mixture(0.7 * np.random.default_rng(0).normal(size=(10, 16)), 0.3)
    fine = karras_schedule(60, sigma_max=20.0, sigma_min=0.02)
    model = Denoiser(lambda x, q: mixture_values(mix, x, 1.0, q)[0])
    x = 20.0 * jax.random.normal(jax.random.key(0), (96, 16))

    def end(schedule, x):
        s = ddim(schedule)
        return jax.jit(jax.vmap(lambda x: sample(s, model, x)))(x)

    exact = end(karras_schedule(1000, sigma_max=20.0, sigma_min=0.02), x)
    best = optimal_steps(fine, model, x[:32], 6)
    gits = optimal_steps(fine, model, x[:32], 6, cost="deviation")
    error = {name: float(jnp.sqrt(jnp.mean((end(s, x) - exact)[32:] ** 2))) for name, s in {
        "boss": best.schedule, "gits": gits.schedule,
        "karras": karras_schedule(6, sigma_max=20.0, sigma_min=0.02)}.items()}
    assert error["boss"] < 0.8 * error["karras"] and error["gits"] < error["karras"], error
    assert best.rows[0] == 0 and best.rows[-1] == 60 and np.all(np.diff(best.rows) > 0)
    np.testing.assert_array_equal(optimal_steps(fine, model, x[:4], 60).rows, np.arange(61))


def test_straightening_targets_jump_exactly():
    path = jnp.asarray(np.random.default_rng(5).normal(size=(9, 3)), jnp.float32)
    q = jnp.linspace(2.0, 0.0, 9)
    rows = np.array([0, 2, 5, 8])
    states, slopes = straightening_pairs(path, q, rows)
    np.testing.assert_allclose(
        states + slopes * jnp.diff(q[rows])[:, None], path[rows[1:]], atol=1e-6)


def test_solver_search():
    mix = Mixture(np.random.default_rng(0).normal(size=(6, 8)), 0.25)

    def velocity(x, t):
        eps, x0 = mixture_values(mix, x, t, 1 - t)
        return x0 - eps

    x = jax.random.normal(jax.random.key(0), (256, 8))
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes int and float
        solver, loss = search_solver(velocity, x[:192], 5, max_steps=200)
    run = jax.jit(jax.vmap(lambda x, s: integrate(s, velocity, x)[-1], (0, None)))
    exact = run(x[192:], euler_solver(400))
    adams = euler_solver(5)
    adams = adams._replace(weights=jnp.diag(jnp.full(4, -0.5), -1))
    error = [float(jnp.sqrt(jnp.mean((run(x[192:], s) - exact) ** 2)))
             for s in (euler_solver(5), adams, solver)]
    assert error[2] < 0.85 * error[1] < 0.7 * error[0], error
    assert loss[-1] < loss[0] and abs(float(solver.steps.sum()) - 1) < 1e-5
    # Euler, written out.
    y = np.asarray(x[0])
    for i in range(4):
        y = y + 0.25 * np.asarray(velocity(jnp.asarray(y), jnp.float32(i / 4)))
    np.testing.assert_allclose(integrate(euler_solver(4), velocity, x[0])[-1], y, atol=1e-5)


def test_bad_input():
    schedule, model, x = vp_schedule(5), Denoiser(lambda x, t: x), jnp.ones((2, 3))
    for call, text in [
        (lambda: ghvb(schedule, 6), "order must be in"), (lambda: heavy_ball(schedule, 0), "order"),
        (lambda: nesterov(schedule, 2, 0.0), "beta must be in"),
        (lambda: accelerated_ddim(karras_schedule(4)), "variance-preserving"),
        (lambda: exponential_multistep(schedule, 4), "orders must be in"),
        (lambda: exponential_multistep(linear_beta_schedule(4), 2, currency="eps"), "positive"),
        (lambda: optimal_steps(schedule, model, x, 6), "steps must be in"),
        (lambda: optimal_steps(schedule, model, x, 2, cost="l1"), "cost must be"),
        (lambda: search_orders(schedule, model, x, x, 9), "steps must be in"),
        (lambda: euler_solver(0), "at least 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
