"""Around `optax.contrib.muon`: Turbo-Muon's coefficients, a meter of exactness, a rule for it.

Source: Boissin, Massena, Mamalet and Serrurier, "Turbo-Muon: accelerating orthogonality-based
optimization with pre-conditioning", 2025; Shulgin, AlRashed, Orabona and Richtarik, "Beyond the
ideal: analyzing the inexact Muon update", 2025 (the rule is derived from a descent lemma).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.numerics import accumulation_dtype, product

TURBO_NS_COEFFS = (
    (4.6051, -9.6552, 5.6769), (4.7505, -6.0861, 2.1790), (2.7763, -2.3190, 0.5523),
    (2.4231, -2.2861, 0.8193),
)
"""Four steps instead of five:
`optax.contrib.muon(rate, ns_coeffs=TURBO_NS_COEFFS, ns_steps=4, preconditioning="aol")`."""


class PolarError(NamedTuple):
    """How far O is from the polar factor of X.

    operator: spectral norm of the difference. frobenius: relative. cosine: with the exact factor.
    smallest, largest: singular values of O. All `[...]` over leading axes.
    """

    operator: jax.Array
    frobenius: jax.Array
    cosine: jax.Array
    smallest: jax.Array
    largest: jax.Array


def polar_svd(x: jax.Array) -> jax.Array:
    """The polar factor U V^T of matrices `[..., m, n]`, in at least float32.

    >>> polar_svd(jnp.array([[0.0, 3.0], [-2.0, 0.0]])).round().tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    if x.ndim < 2:
        raise ValueError(f"polar_svd needs matrices, got shape {x.shape}.")
    u, _, vh = jnp.linalg.svd(_wide(x), full_matrices=False)
    return product(u, vh)


def _wide(x: jax.Array) -> jax.Array:
    """At least float32; complex matrices stay so."""
    return x if jnp.iscomplexobj(x) else x.astype(accumulation_dtype(x.dtype))


def polar_error(x: jax.Array, orthogonal: jax.Array) -> PolarError:
    """What a Newton-Schulz iteration made of x, against the exact polar factor.

    For square matrices with tiny singular values the operator norm says little: read the cosine.

    Args:
      x, orthogonal: `[..., m, n]`.

    Raises:
      ValueError: shapes that differ or are no matrices.

    >>> bool(polar_error(jnp.eye(3), jnp.eye(3)).operator < 1e-6)
    True
    """
    if x.shape != orthogonal.shape:
        raise ValueError(f"shapes differ: {x.shape} and {orthogonal.shape}.")
    exact = polar_svd(x)
    given = _wide(orthogonal).astype(exact.dtype)

    def length(a: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(a)), (-2, -1)))

    values = jnp.linalg.svd(given, compute_uv=False)
    gap = jnp.linalg.svd(given - exact, compute_uv=False)[..., 0]
    cosine = jnp.sum(given * exact.conj(), (-2, -1)).real / jnp.maximum(
        length(given) * length(exact), 1e-30)
    return PolarError(gap, length(given - exact) / length(exact), cosine, values[..., -1],
                      values[..., 0])


def inexact_lmo_scale(delta: Any) -> Any:
    """The factor `(1 - delta) / (1 + delta)^2` on Muon's rate at an operator error of delta.

    >>> round(inexact_lmo_scale(0.3), 4)
    0.4142
    """
    return (1 - delta) / (1 + delta) ** 2
