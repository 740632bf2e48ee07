"""Simplices of a tree: the last axis of every leaf is one mixed strategy."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.operators.projections import projection_simplex

PyTree = Any


def project(tree: PyTree) -> PyTree:
    """Every leaf `[..., n]` with each of its rows projected onto the unit simplex."""
    return jax.tree.map(projection_simplex, tree)


def log(tree: PyTree) -> PyTree:
    """Logits of positive strategies."""
    return jax.tree.map(jnp.log, tree)


def normalised(tree: PyTree) -> PyTree:
    """Logits whose exponentials sum to 1 in each row."""
    return jax.tree.map(jax.nn.log_softmax, tree)


def softmax(tree: PyTree) -> PyTree:
    """The strategies of logits."""
    return jax.tree.map(jax.nn.softmax, tree)
