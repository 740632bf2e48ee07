"""Permutations, labels and alignments by transport."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import jaxiter as ji
from jaxiter.transport import (
    balanced_labels,
    gumbel_sinkhorn,
    match_weights,
    permute,
    round_permutation,
    sinkhorn_layer,
    swav_assignments,
)


def test_rounding_is_the_best_permutation():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(3, 5, 5)), jnp.float32)
    rounded = jax.jit(round_permutation)
    hard = np.asarray(rounded(scores))
    for s, p in zip(np.asarray(scores), hard, strict=True):
        best = max(sum(s[i, j] for i, j in enumerate(perm))
                   for perm in itertools.permutations(range(5)))
        np.testing.assert_allclose(np.sum(s * p), best, rtol=1e-6)
        assert np.all(p.sum(0) == 1) and np.all(p.sum(1) == 1)
    soft = jax.jit(lambda s: sinkhorn_layer(s, 0.5))(scores)
    np.testing.assert_array_equal(rounded(jnp.log(soft)), hard)


def test_layers_sums_equivariance_and_gradients(x64):
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.normal(size=(4, 4)))
    w = rng.normal(size=(4, 4))
    tight = ji.tolerance(rtol=0, atol=1e-12)
    layer, loop = (
        jax.jit(lambda s, kw=kw: sinkhorn_layer(s, 0.5, **kw))
        for kw in ({"stop": tight}, {"adjoint": ji.unrolled(), "max_steps": 300}))
    solved = layer(scores)
    np.testing.assert_allclose(solved, loop(scores), atol=1e-10)
    np.testing.assert_allclose(solved.sum(1), 1, atol=1e-10)
    order = rng.permutation(4)
    np.testing.assert_allclose(layer(scores[order]), solved[order], atol=1e-10)
    gradients = [jax.jit(jax.grad(lambda s, f=f: jnp.sum(w * f(s))))(scores) for f in (layer, loop)]
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-8)
    through = jax.jit(jax.grad(lambda s: jnp.sum(w * round_permutation(
        s, straight_through=layer(s)))))(scores)
    np.testing.assert_allclose(through, gradients[0], atol=1e-8)
    samples = jax.jit(lambda key: gumbel_sinkhorn(
        key, scores, 0.5, samples=3, adjoint=ji.unrolled(), max_steps=50))(jax.random.key(0))
    assert samples.shape == (3, 4, 4) and not np.allclose(samples[0], samples[1])
    for bad, text in (((jnp.ones((2, 3)),), "square"), ((jnp.ones((2, 2)), 0.0), "tau")):
        with pytest.raises(ValueError, match=text):
            sinkhorn_layer(*bad)


def test_gradient_where_the_plan_nearly_falls_into_blocks():
    """Scores met while learning jigsaws: two blocks joined by e^-25, and a loss whose derivative
    by the potentials cancels. A solve for g alone could not reduce what is left, and gave NaN."""
    scores = jnp.array([[-9.82, 3.30, -4.86, 3.77], [-9.83, 3.11, -5.32, 4.43],
                        [0.52, -3.01, 2.96, -2.11], [0.65, -3.12, 3.01, -1.95]])
    truth = jnp.eye(4)[jnp.array([3, 1, 2, 0])]

    def loss(scores, **keywords):
        plan = sinkhorn_layer(scores, 0.5, **keywords)
        return jnp.sum(truth.astype(plan.dtype) * jnp.log(plan + 1e-8))

    slope = jax.jit(jax.grad(loss))(scores)
    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(functools.partial(
            loss, adjoint=ji.unrolled(), max_steps=2000)))(scores.astype(jnp.float64))
    np.testing.assert_allclose(slope, exact, atol=1e-3)


def plan_in_numpy(scores, tau, steps=1000):
    logits = scores / tau
    for axis in (-1, -2) * steps:
        logits = logits - scipy.special.logsumexp(logits, axis, keepdims=True)
    return np.exp(logits)


@pytest.mark.slow
def test_gradient_where_the_plan_falls_into_blocks():
    """Of 16 plans of logits of size 240, nearly permutations, 8 had NaN in float32."""
    draw = np.random.default_rng(0).normal
    scores, weights = 120 * draw(size=(16, 5, 5)).astype("float32"), draw(size=(5, 5))
    slopes = jax.jit(jax.vmap(jax.grad(
        lambda s, tau: jnp.sum(jnp.asarray(weights, s.dtype) * sinkhorn_layer(s, tau)), (0, 1)),
        (0, None)))
    by_score, by_tau = slopes(jnp.asarray(scores), jnp.float32(0.5))
    towards, h = draw(size=scores.shape), 1e-4
    exact = scores.astype(float)
    both = [((weights * plan_in_numpy(exact + one, 0.5 + other)).sum((1, 2)))
            for one, other in ((h * towards, 0), (-h * towards, 0), (0, h), (0, -h))]
    np.testing.assert_allclose(  # of sums of 25 slopes, each of size 1 before it cancels
        np.sum(by_score * towards, (1, 2)), (both[0] - both[1]) / (2 * h), atol=1e-3)
    # Scores up to 300 multiply the rounding of their slopes.
    np.testing.assert_allclose(by_tau, (both[2] - both[3]) / (2 * h), atol=2e-2)


@pytest.mark.slow
def test_mass_between_blocks_has_no_derivative():
    scores = jnp.array([[0.0, 1, -60, -60], [1, 0, -60, -60], [-60, -60, 2, 1], [-60, -60, 1, 3]])
    slope = jax.jit(jax.grad(lambda s, i: jnp.log(sinkhorn_layer(s)[0, i])))
    assert np.all(np.isnan(slope(scores, 2))) and np.all(np.isfinite(slope(scores, 1)))


def test_balanced_labels():
    """Measured on such a problem: cluster sizes 38 to 41 where argmax gives 0 to 439."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(2000, 50)) + 2 * rng.normal(size=50)
    tight = ji.tolerance(rtol=1e-3, atol=0)
    out = jax.jit(lambda x: balanced_labels(x, stop=tight))(jnp.asarray(logits, jnp.float32))
    sizes = np.bincount(np.asarray(out.labels), minlength=50)
    assert out.solve.converged and sizes.min() >= 35 and sizes.max() <= 45
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=1))
    slots = np.repeat(np.arange(50), 40)
    rows, columns = scipy.optimize.linear_sum_assignment(-log_p[:, slots])
    best = -log_p[rows, slots[columns]].mean()
    ours = -log_p[np.arange(2000), np.asarray(out.labels)].mean()
    assert ours < 1.004 * best
    with pytest.raises(ValueError, match="more clusters"):
        balanced_labels(jnp.ones((2, 3)))


