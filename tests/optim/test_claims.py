"""Controlled problems of the sources: what each transformation is for, measured."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxiter as ji
from jaxiter.optim import (
    TURBO_NS_COEFFS,
    a_dog,
    alr,
    cautious,
    evaluation_params,
    inexact_lmo_scale,
    kronecker_cosine,
    mars_correction,
    mars_m,
    mars_value_and_grad,
    nag_gs,
    nag_gs_optimal_alpha,
    opt_amsgrad,
    polar_error,
    power_sgd,
    power_sgd_specs,
    record_gradient_norm,
    refine_schedule,
    u_dog,
    wsd_schedule,
    wsds_schedule,
)
from jaxiter.optim.muon import polar_svd


def run(optimizer, gradient, start, steps, value=None, readout=None):
    """What `readout(state, x)` gives after every step; x by default."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        x, state = carry
        extra = {} if value is None else {"value": value(x)}
        updates, state = optimizer.update(gradient(x), state, x, **extra)
        x = optax.apply_updates(x, updates)
        return (x, state), (x if readout is None else readout(state, x))

    return jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)[1])(
        jax.tree.map(jnp.asarray, start))


def spectrum(low, count):
    values = np.logspace(np.log10(low), 0, count)
    return values, lambda x: jnp.asarray(values) * x, lambda x: jnp.sum(values * x * x) / 2


def first_below(values, level):
    return 1 + int(np.argmax(np.asarray(values) < level))


def test_polyak_heavy_ball_at_condition_1000(x64):
    """Published: tuned heavy ball 227 iterations, ALR-HB 143, ALR-MAG 261."""
    values, gradient, loss = spectrum(1e-3, 50)
    start = np.ones(50)
    level = 1e-8 * float(loss(start))
    root = np.sqrt(1000.0)
    # optax: v = beta v + g, x -= rate v, the heavy ball with its optimal constants.
    tuned = optax.sgd(4 / (1 + 1 / root) ** 2, momentum=((root - 1) / (root + 1)) ** 2)
    counts = {}
    for name, optimizer in (("tuned", tuned), ("hb", alr("hb")), ("mag", alr("mag"))):
        path = run(optimizer, gradient, start, 500, value=loss)
        counts[name] = first_below(jax.vmap(loss)(path), level)
    assert counts["hb"] <= 0.7 * counts["tuned"], counts
    np.testing.assert_allclose([counts[n] for n in ("tuned", "hb", "mag")], [227, 143, 261],
                               rtol=0.15)


def test_nag_gs_at_its_optimal_rate(x64):
    """kappa = 100: the contraction is 0.8182 at alpha*, and one percent more diverges."""
    values, gradient, _ = spectrum(1e-2, 20)

    def factor(scale):
        alpha = scale * nag_gs_optimal_alpha(0.01, 1.0, safety=1.0)
        path = run(nag_gs(alpha, mu=0.01, gamma=0.01, constant_gamma=True), gradient, np.ones(20),
                   150)
        size = np.linalg.norm(path, axis=1)
        return (size[-1] / size[70]) ** (1 / 79)

    np.testing.assert_allclose(factor(0.95), 0.8257, atol=0.01)
    assert factor(1.05) > 1.2 and factor(0.5) > 0.88
    with pytest.raises(ValueError, match="0 < mu < smoothness"):
        nag_gs_optimal_alpha(1.0, 1.0)


def test_parameter_free_acceleration(x64):
    """Published f after 1,000: DoG 8.0e-3, A-DoG 4.7e-5, U-DoG 2.8e-6, Nesterov with L 1.8e-6."""
    values, gradient, _ = spectrum(1e-5, 100)
    best = np.random.default_rng(0).normal(size=100)

    def grad(x):
        return gradient(x - best)

    def loss(x):
        return float(np.sum(values * (np.asarray(x) - best) ** 2) / 2)

    found = {
        "dog": loss(run(optax.contrib.dog(1.0, init_step=("heuristic", 1e-6)), grad,
                        np.zeros(100), 1000)[-1]),
        "a_dog": loss(run(a_dog(), grad, np.zeros(100), 1000)[-1]),
        "u_dog": loss(run(u_dog(), grad, np.zeros(100), 2000, readout=evaluation_params)[-1]),
    }

    def nesterov(carry, k):
        x, last = carry
        y = x + k / (k + 3) * (x - last)
        return (y - grad(y), x), None

    (x, _), _ = jax.jit(lambda s: jax.lax.scan(nesterov, s, jnp.arange(1000.0)))(
        (jnp.zeros(100), jnp.zeros(100)))
    assert found["a_dog"] <= found["dog"] / 50 and found["u_dog"] <= 3 * loss(x), (found, loss(x))
    with pytest.raises(ValueError, match="0 averages"):
        evaluation_params(optax.sgd(0.1).init(np.ones(2)), np.ones(2))


