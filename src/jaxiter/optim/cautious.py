"""Sign agreement: updates only where momentum and gradient point the same way.

Source: Liang, Chen, Liu and Liu, "Cautious optimizers: improving training with one line of code",
2024; Cao, Li and Song, "Grams: gradient descent with adaptive momentum scaling", 2024.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter.known import check_fraction, check_positive
from jaxiter.optim.transform import transformation
from jaxiter.solvers.residual import of_optax

PyTree = Any

_MODES = ("mask", "gradient_sign")
_SCALES = ("mean", "paper", "none")


def sign_agreement(
    inner: optax.GradientTransformation, mode: str = "mask", scale: str = "mean", sign: int = -1
) -> optax.GradientTransformationExtraArgs:
    """An inner optimiser whose update u is compared with the gradient g entry by entry.

    "mask" keeps u where `sign u g > 0` and scales what is left, per leaf; "gradient_sign" gives
    |u| the descending sign of g. For mode "mask", and for "gradient_sign" always,
    `<update, g> <= 0` whatever the inner optimiser. Of complex numbers `u g` is the real part of
    `conj(u) g`, and the sign `g / |g|`. The inner optimiser sees the parameters' own precision.

    Args:
      inner: any optax transformation. Wrap it before weight decay is added. Whatever comes before
        the wrapper in a chain changes g: then pass the raw gradient as `update(..., grad=g)`.
      scale: "mean" divides by the share of kept entries, "paper" by (kept + 1) / size, "none".
        Per leaf: stacked layers in one leaf share it.
      sign: -1 for updates to add; 1 for a momentum that is negated later.

    Raises:
      ValueError: an unknown mode or scale, a `grad` of another structure.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = sign_agreement(optax.sgd(1.0, momentum=0.9), scale="none")
    >>> state = optimizer.init(jnp.zeros(2))
    >>> _, state = optimizer.update(jnp.array([1.0, 1.0]), state)
    >>> update, _ = optimizer.update(jnp.array([1.0, -0.1]), state)  # the second entry turned
    >>> [round(float(u), 2) for u in update]
    [-1.9, 0.0]
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {_MODES}, got {mode!r}.")
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {_SCALES}, got {scale!r}.")
    inner = of_optax(inner)

    def update(
        g: PyTree, state: PyTree, params: PyTree, *, grad: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        raw = g if grad is None else grad
        if jax.tree.structure(raw) != jax.tree.structure(g):
            raise ValueError("grad must have the structure of the updates, got "
                             f"{jax.tree.structure(raw)}.")
        u, state = inner.update(g, state, params, **extra)
        if mode == "gradient_sign":
            return jax.tree.map(lambda u, g: jnp.where(
                g == 0, jnp.zeros_like(u), sign * _sign(g, u) * jnp.abs(u).astype(u.dtype)),
                u, raw), state

        def mask(u: jax.Array, g: jax.Array) -> jax.Array:
            # Of signs, for the product of two small numbers is 0. A NaN is not masked: it shows.
            kept = ~(sign * (jnp.conj(_sign(g, u)) * _sign(u, u)).real <= 0) & (g != 0)
            # In float32: a mean of a million ones in bfloat16 is wrong.
            total = jnp.sum(kept, dtype=jnp.float32)
            factor = {"mean": lambda: 1 / jnp.maximum(total / max(kept.size, 1), 1e-3),
                      "paper": lambda: kept.size / (total + 1), "none": lambda: jnp.float32(1)}
            return jnp.where(kept, u * factor[scale]().astype(u.dtype), jnp.zeros_like(u))

        return jax.tree.map(mask, u, raw), state

    return transformation("sign_agreement", inner.init, update, like_updates=("grad",), widen=False)


def _sign(x: jax.Array, like: jax.Array) -> jax.Array:
    """1 or -1 or 0, or `x / |x|`; in the dtype of another array."""
    return jnp.sign(x).astype(like.dtype)


def cautious(
    inner: optax.GradientTransformation, scale: str = "mean"
) -> optax.GradientTransformationExtraArgs:
    """`sign_agreement(inner, "mask", scale)`: the one line of cautious optimisers.

    Args:
      inner: gives updates to add, such as `optax.adam(1e-3)`. Around a direction that is negated
        later, such as `optax.scale_by_adam()`, nothing would ever move: there take
        `sign_agreement(inner, sign=1)`.

    >>> import jax.numpy as jnp
    >>> optimizer, params = cautious(optax.adam(0.1)), jnp.ones(1)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> bool(updates[0] < -0.09)
    True
    """
    return sign_agreement(inner, "mask", scale)


def cautious_momentum(
    decay: Any = 0.95, scale: str = "mean"
) -> optax.GradientTransformationExtraArgs:
    """A moving average of gradients masked by the gradient, to orthogonalise afterwards (Muon).

    >>> import jax.numpy as jnp
    >>> optimizer, g = cautious_momentum(0.9), jnp.ones(1)
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> round(float(update[0]), 4)
    0.1
    """
    check_fraction(decay=decay)
    inner = sign_agreement(optax.ema(decay, debias=False), "mask", scale, sign=1)
    return transformation("cautious_momentum", inner.init, inner.update)


def grams(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-6, weight_decay: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam's step lengths with the gradient's signs, and decoupled weight decay.

    >>> import jax.numpy as jnp
    >>> optimizer, params = grams(0.1), jnp.ones(1)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> round(float(updates[0]), 4)
    -0.1
    """
    check_fraction(b1=b1, b2=b2)
    check_positive(eps=eps)
    inner = of_optax(optax.chain(
        sign_agreement(optax.scale_by_adam(b1, b2, eps), "gradient_sign", sign=1),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate)))
    return transformation("grams", inner.init, inner.update, ("params",))
