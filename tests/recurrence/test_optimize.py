"""Parallel optimiser trajectories against optax's own loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.recurrence import adaptive, parallel_optimize

STEPS = 60


@pytest.fixture(scope="module")
def digits_problem():
    """A 64-16-10 network on digits; the batch of a step is a function of the step."""
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    features = jnp.asarray(features / 16, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(64, 16)) / 8, jnp.float32),
              "v": jnp.asarray(rng.normal(size=(16, 10)) / 4, jnp.float32)}

    def loss(params, t):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(0), t), (32,), 0, 1797)
        logits = jax.nn.relu(features[rows] @ params["w"]) @ params["v"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    return jax.grad(loss), params


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes int and float
        yield


def loop(optimizer, grad_fn, params, steps=STEPS):
    def step(carry, t):
        params, state = carry
        updates, state = optimizer.update(grad_fn(params, t), state, params)
        return (optax.apply_updates(params, updates), state), None
    start = (params, optimizer.init(params))
    return jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps))[0])(start)


@pytest.mark.parametrize("optimizer, window", [
    (optax.adam(1e-3), 7), (optax.sgd(0.1, momentum=0.9), 20), (optax.adam(1e-3), 1)])
def test_zero_tolerance_is_the_loop(optimizer, window, digits_problem):
    grad_fn, params = digits_problem
    run = jax.jit(lambda p: parallel_optimize(
        optimizer, grad_fn, p, steps=STEPS, window=window, tolerance=0.0))(params)
    exact, state = loop(optimizer, grad_fn, params)
    assert run.converged and int(run.rounds) <= STEPS and float(run.solve.merit) == 0
    for ours, theirs in zip(jax.tree.leaves((run.params, run.opt_state)),
                            jax.tree.leaves((exact, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # adam's count too
    if window == 1:
        assert int(run.rounds) == STEPS == int(run.solve.calls["gradients"])


def test_few_rounds_with_adam(digits_problem):
    grad_fn, params = digits_problem
    optimizer = optax.adam(1e-3)
    run = jax.jit(lambda p: parallel_optimize(optimizer, grad_fn, p, steps=STEPS))(params)
    assert run.converged and int(run.rounds) <= STEPS / 4
    exact = loop(optimizer, grad_fn, params)[0]
    for ours, theirs, start in zip(
            *map(jax.tree.leaves, (run.params, exact, params)), strict=True):
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs - start)


def test_adaptation_stays_under_its_cap(digits_problem):
    """Without a cap the tolerance follows the changes it permits, and runs away."""
    grad_fn, params = digits_problem
    run = jax.jit(lambda p: parallel_optimize(
        optax.sgd(2.0), grad_fn, p, steps=STEPS, window=20,
        tolerance=adaptive(1e-3, rate=0.5, largest=2e-3)))(params)
    assert float(run.solve.state.memory.own.allowed) <= 4.01e-6
    assert run.converged


def test_statuses_and_bad_input():
    quadratic = jax.grad(lambda p, t: jnp.sum(p**2))
    sgd, p = optax.sgd(0.1), jnp.ones(2)
    short = jax.jit(lambda p: parallel_optimize(
        sgd, quadratic, p, steps=20, window=4, tolerance=0.0, max_steps=2))(p)
    assert short.solve.status == Status.MAX_STEPS and not short.converged
    assert 0 < float(short.solve.merit) <= 18
    wild = jax.jit(lambda p: parallel_optimize(optax.sgd(1e30), quadratic, p, steps=20))(p)
    assert wild.status == Status.NONFINITE and np.isinf(wild.solve.residual)
    assert np.all(np.isfinite(wild.params))
    for keywords, text in [({"steps": 0}, "at least 1"), ({"steps": 3, "window": 0}, "at least 1"),
                           ({"steps": 3, "tolerance": -1.0}, "must not be negative"),
                           ({"steps": 3, "tolerance": adaptive(-1.0)}, "must not be negative"),
                           ({"steps": 3, "adjoint": ji.implicit()}, "no adjoint but"),
                           ({"steps": 3, "solver": ji.anderson()}, "takes no solver")]:
        with pytest.raises(ValueError, match=text):
            parallel_optimize(sgd, quadratic, p, **keywords)
    with pytest.raises(ValueError, match="rate"):
        adaptive(rate=1.0)
    with pytest.raises(TypeError, match="gradient"):
        parallel_optimize(sgd, lambda p, t: p[:1], p, steps=3)


def test_the_residual_is_how_far_gradients_were_from_the_path():
    """Noisy gradients of a bowl, against the loop in numpy."""
    slopes = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32)

    def run(tolerance, slopes, max_steps=30):
        return parallel_optimize(optax.sgd(0.1), lambda p, t: slopes[t] + 0.5 * p, jnp.ones(3),
                                 steps=30, window=6, tolerance=adaptive(tolerance),
                                 max_steps=max_steps)

    solve = jax.jit(run)
    p, path = np.ones(3), []
    for slope in np.asarray(slopes, np.float64):
        p = p - 0.1 * (slope + 0.5 * p)
        path.append(p)
    exact, loose, early = solve(0.0, slopes), solve(1e-2, slopes), solve(1e-2, slopes, 2)
    assert exact.converged and exact.solve.residual < 1e-7
    np.testing.assert_allclose(exact.params, path[-1], rtol=1e-5)
    # Each gradient was taken within the residual, at most ten times the tolerance, of its place.
    assert loose.converged and 0 < loose.solve.residual <= 0.1
    assert np.linalg.norm(loose.params - path[-1]) <= 30 * 0.05 * 3**0.5 * loose.solve.residual
    assert early.status == Status.MAX_STEPS and np.isinf(early.solve.residual)
    # NaN in one step's batch: the parameters before that step, and how many steps are missing.
    broken = solve(1e-2, slopes.at[11].set(jnp.nan))
    assert broken.status == Status.NONFINITE and int(broken.solve.merit) == 30 - 11
    np.testing.assert_allclose(broken.params, path[10], atol=2e-2)