def test_refined_and_stable_schedules():
    def table(norms, **keywords):
        schedule = refine_schedule(norms, smoothing=0, **keywords)
        return [float(schedule(k)) for k in range(len(norms))]

    np.testing.assert_allclose(table([4, 2, 1, 1, 2]), [0.125, 0.45, 1, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(table([3.0] * 5, peak=0.8), [0.8, 0.6, 0.4, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(table([2, 1, 1], kind="adam"), [1, 1, 0], atol=1e-6)
    smooth = refine_schedule(np.r_[np.ones(50), 100.0, np.ones(49)])  # one outlier is filtered
    np.testing.assert_allclose([float(smooth(k)) for k in (0, 50, 98)], [1, 0.495, 0.0101],
                               atol=0.01)
    optimizer = record_gradient_norm(3)
    _, state = optimizer.update({"a": jnp.array([3.0, 4.0])}, optimizer.init({"a": jnp.zeros(2)}))
    np.testing.assert_allclose(state.norms, [5, 0, 0])
    for norms, message in (([1, 0, 2], "step 1 has 0"), ([1], "at least 2")):
        with pytest.raises(ValueError, match=message):
            refine_schedule(norms)
    schedule = wsd_schedule(2.0, 100, 1000)
    np.testing.assert_allclose([float(schedule(k)) for k in (50, 500, 900, 925, 950, 975, 1000)],
                               np.array([0.5, 1, 1, 0.3077, 0.1818, 0.1290, 0.1]) * 2, rtol=1e-3)
    again = wsds_schedule(1.0, 10, [100, 200], kind="linear")
    np.testing.assert_allclose([float(again(k)) for k in (50, 100, 101, 180, 190, 200)],
                               [1, 0.1, 1, 1, 0.55, 0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="overlap"):
        wsd_schedule(1.0, 95, 100)
    with pytest.raises(ValueError, match="overlap"):
        wsds_schedule(1.0, 1, [10, 11])


def test_meter_of_orthogonalisation(x64):
    """Gaussian 64 x 64: five standard steps leave 0.318, Turbo's four 0.061, cosine 0.9956."""
    x = jax.random.normal(jax.random.key(0), (64, 96))

    def orthogonalise(x, **keywords):
        with jax.numpy_dtype_promotion("standard"):
            optimizer = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, **keywords)
            return optimizer.update(x, optimizer.init(x))[0]

    standard = polar_error(x, orthogonalise(x))
    turbo = polar_error(x, orthogonalise(x, ns_coeffs=TURBO_NS_COEFFS, ns_steps=4,
                                         preconditioning="aol"))
    assert turbo.operator < standard.operator and turbo.cosine > 0.995 > standard.cosine
    assert turbo.smallest > 0.9 and turbo.largest < 1.1
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(polar_svd(x), u @ vh, atol=1e-10)
    np.testing.assert_allclose(polar_error(x, 1.5 * polar_svd(x)).operator, 0.5, rtol=1e-9)
    assert 0 < inexact_lmo_scale(float(turbo.operator)) < 1
    assert jnp.all(orthogonalise(jnp.zeros((4, 4))) == 0)


def test_exact_correction_has_less_variance(x64):
    """f_i(x) = a_i (x - b_i)^2 / 2: the corrected gradient spreads less around the mean."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 1.5, 4000), rng.normal(size=4000)
    both = mars_value_and_grad(lambda x, i: jnp.asarray(a)[i] * (x - jnp.asarray(b)[i]) ** 2 / 2)
    optimizer = mars_correction(0.9, 0.05, clip=None, exact=True)

    def corrected(i):
        state = optimizer.init(jnp.float64(0))._replace(count=jnp.int32(1))
        _, g, h = both(jnp.float64(1.0), jnp.float64(2.0), i)
        return g, optimizer.update(g, state, prev_point_grad=h)[0]

    plain, better = jax.jit(jax.vmap(corrected))(jnp.arange(4000))
    assert jnp.var(better) < jnp.var(plain)
    shift = 0.45 * jnp.mean(jnp.asarray(a)) * (1.0 - 2.0)
    np.testing.assert_allclose(better.mean() - plain.mean(), shift, rtol=1e-6)


def test_mars_m_trains_matrices_and_vectors():
    target = jax.random.normal(jax.random.key(0), (6, 4))

    def loss(p):
        return jnp.sum(jnp.square(p["w"] - target)) + jnp.sum(jnp.square(p["b"] - 1))

    with jax.numpy_dtype_promotion("standard"):  # optax.contrib.muon mixes dtypes
        path = run(mars_m(0.05), jax.grad(loss), {"w": jnp.zeros((6, 4)), "b": jnp.zeros(4)}, 200)
    end = jax.tree.map(lambda leaf: leaf[-1], path)
    assert loss(end) < 0.1 * loss({"w": jnp.zeros((6, 4)), "b": jnp.zeros(4)})


@pytest.mark.parametrize("scale", ["mean", "paper", "none"])
def test_cautious_updates_never_climb(scale):
    """<update, g> <= 0 whatever the inner optimiser, even one that ascends."""
    optimizer = cautious(optax.sgd(0.1, momentum=0.99, nesterov=True), scale)
    gradients = jax.random.normal(jax.random.key(1), (50, 40))

    def step(state, g):
        update, state = optimizer.update(g, state)
        return state, jnp.sum(update * g)

    slopes = jax.jit(lambda g: jax.lax.scan(step, optimizer.init(jnp.zeros(40)), g)[1])(gradients)
    assert jnp.all(slopes <= 0) and jnp.any(slopes < 0)
    ascent = cautious(optax.sgd(-1.0), scale)
    up, _ = ascent.update(gradients[0], ascent.init(gradients[0]))
    np.testing.assert_array_equal(up, 0)


def test_optimism_on_a_bilinear_game():
    """min_x max_y x y: AMSGrad circles, the prediction of the next gradient damps it."""
    def gradient(z):
        return jnp.array([z[1], -z[0]])

    with jax.numpy_dtype_promotion("standard"):
        plain = run(optax.amsgrad(0.01), gradient, jnp.ones(2), 3000)
    ours = run(opt_amsgrad(0.01, b1=0.0), gradient, jnp.ones(2), 3000)
    assert jnp.linalg.norm(ours[-1]) < 0.1 * jnp.linalg.norm(plain[-1])


def test_kronecker_products():
    """Published: optimal 0.9971, Shampoo^2 0.9965, Shampoo 0.9248; exact Kronecker data are met."""
    rng = np.random.default_rng(0)
    c1, c2 = rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    samples = c1 @ rng.normal(size=(200, 3, 4)) @ c2.T + 0.3 * rng.normal(size=(200, 3, 4))
    out = kronecker_cosine(samples)
    assert out.corrected > out.optimal - 0.005 and out.shampoo < out.optimal - 0.03, out
    many = kronecker_cosine(c1 @ rng.normal(size=(200_000, 3, 4)) @ c2.T)
    assert many.corrected > 0.999
    for wrong, kind, text in ((np.zeros((2, 2, 2)), ValueError, "zeros of shape"),
                              (np.ones((2, 2)), ValueError, r"\[N, m, n\]"),
                              (1j * np.ones((2, 2, 2)), TypeError, "must be real")):
        with pytest.raises(kind, match=text):
            kronecker_cosine(wrong)


def test_anderson_and_halpern_around_descent(x64):
    """kappa = 1e3: memory 5 needs 8 times fewer steps; a rotation meets Halpern's bound."""
    _, gradient, loss = spectrum(1e-3, 50)
    level = 1e-8 * float(loss(np.ones(50)))
    plain = first_below(jax.vmap(loss)(run(optax.sgd(1.0), gradient, np.ones(50), 5000)), level)
    fast = first_below(jax.vmap(loss)(run(
        optax.chain(optax.sgd(1.0), ji.anderson(5, period=1, safeguard=None)), gradient,
        np.ones(50), 700)), level)
    assert plain >= 8 * fast > 8, (plain, fast)

    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])  # reflected resolvent of min_x max_y x y

    def residual(z):
        return z - turn @ z  # the gradient whose step of -1 is the map

    path = run(optax.chain(optax.scale(-1.0), ji.halpern()), residual, np.array([1.0, 1.0]), 1000)
    k = np.arange(1, 1001)
    norms = np.linalg.norm(np.asarray(path) - np.asarray(path) @ np.asarray(turn).T, axis=1)
    assert np.all(norms <= 2 * np.sqrt(2) / (k + 1) * (1 + 1e-9))


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def device_step(optimizer, specs, target):
    """One step of every device on its own target; the error has a leading device axis."""
    def local(params, state, target):
        inner = state[0]._replace(error=jax.tree.map(lambda e: e[0], state[0].error))
        grads = jax.tree.map(lambda p, t: p - t[0], params, target)
        updates, new = optimizer.update(grads, (inner, *state[1:]), params)
        new = (new[0]._replace(error=jax.tree.map(lambda e: e[None], new[0].error)), *new[1:])
        # Every device returns its own copy, to compare them bit by bit.
        return jax.tree.map(lambda p, u: (p + u)[None], params, updates), new

    spec = PartitionSpec
    each = jax.tree.map(lambda _: spec("data"), target)
    return jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=(spec(), specs, each),
                                 out_specs=(each, specs), check_vma=False))


