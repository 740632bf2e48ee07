"""Best responses by a hypernetwork: learn `y = response(phi, x)` near x, differentiate that.

Source: Lorraine and Duvenaud, "Stochastic hyperparameter optimization through hypernetworks",
2018; MacKay et al., "Self-tuning networks", 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.bilevel.methods import Optimizer, descend, move, oracle_calls
from jaxiter.estimators import Drawn
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class SelfTuningState(NamedTuple):
    """x, y = response(phi, x), phi, the log of the width of the noise around x, optimizers."""

    x: PyTree
    y: PyTree
    phi: PyTree
    log_width: PyTree
    optimizers: tuple


def self_tuning(
    outer: Callable, inner: Callable, response: Callable, phi: PyTree, *,
    inner_optimizer: Optimizer, outer_optimizer: Optimizer, width: float = 0.1,
    entropy: float | None = None, inner_steps: int = 2,
) -> Process:
    """Trains phi on inner objectives at noisy x, then x on the outer one through the response.

    Args:
      outer, inner: `(x, y, batch) -> scalar`. response: `(phi, x) -> y`; phi: its parameters.
      inner_optimizer, outer_optimizer: of phi and of (x, log width).
      width: standard deviation of the noise added to x.
      entropy: weight of the width's entropy in the outer objective, which then learns the width
        (self-tuning networks: 1e-5 to 1e-2); None keeps it.
      inner_steps: of phi per step of x.

    Returns:
      A `Process`, whose y is the response: the start of y is ignored.

    Raises:
      ValueError: width or inner_steps not positive.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> method = self_tuning(
    ...     lambda x, y, _: (y - 1) ** 2 / 2, lambda x, y, _: (y - 2 * x) ** 2 / 2,
    ...     lambda phi, x: phi[0] * x + phi[1], jnp.zeros(2), width=0.5,
    ...     inner_optimizer=optax.sgd(0.2), outer_optimizer=optax.sgd(0.02))
    >>> state = run(method, jnp.float32(0), None, max_steps=3000, key=jax.random.key(0)).state
    >>> round(float(state.x), 2)
    0.5
    """
    check_positive(width=width, inner_steps=inner_steps)

    def init(start: tuple, *data: Batches) -> SelfTuningState:
        x, _ = start
        log_width = trees.full_like(x, jnp.log(width))
        optimizers = outer_optimizer.init((x, log_width)), inner_optimizer.init(phi)
        return SelfTuningState(x, response(phi, x), phi, log_width, optimizers)

    def perturbed(x: PyTree, log_width: PyTree, key: jax.Array) -> PyTree:
        noise = optax.tree.random_like(key, x)
        return jax.tree.map(lambda x, s, z: x + jnp.exp(s) * z, x, log_width, noise)

    def step(state: SelfTuningState, key: jax.Array, *data: Batches) -> SelfTuningState:
        inner_data, outer_data = data
        x, _, phi, log_width, (of_x, of_phi) = state
        inner_key, outer_key = jax.random.split(key)

        def at_noise(_: None, phi: PyTree, noisy: tuple) -> jax.Array:
            near, batch = noisy
            return inner(near, response(phi, near), batch)

        def draw(key: jax.Array) -> tuple:
            return perturbed(x, log_width, key), inner_data.draw(jax.random.fold_in(key, 1))

        phi, of_phi = descend(at_noise, inner_optimizer, None, phi, of_phi, Drawn(draw), inner_key,
                              inner_steps)
        batch = outer_data.draw(outer_key)

        def objective(at: tuple) -> jax.Array:
            x, log_width = at
            if entropy is None:
                return outer(x, response(phi, x), batch)
            near = perturbed(x, log_width, jax.random.fold_in(outer_key, 1))
            spread = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(log_width))
            return outer(near, response(phi, near), batch) - entropy * spread

        slope = jax.grad(objective)((x, log_width))  # zero by a width that it does not see
        (x, log_width), of_x = move(outer_optimizer, slope, of_x, (x, log_width))
        return SelfTuningState(x, response(phi, x), phi, log_width, (of_x, of_phi))

    return Process(init, step, calls=oracle_calls(inner_steps, 1))
