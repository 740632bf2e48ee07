"""What a parallel sample says of itself: residuals, methods, options."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.diffusion import (
    Denoiser,
    absolute,
    exponential_multistep,
    gaussian,
    jvp,
    log_snr_schedule,
    paratta,
    sample,
    sample_parallel,
)
from jaxiter.recurrence import jacobi, secant
from jaxiter.testing.diffusion import mixture_denoiser
from tests.diffusion.beds import CASES, MIX, start


def test_parataa_is_its_formula(x64):
    """One plain round is the map of `order` rows of the paper, written out."""
    sampler, schedule, prediction = CASES["ddpm"]
    model, x = mixture_denoiser(MIX, schedule, prediction), np.asarray(start(schedule))
    noise = np.random.default_rng(8).normal(size=(30, 4))
    out = jax.jit(lambda x: sample_parallel(
        sampler, model, x, noise=jnp.asarray(noise), method=paratta(7, memory=0),
        init="copy", max_steps=1))(jnp.asarray(x))
    eps = np.stack([model.convert(jnp.asarray(x), *(float(t[i]) for t in schedule))[0]
                    for i in range(30)])
    c0, c1 = sampler.state[:, 0], sampler.model[:, 0]
    for t in (0, 3, 12, 29):
        anchor = max(t + 1 - 7, 0)
        row = np.prod(c0[anchor:t + 1]) * x
        for j in range(anchor, t + 1):
            row = row + np.prod(c0[j + 1:t + 1]) * (c1[j] * eps[j] + sampler.noise[j] * noise[j])
        np.testing.assert_allclose(out.trajectory[t + 1], row, rtol=1e-7, atol=1e-9)


def test_time_over_devices():
    """Rows split over a mesh: one gather a round, the answer of one device."""
    sampler, schedule, prediction = CASES["ddpm"]
    model, key, x = mixture_denoiser(MIX, schedule, prediction), jax.random.key(3), start(schedule)
    alone = jax.jit(lambda x: sample_parallel(sampler, model, x, key))(x)
    for devices, window in ((8, None), (4, 10)):
        mesh = jax.make_mesh((devices,), ("time",), devices=jax.devices()[:devices],
                             axis_types=(jax.sharding.AxisType.Auto,))
        run = jax.jit(lambda x, m=mesh, w=window: sample_parallel(
            sampler, model, x, key, mesh=m, window=w))
        text = run.lower(x).compile().as_text()
        assert len(re.findall(r"= .* all-gather(?:-start)?\(", text)) == 1
        assert not re.search(r"all-reduce|all-to-all|collective-permute", text)
        np.testing.assert_allclose(
            run(x).trajectory, alone.trajectory, atol=2e-3 if window else 1e-5)
        if window is None:
            assert int(run(x).rounds) == int(alone.rounds)
    with pytest.raises(ValueError, match="axis 'time'"):
        sample_parallel(sampler, model, x, key, mesh=jax.make_mesh((8,), ("rows",)))


def own_gaps(sampler, model, x, unit):
    """How far every row is from the sampler's formula on the rows before it; float64, no solver."""
    x = np.asarray(x, np.float64)
    rows = len(x) - 1
    eps = np.stack([model(x[t]) for t in range(rows)])
    gaps = []
    for t in range(rows):
        image = np.zeros_like(x[0])
        for table, values in ((sampler.state, x), (sampler.model, eps)):
            for j in range(min(t + 1, table.shape[1])):
                image += table[t, j] * values[t - j]
        gaps.append(np.sqrt(np.mean((x[t + 1] - image) ** 2)) / unit[t])
    return np.array(gaps)


@pytest.mark.parametrize("method, scale", [
    ("paratta", "absolute"), ("secant", "noise"),
    pytest.param("jvp", "noise", marks=pytest.mark.slow),
    pytest.param("picard", "absolute", marks=pytest.mark.slow)])
def test_the_residual_is_that_of_the_trajectory_returned(method, scale, x64):
    """Windows that slide over third-order rows: stiff models, many seeds, a coarse tolerance."""
    rng = np.random.default_rng(7)
    w = rng.normal(size=(24, 3, 3)) * rng.choice([0.5, 1.5, 4.0], (24, 1, 1))
    x = rng.normal(size=(24, 3))
    sampler = exponential_multistep(log_snr_schedule(24), 3, currency="eps")

    def solve(w, x, tolerance, rounds):
        out = sample_parallel(
            sampler, Denoiser(lambda x, t: jnp.tanh(w @ x), "eps"), x, window=7,
            method=method, tolerance=tolerance if scale == "noise" else absolute(tolerance),
            max_steps=rounds)
        return out.trajectory, out.status, out.solve.residual, out.solve.aux, out.solve.merit

    unit = sampler.scale if scale == "noise" else np.ones(24)
    run = jax.jit(jax.vmap(solve, (0, 0, None, None)))
    for tolerance, rounds in ((1e-6, 24), (1e-2, 24), (1e-2, 6)):
        found = zip(w, *map(np.asarray, run(w, x, tolerance, rounds)), strict=True)
        for weights, rows, status, residual, final, merit in found:
            gaps = own_gaps(sampler, lambda s, w=weights: np.tanh(w @ s), rows, unit)
            if status == Status.CONVERGED:
                assert final == 24 and merit <= 1 and gaps.max() <= tolerance * (1 + 1e-6)
                np.testing.assert_allclose(
                    residual, np.linalg.norm(gaps * unit) * 3**0.5, rtol=1e-5, atol=1e-10)
            else:  # rows that are left were never measured
                assert rounds == 6 and status == Status.MAX_STEPS
                assert final < 24 and merit > 1 and np.isinf(residual) == np.isinf(merit)
                assert np.all(gaps[:int(final)] <= tolerance * (1 + 1e-6))


