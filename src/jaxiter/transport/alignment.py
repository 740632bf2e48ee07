"""Alignment of several domains: the largest Sinkhorn divergence of two of them."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import on_own_mesh
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused
from jaxiter.solution import most_severe, reports
from jaxiter.transport.divergence import sinkhorn_divergence


@reports
class FeatureAlignment(NamedTuple):
    """How far the features of domains lie apart.

    Attributes:
      value: the largest divergence of two domains, the loss of one stack of features.
      divergences: of each pair `[k (k - 1) / 2]`, in the order (0, 1), (0, 2), ..., (1, 2), ...
      status: the most severe of all solves (int32).
    """

    value: jax.Array
    divergences: jax.Array
    status: jax.Array


@reused
@on_own_mesh
def feature_alignment(
    features_by_domain: jax.Array, *, epsilon: Any, **options: Unpack[SolveOptions]
) -> FeatureAlignment:
    """`max over pairs of domains of S(features_i, features_j)`, S the Sinkhorn divergence.

    The loss that makes features of several source domains alike; a network of stacks adds up one a
    stack. Scale features first (the paper: a softmax), for epsilon is in units of their squared
    distance halved.

    Args:
      features_by_domain: `[k, n, d]`, n samples of each of k domains, at least two.
      epsilon: as in `sinkhorn_divergence`, whose **options these are.

    Raises:
      ValueError: another shape, fewer than two domains, what `sinkhorn_divergence` refuses.

    Reference: Lee et al., "Feature-aligned N-BEATS with Sinkhorn divergence", 2024.

    >>> import jax.numpy as jnp
    >>> import jax
    >>> features = jnp.zeros((3, 5, 2))
    >>> jax.eval_shape(lambda x: feature_alignment(x, epsilon=1.0), features).divergences.shape
    (3,)
    """
    shape = features_by_domain.shape
    if len(shape) != 3 or shape[0] < 2 or 0 in shape:
        raise ValueError("features_by_domain must be [k, n, d], n samples of each of at least two "
                         f"domains, got shape {shape}.")
    first, second = np.triu_indices(shape[0], 1)
    out = jax.vmap(lambda x, y: sinkhorn_divergence(x, y, epsilon=epsilon, **options))(
        features_by_domain[first], features_by_domain[second])
    return FeatureAlignment(jnp.max(out.value), out.value, most_severe(*out.status))
