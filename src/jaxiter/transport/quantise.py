"""Vector quantisation whose codes are all in use: features are assigned by balanced transport."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.known import check_count, check_not_negative, check_positive
from jaxiter.numerics import on_own_mesh, safe_log, stop_gradient
from jaxiter.reuse import reused
from jaxiter.transport.labelling import swav_assignments
from jaxiter.transport.points import PointCloud, euclidean


class Quantised(NamedTuple):
    """Features, replaced by codes.

    Attributes:
      indices: the code of each feature `[B]` (int32).
      values: the codes `[B, d]`; their derivative is that of the features (straight through).
      loss: what draws features and codes to each other, a scalar.
      usage: the share of codes that some feature of the batch has, a scalar.
    """

    indices: jax.Array
    values: jax.Array
    loss: jax.Array
    usage: jax.Array


@reused
@on_own_mesh
def sinkhorn_quantise(
    z: jax.Array,
    codebook: jax.Array,
    *,
    key: jax.Array | None = None,
    sharpness: Any = 10.0,
    max_steps: int = 5,
    beta: Any = 0.25,
    axis_name: str | None = None,
) -> Quantised:
    """Assign each feature a code such that all codes get about as many features.

        A = (|z_i - e_k| - mean) / std,   Q = exp(-sharpness A), 5 times to equal codes and features
        loss = mean (z - sg(e))^2 + beta mean (sg(z) - e)^2,    sg: no derivative

    in the log domain; without the normalisation of distances most of Q underflows, and a codebook
    that has collapsed stays so. Few steps on purpose: the assignment is a draw towards balance,
    not its solution. It has no derivatives.

    Args:
      z: features `[B, d]`. codebook: `[K, d]`.
      key: draws the codes from the rows of Q, as in the paper's training; default the largest
        entry.
      sharpness: in standard deviations of the distances, inverse: large is nearest neighbour.
      max_steps: normalisations of codes and features.
      beta: the weight of the codebook's part of the loss.
      axis_name: a mesh axis over which features are split (inside shard_map or pmap): mean,
        deviation and what codes hold are reduced over it, so is the usage; the loss is the
        shard's own.

    Returns:
      A `Quantised`. NaN features or codes, and a traced sharpness that is not positive, make
      `values` and `loss` NaN. The unit of features does not matter. Where all distances are
      equal every code is as good: draw them by a key.

    Raises:
      ValueError: shapes that do not fit, max_steps below 1, sharpness not positive.

    Reference: Zhang, Zheng, Zhou and Lu, "Preventing local pitfalls in vector quantization via
    optimal transport", 2024.

    >>> import jax.numpy as jnp
    >>> out = sinkhorn_quantise(jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [9.0]]))
    >>> out.indices.tolist(), float(out.usage)
    ([0, 1], 1.0)
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or (
            0 in z.shape or codebook.shape[0] == 0):
        raise ValueError(f"z must be features [B, d] and codebook [K, d], got shapes {z.shape} and "
                         f"{codebook.shape}.")
    z, codebook = jnp.asarray(z), jnp.asarray(codebook)
    check_count(max_steps=max_steps)
    check_positive(sharpness=sharpness)
    check_not_negative(beta=beta)

    def mean(x: jax.Array) -> jax.Array:
        return x if axis_name is None else lax.pmean(x, axis_name)

    points, codes = stop_gradient((z.astype(jnp.float32), codebook.astype(jnp.float32)))
    distances = PointCloud(points, codes, euclidean).matrix()
    middle = mean(jnp.mean(distances))
    centred = distances - middle
    entries = distances.size * (1 if axis_name is None else lax.psum(1, axis_name))
    variance = mean(jnp.mean(jnp.square(centred))) * (entries / max(entries - 1, 1))
    # No deviation is below the rounding of equal distances, in whatever unit they are.
    deviation = jnp.sqrt(variance) + 1e-6 * middle
    standard = centred / jnp.where(deviation > 0, deviation, 1)
    plan = swav_assignments(
        -standard, epsilon=1 / sharpness, max_steps=max_steps, axis_name=axis_name)
    if key is None:
        indices = jnp.argmax(plan, axis=1)
    else:
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        indices = jax.random.categorical(key, safe_log(plan), axis=1)
    indices = indices.astype(jnp.int32)
    # A NaN is near nothing: no code may stand for it.
    sound = jnp.isfinite(mean(jnp.sum(points)) + jnp.sum(codes)) & (jnp.asarray(sharpness) > 0)
    codes = jnp.where(sound, codebook[indices], jnp.nan)
    loss = jnp.mean(jnp.square(z - stop_gradient(codes))) + beta * jnp.mean(
        jnp.square(stop_gradient(z) - codes))
    counts = jnp.zeros(codebook.shape[0], jnp.float32).at[indices].add(1)
    usage = jnp.mean((mean(counts) > 0).astype(jnp.float32))
    return Quantised(indices, z + stop_gradient(codes - z), loss, usage)
