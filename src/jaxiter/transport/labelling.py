"""Balanced labels: assign samples to clusters of equal size (SeLa, SwAV)."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.numerics import anchor, on_own_mesh
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance


@reports
class BalancedLabels(NamedTuple):
    """Labels `[N]` (int32), log row scalings `[K]` (a warm start), and the solve."""

    labels: jax.Array
    log_scaling: jax.Array
    solve: Solution


@reused
@on_own_mesh
def balanced_labels(
    logits: jax.Array,
    *,
    sharpness: Any = 25.0,
    init: jax.Array | None = None,
    axis_name: str | None = None,
    **options: Unpack[SolveOptions],
) -> BalancedLabels:
    """Labels of N samples in K clusters of nearly equal size: entropic transport of `-log p`.

    `Q ~ p ** sharpness` with rows summing to 1/K and columns to 1/N; the label is the
    largest entry of a column. In the log domain, so that `p ** 25` does not underflow.

    Args:
      logits: `[N, K]`, log probabilities up to a constant a sample.
      sharpness: the inverse regularisation lambda (25; 10 for CIFAR).
      init: a previous `log_scaling`.
      axis_name: a mesh axis over which samples are split: each device passes its shard, and one
        K-vector is reduced a step (inside shard_map or pmap).
      **options: those of `fixed_point`. Default `stop`: an l1 error of the cluster masses of at
        most 0.1 of the total, as in SeLa. No `adjoint`: nothing here has derivatives.

    Raises:
      ValueError: more clusters than samples.

    Reference: Asano, Rupprecht and Vedaldi, "Self-labelling via simultaneous clustering and
    representation learning", 2020.

    >>> import jax.numpy as jnp
    >>> balanced_labels(jnp.array([[2.0, 0.0], [3.0, 0.0]])).labels.tolist()
    [1, 0]
    """
    chosen = choose("balanced_labels", options, {"adjoint": "labels have no derivatives"},
                    stop=tolerance(rtol=0.1, atol=0.0), adjoint=frozen())
    count, clusters = logits.shape
    if axis_name is None and clusters > count:
        raise ValueError(f"more clusters than samples: {clusters} > {count}.")
    log_m = sharpness * jax.nn.log_softmax(logits.astype(jnp.float32), axis=1)

    def step(log_r: jax.Array, log_m: jax.Array) -> jax.Array:
        # Samples first: each column of Q sums to 1; then what a cluster holds is measured.
        log_c = -jax.nn.logsumexp(log_m + log_r, axis=1, keepdims=True)
        peak = jnp.max(log_m + log_c, axis=0)
        if axis_name is not None:
            peak = lax.pmax(peak, axis_name)
        held = jnp.sum(jnp.exp(log_m + log_c - peak), axis=0)
        total = jnp.float32(count)
        if axis_name is not None:
            held, total = lax.psum(held, axis_name), lax.psum(total, axis_name)
        # The same on every device, but typed as one of its own, as the loop's carry is.
        return anchor(jnp.log(total / clusters) - (jnp.log(held) + peak), log_m)

    def error(log_r: jax.Array, image: jax.Array, log_m: jax.Array) -> jax.Array:
        # A cluster holds exp(log_r - image) of its share.
        return jnp.mean(jnp.abs(jnp.expm1(log_r - image)))

    problem = Problem(step=step, merit=error, scale=lambda *rest: jnp.float32(1))
    start = jnp.zeros(clusters) if init is None else jnp.asarray(init, jnp.float32)
    solve = fixed_point(problem, start, lax.stop_gradient(log_m), **chosen._asdict())
    labels = jnp.argmax(log_m + solve.value, axis=1).astype(jnp.int32)
    return BalancedLabels(labels, solve.value, solve)


def swav_assignments(
    scores: jax.Array, *, epsilon: Any = 0.05, max_steps: int = 3, axis_name: str | None = None
) -> jax.Array:
    """Soft assignments `[B, K]` of a batch to prototypes, rows summing to 1; no gradient.

    Reference: Caron et al., "Unsupervised learning of visual features by contrasting cluster
    assignments", 2020.

    >>> import jax.numpy as jnp
    >>> swav_assignments(jnp.array([[1.0, 0.0], [0.0, 1.0]])).round(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be a non-empty matrix [n, k], got shape {scores.shape}.")
    log_q = lax.stop_gradient(scores.astype(jnp.float32)) / epsilon

    def normalise(log_q: jax.Array, _: None) -> tuple[jax.Array, None]:
        peak = jnp.max(log_q, axis=0)
        if axis_name is not None:
            peak = lax.pmax(peak, axis_name)
        held = jnp.sum(jnp.exp(log_q - peak), axis=0)
        if axis_name is not None:
            held = lax.psum(held, axis_name)
        log_q = log_q - peak - jnp.log(held)
        return log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True), None

    return jnp.exp(lax.scan(normalise, log_q, length=max_steps)[0]).astype(scores.dtype)
