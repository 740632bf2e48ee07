"""Problems and checks that the tests of bilevel methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.bilevel import run
from jaxiter.testing.bilevel import quadratic, regularisation, ridge

B1, B2, B3 = quadratic(), ridge(), regularisation()
RATES = {"inner_optimizer": optax.sgd(0.3), "outer_optimizer": optax.sgd(0.05)}


def plain(function):
    """An objective without data, as stochastic methods call it."""
    return lambda x, y, batch: function(x, y)


START = jnp.asarray(B1.x, jnp.float32), jnp.zeros(10)
OUTER, INNER = plain(B1.outer), plain(B1.inner)


def error(ours, exact):
    return float(np.linalg.norm(np.asarray(ours) - exact) / np.linalg.norm(exact))


def closed_form(method, steps, accuracy, calls=None, rows=None):
    """B1 without noise: x nears the optimum of the closed form, by as many calls as published."""
    out = jax.jit(lambda key: run(method, *START, rows, rows, key=key, max_steps=steps))(
        jax.random.key(0))
    far = np.linalg.norm(out.state.x - B1.optimum)
    assert far < accuracy, far
    if calls is not None:
        spent = [int(out.solve.calls[name]) for name in ("inner", "outer", "products")]
        assert spent == [steps * c for c in calls]


def distances(method, steps, every):
    """The run, and |x - optimum| after every so many steps from B1's start."""
    best = jnp.asarray(B1.optimum, jnp.float32)
    out = jax.jit(lambda key: run(
        method, *START, key=key, max_steps=steps, check_every=every,
        trace=lambda s: jnp.linalg.norm(s.x - best)))(jax.random.key(0))
    return out, out.trace


def selection(method, per_step, published):
    """B3, 400,000 calls in batches of 32: the squared hypergradient, by Newton in numpy."""
    steps = 400_000 // (32 * per_step)
    out = jax.jit(lambda key: run(
        method, jnp.full(30, -2.0), jnp.zeros(30), B3.train, B3.validation, max_steps=steps,
        batch_size=32, key=key))(jax.random.key(0))
    assert sum(int(c) for c in out.solve.calls.values()) * 32 <= 400_000
    _, slope = B3.solve(out.state.x)
    assert np.sum(slope**2) < 2 * published, np.sum(slope**2)
