"""Balanced routing of tokens to experts: a linear assignment, solved by its dual."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.known import known
from jaxiter.numerics import anchor, on_own_mesh
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance

#: Halvings of an interval of prices: what is left of it is below the gaps between a million scores.
HALVINGS = 20


@reports
class Routing(NamedTuple):
    """Where tokens go, and the prices that send them there.

    Attributes:
      indices: experts of each token `[T, K]` (int32), best first.
      bias: what is added to the scores `[E]`, of mean 0, in units of the scores; a warm start.
      load: tokens that each expert gets `[E]` (float32), over all devices.
      value: the sum of the scores chosen.
      dual_value: at least the value of every routing of equal loads; the best one has it at the
        best bias. Equal to `value` where the loads are equal.
      solve: the `Solution` of the biases; its merit is the overload `max(load) E / (T K) - 1`.
    """

    indices: jax.Array
    bias: jax.Array
    load: jax.Array
    value: jax.Array
    dual_value: jax.Array
    solve: Solution


@reused
@on_own_mesh
def balanced_topk(
    scores: jax.Array,
    k: int,
    *,
    init: jax.Array | None = None,
    axis_name: str | None = None,
    **options: Unpack[SolveOptions],
) -> Routing:
    """Send each of T tokens to k of E experts so that all experts get as many: top-k with biases.

        maximise <x, scores>   with k experts a token, L = T k / E tokens an expert, 0 <= x <= 1

    is solved by its dual, whose prices are the biases. With `p` a bias an expert, a step is

        q_i = the middle of the k-th and the next of scores_i + p       (a token's price)
        p_e = such that L tokens have scores_ie + p_e > q_i             (an expert's price)

    each the exact minimum of the dual in one kind of price, so that the dual objective
    `sum_i (k largest of scores_i + p) - L sum p` never rises and no rate has to be chosen. Prices
    are found by halving intervals: counts alone are compared, and added over devices. Tokens of
    equal scores go together; no bias can part them.

    Args:
      scores: `[T, E]`, finite, in any unit. k: experts a token.
      init: a previous `bias`.
      axis_name: a mesh axis over which tokens are split (inside shard_map or pmap): each device
        passes its shard, and vectors `[E]` are reduced.
      **options: those of `fixed_point`; max_steps 100. Default `stop`: an overload of at most 5
        percent. PRECISION_FLOOR where L is no integer and the loads are as equal as can be. No
        `adjoint`: weigh what the experts return by scores at `indices`, which have derivatives.

    Raises:
      ValueError: k above E or below 1, no matrix of scores, NaN or infinite scores; under jit
        BAD_INPUT.

    References: Han and Zhong, "A theoretical framework for auxiliary-loss-free load balancing of
    sparse mixture-of-experts in large-scale AI models", 2025 (the dual); Sun,
    "Binary-integer-programming based algorithm for expert load balancing in mixture-of-experts
    models", 2025 (prices in turn).

    >>> import jax.numpy as jnp
    >>> out = balanced_topk(jnp.array([[0.9, 0.1], [0.8, 0.3], [0.7, 0.5], [0.6, 0.2]]), 1)
    >>> out.indices[:, 0].tolist(), out.load.tolist(), bool(out.solve.converged)
    ([0, 0, 1, 1], [2.0, 2.0], True)
    """
    chosen = choose("balanced_topk", options, {
        "adjoint": "which expert is chosen has no derivative"},
        stop=tolerance(rtol=0.05, atol=0.0), adjoint=frozen(), max_steps=100)
    known(_check_finite, scores)
    scores = _checked(scores, k)
    experts = scores.shape[1]
    total = scores.shape[0] * (1 if axis_name is None else lax.psum(1, axis_name))
    share = total * k / experts
    problem = _problem(k, share, axis_name)
    start = jnp.asarray(np.zeros(experts) if init is None else init, jnp.float32)
    if start.shape != (experts,):
        raise ValueError(f"init must be biases of shape ({experts},), got {start.shape}.")
    fixed = lax.stop_gradient(scores)
    solve = fixed_point(problem, anchor(start - jnp.mean(start), fixed), fixed, **chosen._asdict())
    bias = solve.value
    routed = _route(bias, fixed, k)
    load = _summed(_loads(routed.indices, experts), axis_name)
    value = jnp.sum(jnp.take_along_axis(fixed, routed.indices, axis=1))
    dual = jnp.sum(routed.best)
    value, dual = _summed(value, axis_name), _summed(dual, axis_name) - share * jnp.sum(bias)
    return Routing(routed.indices, bias, load, value, dual, solve)


class _Routed(NamedTuple):
    """Experts `[T, K]`, their biased scores `[T, K]`, and the price of each token `[T]`."""

    indices: jax.Array
    best: jax.Array
    price: jax.Array


def _checked(scores: jax.Array, k: int) -> jax.Array:
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be a non-empty matrix [tokens, experts], got shape "
                         f"{scores.shape}.")
    if not isinstance(k, int) or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be an integer from 1 to the number of experts, "
                         f"{scores.shape[1]}, got {k!r}.")
    return scores.astype(jnp.float32)


def _check_finite(scores: Any) -> None:
    if not np.all(np.isfinite(np.asarray(scores, np.float32))):
        raise ValueError("scores contain NaN or infinity; give a forbidden expert a low score.")


def _summed(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _route(bias: jax.Array, scores: jax.Array, k: int) -> _Routed:
    best, indices = lax.top_k(scores + bias, min(k + 1, scores.shape[1]))
    # Taken apart, or XLA merges the slices below into it and sorts all experts instead; one by
    # one, for a barrier around the pair is one that it cannot compile.
    best, indices = lax.optimization_barrier(best), lax.optimization_barrier(indices)
    # Where every expert is chosen there is no next one: any lower price will do.
    following = best[:, k] if best.shape[1] > k else best[:, k - 1] - 1
    return _Routed(indices[:, :k].astype(jnp.int32), best[:, :k], (best[:, k - 1] + following) / 2)


def _loads(indices: jax.Array, experts: int) -> jax.Array:
    return jnp.zeros(experts, jnp.float32).at[indices.ravel()].add(1)


def _problem(k: int, share: float, axis_name: str | None) -> Problem:
    """The map of the biases; its memory is the load at the bias measured last."""

    def step(bias: jax.Array, load: jax.Array, scores: jax.Array) -> tuple:
        routed = _route(bias, scores, k)
        new = _prices(scores - routed.price[:, None], share, axis_name)
        load = _summed(_loads(routed.indices, bias.shape[0]), axis_name)
        # The same on every device, but typed as one of its own, as the loop's carry is.
        return anchor((new - jnp.mean(new), load), scores)

    def overload(bias: jax.Array, image: jax.Array, load: jax.Array, scores: jax.Array) -> Any:
        return jnp.max(load) / jnp.float32(share) - 1

    def valid(bias: jax.Array, scores: jax.Array) -> jax.Array:
        good = jnp.all(jnp.isfinite(scores))
        return good if axis_name is None else lax.pmin(good.astype(jnp.int32), axis_name) > 0

    return Problem(
        step=step, memory=lambda bias, scores: anchor(jnp.zeros_like(bias), scores),
        merit=overload, hindsight=True, scale=1.0, floor=float(np.ceil(share) / share - 1),
        valid=valid)


def _prices(margins: jax.Array, share: float, axis_name: str | None) -> jax.Array:
    """p `[E]` with `share` of the margins `[T, E]` above -p, in the middle of all such."""
    low, high = jnp.min(margins, axis=0), jnp.max(margins, axis=0)
    if axis_name is not None:
        low, high = lax.pmin(low, axis_name), lax.pmax(high, axis_name)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        count = jnp.sum((margins > middle).astype(jnp.float32), axis=0)
        enough = _summed(count, axis_name) >= share
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
    return -(low + high) / 2
