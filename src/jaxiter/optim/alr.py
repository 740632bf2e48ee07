"""Polyak step sizes for gradient descent with momentum (ALR).

Source: Wang, Johansson and Zhang, "Generalized Polyak step size for first order optimization with
momentum", 2023. The clip of the heavy ball's step at 0 is ours.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.numerics import check_fraction, check_positive, safe_divide
from jaxiter.optim.transform import scalars, transformation

PyTree = Any


class AlrState(NamedTuple):
    """memory: the moving sum of gradients ("mag") or the previous parameters ("hb").

    eta: the last step size. below_f_min: losses seen below f_min, which was then too high.
    """

    memory: PyTree
    eta: jax.Array
    below_f_min: jax.Array


def alr(
    kind: str = "mag", *, beta: Any = 0.9, c: Any = 1.0, eta_max: Any = jnp.inf, f_min: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Steps that minimise a bound on the next distance to the solution, from the loss itself.

    "mag": `d = beta d + g`, `x -= eta d`, `eta = min((f - f_min) / (c |d|^2), eta_max)`.
    "hb": `x += beta (x - x_last) - eta g`,
    `eta = ((f - f_min) / c + beta <g, x - x_last>) / |g|^2`, clipped to [0, eta_max] if
    eta_max is finite: without noise a negative step is right.

    Norms are of the whole tree. With mini-batches (ALR-SMAG) set c = 1/2 and a finite eta_max.

    Args:
      beta: in [0, 1); small ones where the condition number is small.
      f_min: the least loss, 0 where the model interpolates; a lower bound is safe and slower.
        `update(..., f_min=...)` overrides it for a batch.

    Needs `update(grads, state, params, value=loss)`.

    Raises:
      ValueError: an unknown kind, beta outside [0, 1), c or eta_max not positive.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = alr("hb")
    >>> params = jnp.array([3.0, -1.0])
    >>> state = optimizer.init(params)
    >>> for _ in range(50):
    ...     updates, state = optimizer.update(params, state, params, value=params @ params / 2)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(jnp.abs(params).max() < 1e-3)
    True
    """
    if kind not in ("mag", "hb"):
        raise ValueError(f"kind must be 'mag' or 'hb', got {kind!r}.")
    check_fraction(beta=beta)
    check_positive(c=c, eta_max=eta_max)
    default = f_min

    def init(params: PyTree) -> AlrState:
        memory = params if kind == "hb" else trees.zeros_like(params)
        return AlrState(memory, jnp.float32(0), jnp.int32(0))

    def update(
        g: PyTree, state: AlrState, params: PyTree, *, value: Any, f_min: Any = None, **_: Any
    ) -> tuple[PyTree, AlrState]:
        loss, least, momentum, slack, most = scalars(
            g, value, default if f_min is None else f_min, beta, c, eta_max)
        gap = loss - least
        # The difference of nearly equal losses is rounding.
        gap = jnp.where(gap > 4 * jnp.finfo(gap.dtype).eps * jnp.abs(loss), gap, 0)
        below = state.below_f_min + (loss < least).astype(jnp.int32)

        def over_square(top: jax.Array, vector: PyTree) -> jax.Array:
            length = trees.norm(vector)  # whose square may over- or underflow
            return safe_divide(safe_divide(top, length), length)

        if kind == "mag":
            memory = trees.axpy(momentum, state.memory, g)
            eta = jnp.minimum(over_square(gap / slack, memory), most)
            updates = trees.scale(-eta, memory)
        else:
            moved = trees.subtract(params, state.memory)
            memory = params
            eta = over_square(gap / slack + momentum * trees.dot(g, moved).real, g)
            eta = jnp.where(most < jnp.inf, jnp.clip(eta, 0, most), eta)
            updates = trees.axpy(-eta, g, trees.scale(momentum, moved))
        return updates, AlrState(memory, eta.astype(jnp.float32), below)

    return transformation("alr", init, update, ("value", "params") if kind == "hb" else ("value",))
