"""Dataset distillation: a few synthetic points that train a model as well as all data.

With kernel ridge regression as the model the inner problem has a closed form, so the outer
gradient is plain differentiation of a small linear solve.

Source: Nguyen, Chen and Lee, "Dataset meta-learning from kernel ridge-regression", 2021.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve


def rbf(x: jax.Array, y: jax.Array, width: Any = 2.0) -> jax.Array:
    """Gaussian kernel `exp(-|x - y|^2 / (2 width^2))`, `[n, m]` of points `[n, d]` and `[m, d]`.

    >>> float(rbf(jnp.zeros((1, 2)), jnp.zeros((1, 2)))[0, 0])
    1.0
    """
    square = (jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)
              - 2 * jnp.matmul(x, y.T, precision="highest"))
    return jnp.exp(-jnp.maximum(square, 0) / (2 * width**2))


def ridge_predictor(
    points: jax.Array, targets: jax.Array, *, kernel: Callable = rbf, ridge: float = 1e-3,
) -> Callable:
    """`x -> K(x, points) (K + r I)^-1 targets`, r = ridge * trace(K) / points.

    Args:
      points: `[s, d]`. targets: `[s, c]`. ridge: at least 1e-4 in float32.
    """
    gram = kernel(points, points)
    jitter = ridge * jnp.trace(gram) / len(points)
    weights = cho_solve(cho_factor(gram + jitter * jnp.eye(len(points), dtype=gram.dtype)),
                        targets)
    return lambda x: kernel(x, points) @ weights


def distillation_loss(
    points: jax.Array, targets: jax.Array, data: jax.Array, labels: jax.Array, *,
    kernel: Callable = rbf, ridge: float = 1e-3,
) -> jax.Array:
    """Half the mean squared error, on all data, of the model trained on the synthetic points.

    Args:
      points: `[s, d]`, what to optimise, from real points. targets: `[s, c]`, optimised too or not.
      data: `[n, d]`. labels: `[n, c]`, such as one-hot minus 1 / c.

    Raises:
      ValueError: fewer points than classes.

    >>> points, targets = jnp.eye(2), jnp.eye(2)
    >>> bool(distillation_loss(points, targets, points, targets) < 1e-5)
    True
    """
    if len(points) < labels.shape[1]:
        raise ValueError(f"{len(points)} synthetic points are fewer than the {labels.shape[1]} "
                         "classes.")
    rest = ridge_predictor(points, targets, kernel=kernel, ridge=ridge)(data) - labels
    return jnp.mean(jnp.sum(jnp.square(rest), axis=1)) / 2
