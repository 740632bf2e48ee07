"""Sign agreement: updates only where momentum and gradient point the same way.

Source: Liang, Chen, Liu and Liu, "Cautious optimizers: improving training with one line of code",
2024; Cao, Li and Song, "Grams: gradient descent with adaptive momentum scaling", 2024.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter.numerics import check_fraction, check_positive
from jaxiter.optim.transform import transformation

PyTree = Any

_MODES = ("mask", "gradient_sign")
_SCALES = ("mean", "paper", "none")


def sign_agreement(
    inner: optax.GradientTransformation, mode: str = "mask", scale: str = "mean", sign: int = -1
) -> optax.GradientTransformationExtraArgs:
    """An inner optimiser whose update u is compared with the gradient g entry by entry.

    "mask" keeps u where `sign u g > 0` and scales what is left, per leaf; "gradient_sign" gives
    |u| the descending sign of g. For mode "mask", and for "gradient_sign" always,
    `<update, g> <= 0` whatever the inner optimiser.

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
    inner = optax.with_extra_args_support(inner)

    def update(
        g: PyTree, state: PyTree, params: PyTree, *, grad: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        raw = g if grad is None else grad
        if jax.tree.structure(raw) != jax.tree.structure(g):
            raise ValueError("grad must have the structure of the updates, got "
                             f"{jax.tree.structure(raw)}.")
        u, state = inner.update(g, state, params, **extra)
        if mode == "gradient_sign":
            return jax.tree.map(lambda u, g: sign * jnp.sign(g).astype(u.dtype) * jnp.abs(u), u,
                                raw), state

        def mask(u: jax.Array, g: jax.Array) -> jax.Array:
            kept = sign * u * g.astype(u.dtype) > 0
            # In float32: a mean of a million ones in bfloat16 is wrong.
            total = jnp.sum(kept, dtype=jnp.float32)
            factor = {"mean": lambda: 1 / jnp.maximum(total / kept.size, 1e-3),
                      "paper": lambda: kept.size / (total + 1), "none": lambda: jnp.float32(1)}
            return jnp.where(kept, u * factor[scale]().astype(u.dtype), 0)

        return jax.tree.map(mask, u, raw), state

    return transformation("sign_agreement", inner.init, update)


def cautious(
    inner: optax.GradientTransformation, scale: str = "mean"
) -> optax.GradientTransformationExtraArgs:
    """`sign_agreement(inner, "mask", scale)`: the one line of cautious optimisers.

    >>> optimizer = cautious(optax.scale_by_adam())
    """
    return sign_agreement(inner, "mask", scale)


def cautious_momentum(decay: float = 0.95, scale: str = "mean") -> optax.GradientTransformation:
    """A moving average of gradients masked by the gradient, to orthogonalise afterwards (Muon).

    >>> optimizer = cautious_momentum(0.9)
    """
    check_fraction(decay=decay)
    return sign_agreement(optax.ema(decay, debias=False), "mask", scale, sign=1)


def grams(
    learning_rate: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam's step lengths with the gradient's signs, and decoupled weight decay.

    >>> optimizer = grams(1e-2)
    """
    check_fraction(b1=b1, b2=b2)
    check_positive(eps=eps)
    return optax.chain(
        sign_agreement(optax.scale_by_adam(b1, b2, eps), "gradient_sign", sign=1),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate))
