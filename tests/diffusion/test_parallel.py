"""Parallel sampling against the loop: values, windows, rounds, derivatives, statuses."""

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
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    edm_stochastic,
    exponential_multistep,
    flow_matching_schedule,
    gaussian,
    heun,
    ipndm,
    jvp,
    karras_schedule,
    linear_beta_schedule,
    log_snr_schedule,
    paratta,
    sample,
    sample_parallel,
    vp_schedule,
)
from jaxiter.recurrence import jacobi, newton, parallel, secant, sequential
from jaxiter.testing.diffusion import Mixture, gmm64, hard64, mixture_denoiser

MIX = Mixture(np.random.default_rng(0).normal(size=(6, 4)), 0.4)
LINEAR, KARRAS, FLOW = linear_beta_schedule(30), karras_schedule(12), flow_matching_schedule(16)
CASES = {
    "ddim": (ddim(LINEAR), LINEAR, "eps"), "ddpm": (ddpm(LINEAR), LINEAR, "v"),
    "2m": (dpm_solver_pp_2m(LINEAR), LINEAR, "x0"), "ipndm": (ipndm(LINEAR), LINEAR, "score"),
    "heun": (heun(KARRAS), KARRAS, "eps"), "flow": (ddim(FLOW), FLOW, "velocity"),
    "edm": (edm_stochastic(KARRAS, churn=2.0), KARRAS, "x0"),
}


def start(schedule, seed=0, size=4):
    x = np.random.default_rng(seed).normal(size=size)
    return jnp.asarray(schedule.sigma[0] * x, jnp.result_type(float))


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
        ({"window": 31}, r"window must be in 1..30"), ({"tolerance": 0.0}, "must be positive"),
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


# --- The dialect -----------------------------------------------------------------------------


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