def test_power_sgd_over_eight_devices():
    """Bitwise the same parameters everywhere; three reductions of the rank-r bytes; telescoping."""
    params = {"w": jnp.zeros((24, 16)), "v": jnp.zeros((16, 16)), "b": jnp.zeros(16)}
    keys = jax.random.split(jax.random.key(0), 3)
    target = {name: jax.random.normal(key, (8, *params[name].shape))
              for name, key in zip(params, keys, strict=True)}
    optimizer = optax.chain(power_sgd("data", rank=2), optax.trace(0.5), optax.scale(-0.03))
    state = optimizer.init(params)
    state = (state[0]._replace(error=jax.tree.map(
        lambda e: jnp.zeros((8, *e.shape)), state[0].error)), *state[1:])
    specs = power_sgd_specs(state, "data")
    step = device_step(optimizer, specs, target)
    text = step.lower(params, state, target).compile().as_text()
    results = re.findall(r"= (.*?) all-reduce\(", text)  # XLA may merge two into a tuple
    sizes = sorted(int(size) for shape in results for size in re.findall(r"f32\[(\d+)\]", shape))
    # P: 24 x 2 + 16 x 2; q: 16 x 2 + 16 x 2; the vector: 16. In floats.
    assert sizes == [16, 64, 80] and len(results) <= 3, results
    for _ in range(100):
        copies, state = step(params, state, target)
        for leaf in jax.tree.leaves(copies):
            assert np.all(np.asarray(leaf) == np.asarray(leaf)[:1])
        params = jax.tree.map(lambda leaf: leaf[0], copies)
    mean = jax.tree.map(lambda t: t.mean(0), target)
    start = sum(jnp.sum(jnp.square(t)) for t in jax.tree.leaves(mean))
    left = sum(jnp.sum(jnp.square(p - t)) for p, t in zip(
        jax.tree.leaves(params), jax.tree.leaves(mean), strict=True))
    assert left < 0.3 * start


