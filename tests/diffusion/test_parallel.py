"""Parallel sampling against the loop: values, windows, rounds, derivatives, statuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.diffusion import (
    Denoiser,
    absolute,
    ddim,
    ddpm,
    linear_beta_schedule,
    paratta,
    sample,
    sample_parallel,
    vp_schedule,
)
from jaxiter.recurrence import newton, parallel, sequential
from jaxiter.testing.diffusion import Mixture, gmm64, hard64, mixture_denoiser
from tests.diffusion.beds import CASES, LINEAR, MIX, start

ROWS = [("ddpm", None), ("2m", 5), ("edm", None), ("flow", 5)]


@pytest.mark.parametrize("name, window", [
    *ROWS, *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("ddim", 5), ("ipndm", None), ("heun", 5), ("ddpm", 5)))])
def test_every_sampler_is_its_loop(name, window, x64):
    sampler, schedule, prediction = CASES[name]
    model, key = mixture_denoiser(MIX, schedule, prediction), jax.random.key(3)
    x = start(schedule)
    loop = jax.jit(lambda x: sample(sampler, model, x, key, trajectory=True))(x)
    out = jax.jit(lambda x: sample_parallel(
        sampler, model, x, key, window=window, tolerance=1e-10))(x)
    scale = np.max(np.abs(loop), axis=1, keepdims=True)
    assert out.converged and int(out.rounds) <= sampler.rows
    np.testing.assert_allclose(out.trajectory / scale, loop / scale, atol=1e-9)
    np.testing.assert_array_equal(out.value, out.trajectory[-1])
    assert int(out.solve.calls["model"]) <= int(out.rounds) * (window or sampler.rows)


@pytest.mark.parametrize("name, method", [
    ("ddim", "jacobi"), ("ddpm", "picard"), ("2m", "jvp"), ("ddpm", "gaussian"),
    ("ddpm", "paratta"),
    *(pytest.param(name, way, marks=pytest.mark.slow) for name, way in (
        ("ddim", "picard"), ("ddim", "jvp"), ("2m", "picard"), ("ddpm", "jvp")))])
def test_every_method_is_exact(name, method):
    sampler, schedule, prediction = CASES[name]
    model, key, x = mixture_denoiser(MIX, schedule, prediction), jax.random.key(3), start(schedule)
    loop = jax.jit(lambda x: sample(sampler, model, x, key, trajectory=True))(x)
    solve = jax.jit(lambda x, k: sample_parallel(
        sampler, model, x, key, method=method, tolerance=1e-5, max_steps=k))
    out = solve(x, 30)
    assert out.converged
    np.testing.assert_allclose(out.trajectory, loop, atol=2e-5 * float(np.max(np.abs(loop))))
    for rounds in (1, 4):  # after k rounds k rows are the loop's
        early = solve(x, rounds)
        final = min(int(early.solve.aux) + 1, 30)  # the next one is as its step makes it
        assert (early.status == Status.MAX_STEPS or early.converged) and final >= rounds
        np.testing.assert_allclose(early.trajectory[:final + 1], loop[:final + 1],
                                   atol=2e-5 * float(np.max(np.abs(loop))))


def test_window_of_one_is_the_loop():
    sampler, schedule, prediction = CASES["ddpm"]
    model, key, x = mixture_denoiser(MIX, schedule, prediction), jax.random.key(3), start(schedule)
    loop = jax.jit(lambda x: sample(sampler, model, x, key))(x)
    out = jax.jit(lambda x: sample_parallel(sampler, model, x, key, window=1))(x)
    assert int(out.rounds) == sampler.rows == int(out.solve.calls["model"])
    np.testing.assert_allclose(out.value, loop, atol=1e-6)


def test_gaussian_data_take_two_rounds():
    """The slope of isotropic Gaussian data is exact: one round to find, one to see."""
    std = 0.5
    model = mixture_denoiser(Mixture(np.zeros((1, 4)), std), LINEAR)
    out = jax.jit(lambda x: sample_parallel(
        CASES["ddim"][0], model, x, method="gaussian"))(start(LINEAR))
    assert int(out.rounds) == 2


@pytest.mark.parametrize("bed, make, limit, target", [
    (gmm64, ddpm, 14, 6.6), (hard64, ddim, 6, 3.4),
    pytest.param(gmm64, ddim, 12, 3.3, marks=pytest.mark.slow)])
def test_rounds_on_the_test_beds(bed, make, limit, target):
    """Mean rounds over seeds within 1.5 of the measured ones, T = 100, full window."""
    schedule = linear_beta_schedule(100)
    sampler, model = make(schedule), mixture_denoiser(bed(), schedule)
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.random.normal(jax.random.key(1), (8, 64))
    solve = jax.jit(jax.vmap(lambda x, key, k: sample_parallel(
        sampler, model, x, key, max_steps=k, tolerance=1e-6).value, in_axes=(0, 0, None)))
    exact = jax.jit(jax.vmap(lambda x, key: sample(sampler, model, x, key)))(x, keys)
    errors = np.stack([np.sqrt(np.mean((np.asarray(solve(x, keys, k)) - exact) ** 2, 1))
                       for k in range(1, limit + 1)])
    assert np.all(errors[-1] < 1e-3)
    needed = 1 + np.argmax(errors < 1e-3, axis=0)
    assert needed.mean() <= target + 1.5, needed


def test_warm_start():
    sampler, schedule, prediction = CASES["ddpm"]
    model, key, x = mixture_denoiser(MIX, schedule, prediction), jax.random.key(3), start(schedule)
    solve = jax.jit(lambda x, init, slopes: sample_parallel(
        sampler, model, x, key, init=init, slopes=slopes))
    first = jax.jit(lambda x: sample_parallel(sampler, model, x, key))(x)
    again = solve(x + 0.01, first.trajectory, first.slopes)
    assert int(again.rounds) < int(first.rounds)
    np.testing.assert_allclose(
        again.value, jax.jit(lambda x: sample(sampler, model, x, key))(x + 0.01), atol=1e-3)


@pytest.mark.parametrize("name, adjoint", [
    ("2m", parallel()), ("edm", sequential()),
    *(pytest.param(name, way, marks=pytest.mark.slow) for name, way in (
        ("ddim", parallel()), ("2m", sequential()), ("edm", parallel())))])
def test_derivatives_are_those_of_the_loop(name, adjoint, x64):
    sampler, schedule, _ = CASES[name]
    key, x = jax.random.key(5), start(schedule)
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 4)) / 3), "b": jnp.asarray(rng.normal(size=4))}

    def model(params):
        return Denoiser(lambda x, t: jnp.tanh(params["w"] @ x + params["b"]), "eps")

    def loss(params, x, solve):
        return jnp.sum(jnp.sin(solve(params, x)))

    def loop(params, x):
        return sample(sampler, model(params), x, key, trajectory=True)

    def rounds(params, x):
        return sample_parallel(sampler, model(params), x, key, tolerance=1e-11,
                               adjoint=adjoint).trajectory

    ours, reference = (jax.jit(jax.grad(lambda p, x, f=f: loss(p, x, f), argnums=(0, 1)))(params, x)
                       for f in (rounds, loop))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    tangents = [jax.jit(lambda x, f=f: jax.jvp(
        lambda x: loss(params, x, f), (x,), (jnp.ones(4),))[1])(x) for f in (rounds, loop)]
    np.testing.assert_allclose(*tangents, rtol=1e-7)


def test_float32_gradients_of_a_test_bed():
    """GMM64, 100 steps with noise: derivatives by a parameter and the start to 1e-4."""
    schedule = linear_beta_schedule(100)
    sampler, exact = ddpm(schedule), mixture_denoiser(gmm64(), schedule)
    x, w = jax.random.normal(jax.random.key(1), (2, 64))
    key = jax.random.key(3)

    def loss(scale, x, solve):
        model = Denoiser(lambda x, t: scale * exact.fn(x, t), "eps", data_std=exact.data_std)
        return w @ solve(model, x)

    ours, loop = (jax.jit(jax.grad(lambda s, x, f=f: loss(s, x, f), (0, 1)))(jnp.float32(1), x)
                  for f in (lambda m, x: sample_parallel(sampler, m, x, key, tolerance=1e-5).value,
                            lambda m, x: sample(sampler, m, x, key)))
    np.testing.assert_allclose(ours[0], loop[0], rtol=1e-4)
    assert np.linalg.norm(ours[1] - loop[1]) < 1e-4 * np.linalg.norm(loop[1])


def test_statuses_are_true():
    sampler, schedule, _ = CASES["ddpm"]
    x, key = start(schedule), jax.random.key(0)
    broken = Denoiser(lambda x, t: jnp.where(t < 500, jnp.nan, 0.1 * x), "eps")
    out = jax.jit(lambda x: sample_parallel(sampler, broken, x, key))(x)
    assert out.status == Status.NONFINITE and not out.converged
    first = int(np.argmax(schedule.time < 500))
    assert f"row {first} of 30" in out.message()
    assert np.isinf(out.solve.residual) and np.all(np.isfinite(out.trajectory))
    for bad in (np.nan, np.inf):
        lost = jax.jit(lambda x: sample_parallel(sampler, broken, x, key, window=7))(bad * x)
        assert lost.status == Status.NONFINITE
    short = jax.jit(lambda x: sample_parallel(
        sampler, mixture_denoiser(MIX, schedule), x, key, max_steps=3, tolerance=1e-6))(x)
    final = int(short.solve.aux)
    assert final >= 2
    assert short.message() == f"MAX_STEPS after 3 rounds: {final} of 30 rows are final."
    half = Denoiser(lambda x, t: (0.5 * x).astype(jnp.bfloat16))
    assert jax.jit(lambda x: sample_parallel(sampler, half, x, key))(x).value.dtype == x.dtype
    # Not finite on a wrong guess only: rows wait for better inputs, and the loop's answer comes.
    model = mixture_denoiser(MIX, schedule)
    picky = Denoiser(lambda x, t: jnp.where(jnp.max(jnp.abs(x)) > 60, jnp.nan, model.fn(x, t)))
    far = jnp.full((31, 4), 100.0).at[0].set(x)
    out = jax.jit(lambda x: sample_parallel(sampler, picky, x, key, init=far))(x)
    assert out.converged
    np.testing.assert_allclose(
        out.value, jax.jit(lambda x: sample(sampler, model, x, key))(x), atol=2e-3)


def test_bad_input():
    sampler, model, x = CASES["ddim"][0], Denoiser(lambda x, t: x), jnp.ones(2)
    for keywords, text in [
        ({"window": 31}, r"window must be in 1..30"), ({"window": 5.5}, "must be an integer"),
        ({"tolerance": 0.0}, "must be positive"),
        ({"method": "newton"}, "method must be one of"),
        ({"tolerance": absolute(-1.0)}, "must be positive"), ({"init": "zeros"}, "init must be"),
        ({"init": jnp.ones((3, 2))}, "one state per row"), ({"slopes": x}, "slopes must have"),
        ({"keep_best": True}, "takes no keep_best"),
        ({"solver": ji.anderson(), "window": 5}, "a solver needs.* no window"),
        ({"check_every": 2}, "takes no check_every"),
    ]:
        with pytest.raises(ValueError, match=text):
            sample_parallel(sampler, model, x, **keywords)
    with pytest.raises(ValueError, match="pass a key"):
        sample_parallel(ddpm(vp_schedule(3)), model, x)
    for arguments, text in [((LINEAR, model, x), "sampler must be"),
                            ((sampler, model.fn, x), "wrap it as Denoiser"),
                            ((sampler, model, jnp.arange(3)), "floating point")]:
        for solve in (sample, sample_parallel):
            with pytest.raises(TypeError, match=text):
                solve(*arguments)
    for keywords, text in [
        ({"method": newton()}, "got 'newton'"), ({"method": ji.picard()}, "got Gradient"),
        ({"method": paratta}, "got function"), ({"order": 3}, "unexpected argument 'order'"),
        ({"adjoint": "parallel"}, r"parallel\(\).*sequential\(\).*frozen\(\), got 'parallel'"),
        ({"adjoint": ji.implicit()}, r"sample_parallel.*jaxiter.frozen\(\)"),
    ]:
        with pytest.raises(TypeError, match=text):
            sample_parallel(sampler, model, x, **keywords)
    for keywords in ({"order": 0}, {"memory": -1}):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            paratta(**keywords)


def test_slopes_that_are_not_finite_and_half_precision():
    sampler = ddim(linear_beta_schedule(8))
    model = Denoiser(lambda x, t: jnp.tanh(x), "eps")
    exact = sample(sampler, model, jnp.ones(2))
    warm = sample_parallel(sampler, model, jnp.ones(2), slopes=jnp.full(8, jnp.nan))
    assert warm.converged and jnp.allclose(warm.value, exact, rtol=1e-4)
    half = sample_parallel(sampler, model, jnp.ones(2, jnp.bfloat16), method="paratta")
    assert half.converged and jnp.allclose(half.value.astype(jnp.float32), exact, rtol=0.05)
