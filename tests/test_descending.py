"""Optimizers as solvers: the points of a loop by hand, statuses, derivatives, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.stop import never

rng = np.random.default_rng(0)
BASIS = np.linalg.qr(rng.normal(size=(5, 5)))[0]
CURVED = (BASIS * np.linspace(0.5, 2.0, 5)) @ BASIS.T
A, C = jnp.asarray(CURVED, jnp.float32), jnp.asarray(rng.normal(size=5), jnp.float32)
FALLING = optax.exponential_decay(0.3, 20, 0.5)


def slope(x, c):
    """The gradient of x A x / 2 - c x."""
    return A @ x - c


def by_hand(optimizer, count, c=C):
    """The points of the usual training loop, x0 included."""
    x, points = jnp.zeros(5), []
    state = optimizer.init(x)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(count):
            points.append(x)
            updates, state = optimizer.update(slope(x, c), state, x)
            x = optax.apply_updates(x, updates)
    return np.array(points)


@pytest.mark.parametrize("optimizer", [
    optax.sgd(0.3, momentum=0.7), optax.adam(FALLING), optax.adamw(0.05, weight_decay=0.1)],
    ids=["momentum", "adam", "adamw"])
@pytest.mark.parametrize("front", ["root", "fixed_point"])
def test_the_points_are_those_of_a_training_loop(optimizer, front):
    """As a zero of the gradient, and as a fixed point of a gradient step of rate 1."""
    def solve(c):
        options = {"solver": ji.descending(optimizer), "stop": never(), "max_steps": 12,
                   "monitor": ji.record(12, value=True)}
        if front == "root":
            return ji.root(slope, jnp.zeros(5), c, **options)
        return ji.fixed_point(lambda x, c: x - slope(x, c), jnp.zeros(5), c, **options)

    points = jax.jit(solve)(C).trace["value"]
    np.testing.assert_allclose(points, by_hand(optimizer, 12), rtol=1e-4, atol=1e-5)


def test_status_and_sign():
    """With the sign of training it converges; without it runs uphill, and never says CONVERGED."""
    optimizer = optax.sgd(0.4, momentum=0.3)
    exact = np.linalg.solve(CURVED, np.asarray(C, float))
    down = jax.jit(lambda c: ji.root(slope, jnp.zeros(5), c, solver=ji.descending(optimizer)))(C)
    assert down.converged and "CONVERGED" in down.message()
    np.testing.assert_allclose(down.value, exact, rtol=1e-3, atol=1e-4)
    up = jax.jit(lambda c: ji.root(slope, jnp.zeros(5), c, solver=optimizer))(C)
    assert up.status in (Status.DIVERGED, Status.NONFINITE)
    broken = ji.root(slope, jnp.zeros(5), C.at[0].set(jnp.nan), solver=ji.descending(optimizer))
    assert broken.status in (Status.NONFINITE, Status.BAD_INPUT)
    constant = ji.root(slope, jnp.zeros(5), C, solver=ji.descending(optax.adam(0.1)), max_steps=3)
    assert constant.status == Status.MAX_STEPS


def test_vmap_and_implicit_gradients():
    """A batch is the loop over it; the derivative is that of the minimiser, not of the loop."""
    solver = ji.descending(optax.sgd(0.4, momentum=0.3))

    def best(c):
        return ji.root(slope, jnp.zeros(5), c, solver=solver,
                       stop=ji.tolerance(rtol=0, atol=1e-6)).value

    batch = jnp.stack([C, -C, 2 * C])
    many = jax.jit(jax.vmap(best))(batch)
    np.testing.assert_allclose(many, np.linalg.solve(CURVED, np.asarray(batch, float).T).T,
                               rtol=1e-4, atol=1e-4)
    for k in range(3):
        np.testing.assert_allclose(many[k], jax.jit(best)(batch[k]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(best))(C), np.linalg.inv(CURVED), rtol=1e-3,
                               atol=1e-4)


def test_wrappers_take_it_and_resume_is_bitwise():
    """Inside a guard and a chain; in parts; as the value of its call."""
    optimizer = optax.adam(FALLING)
    solver = ji.descending(optimizer)
    assert solver == ji.descending(optimizer) != ji.descending(optax.sgd(0.1))

    def solve(steps, resume=None):
        return ji.root(slope, jnp.zeros(5), C, solver=solver, max_steps=steps, resume=resume)

    whole, parts = solve(30), solve(30, solve(11).state)
    np.testing.assert_array_equal(whole.value, parts.value)
    guarded = ji.guard(optax.chain(optax.clip_by_global_norm(1.0), ji.descending(optax.sgd(0.4))))
    assert ji.root(slope, jnp.zeros(5), C, solver=guarded).converged


def test_half_precision_and_bad_input():
    """Increments have the dtype of x, whatever the optimizer computes in."""
    x0 = jnp.ones(3, jnp.bfloat16)
    out = ji.root(lambda x: x - 2, x0, solver=ji.descending(optax.adam(0.1)), max_steps=5)
    assert out.value.dtype == jnp.bfloat16 and float(out.value[0]) > 1.2
    with pytest.raises(TypeError, match="must be an optax transformation"):
        ji.descending(0.1)