def test_balanced_labels_over_devices():
    """Samples split over a mesh axis give the labels of one device."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(64, 4)), jnp.float32)
    stop = ji.tolerance(rtol=1e-3, atol=0)
    single = balanced_labels(logits, stop=stop)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    split = jax.jit(jax.shard_map(
        lambda x: balanced_labels(x, stop=stop, axis_name="data").labels,
        mesh=mesh, in_specs=spec, out_specs=spec))(logits)
    np.testing.assert_array_equal(split, single.labels)
    soft = jax.jit(jax.shard_map(lambda x: swav_assignments(x, axis_name="data"), mesh=mesh,
                                 in_specs=spec, out_specs=spec))(logits)
    np.testing.assert_allclose(soft, swav_assignments(logits), atol=1e-6)


def test_swav_is_the_reference_loop():
    scores = np.random.default_rng(2).normal(size=(12, 3))
    q = np.exp(scores / 0.05 - np.max(scores / 0.05)).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * 3
        q /= q.sum(0, keepdims=True) * 12
    np.testing.assert_allclose(swav_assignments(jnp.asarray(scores, jnp.float32)), (q * 12).T,
                               atol=1e-5)


SPEC = {"w1": ("h1", None), "b1": ("h1",), "w2": ("h2", "h1"), "b2": ("h2",), "w3": (None, "h2")}


def network(seed):
    """The usual initialisation: uniform within 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    inputs = {"w1": 1, "b1": 1, "w2": 10, "b2": 10, "w3": 10}
    shapes = {"w1": (10, 1), "b1": (10,), "w2": (10, 10), "b2": (10,), "w3": (1, 10)}
    return {k: jnp.asarray(rng.uniform(-1, 1, size=s) / np.sqrt(inputs[k]), jnp.float32)
            for k, s in shapes.items()}


def forward(p, x):
    h = jnp.tanh(p["w1"] @ x + p["b1"])
    return p["w3"] @ jnp.tanh(p["w2"] @ h + p["b2"])


@pytest.mark.slow  # the default run has the docstring's
def test_weight_matching_recovers_permutations():
    solve = jax.jit(lambda p, q: match_weights(p, q, SPEC))
    for seed in range(3):
        params = network(seed)
        rng = np.random.default_rng(100 + seed)
        truth = {k: jnp.asarray(np.eye(10)[rng.permutation(10)], jnp.float32)
                 for k in ("h1", "h2")}
        target = permute(params, SPEC, truth)
        x = jnp.ones(1)
        np.testing.assert_allclose(forward(target, x), forward(params, x), atol=1e-5)
        out = solve(params, target)
        for name in truth:
            np.testing.assert_array_equal(out.permutations[name], truth[name])
        np.testing.assert_allclose(out.params["w2"], target["w2"], atol=1e-6)


def test_weight_matching_errors():
    params = network(0)
    with pytest.raises(ValueError, match="not covered"):
        permute(params, {"w1": ("h1", None)}, {})
    with pytest.raises(ValueError, match="different sizes"):
        match_weights(params, params, SPEC | {"w1": ("h1", "h1")})
