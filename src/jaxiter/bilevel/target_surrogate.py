"""Target-space surrogates (SSO): many cheap steps of the model per dear gradient of the loss.

The loss is dear in its targets z (a simulator, an expert), the model z = model(w) is cheap.
At w_t the surrogate `mean_i <G_i, z_i(w)> + |z_i(w) - z_i(w_t)|^2 / (2 rate)`, G the loss's
gradient by each row's target, bounds the loss from above when `1 / rate` bounds its curvature in
z; any number of inner steps on it needs no new G.

Source: Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, "Target-based surrogates for
stochastic optimization", 2023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter.bilevel.methods import move
from jaxiter.numerics import check_positive

PyTree = Any


class SurrogateState(NamedTuple):
    """Parameters, the inner optimiser's state, and dear gradients so far."""

    w: PyTree
    optimiser: PyTree
    gradients: jax.Array


def target_surrogate(
    model: Callable, loss: Callable, *, rate: Any, optimizer: optax.GradientTransformation,
    inner_steps: int = 10,
) -> tuple[Callable, Callable]:
    """`init(w)` and `step(state, inputs, labels)`, which takes one dear gradient.

    Args:
      model: `(w, inputs) -> targets [n, ...]`. loss: `(target, label) -> scalar` of one row.
      rate: 1 / curvature of loss in its target: 1 for squared loss, 4 for logistic, 2 for softmax
        cross-entropy.
      optimizer: of the inner steps. Plain descent with one inner step is gradient descent with
        that rate.

    Raises:
      ValueError: rate or inner_steps not positive, a loss that is not scalar per row.

    >>> import jax.numpy as jnp, optax
    >>> init, step = target_surrogate(lambda w, x: x * w, lambda z, label: (z - label) ** 2 / 2,
    ...                               rate=1.0, optimizer=optax.sgd(0.1))
    >>> x = jnp.array([1.0, 2.0])
    >>> state = init(jnp.float32(0))
    >>> for _ in range(20):
    ...     state = step(state, x, 3 * x)
    >>> round(float(state.w), 3)
    3.0
    """
    check_positive(rate=rate, inner_steps=inner_steps)

    def init(w: PyTree) -> SurrogateState:
        return SurrogateState(w, optimizer.init(w), jnp.int32(0))

    def step(state: SurrogateState, inputs: PyTree, labels: PyTree) -> SurrogateState:
        w, optimiser, count = state
        start = model(w, inputs)
        shape = jax.eval_shape(jax.vmap(loss), start, labels).shape
        if shape != start.shape[:1]:
            raise ValueError(f"loss must return a scalar for every row, got shape {shape[1:]}.")
        slope = jax.vmap(jax.grad(loss))(start, labels)

        def surrogate(w: PyTree) -> jax.Array:
            away = model(w, inputs) - start
            return jnp.sum(slope * away + jnp.square(away) / (2 * rate)) / start.shape[0]

        def descend(carry: tuple, _: None) -> tuple[tuple, None]:
            w, optimiser = carry
            return move(optimizer, jax.grad(surrogate)(w), optimiser, w), None

        (w, optimiser), _ = lax.scan(descend, (w, optimiser), None, length=inner_steps)
        return SurrogateState(w, optimiser, count + 1)

    return init, step
