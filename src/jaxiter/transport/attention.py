"""Attention by doubly stochastic matrices: a few normalisations, a solve to tolerance, or QR."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import check_count, check_floating, check_positive, known
from jaxiter.linear.factor import one_by_one, solve
from jaxiter.numerics import HIGHEST, accumulation_dtype, product, stop_gradient
from jaxiter.reuse import reused
from jaxiter.stop import tolerance as within
from jaxiter.transport.checks import MAX_STEPS
from jaxiter.transport.sinkhorn import sinkhorn

#: Half-steps where nobody says how many.
HALF_STEPS = 3
_orthogonal_factor = one_by_one(lambda a: jnp.linalg.qr(a)[0])


@reused
def sinkhorn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, max_steps: int | None = None,
    mask: jax.Array | None = None, tolerance: Any = None,
) -> jax.Array:
    """Attention by a matrix whose rows and columns sum to 1, `P v`.

        S = q k' / sqrt(d),   P_ij = exp(S_ij + u_i + w_j),
        u_i = -log sum_j exp(S_ij + w_j),    w_j = -log sum_i exp(S_ij + u_i),   in turn from u

    One half-step is softmax attention, to the bit. After an odd number the rows sum to 1 and the
    columns nearly; derivatives are those of the half-steps. The uniform weights of the paper and
    its factor n cancel.

    Args:
      q, k: `[..., n, d]`. v: `[..., n, e]`. With 16-bit ones everything is summed in float32.
      max_steps: half-steps, static; default 3. With a tolerance: steps of `sinkhorn`, at most
        2000 by default.
      mask: `[..., n]`, True for tokens that exist, in the leading shape of q; the others neither
        give nor get, and their output is 0. It cannot be causal: a doubly stochastic matrix that
        is lower triangular is the identity.
      tolerance: solve until the rows' sums are off by so much in the mean, with implicit
        derivatives, in place of a number of half-steps.

    Returns:
      `[..., n, e]` in the dtype of v. With a tolerance NaN where it is not met. From two
      half-steps on one NaN makes the whole matrix NaN.

    Raises:
      ValueError: a causal mask, a mask of another shape, more keys than queries or fewer, q, k and
        v that do not fit, max_steps below 1, a tolerance that is not positive.

    Reference: Sander, Ablin, Blondel and Peyre, "Sinkformers: transformers with doubly stochastic
    attention", 2022.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    >>> sinkhorn_attention(x, x, jnp.eye(2)).sum(0).round(3).tolist()
    [1.0, 1.0]
    """
    _check(q, k, v, mask)
    kind = accumulation_dtype(q.dtype)
    scores = jnp.einsum("...id,...jd->...ij", q, k, precision=HIGHEST, preferred_element_type=kind)
    scores = scores / jnp.sqrt(jnp.asarray(q.shape[-1], kind))
    if tolerance is None:
        steps = HALF_STEPS if max_steps is None else max_steps
        check_count(max_steps=steps)
        plan = _half_steps(scores, mask, steps)
    else:
        check_positive(tolerance=tolerance)
        most = MAX_STEPS if max_steps is None else max_steps
        plan = _solved(scores, mask, tolerance, most)
    out = jnp.einsum("...ij,...je->...ie", plan, v.astype(plan.dtype), precision=HIGHEST)
    return out.astype(v.dtype)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> None:
    if q.ndim < 2 or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"q and k must be [..., n, d] and v [..., n, e], got shapes {q.shape}, "
                         f"{k.shape}, {v.shape}.")
    if q.shape != k.shape:
        raise ValueError(f"{q.shape[-2]} queries and {k.shape[-2]} keys: no matrix with unit rows "
                         "and columns is of that shape; call sinkhorn with the weights you want.")
    if mask is None:
        return
    causal = ("a causal mask leaves no doubly stochastic matrix but the identity; mask tokens, "
              "mask [..., n], or use softmax attention")
    if mask.shape != q.shape[:-1]:
        raise ValueError(f"mask must have the leading shape of q, {q.shape[:-1]}, got "
                         f"{mask.shape}: {causal}.")

    def tokens(mask: Any) -> None:
        host = np.asarray(mask)
        square = host.ndim >= 2 and host.shape[-1] == host.shape[-2] > 1
        if square and np.array_equal(host, np.broadcast_to(np.tri(host.shape[-1]), host.shape)):
            raise ValueError(f"mask is lower triangular: {causal}. If it stands for a batch of "
                             "lengths 1 to n, give the batch in another order.")

    known(tokens, mask)


def _half_steps(scores: jax.Array, mask: jax.Array | None, steps: int) -> jax.Array:
    """P after so many normalisations of rows and columns in turn, rows first.

    The last one is a softmax: what it divides by need not pass through a logarithm.
    """
    pairs = some = None
    if mask is not None:
        pairs = mask[..., :, None] & mask[..., None, :]
        # Where there is no token at all nothing is read; its sums shall be of something.
        some = mask | ~jnp.any(mask, axis=-1, keepdims=True)
    shifted = scores
    for turn in range(steps - 1):
        axis = -1 - turn % 2
        if some is not None:
            shifted = jnp.where(jnp.expand_dims(some, -3 - axis), shifted, -jnp.inf)
        shifted = scores - jax.nn.logsumexp(shifted, axis=axis, keepdims=True)
    return jax.nn.softmax(shifted, axis=-1 - (steps - 1) % 2, where=pairs)


def _solved(scores: jax.Array, mask: jax.Array | None, tolerance: Any, steps: Any) -> jax.Array:
    """P with rows and columns right to the tolerance, NaN where that is not reached.

    0 where no token exists.
    """
    def one(scores: jax.Array, there: jax.Array) -> jax.Array:
        # Without any token the problem of zero costs is solved, and nothing of it is used.
        some = jnp.any(there > 0)
        scores, there = jnp.where(some, scores, 0), jnp.where(some, there, 1)
        out = sinkhorn(-scores, there, there, epsilon=1.0, max_steps=steps, method="kernel",
                       stop=within(rtol=tolerance, atol=0.0))
        return jnp.where(some, jnp.where(out.solve.converged, out.plan(), jnp.nan), 0)

    there = jnp.ones(scores.shape[:-1], scores.dtype)
    if mask is not None:
        there = mask.astype(scores.dtype)
    for _ in range(scores.ndim - 2):
        one = jax.vmap(one)
    return one(scores, there)


@reused
def qr_doubly_stochastic(a: jax.Array) -> jax.Array:
    """The squares of an orthogonal matrix, `D = Q * Q` with `a = Q R`: rows and columns sum to 1.

    Exactly doubly stochastic in one factorisation, differentiable, in place of a softmax; but
    only such matrices are reached as are squares of orthogonal ones. Signs of columns do not
    matter, and no scale of a.

    Args:
      a: `[..., n, n]`; 1e-6 times its largest entry is added to the diagonal, so that singular
        ones have derivatives.

    Returns:
      `[..., n, n]`; NaN where a is. 16-bit ones are factored in float32.

    Raises:
      ValueError: matrices that are not square. TypeError: such that are no real floats.

    Reference: Born, Skogh, Rhrissorrakrai, Utro, Wagner and Sobczyk, "Quantum doubly stochastic
    transformers", 2025.

    >>> import jax.numpy as jnp
    >>> out = qr_doubly_stochastic(jnp.array([[3.0, 1.0], [4.0, 2.0]]))
    >>> [[round(float(x), 2) for x in row] for row in out]
    [[0.36, 0.64], [0.64, 0.36]]
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a must be square [..., n, n], got shape {a.shape}.")
    check_floating(a=a)
    if not a.size:
        return a

    def one(a: jax.Array) -> jax.Array:
        size = stop_gradient(jnp.max(jnp.abs(a)))
        size = jnp.where(size > 0, size, 1)
        return jnp.square(_orthogonal(a / size + 1e-6 * jnp.eye(a.shape[-1], dtype=a.dtype)))

    for _ in range(a.ndim - 2):
        one = jax.vmap(one)
    return one(a.astype(accumulation_dtype(a.dtype))).astype(a.dtype)


@jax.custom_jvp
def _orthogonal(a: jax.Array) -> jax.Array:
    """Q of `a = Q R`, `[n, n]`."""
    return _orthogonal_factor(stop_gradient(a))


@_orthogonal.defjvp
def _orthogonal_rule(primals: tuple, tangents: tuple) -> tuple:
    """`dQ = Q (L - L')` with L the part of `Q' da R^-1` below its diagonal."""
    (a,), (tangent,) = primals, tangents
    q = _orthogonal(a)
    right = jnp.triu(product(q.T, a))
    turned = solve(right.T, product(q.T, tangent).T).T
    below = jnp.tril(turned, -1)
    return q, product(q, below - below.T)
