"""Differentiable permutations: doubly stochastic layers, samples, and hard assignments."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint
from jaxiter.implicit import as_adjoint
from jaxiter.known import check_count, check_positive
from jaxiter.linear import LinearSolution, LinearSolver, Matvec
from jaxiter.numerics import safe_divide, stop_gradient
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import Status
from jaxiter.transport.checks import NO_RESUME
from jaxiter.transport.sinkhorn import sinkhorn
from jaxiter.values import as_value


def _check(scores: jax.Array, tau: Any) -> None:
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be square [..., k, k], got shape {scores.shape}.")
    check_positive(tau=tau)


class _OfPlans(Adjoint):
    """Derivatives of plans by costs alone, where a plan falls into blocks, too.

    The potentials of a block may then move against those of another, by as much as rounding
    says, and the system is as good as singular. But costs do not pull at what the system hardly
    holds, nor do plans ask for it: the share of the answer that rounding decides has next to no
    effect, while the answer is about as large as what was asked. Marginals would pull.
    """

    inner: Adjoint

    def with_solver(self, change: Callable) -> Adjoint:
        return self.inner.with_solver(lambda solve: _by_size(change(solve)))


@as_value
def _by_size(solve: LinearSolver) -> LinearSolver:
    """The solver, with the condition that shows in its answer in place of that of the system."""

    def sized(matvec: Matvec, b: Any, *, x0: Any = None) -> LinearSolution:
        out = solve(matvec, b, x0=x0)
        shown = safe_divide(trees.norm(out.value), trees.norm(b))
        return out._replace(condition=jnp.minimum(out.condition, jnp.maximum(shown, 1)))

    return sized


@reused
def sinkhorn_layer(
    scores: jax.Array, tau: Any = 1.0, **options: Unpack[SolveOptions]
) -> jax.Array:
    """The doubly stochastic matrix `exp(scores / tau)` scaled to unit rows and columns.

    Args:
      scores: `[..., k, k]`. tau: temperature; small is close to a permutation.
      **options: as in `sinkhorn`, which solves to tolerance, with implicit derivatives, in at
        most 1000 steps by default. With `adjoint=unrolled()` exactly `max_steps` row and column
        normalisations, differentiated as they are, and no other option; few of them leave a row
        error of 0.5 at tau = 0.03.

    Returns:
      `[..., k, k]`, columns sum to 1; rows too, up to the tolerance. NaN where scores are, and
      where tau is not positive; `sinkhorn` itself has a status.

    Where the matrix is close to a permutation, mass between its blocks is lost to rounding. Losses
    of the matrix keep their derivative; one that asks for that mass itself, by its logarithm, gets
    NaN: raise tau, or unroll.

    Reference: Adams and Zemel, "Ranking via Sinkhorn propagation", 2011; Santa Cruz et al.,
    "DeepPermNet: visual permutation learning", 2017.

    >>> import jax.numpy as jnp
    >>> sinkhorn_layer(jnp.eye(2), 0.1).round(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _check(scores, tau)
    chosen = choose("sinkhorn_layer", options, NO_RESUME)
    k = scores.shape[-1]
    if as_adjoint(chosen.adjoint).differentiates_loop:
        if chosen != Options(adjoint=chosen.adjoint, max_steps=chosen.max_steps):
            raise ValueError("with unrolled() sinkhorn_layer makes max_steps normalisations and "
                             "measures none of them: it takes no other option.")

        check_count(max_steps=chosen.max_steps)

        def normalise(logits: jax.Array, _: None) -> tuple[jax.Array, None]:
            logits = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            return logits - jax.nn.logsumexp(logits, axis=-2, keepdims=True), None

        # One that is traced and not positive would be an answer to other scores.
        tau = jnp.where(jnp.asarray(tau) > 0, tau, jnp.nan).astype(scores.dtype)
        return jnp.exp(lax.scan(normalise, scores / tau, length=chosen.max_steps)[0])

    adjoint = as_adjoint(chosen.adjoint)
    if adjoint.solves:
        chosen = chosen._replace(adjoint=_OfPlans(adjoint))
    # Costs over tau are all that counts: so a derivative by tau is one by costs, too.
    held = stop_gradient(jnp.asarray(tau, scores.dtype))
    unit = held / jnp.asarray(tau, scores.dtype)

    def solve(scores: jax.Array) -> jax.Array:
        ones = jnp.ones(k, scores.dtype)
        out = sinkhorn(-scores * unit, ones, ones, epsilon=held, **chosen._asdict())
        return jnp.where(out.status == Status.BAD_INPUT, jnp.nan, out.plan())

    for _ in range(scores.ndim - 2):
        solve = jax.vmap(solve)
    return solve(scores)


@reused
def gumbel_sinkhorn(
    key: jax.Array, scores: jax.Array, tau: Any = 1.0, *, noise: Any = 1.0, samples: int = 1,
    **options: Unpack[SolveOptions],
) -> jax.Array:
    """Samples `[samples, ..., k, k]` of relaxed permutations: Sinkhorn of Gumbel-perturbed scores.

    Options as in `sinkhorn_layer`; the paper unrolls 20 steps.

    Reference: Mena, Belanger, Linderman and Snoek, "Learning latent permutations with
    Gumbel-Sinkhorn networks", 2018.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> gumbel_sinkhorn(jax.random.key(0), jnp.zeros((3, 3)), samples=2,
    ...                 adjoint=jaxiter.unrolled(), max_steps=20).shape
    (2, 3, 3)
    """
    _check(scores, tau)
    gumbel = jax.random.gumbel(key, (samples, *scores.shape), scores.dtype)
    return sinkhorn_layer(scores + noise * gumbel, tau, **options)


def round_permutation(scores: jax.Array, *, straight_through: jax.Array | None = None) -> jax.Array:
    """The permutation matrix `[..., k, k]` that maximises `<P, scores>`: a linear assignment.

    Assign on the scores or on `log Q`, never by argmax of rows (no permutation in most
    cases) nor on Q itself: the answer on log Q is the same at every temperature.

    Args:
      scores: `[..., k, k]`.
      straight_through: a relaxed Q of the same shape; then the value is the permutation and
        the derivative that of Q.

    >>> import jax.numpy as jnp
    >>> round_permutation(jnp.array([[0.1, 0.9], [0.2, 0.95]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    _check(scores, 1.0)
    k = scores.shape[-1]

    def assign(scores: jax.Array) -> jax.Array:
        rows, columns = optax.assignment.hungarian_algorithm(-scores)
        return jnp.zeros((k, k), scores.dtype).at[rows, columns].set(1)

    solve = assign
    for _ in range(scores.ndim - 2):
        solve = jax.vmap(solve)
    hard = solve(stop_gradient(scores))
    if straight_through is None:
        return hard
    return hard + straight_through - stop_gradient(straight_through)
