"""Keep a learned map a contraction, so that its fixed point and its gradient exist."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import numbers_in, safe_divide
from jaxiter.spectral import spectral_norm

PyTree = Any


def jacobian_penalty(
    step: Callable, x: PyTree, *args: PyTree, key: jax.Array, samples: int = 1
) -> jax.Array:
    """An estimate of `|dT/dx|_F^2 / size(x)` at x, to be added to a training loss.

        mean over v of |v^T J|^2 / size,    v random signs (Hutchinson)

    Unbiased, one product with the transposed Jacobian a sample. It is the mean square of the
    Jacobian's singular values: small where the map contracts in most directions. Differentiable
    in x and args; pass `solution.value` as x.

    Args:
      step: the map `T(x, *args)`. x, *args: where its Jacobian is taken.
      key: a random key. samples: random vectors, at least 1.

    Returns:
      A scalar.

    Reference: Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian
    regularization", 2021; Hutchinson, "A stochastic estimator of the trace of the influence
    matrix for Laplacian smoothing splines", 1990.

    >>> import jax, jax.numpy as jnp
    >>> penalty = jacobian_penalty(lambda x: 0.5 * x, jnp.ones(8), key=jax.random.key(0))
    >>> round(float(penalty), 4)
    0.25
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    x = jax.tree.map(jnp.asarray, x)
    _, pull = jax.vjp(lambda x: step(x, *args), x)
    size = numbers_in(x)

    def one(key: jax.Array) -> jax.Array:
        return trees.squared_norm(pull(_random_signs(x, key))[0]) / size

    return jnp.mean(jax.vmap(one)(jax.random.split(key, samples)))


def _random_signs(x: PyTree, key: jax.Array) -> PyTree:
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [
        jax.random.rademacher(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)])


def spectral_rescale(weight: jax.Array, limit: Any = 0.95) -> jax.Array:
    """A matrix shortened to spectral norm `limit` where it is longer.

        W min(1, limit / |W|_2)

    With 1-Lipschitz activations, `tanh(z W + x)` then contracts by at least `limit`, whatever
    the optimiser did to W. Differentiable, the norm included.

    Args:
      weight: `[n, m]`. limit: largest spectral norm, positive; may be traced.

    Reference: Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative
    adversarial networks", 2018; Winston and Kolter, "Monotone operator equilibrium networks", 2020
    (which parametrises, where this rescales).

    >>> import jax.numpy as jnp
    >>> spectral_rescale(jnp.diag(jnp.array([2.0, 0.5])), 1.0).round(2).tolist()
    [[1.0, 0.0], [0.0, 0.25]]
    """
    norm = spectral_norm(weight)
    factor = jnp.minimum(safe_divide(jnp.asarray(limit, norm.dtype), norm), 1)
    return weight * jnp.where(norm > 0, factor, 1).astype(weight.dtype)
