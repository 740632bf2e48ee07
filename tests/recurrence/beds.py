"""Chains that the tests of recurrences share."""

import jax.numpy as jnp
import numpy as np

COUNT, SIZE = 48, 5


def chain(dtype=np.float32, seed=0, scale=0.8):
    """A forgetful network: weights, drivers, first state."""
    rng = np.random.default_rng(seed)
    w = scale * rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    return tuple(jnp.asarray(x, dtype) for x in (
        w, rng.normal(size=(COUNT, SIZE)), rng.normal(size=SIZE)))


def cell(w):
    return lambda s, x: jnp.tanh(w @ s + x)


def loop(w, xs, s):
    """The oracle: no jax."""
    rows = []
    for x in np.asarray(xs, np.float64):
        s = np.tanh(np.asarray(w, np.float64) @ np.asarray(s, np.float64) + x)
        rows.append(s)
    return np.stack(rows)
