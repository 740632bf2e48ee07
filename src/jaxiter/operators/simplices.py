"""Simplices of a tree: the last axis of every leaf is one mixed strategy."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.numerics import stop_gradient

PyTree = Any


def project(tree: PyTree) -> PyTree:
    """Every leaf `[..., n]` with each of its rows projected onto the unit simplex."""
    return jax.tree.map(_project, tree)


def _project(v: jax.Array) -> jax.Array:
    # Near zero the running sums keep their digits.
    v = v - stop_gradient(jnp.max(v, -1, keepdims=True))
    falling = -jnp.sort(-stop_gradient(v), -1)
    places = jnp.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    levels = (jnp.cumsum(falling, -1) - 1) / places
    level = jnp.max(levels, -1, keepdims=True)  # the last one below its entry is the largest
    inside = stop_gradient(v) > level
    count = jnp.sum(inside, -1, keepdims=True, dtype=v.dtype)
    # Once more from its support, which alone is differentiated.
    level = (jnp.sum(jnp.where(inside, v, 0), -1, keepdims=True) - 1) / count
    return jnp.where(v <= level, 0, v - level)


def log(tree: PyTree) -> PyTree:
    """Logits of positive strategies."""
    return jax.tree.map(jnp.log, tree)


def normalised(tree: PyTree) -> PyTree:
    """Logits whose exponentials sum to 1 in each row."""
    return jax.tree.map(jax.nn.log_softmax, tree)


def softmax(tree: PyTree) -> PyTree:
    """The strategies of logits."""
    return jax.tree.map(jax.nn.softmax, tree)
