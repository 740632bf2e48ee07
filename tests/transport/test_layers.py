"""What is built on Sinkhorn, against linear programs, brute force and the measured tables."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter.operators import projection_sparse_simplex
from jaxiter.transport import (
    balanced_labels,
    gumbel_sinkhorn,
    match_weights,
    mirror_sinkhorn,
    permute,
    round_permutation,
    round_to_polytope,
    scale_by_mirror_sinkhorn,
    sinkhorn_divergence,
    sinkhorn_layer,
    sparse_transport,
    swav_assignments,
)


def linear_program(cost, a, b):
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    return scipy.optimize.linprog(np.ravel(cost), A_eq=np.vstack(rows), b_eq=np.r_[a, b]).fun


# Divergence -----------------------------------------------------------------------------------

def shifted_clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 1


def test_divergence_reproduces_the_table(x64):
    x, y = shifted_clouds()
    solve = jax.jit(lambda epsilon: sinkhorn_divergence(
        x, y, epsilon=epsilon, stop=ji.tolerance(rtol=0, atol=1e-9), max_steps=20_000))
    for epsilon, value in ((0.01, 0.76180), (0.1, 0.73565), (1.0, 0.66650), (10.0, 0.63567)):
        out = solve(epsilon)
        assert abs(float(out.value) - value) < 6e-6
        assert out.status == ji.Status.CONVERGED
        assert max(int(out.self_x.steps), int(out.self_y.steps)) <= 40


def test_divergence_properties_and_derivatives(x64):
    x, y = shifted_clouds()
    x, y = x[:8], y[:8]  # one shape, one compilation
    a = np.random.default_rng(1).dirichlet(np.ones(8))
    keywords = {"epsilon": 0.3, "stop": ji.tolerance(rtol=0, atol=1e-12)}
    uniform = np.full(8, 1 / 8)

    def value(x, y, a, b):
        return sinkhorn_divergence(x, y, a, b, **keywords).value

    direction = np.random.default_rng(2).normal(size=x.shape)
    gradient = jax.jit(jax.grad(value))
    solve = jax.jit(value)
    np.testing.assert_allclose(solve(x, x, a, a), 0, atol=1e-10)
    np.testing.assert_allclose(solve(x, y, a, uniform), solve(y, x, uniform, a), rtol=1e-9)
    h = 1e-5
    slope = (solve(x + h * direction, y, a, uniform)
             - solve(x - h * direction, y, a, uniform)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient(x, y, a, uniform) * direction), slope, rtol=1e-6)
    unbalanced, static = jax.jit(lambda x, a: (
        sinkhorn_divergence(x, x, a, 2 * a, epsilon=0.3, rho=1.0),
        sinkhorn_divergence(x, y, a, epsilon=0.3, static_b=True)))(x, a)
    assert unbalanced.value > 1e-3
    assert static.self_y is None and static.value > solve(x, y, a, uniform)


# Mirror Sinkhorn and rounding -----------------------------------------------------------------

def test_rounding_is_exact_and_close():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(4))
    plan = np.outer(a, b) * rng.uniform(0.5, 1.5, size=(6, 4))
    out = np.asarray(round_to_polytope(*(jnp.asarray(x, jnp.float32) for x in (plan, a, b))))
    violation = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    np.testing.assert_allclose(out.sum(1), a, atol=1e-6)
    np.testing.assert_allclose(out.sum(0), b, atol=1e-6)
    assert np.all(out >= 0) and np.abs(out - plan).sum() <= 2 * violation + 1e-6


def test_mirror_sinkhorn_slope():
    """The gap to the linear program falls like t to a power within [-0.7, -0.4]."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(50, 2)), rng.uniform(size=(50, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    cost = cost / cost.max()
    a = np.full(50, 1 / 50)
    optimum = linear_program(cost, a, a)
    np.testing.assert_allclose(optimum, 0.01835, atol=1e-5)
    single = jnp.asarray(cost, jnp.float32)
    weights = jnp.asarray(a, jnp.float32)
    gaps = []
    for steps in (100, 1000, 10_000):
        out = mirror_sinkhorn(single, weights, weights, bound=1.0, max_steps=steps)
        np.testing.assert_allclose(out.average.sum(1), a, atol=1e-6)
        gaps.append(float(jnp.sum(single * out.average)) - optimum)
    slope = np.log(gaps[2] / gaps[0]) / np.log(100)
    np.testing.assert_allclose(gaps, [3.0e-2, 8.4e-3, 2.1e-3], rtol=0.1)
    assert -0.7 <= slope <= -0.4


