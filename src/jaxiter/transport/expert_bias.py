"""Balance of experts in training, without an auxiliary loss: biases that follow the loads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.known import check_positive

#: How the rules of `loss_free_bias` turn the violation `(L - load) / L` and the update's number
#: into a step.
RULES: dict[str, Callable] = {
    "sign": lambda violation, count: jnp.sign(violation),
    "constant": lambda violation, count: violation,
    "harmonic": lambda violation, count: violation / count,
    "root": lambda violation, count: violation * lax.rsqrt(count),
}


class BiasState(NamedTuple):
    """Biases `[..., E]`, and the updates so far (int32).

    Attributes:
      bias: what is added to the scores before the top k are taken, and nowhere else.
      count: the updates made.
    """

    bias: jax.Array
    count: jax.Array


class LossFreeBias(NamedTuple):
    """Biases that follow the loads of training batches.

    Attributes:
      init: `init(experts) -> BiasState`, all biases 0; experts is E or a shape `(layers, E)`.
      update: `update(load, state) -> BiasState`, load `[..., E]` the tokens that each expert got.
    """

    init: Callable[[Any], BiasState]
    update: Callable[[jax.Array, BiasState], BiasState]


def loss_free_bias(
    rate: Any = 1e-3, rule: str = "sign", *, axis_name: str | None = None
) -> LossFreeBias:
    """Balance experts without an auxiliary loss: one dual step on their biases a training batch.

        violation = (L - load) / L,    L = mean load
        bias <- bias + rate * step(violation),   minus its mean

    with step one of "sign" (`sign(violation)`, the published rule), "constant" (`violation`),
    "harmonic" (`violation / n`, of logarithmic regret) and "root" (`violation / sqrt(n)`), n the
    number of the update. Biases have no derivatives.

    Args:
      rate: in units of the scores, positive; may be traced.
      rule: how steps follow violations and shrink.
      axis_name: a mesh axis over which batches are split; loads are summed over it.

    Raises:
      ValueError: an unknown rule, a rate that is not positive.

    References: Wang, Gao, Zhao, Sun and Dai, "Auxiliary-loss-free load balancing strategy for
    mixture-of-experts", 2024 (sign); Han and Zhong, "A theoretical framework for
    auxiliary-loss-free load balancing of sparse mixture-of-experts in large-scale AI models", 2025.

    >>> import jax.numpy as jnp
    >>> balance = loss_free_bias(0.1)
    >>> state = balance.update(jnp.array([6.0, 2.0]), balance.init(2))
    >>> [round(float(b), 2) for b in state.bias]
    [-0.1, 0.1]
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {tuple(RULES)}, got {rule!r}.")
    check_positive(rate=rate)

    def init(experts: Any) -> BiasState:
        return BiasState(jnp.zeros(experts, jnp.float32), jnp.int32(0))

    def update(load: jax.Array, state: BiasState) -> BiasState:
        load = lax.stop_gradient(jnp.asarray(load)).astype(state.bias.dtype)
        if axis_name is not None:
            load = lax.psum(load, axis_name)
        mean = jnp.mean(load, axis=-1, keepdims=True)
        count = state.count + 1
        violation = (mean - load) / jnp.where(mean > 0, mean, 1)
        bias = state.bias + rate * RULES[rule](violation, count.astype(state.bias.dtype))
        return BiasState(bias - jnp.mean(bias, axis=-1, keepdims=True), count)

    return LossFreeBias(init, update)