def test_power_sgd_sends_everything_in_the_end(x64):
    """Outputs plus the mean error are the sum of the mean gradients; full rank is the mean."""
    optimizer = power_sgd("workers", rank=1, min_compression=0.0)
    gradients = jax.random.normal(jax.random.key(0), (12, 4, 5, 6))

    def step(state, g):
        out, state = jax.vmap(optimizer.update, axis_name="workers")(g, state)
        return state, out[0]

    one = optimizer.init(jnp.zeros((5, 6)))
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4, *leaf.shape)), one)
    state, sent = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, gradients)
    np.testing.assert_allclose(sent.sum(0) + state.error.mean(0),
                               gradients.mean(1).sum(0), atol=1e-10)
    full = power_sgd("workers", rank=5, min_compression=0.0)
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4, *leaf.shape)),
                         full.init(jnp.zeros((5, 6))))
    out, _ = jax.jit(jax.vmap(full.update, axis_name="workers"))(gradients[0], state)
    np.testing.assert_allclose(out[0], gradients[0].mean(0), atol=1e-10)


def test_power_sgd_under_pmap_after_plain_steps():
    """start_step: first the exact mean, then rank 1; both branches under pmap."""
    optimizer = power_sgd("devices", rank=1, min_compression=0.0, start_step=1)
    g = jax.random.normal(jax.random.key(0), (8, 3, 4))
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (8, *leaf.shape)),
                         optimizer.init(g[0]))
    step = jax.pmap(optimizer.update, axis_name="devices")
    first, state = step(g, state)
    np.testing.assert_allclose(first[3], g.mean(0), rtol=1e-5, atol=1e-6)
    second, state = step(g, state)
    assert np.linalg.matrix_rank(np.asarray(second[0]), tol=1e-5) == 1
    np.testing.assert_array_equal(second[0], second[7])


def test_the_polar_error_of_complex_matrices():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3))).astype(np.complex64)
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    exact = polar_error(jnp.asarray(x), jnp.asarray(u @ vh))
    turned = polar_error(jnp.asarray(x), jnp.asarray(1j * (u @ vh)))
    assert exact.operator < 1e-5 and exact.frobenius < 1e-5
    np.testing.assert_allclose(turned.operator, 2**0.5, rtol=1e-5)
    np.testing.assert_allclose([exact.cosine, turned.cosine], [1, 0], atol=1e-5)


def test_schedules_of_tiny_norms():
    schedule = refine_schedule(np.full(5, 1e-170), smoothing=0)
    np.testing.assert_allclose([schedule(k) for k in range(5)], [1, 0.75, 0.5, 0.25, 0])