def test_mirror_sinkhorn_as_an_optax_transformation():
    """A stochastic quadratic objective; the transform composes with optax.chain."""
    rng = np.random.default_rng(1)
    a = jnp.asarray(rng.dirichlet(np.ones(5)), jnp.float32)
    b = jnp.asarray(rng.dirichlet(np.ones(4)), jnp.float32)
    target = jnp.asarray(rng.uniform(size=(5, 4)) / 20, jnp.float32)
    transform = optax.chain(optax.clip(1.0), scale_by_mirror_sinkhorn(a, b, 1.0))
    plan = a[:, None] * b[None]
    state = transform.init(plan)
    for _ in range(4):
        update, state = transform.update(plan - target, state, plan)
        plan = plan + update
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-6)  # the fourth step scaled the rows

    def noisy(plan, key):
        return plan - target + 0.01 * jax.random.normal(key, plan.shape)

    def objective(plan):
        return float(jnp.sum((plan - target) ** 2))

    out = mirror_sinkhorn(noisy, a, b, bound=0.3, max_steps=2000, key=jax.random.key(0))
    best = scipy.optimize.minimize(
        lambda p: np.sum((p.reshape(5, 4) - np.asarray(target, np.float64)) ** 2),
        np.outer(a, b).ravel(), bounds=[(0, None)] * 20, method="SLSQP",
        constraints=[{"type": "eq", "fun": lambda p: np.r_[
            p.reshape(5, 4).sum(1) - np.asarray(a, np.float64),
            p.reshape(5, 4).sum(0) - np.asarray(b, np.float64)][:-1]}])
    assert objective(out.average) < best.fun + 1e-3
    with pytest.raises(ValueError, match="positive"):
        mirror_sinkhorn(target, a.at[0].set(0.0), b, bound=1.0, max_steps=3)


# Sparse transport -----------------------------------------------------------------------------

def test_sparse_simplex_projection_is_the_best_support():
    rng = np.random.default_rng(0)
    for k in (1, 2, 4, 6):
        x = rng.normal(size=6)
        best = np.inf
        for support in itertools.combinations(range(6), k):
            p = np.zeros(6)
            u = np.sort(x[list(support)])[::-1]
            count = np.flatnonzero(u > (np.cumsum(u) - 1) / np.arange(1, k + 1))[-1] + 1
            p[list(support)] = np.maximum(x[list(support)] - (u[:count].sum() - 1) / count, 0)
            best = min(best, np.sum((p - x) ** 2))
        ours = np.asarray(projection_sparse_simplex(jnp.asarray(x, jnp.float32), k))
        np.testing.assert_allclose(np.sum((ours - x) ** 2), best, rtol=1e-5)
        assert np.count_nonzero(ours) <= k and abs(ours.sum() - 1) < 1e-6
    with pytest.raises(ValueError, match="between 1"):
        projection_sparse_simplex(jnp.ones(3), 4)


def test_quadratic_transport_against_a_quadratic_program(x64):
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(6, 5))
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(5))
    gamma = 0.5
    exact = scipy.optimize.minimize(
        lambda p: p @ cost.ravel() + gamma / 2 * p @ p, np.outer(a, b).ravel(),
        jac=lambda p: cost.ravel() + gamma * p, bounds=[(0, None)] * 30, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
        constraints=[{"type": "eq", "fun": lambda p: np.r_[
            p.reshape(6, 5).sum(1) - a, p.reshape(6, 5).sum(0) - b][:-1]}])
    stop = ji.tolerance(rtol=0, atol=1e-9)

    def solve(cost, k=None):
        return sparse_transport(cost, a, b, gamma=gamma, k=k, stop=stop)

    solved = jax.jit(solve)
    out = solved(cost)
    np.testing.assert_allclose(out.dual_value, exact.fun, rtol=1e-6)
    np.testing.assert_allclose(out.plan, exact.x.reshape(6, 5), atol=1e-4)
    assert out.row_violation < 1e-8
    w = rng.normal(size=cost.shape)
    direction = rng.normal(size=cost.shape)
    h = 1e-6
    ahead, behind = solved(cost + h * direction), solved(cost - h * direction)
    for loss in (lambda out: jnp.sum(w * out.plan), lambda out: out.dual_value):
        finite = (loss(ahead) - loss(behind)) / (2 * h)
        gradient = jax.jit(jax.grad(lambda c, loss=loss: loss(solve(c))))(jnp.asarray(cost))
        np.testing.assert_allclose(np.sum(gradient * direction), finite, rtol=1e-4)
    sparse, wider = (jax.jit(lambda c, k=k: solve(c, k))(cost) for k in (2, 3))
    assert sparse.dual_value >= wider.dual_value >= out.dual_value - 1e-9
    assert np.all(np.count_nonzero(sparse.plan, axis=0) <= 2)
    np.testing.assert_allclose(sparse.plan.sum(0), b, atol=1e-12)
    np.testing.assert_allclose(sparse.rounded(jnp.asarray(a), jnp.asarray(b)).sum(1), a, atol=1e-12)
    with pytest.raises(ValueError, match=r"k\*m < n"):
        sparse_transport(jnp.ones((6, 2)), gamma=1.0, k=2)


# Permutations ---------------------------------------------------------------------------------

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


# Labels ---------------------------------------------------------------------------------------

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
        exact = jax.grad(functools.partial(
            loss, adjoint=ji.unrolled(), max_steps=2000))(scores.astype(jnp.float64))
    np.testing.assert_allclose(slope, exact, atol=1e-3)


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


# Weight matching ------------------------------------------------------------------------------

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
