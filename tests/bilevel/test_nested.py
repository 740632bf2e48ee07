"""Nested problems beyond the classical form: meta-learning, distillation, proxies, responses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from jaxiter.bilevel import (
    distillation_loss,
    implicit_maml,
    persistent_es,
    proxy_prox,
    ridge_predictor,
    run,
    self_tuning,
    target_surrogate,
)
from jaxiter.optim import trace_complex
from jaxiter.testing.bilevel import quadratic


def regression_tasks(tasks=8, d=8, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=d)
    w = mean + 0.3 * rng.normal(size=(tasks, d))
    a, c = rng.normal(size=(2, tasks, 20, d))
    return mean, tuple(jnp.asarray(part, jnp.float32) for part in (
        a, np.einsum("tnd,td->tn", a, w), c, np.einsum("tnd,td->tn", c, w)))


def train(phi, task):
    return jnp.mean(jnp.square(task[0] @ phi - task[1])) / 2


def validation(phi, task):
    return jnp.mean(jnp.square(task[2] @ phi - task[3])) / 2


def test_implicit_maml_is_the_derivative_of_the_closed_form():
    _, tasks = regression_tasks()

    def objective(theta):
        """Post-adaptation loss, every adaptation by one linear solve in numpy."""
        total = 0.0
        for a, b, c, d in zip(*(np.asarray(t, float) for t in tasks), strict=True):
            phi = np.linalg.solve(a.T @ a / len(b) + np.eye(8), a.T @ b / len(b) + theta)
            total += np.mean((c @ phi - d) ** 2) / 2 / len(tasks[0])
        return total

    theta = np.linspace(-1, 1, 8)
    out = jax.jit(lambda t: implicit_maml(train, validation, t, tasks))(
        jnp.asarray(theta, jnp.float32))
    numeric = [(objective(theta + 1e-5 * e) - objective(theta - 1e-5 * e)) / 2e-5
               for e in np.eye(8)]
    np.testing.assert_allclose(out.grad, numeric, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.value, objective(theta), rtol=1e-4)
    assert np.all(np.asarray(out.status) <= 1)
    with pytest.raises(ValueError, match="strength must be positive"):
        implicit_maml(train, validation, jnp.zeros(8), tasks, strength=0.0)


@pytest.mark.slow
def test_implicit_maml_learns_the_task_mean():
    """Published: 300 steps of 8 tasks bring the adapted loss near that of the true mean."""
    mean, tasks = regression_tasks()

    def step(theta, _):
        out = implicit_maml(train, validation, theta, tasks)
        return theta - 0.3 * out.grad, out.value

    theta, values = jax.jit(lambda t: jax.lax.scan(step, t, None, length=300))(jnp.zeros(8))
    best = implicit_maml(train, validation, jnp.asarray(mean, jnp.float32), tasks).value
    assert values[-1] < 1.02 * best < values[0] / 4, (values[0], values[-1], best)


@pytest.fixture(scope="module")
def digits():
    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return jnp.asarray(np.asarray(x)[order] / 16, jnp.float32), np.asarray(labels)[order]


def test_distilled_digits(digits):
    """Kernel ridge, one image per class: published 0.631 with real images, 0.961 distilled."""
    x, labels = digits
    targets = jnp.asarray(np.eye(10)[labels] - 0.1, jnp.float32)
    data, rest = slice(0, 1200), slice(1200, None)
    first = np.array([np.flatnonzero(labels[data] == c)[0] for c in range(10)])
    synthetic = jnp.asarray(np.eye(10) - 0.1, jnp.float32)

    def accuracy(points):
        scores = ridge_predictor(points, synthetic)(x[rest])
        return np.mean(np.argmax(np.asarray(scores), 1) == labels[rest])

    optimizer = optax.adam(1e-2)

    def step(carry, _):
        points, state = carry
        slope = jax.grad(distillation_loss)(points, synthetic, x[data], targets[data])
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(slope, state)
        return (points + updates, state), None

    (points, _), _ = jax.jit(lambda p: jax.lax.scan(
        step, (p, optimizer.init(p)), None, length=500))(x[first])
    assert accuracy(x[first]) < 0.75 and accuracy(points) > 0.93, (
        accuracy(x[first]), accuracy(points))
    with pytest.raises(ValueError, match="fewer than the 10 classes"):
        distillation_loss(points[:5], synthetic[:5], x[:10], targets[:10])


def test_proxy_saves_dear_gradients():
    """L / delta = 138, rate 1 / delta: F always falls, 80 times fewer dear gradients."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    a = (basis * np.logspace(-3, 0, 50)) @ basis.T
    noise = rng.normal(size=(50, 50))
    noise = (noise + noise.T) / 2
    noise *= 1 / 137.7 / np.linalg.norm(noise, 2)
    proxy_matrix = a + noise  # F - proxy has curvature in [-delta, delta]
    best = rng.normal(size=50)
    a, p, best = (jnp.asarray(part, jnp.float32) for part in (a, proxy_matrix, best))
    init, step = proxy_prox(lambda x, _: a @ (x - best),
                            lambda x: (x - best) @ (p @ (x - best)) / 2, rate=137.7)

    def objective(x):
        return (x - best) @ (a @ (x - best)) / 2

    def body(state, _):
        state = step(state)
        return state, (objective(state.x), jnp.linalg.norm(state.x - best))

    zero = jnp.zeros(50)
    state, (values, far) = jax.jit(lambda s: jax.lax.scan(body, s, None, length=80))(init(zero))
    start = float(objective(zero))
    assert np.all(np.diff(np.asarray(values)) <= 1e-6 * start)
    plain = jax.jit(lambda x: jax.lax.scan(
        lambda x, _: (x - a @ (x - best), jnp.linalg.norm(x - best)), x, None,
        length=8000)[1])(zero)
    target = 0.05 * float(jnp.linalg.norm(best))
    ours, theirs = (1 + int(np.argmax(np.asarray(v) < target)) for v in (far, plain))
    assert 1 < ours and theirs > 80 * ours, (ours, theirs)
    with pytest.raises(ValueError, match="rate must be positive"):
        proxy_prox(lambda x, _: x, jnp.sum, rate=0.0)


