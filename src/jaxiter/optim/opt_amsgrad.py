"""OPT-AMSGrad: AMSGrad that steps ahead by a prediction of the next gradient.

Source: Wang, Li, Karimi and Li, "An optimistic acceleration of AMSGrad for nonconvex
optimization", 2021. Which first moment enters the look-ahead is reconstructed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import columns, trees
from jaxiter.known import check_fraction, check_positive
from jaxiter.linear.factor import solve
from jaxiter.numerics import machine_epsilon, real_dtype, safe_divide
from jaxiter.optim.transform import (
    check_sizes,
    moving_average,
    next_count,
    rate_at,
    scalars,
    transformation,
)

PyTree = Any


class OptAmsgradState(NamedTuple):
    """ahead: last look-ahead, what params are beyond the base point. history: last gradients."""

    count: jax.Array
    ahead: PyTree
    first: PyTree
    second: PyTree
    largest: PyTree
    prediction: PyTree
    history: PyTree


def opt_amsgrad(
    learning_rate: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
    predictor: str | Callable = "last", history: int = 5,
) -> optax.GradientTransformationExtraArgs:
    """Second moments of the prediction error; for games and gradients that can be predicted.

    No bias correction: the first steps are large, warm the rate up.

    Args:
      predictor: "last", the gradient itself; "rmpe", regularised minimal polynomial extrapolation
        of the last `history` differences, which estimates the limit of the gradients; or
        `predictor(gradients [r+1, ...], count) -> gradient`, the newest last.

    Raises:
      ValueError: an unknown predictor, history < 1, b1 or b2 outside [0, 1).

    >>> import jax.numpy as jnp
    >>> optimizer = opt_amsgrad(0.1)
    >>> params = jnp.ones(1)
    >>> update, _ = optimizer.update(params, optimizer.init(params), params)
    >>> round(float(update[0]), 4)
    -0.9171
    """
    if not callable(predictor) and predictor not in ("last", "rmpe"):
        raise ValueError(f"predictor must be 'last', 'rmpe' or a function, got {predictor!r}.")
    if predictor != "last" or isinstance(history, int):
        check_sizes("opt_amsgrad", history=history)
    check_fraction(b1=b1, b2=b2)
    check_positive(eps=eps)

    def init(params: PyTree) -> OptAmsgradState:
        zero = trees.zeros_like(params)
        square = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, real_dtype(leaf.dtype)), params)
        return OptAmsgradState(jnp.int32(0), zero, zero, square, square, zero,
                               None if predictor == "last" else columns.empty(params, history + 1))

    def predict(rows: PyTree, count: jax.Array, g: PyTree) -> PyTree:
        if predictor == "last":
            return g
        if predictor == "rmpe":
            return _extrapolate(rows, count, g)
        stacked = jax.tree.map(lambda rows, leaf: rows.reshape(rows.shape[0], *leaf.shape), rows, g)
        return predictor(stacked, count)  # pyright: ignore[reportCallIssue]

    def update(
        g: PyTree, state: OptAmsgradState, params: PyTree, **_: Any
    ) -> tuple[PyTree, OptAmsgradState]:
        rate, share, floor = scalars(g, rate_at(learning_rate, state.count), b1, eps)
        first = moving_average(share, state.first, g)
        missed = jax.tree.map(_square, trees.subtract(g, state.prediction))
        second = moving_average(b2, state.second, missed)
        largest = jax.tree.map(jnp.maximum, state.largest, second)
        gradients = None if predictor == "last" else columns.push(state.history, g)
        prediction = predict(gradients, state.count, g)

        def inverse(most: jax.Array, like: jax.Array) -> jax.Array:
            return (rate.astype(most.dtype) / (jnp.sqrt(most) + floor.astype(most.dtype))).astype(
                like.dtype)

        # One division per entry serves the base point and the look-ahead.
        scale = jax.tree.map(inverse, largest, g)
        ahead = jax.tree.map(lambda s, m: -s * m, scale, moving_average(share, first, prediction))
        updates = jax.tree.map(lambda s, m, new, old: new - s * m - old, scale, first, ahead,
                               state.ahead)
        return updates, OptAmsgradState(next_count(state.count), ahead, first, second,
                                        largest, prediction, gradients)

    return transformation("opt_amsgrad", init, update)


def _square(x: jax.Array) -> jax.Array:
    """The squared magnitude, real."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _extrapolate(rows: PyTree, count: jax.Array, g: PyTree) -> PyTree:
    """RMPE: real weights that make the differences cancel, applied to the gradients themselves."""
    size = jax.tree.leaves(rows)[0].shape[0] - 1
    unit = trees.magnitude(rows)  # squares of large gradients would overflow
    kind = unit.dtype
    scaled = trees.scale(1 / unit, rows)
    steps = jax.tree.map(lambda leaf: leaf[1:] - leaf[:-1], scaled)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], steps) for i in range(size)]
    gram = columns.dot(steps, *each).real
    # Rows from before the start are empty.
    known = jnp.arange(size, dtype=jnp.int32) >= size - count
    gram = jnp.where(known[:, None] & known, gram, 0)
    gram = safe_divide(gram, jnp.linalg.norm(gram, 2))
    ridge = 1e-8 if machine_epsilon(g) < 1e-12 else 1e-5
    system = gram + jnp.diag(jnp.where(known, ridge, 1.0).astype(kind))
    weights = jnp.where(known, solve(system, known.astype(kind)[:, None])[:, 0], 0)
    weights = safe_divide(weights, jnp.sum(weights))
    newest = jax.tree.map(lambda leaf: leaf[1:], rows)
    return trees.where(count > 0, columns.combine(weights, newest, g), g)
