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
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class SurrogateState(NamedTuple):
    """Parameters w, and the inner optimizer's state."""

    w: PyTree
    optimizer: PyTree


def target_surrogate(
    model: Callable, loss: Callable, *, rate: Any, optimizer: optax.GradientTransformation,
    inner_steps: int = 10,
) -> Process:
    """A `Process` from w0 with `Batches` of (inputs, labels), one dear gradient per step.

    Args:
      model: `(w, inputs) -> targets [n, ...]`. loss: `(target, label) -> scalar` of one row.
      rate: 1 / curvature of loss in its target: 1 for squared loss, 4 for logistic, 2 for softmax
        cross-entropy.
      optimizer: of the inner steps. Plain descent with one inner step is gradient descent with
        that rate.

    Raises:
      ValueError: rate or inner_steps not positive, a loss that is not scalar per row.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter import Batches, iterate
    >>> process = target_surrogate(lambda w, x: x * w, lambda z, label: (z - label) ** 2 / 2,
    ...                            rate=1.0, optimizer=optax.sgd(0.1))
    >>> x = jnp.array([1.0, 2.0])
    >>> out = iterate(process, 0.0, Batches((x, 3 * x)), key=jax.random.key(0), max_steps=20)
    >>> round(float(out.value.w), 3), int(out.calls["gradients"])
    (3.0, 20)
    """
    check_positive(rate=rate, inner_steps=inner_steps)

    def init(w: PyTree, data: Batches) -> SurrogateState:
        return SurrogateState(w, optimizer.init(w))

    def step(state: SurrogateState, key: jax.Array, data: Batches) -> SurrogateState:
        w, inner = state
        inputs, labels = data.draw(key)
        start = model(w, inputs)
        shape = jax.eval_shape(jax.vmap(loss), start, labels).shape
        if shape != start.shape[:1]:
            raise ValueError(f"loss must return a scalar for every row, got shape {shape[1:]}.")
        slope = jax.vmap(jax.grad(loss))(start, labels)

        def surrogate(w: PyTree) -> jax.Array:
            away = model(w, inputs) - start
            return jnp.sum(slope * away + jnp.square(away) / (2 * rate)) / start.shape[0]

        def descend(carry: tuple, _: None) -> tuple[tuple, None]:
            w, inner = carry
            return move(optimizer, jax.grad(surrogate)(w), inner, w), None

        (w, inner), _ = lax.scan(descend, (w, inner), None, length=inner_steps)
        return SurrogateState(w, inner)

    return Process(init, step, calls={"gradients": 1})