def test_target_surrogates_reuse_a_dear_gradient():
    """Logistic regression: published losses 0.1231, 0.0631 after 10, 100 gradients with 10 steps;
    one inner step is gradient descent: 0.1513, 0.0763.
    """
    x, labels = load_breast_cancer(return_X_y=True)
    x = (np.asarray(x) - np.asarray(x).mean(0)) / np.asarray(x).std(0)
    x = jnp.asarray(np.c_[x, np.ones(len(x))], jnp.float32)
    signs = jnp.asarray(2.0 * np.asarray(labels) - 1, jnp.float32)
    smoothness = float(np.linalg.eigvalsh(np.asarray(x.T @ x, float) / len(x))[-1])

    def loss(z, s):
        return jnp.logaddexp(0.0, -s * z)

    def full(w):
        return jnp.mean(loss(x @ w, signs))

    got = {}
    for m in (1, 10):
        init, step = target_surrogate(lambda w, x: x @ w, loss, rate=4.0, inner_steps=m,
                                      optimizer=optax.sgd(4 / smoothness))

        def body(state, _, step=step):
            state = step(state, x, signs)
            return state, full(state.w)

        got[m] = jax.jit(lambda s, body=body: jax.lax.scan(body, s, None, length=100)[1])(
            init(jnp.zeros(31)))
    plain = jnp.zeros(31)
    for _ in range(3):
        plain = plain - 4 / smoothness * jax.grad(full)(plain)
    np.testing.assert_allclose(got[1][2], full(plain), rtol=1e-5)
    np.testing.assert_allclose([got[1][9], got[1][99]], [0.1513, 0.0763], rtol=0.1)
    np.testing.assert_allclose([got[10][9], got[10][99]], [0.1231, 0.0631], rtol=0.1)
    assert np.all(np.diff(np.asarray(got[10])) <= 1e-7)
    with pytest.raises(ValueError, match="scalar for every row"):
        step(init(jnp.zeros(31)), x, jnp.ones((len(x), 2)))


