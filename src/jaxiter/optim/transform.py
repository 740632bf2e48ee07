"""What all transformations here share: named errors, and integer leaves that pass untouched."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def transformation(
    name: str, init: Callable, update: Callable, needs: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from `init(params)` and `update(updates, state, params, **extra)`.

    Both see floating-point leaves only; others (integers, None) go through unchanged.

    Args:
      name: for errors. needs: which of "params" and of the extra arguments must be given.
    """
    def start(params: PyTree) -> PyTree:
        chosen = _floats(params, params)
        return init(chosen) if jax.tree.leaves(chosen) else optax.EmptyState()

    def step(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        for need in needs:
            if (params if need == "params" else extra.get(need)) is None:
                what = {"params": "the parameters", "value": "the current loss"}.get(need, need)
                raise ValueError(f"{name} needs {what}: call update(grads, state, params, "
                                 f"{need}={need}).")
        chosen = _floats(updates, updates)
        if not jax.tree.leaves(chosen):
            return updates, state
        at = None if params is None else _floats(params, updates)
        new, state = update(chosen, state, at, **extra)
        merged = jax.tree.map(lambda old, new: old if new is None else new, updates, new,
                              is_leaf=lambda leaf: leaf is None)
        return merged, state

    return optax.GradientTransformationExtraArgs(start, step)


def _floats(tree: PyTree, like: PyTree) -> PyTree:
    """The tree with None in place of leaves where `like` is not floating point."""
    return jax.tree.map(
        lambda leaf, other: leaf if jnp.issubdtype(jnp.asarray(other).dtype, jnp.inexact) else None,
        tree, like)


def next_count(count: jax.Array) -> jax.Array:
    """count + 1, without overflow."""
    return jnp.asarray(optax.safe_increment(count))


def rate_at(learning_rate: Any, count: jax.Array) -> Any:
    """A learning rate, or a schedule's value."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def evaluation_params(state: Any, params: PyTree) -> PyTree:
    """The parameters to evaluate a model at: an average, for methods whose params are a probe.

    Args:
      state: of an optimiser with exactly one two-point method in it, however wrapped: a field
        `average` marks it. params: what training holds.

    Returns:
      The averaged parameters, in the structure and dtypes of params.

    Raises:
      ValueError: no such method, or more than one.

    >>> import jax.numpy as jnp
    >>> from jaxiter.optim import a_dog
    >>> params = jnp.ones(2)
    >>> evaluation_params(a_dog().init(params), params).tolist()
    [1.0, 1.0]
    """
    found = []

    def visit(node: Any) -> bool:
        if hasattr(node, "average"):
            found.append(node.average)
            return True
        return False

    jax.tree.leaves(state, is_leaf=visit)
    if len(found) != 1:
        raise ValueError(f"the state holds {len(found)} averages; evaluation_params needs one "
                         "two-point method such as a_dog or u_dog.")
    # Leaves that the method does not see have nothing in the average.
    return jax.tree.map(lambda leaf, mean: mean.astype(leaf.dtype) if jax.tree.leaves(mean)
                        else leaf, jax.tree.map(jnp.asarray, params), found[0])
