"""Meta-gradients of long inner loops by evolution strategies, truncated without bias.

Source: Vicol, Metz and Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation
graphs with persistent evolution strategies", 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.numerics import stop_gradient, strong

PyTree = Any


class EvolutionState(NamedTuple):
    """Inner states of both members of every pair `[2, pairs, ...]`, the sums of their
    perturbations `[pairs, ...]`, and inner steps made since the last reset.
    """

    inner: PyTree
    sums: PyTree
    time: jax.Array


def persistent_es(
    step: Callable, start: Callable, *, horizon: int, truncation: int, pairs: int = 100,
    width: float = 0.01, persistent: bool = True,
) -> tuple[Callable, Callable]:
    """Gradient of `sum_t loss_t` over an inner loop, estimated every `truncation` steps.

    Antithetic pairs run at theta +- e with new e in every truncation; the loss is weighted by the
    sum of all perturbations so far, which makes the estimate unbiased for the smoothed objective.

    Args:
      step: `(state, theta, t) -> (state, loss)`. start: `key -> state` of a new episode.
      horizon: T steps of an episode, a multiple of truncation K; then all pairs start anew.
      pairs: of antithetic members. width: standard deviation of perturbations.
      persistent: False: weighted by the last perturbation only (truncated ES), which is biased
        towards short horizons.

    Returns:
      `init(theta, key)` and `estimate(state, theta, key) -> (state, grad, mean loss)`. Use the
      mean of `grad` over an episode for the objective's gradient per truncation.

    Raises:
      ValueError: a horizon that truncation does not divide, pairs or width not positive.

    >>> import jax, jax.numpy as jnp
    >>> init, estimate = persistent_es(lambda s, theta, t: (s, (theta - 1.0) ** 2),
    ...                                lambda key: jnp.float32(0), horizon=2, truncation=2)
    >>> state = init(jnp.float32(0), jax.random.key(0))
    >>> _, grad, loss = estimate(state, jnp.float32(0), jax.random.key(1))
    >>> bool(-5.5 < grad < -2.5)  # exact: -4
    True
    """
    check_positive(pairs=pairs, width=width, truncation=truncation, horizon=horizon)
    if horizon % truncation:
        raise ValueError(f"horizon={horizon} must be a multiple of truncation={truncation}.")

    def fresh(key: jax.Array) -> PyTree:
        one = jax.vmap(lambda key: jax.tree.map(strong, start(key)))(jax.random.split(key, pairs))
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)

    def init(theta: PyTree, key: jax.Array) -> EvolutionState:
        sums = jax.tree.map(lambda leaf: jnp.zeros((pairs, *leaf.shape), leaf.dtype),
                            jax.tree.map(strong, theta))
        return EvolutionState(fresh(key), sums, jnp.int32(0))

    def rollout(state: PyTree, theta: PyTree, time: jax.Array) -> tuple[PyTree, jax.Array]:
        def body(state: PyTree, t: jax.Array) -> tuple[PyTree, jax.Array]:
            return step(state, theta, t)

        state, losses = lax.scan(body, state, time + jnp.arange(truncation))
        return state, jnp.sum(losses)

    def estimate(
        state: EvolutionState, theta: PyTree, key: jax.Array
    ) -> tuple[EvolutionState, PyTree, jax.Array]:
        inner, sums, time = stop_gradient(state)
        theta = jax.tree.map(strong, theta)
        noise_key, start_key = jax.random.split(key)
        noise = jax.vmap(lambda key: trees.scale(width, optax.tree.random_like(key, theta)))(
            jax.random.split(noise_key, pairs))
        sums = trees.add(sums, noise) if persistent else noise
        both = jax.tree.map(lambda leaf, e: jnp.stack([leaf + e, leaf - e]), theta, noise)
        inner, losses = jax.vmap(jax.vmap(rollout, (0, 0, None)), (0, 0, None))(inner, both, time)
        if not persistent:
            inner = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), inner)
        gap = (losses[0] - losses[1]) / (2 * width**2)
        grad = jax.tree.map(lambda leaf: jnp.tensordot(gap, leaf, 1) / pairs, sums)
        time = time + truncation
        ended = time >= horizon
        new = EvolutionState(trees.where(ended, fresh(start_key), inner),
                             trees.where(ended, trees.zeros_like(sums), sums),
                             jnp.where(ended, 0, time))
        return new, grad, jnp.mean(losses)

    return init, estimate