def test_affine_response_is_exact_on_quadratics():
    """B1: the best response is affine, so phi finds it and x the optimum of the closed form."""
    problem = quadratic()
    phi = {"w": jnp.zeros((10, 5)), "b": jnp.zeros(10)}
    method = self_tuning(
        lambda x, y, _: problem.outer(x, y), lambda x, y, _: problem.inner(x, y),
        lambda phi, x: phi["w"] @ x + phi["b"], phi, width=0.5,
        inner_optimizer=optax.sgd(0.02), outer_optimizer=optax.sgd(0.02), inner_steps=5)
    state, _ = jax.jit(lambda key: run(
        method, method.init(jnp.asarray(problem.x, jnp.float32), None), None, None,
        num_steps=5000, key=key))(jax.random.key(0))
    np.testing.assert_allclose(state.x, problem.optimum, atol=0.02)
    np.testing.assert_allclose(state.y, problem.argmin(np.asarray(state.x)), atol=0.02)


def test_learnt_width_grows_where_noise_is_free():
    flat = self_tuning(lambda x, y, _: 0.0 * y, lambda x, y, _: (y - x) ** 2, lambda phi, x: phi,
                       jnp.float32(0), inner_optimizer=optax.sgd(0.1), entropy=0.1,
                       outer_optimizer=optax.sgd(0.1), width=0.1)
    state, _ = jax.jit(lambda key: run(flat, flat.init(jnp.float32(0), None), None, None,
                                       num_steps=100, key=key))(jax.random.key(0))
    np.testing.assert_allclose(state.log_width, np.log(0.1) + 100 * 0.1 * 0.1, rtol=1e-4)


def test_persistent_evolution_is_unbiased_where_truncated_is_not():
    """Log learning rate of 100 steps on a quadratic: exact -3.99, PES -3.96, truncated -2.05."""
    h = jnp.array([1.0, 0.1])

    def step(state, theta, t):
        state = state - jnp.exp(theta) * h * state
        return state, jnp.sum(h * state * state) / 2

    theta = jnp.log(jnp.float32(0.1))

    def total(theta):
        def body(state, t):
            return step(state, theta, t)
        return jnp.sum(jax.lax.scan(body, jnp.ones(2), jnp.arange(100))[1])

    exact = float(jax.grad(total)(theta))
    means = {}
    for persistent in (True, False):
        init, estimate = persistent_es(step, lambda key: jnp.ones(2), horizon=100, truncation=10,
                                       pairs=4000, width=0.1, persistent=persistent)

        def body(state, key, estimate=estimate):
            state, grad, _ = estimate(state, theta, key)
            return state, grad

        grads = jax.jit(lambda s, keys, body=body: jax.lax.scan(body, s, keys)[1])(
            init(theta, jax.random.key(0)), jax.random.split(jax.random.key(1), 50))
        means[persistent] = float(grads.reshape(5, 10).sum(1).mean())
    assert abs(means[True] / exact - 1) < 0.1 and means[False] / exact < 0.65, (exact, means)
    with pytest.raises(ValueError, match="multiple of truncation"):
        persistent_es(step, lambda key: jnp.ones(2), horizon=10, truncation=3)


@pytest.mark.parametrize("angle, rate, decay, radius", [
    (np.pi / 16, 0.03, 0.9, 0.9963), (np.pi / 8, 0.1, 0.8, 0.9774),
    (np.pi / 4, 0.3, 0.7, 0.9461), (0.0, 0.1, 0.8, None)])
def test_complex_momentum_on_a_bilinear_game(angle, rate, decay, radius):
    """min_x max_y x y: the contraction per step is the published spectral radius; real: > 1."""
    optimizer = optax.chain(trace_complex(decay, float(angle)), optax.scale(-rate))

    def step(carry, _):
        game, state = carry
        updates, state = optimizer.update(jnp.stack([game[1], -game[0]]), state)
        game = game + updates
        return (game, state), jnp.log(jnp.linalg.norm(game))

    start = jnp.ones(2)
    size = jax.jit(lambda g: jax.lax.scan(
        step, (g, optimizer.init(g)), None, length=800)[1])(start)
    got = float(np.exp((size[-1] - size[400]) / 399))
    if radius is None:
        assert size[200] > size[100] + 1
    else:
        np.testing.assert_allclose(got, radius, atol=1e-3)
    with pytest.raises(ValueError, match="decay must be in"):
        trace_complex(1.0)
