"""Polyak step sizes for gradient descent with momentum (ALR).

Source: Wang, Johansson and Zhang, "Generalized Polyak step size for first order optimization with
momentum", 2023. The clip of the heavy ball's step at 0 is ours.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_fraction, check_positive
from jaxiter.numerics import safe_divide
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
        rounding = 4 * jnp.finfo(gap.dtype).eps * jnp.abs(loss)
        gap = jnp.where((gap <= rounding) & jnp.isfinite(loss), 0, gap)
        below = state.below_f_min + (loss < least).astype(jnp.int32)

        if kind == "mag":
            memory = trees.axpy(momentum, state.memory, g)
            eta, updates = _polyak(gap / slack, memory, most)
        else:
            moved = trees.subtract(params, state.memory)
            memory = params
            eta, step = _polyak(gap / slack + momentum * trees.dot(g, moved).real, g, most)
            updates = trees.axpy(momentum, moved, step)
        return updates, AlrState(memory, eta.astype(jnp.float32), below)

    return transformation("alr", init, update, ("value", "params") if kind == "hb" else ("value",))


def _polyak(top: jax.Array, d: PyTree, most: jax.Array) -> tuple[jax.Array, PyTree]:
    """`eta = top / |d|^2`, in [0, most] if that is finite, and the step `-eta d`.

    By lengths: the square may over- or underflow, and eta with it, where the step does not.
    """
    length = trees.norm(d)
    inverse = safe_divide(1, jnp.where(length < jnp.finfo(length.dtype).tiny, 0, length))
    bounded = most < jnp.inf
    along = top * inverse
    along = jnp.where(bounded, jnp.clip(along, 0, jnp.where(bounded, most, 0) * length), along)
    return along * inverse, trees.scale(-along, trees.scale(inverse, d))