def test_the_residual_of_an_unfinished_solve_is_measured(x64):
    """A full window: norm(T(value) - value) == residual also after a few rounds."""
    w = jnp.asarray(np.random.default_rng(7).normal(size=(3, 3)) * 2)
    sampler = exponential_multistep(log_snr_schedule(24), 3, currency="eps")
    model = Denoiser(lambda x, t: jnp.tanh(w @ x), "eps")
    x = jnp.asarray(np.random.default_rng(8).normal(size=3))
    solve = jax.jit(lambda x, k: sample_parallel(
        sampler, model, x, method="jacobi", tolerance=1e-9, max_steps=k))
    for rounds in (1, 3, 24):  # 24: all are the loop's own
        out = solve(x, rounds)
        states = np.concatenate([np.asarray(x)[None], out.solve.value])
        gaps = own_gaps(sampler, lambda s: np.tanh(np.asarray(w) @ s), states, np.ones(24))
        np.testing.assert_allclose(
            out.solve.residual, np.linalg.norm(gaps) * 3**0.5, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            out.solve.residual, np.linalg.norm(out.solve.displacement), rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(out.solve.value, out.trajectory[1:])


@pytest.mark.parametrize("method", [paratta(30, memory=0), pytest.param(
    "secant", marks=pytest.mark.slow)])
def test_a_solver_of_the_library_moves_the_trajectory(method):
    """Anderson on the rounds of all rows ends at the loop's sample, with its own residual."""
    sampler, schedule, prediction = CASES["ddim"]
    model, x = mixture_denoiser(MIX, schedule, prediction), start(schedule)
    out = jax.jit(lambda x: sample_parallel(
        sampler, model, x, method=method, solver=ji.anderson(5), tolerance=1e-4, max_steps=60))(x)
    assert out.converged and int(out.solve.calls["model"]) == 30 * int(out.rounds)
    loop = jax.jit(lambda x: sample(sampler, model, x))(x)
    np.testing.assert_allclose(out.value, loop, atol=2e-3)
    states = np.concatenate([np.asarray(x)[None], out.solve.value])
    levels = iter(np.stack(schedule, axis=1)[:-1].tolist())  # of the rows, one after the other

    def eps(s):
        return np.asarray(model.convert(jnp.asarray(s, jnp.float32), *next(levels))[0], np.float64)

    gaps = own_gaps(sampler, eps, states, np.ones(30))
    assert np.all(gaps <= 1e-4 * sampler.scale * (1 + 1e-3) + 1e-6)


def test_methods_are_values_and_names_their_presets():
    makers = (gaussian, jvp, paratta, secant, jacobi, lambda: paratta(7), lambda: absolute(0.1))
    for make in makers:
        assert make() == pickle.loads(pickle.dumps(make())) and hash(make()) == hash(make())
        assert sum(make() == other() for other in makers) == 1
    sampler, model, x = CASES["ddim"][0], Denoiser(lambda x, t: jnp.tanh(x)), jnp.ones(4)
    solve = jax.jit(lambda x, way: sample_parallel(sampler, model, x, method=way).trajectory)
    named = jax.jit(lambda x: sample_parallel(sampler, model, x, method="paratta").trajectory)
    np.testing.assert_array_equal(solve(x, paratta(20, 1)), named(x))


def test_options_of_rounds():
    """Goes on from a state or a trajectory, watched by a monitor; frozen: no derivatives, the same
    values."""
    sampler, schedule, prediction = CASES["2m"]
    model, x = mixture_denoiser(MIX, schedule, prediction), start(schedule)

    def solve(x, k, init="auto", adjoint=None, window=None, resume=None):
        return sample_parallel(sampler, model, x, window=window, max_steps=k, init=init,
                               monitor=ji.record(40), adjoint=adjoint, resume=resume)

    whole, first = (jax.jit(lambda x, k: solve(x, k))(x, k) for k in (30, 3))
    second = jax.jit(lambda x, init: solve(x, 30, init))(x, first.trajectory)
    assert first.status == Status.MAX_STEPS and whole.converged and second.converged
    np.testing.assert_allclose(second.value, whole.value, atol=1e-2)
    again = jax.jit(lambda x, state: solve(x, 40, resume=state))
    rest = again(x, first.solve.state)
    assert rest.converged and int(rest.rounds) == int(whole.rounds)
    np.testing.assert_array_equal(rest.trajectory, whole.trajectory)
    # For another start all rows are measured again, those that were final too.
    late = jax.jit(lambda x, k: solve(x, k))(x, int(whole.rounds) - 1)
    other = again(x + 1, late.solve.state)
    assert other.converged
    np.testing.assert_allclose(
        other.value, jax.jit(lambda x: sample(sampler, model, x))(x + 1), atol=1e-2)
    with pytest.raises(ValueError, match="slides takes no resume"):
        solve(x, 30, window=7, resume=first.solve.state)
    with pytest.raises(TypeError, match="a number, or absolute"):
        sample_parallel(sampler, model, x, tolerance=ji.tolerance(1e-3))
    change = np.asarray(whole.solve.trace["merit"])[:int(whole.rounds)]
    assert change[-1] <= 1 and np.all(change[:-1] > 1)
    value, slope = jax.jit(jax.value_and_grad(
        lambda x: jnp.sum(solve(x, 30, adjoint=ji.frozen()).value)))(x)
    assert value == jnp.sum(whole.value) and not np.any(slope)
