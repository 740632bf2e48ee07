"""Mirror steps: a gradient step measured by an entropy, which keeps a point in its set.

        argmin_u  <gradient, u> + D(u, x) / step

for the Bregman distance D of an entropy. All take `(x, gradient, step)` and trees of real arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import known
from jaxiter.operators.domain import positive, real

PyTree = Any


def mirror_simplex(logits: PyTree, gradient: PyTree, step: Any) -> PyTree:
    """A step on the simplex with the negative entropy, in logarithms: exponentiated gradient.

        log u = log_softmax(log x - step gradient)

    In logarithms no entry is lost to underflow, however small its share becomes.

    Args:
      logits: log x, a tree of `[..., n]`; sets are its rows. gradient: like it. step: positive.

    Raises:
      ValueError: a step that is not positive, where it is known; else NaN.

    Reference: Beck and Teboulle, "Mirror descent and nonlinear projected subgradient methods for
    convex optimization", Oper. Res. Lett. 31, 2003.

    >>> import jax.numpy as jnp
    >>> jnp.exp(mirror_simplex(jnp.zeros(2), jnp.log(jnp.array([1.0, 3.0])), 1.0)).round(4).tolist()
    [0.75, 0.25]
    """
    return jax.tree.map(
        lambda x, g: jax.nn.log_softmax(x - positive("step", step, x.dtype) * g, axis=-1),
        real("mirror_simplex", logits), gradient)


def mirror_box(
    x: PyTree, gradient: PyTree, step: Any, lower: Any = 0.0, upper: Any = 1.0
) -> PyTree:
    """A step on a box with the Fermi-Dirac entropy.

        log((u - lower) / (upper - u)) = log((x - lower) / (upper - x)) - step gradient

    What is at a bound stays there.

    Args:
      x: a tree, between the bounds. gradient: like it. step: positive.
      lower, upper: finite scalars, or arrays that broadcast with every leaf.

    Raises:
      ValueError: a step that is not positive or a lower bound that is not below the upper one,
        where they are known; else NaN, as entries outside the box are.

    Reference: Nemirovsky and Yudin, "Problem complexity and method efficiency in optimization",
    1983.

    >>> import jax.numpy as jnp
    >>> mirror_box(jnp.array([0.5, 1.0]), jnp.log(jnp.array([3.0, 3.0])), 1.0).round(4).tolist()
    [0.25, 1.0]
    """
    def leaf(x: jax.Array, g: jax.Array) -> jax.Array:
        low, high = jnp.asarray(lower, x.dtype), jnp.asarray(upper, x.dtype)
        width = jnp.where((low < high) & (low <= x) & (x <= high), high - low, jnp.nan)
        p, q = (x - low) / width, (high - x) / width
        move = positive("step", step, x.dtype) * g
        factor = jnp.exp(-jnp.abs(move))
        up, down = (jnp.where(move > 0, *pair) for pair in ((p * factor, p), (q, q * factor)))
        # At a bound both may vanish.
        gone = up + down == 0
        out = low + width * jnp.where(gone, p, up / jnp.where(gone, 1, up + down))
        # Rounding may lead out of the box.
        return jnp.where(out > high, high, jnp.where(out < low, low, out))

    known(_check_box, lower, upper)
    return jax.tree.map(leaf, real("mirror_box", x), gradient)


def _check_box(lower: Any, upper: Any) -> None:
    if not np.all(np.less(lower, upper)):
        raise ValueError(f"lower must be below upper, got {lower} and {upper}.")


def mirror_orthant(x: PyTree, gradient: PyTree, step: Any) -> PyTree:
    """A step on x > 0 with the negative entropy: the multiplicative update.

        u = x exp(-step gradient)

    Args:
      x: a tree of positive arrays. gradient: like it. step: positive.

    Raises:
      ValueError: a step that is not positive, where it is known; else NaN.

    Reference: Kivinen and Warmuth, "Exponentiated gradient versus gradient descent for linear
    predictors", Inf. Comput. 132, 1997.

    >>> import jax.numpy as jnp
    >>> mirror_orthant(jnp.array([2.0]), jnp.log(jnp.array([4.0])), 0.5).round(4).tolist()
    [1.0]
    """
    return jax.tree.map(lambda x, g: x * jnp.exp(-positive("step", step, x.dtype) * g),
                        real("mirror_orthant", x), gradient)


def mirror_burg(x: PyTree, gradient: PyTree, step: Any) -> PyTree:
    """A step on x > 0 with Burg's entropy, `-sum log x`.

        u = x / (1 + step gradient x)

    Where `step gradient x <= -1` there is no minimiser: NaN.

    Args:
      x: a tree of positive arrays. gradient: like it. step: positive.

    Raises:
      ValueError: a step that is not positive, where it is known; else NaN.

    Reference: Bauschke, Bolte and Teboulle, "A descent lemma beyond Lipschitz gradient
    continuity: first-order methods revisited and applications", Math. Oper. Res. 42, 2017.

    >>> import jax.numpy as jnp
    >>> mirror_burg(jnp.array([2.0]), jnp.array([3.0]), 0.5).tolist()
    [0.5]
    """
    def leaf(x: jax.Array, g: jax.Array) -> jax.Array:
        below = 1 + positive("step", step, x.dtype) * g * x
        return x / jnp.where(below > 0, below, jnp.nan)

    return jax.tree.map(leaf, real("mirror_burg", x), gradient)
