"""Halpern's anchored iteration, with restarts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.numerics import is_concrete, safe_divide
from jaxiter.solvers.residual import residual_solver
from jaxiter.values import as_value

PyTree = Any

#: Restart when the merit fell to this fraction of its value at the anchor ...
SUFFICIENT = 0.2
#: ... or to this fraction and started to grow ...
NECESSARY = 0.8
#: ... or when the epoch is this fraction of all steps.
ARTIFICIAL = 0.36


class HalpernState(NamedTuple):
    """Anchor, steps since it was set, all steps, merit at the anchor and at the last step."""

    anchor: PyTree
    age: jax.Array
    step: jax.Array
    anchor_merit: jax.Array
    last_merit: jax.Array
    inverse_phi: jax.Array


@as_value
def halpern(
    restart: str | Any = None, *, weights: str = "ohm", contraction: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Halpern iteration: `x <- lam_k x_anchor + (1 - lam_k) T(x)`, k = 0, 1, ...

    For a nonexpansive map in a Euclidean norm `lam_k = 1 / (k + 2)` gives
    `residual_k <= 2 |x0 - x*| / (k + 1)`, the best possible for this class, where
    Picard may not converge at all; the limit is the fixed point nearest x0. On
    contractions the plain form is far slower than picard: use a restart, the
    adaptive weights, or anderson().

    Args:
      restart: None keeps the anchor x0. A float c moves the anchor to T(x) when the
        merit fell to c times its value at the anchor (1/e is a good c; may be traced).
        "adaptive": to 0.2 times it, or to 0.8 times it and growing again, or when the
        epoch is 0.36 of all steps (PDLP's tests).
      weights: "ohm" as above; "adaptive" takes
        `1 / lam = 2 + 2 <x - Tx, x0 - x> / |x - Tx|^2`, never below k + 2: same
        guarantee, and 1 to 2 times the steps of picard on contractions.
      contraction: a known Lipschitz constant q < 1 of T: the optimal weights
        `1 / lam_k = 1 + q^-2 + ... + q^-2(k+1)` for it; replaces `weights`.

    Raises:
      ValueError: unknown restart or weights; contraction outside (0, 1].

    For a firmly nonexpansive T (a projection, a proximal map, Douglas-Rachford)
    `optax.chain(optax.scale(2.0), halpern())` runs it on 2 T - I, halving the bound.

    Reference: Halpern, "Fixed points of nonexpanding maps", Bull. Amer. Math. Soc. 73, 1967;
    Lieder, "On the convergence rate of the Halpern-iteration", Optim. Lett. 15, 2021; Park and
    Ryu, "Exact optimal accelerated complexity for fixed-point iterations", 2022.

    >>> import jax.numpy as jnp, jaxiter
    >>> turn = lambda x: jnp.array([-x[1], x[0]])
    >>> bool(jaxiter.fixed_point(turn, jnp.array([1.0, 0.0]), solver=halpern()).converged)
    True
    """
    if isinstance(restart, str) and restart != "adaptive":
        raise ValueError(f'restart must be None, "adaptive" or a number, got {restart!r}.')
    if weights not in ("ohm", "adaptive"):
        raise ValueError(f'weights must be "ohm" or "adaptive", got {weights!r}.')
    if contraction is not None and is_concrete(contraction):
        if not np.all((np.asarray(contraction) > 0) & (np.asarray(contraction) <= 1)):
            raise ValueError(f"contraction must lie in (0, 1], got {contraction}.")

    def init(params: PyTree) -> HalpernState:
        merit = jnp.full((), jnp.inf, trees.norm_dtype(params))
        zero = jnp.int32(0)
        return HalpernState(params, zero, zero, merit, merit, jnp.ones_like(merit))

    def weight(state: HalpernState, age: jax.Array, residual: PyTree, params: PyTree) -> tuple:
        kind = state.inverse_phi.dtype
        if contraction is not None:
            # phi_{k+1} = 1 + phi_k / q^2, kept as its inverse so that it cannot overflow.
            square = jnp.asarray(contraction, kind) ** 2
            inverse = jnp.where(age == 0, jnp.ones((), kind), state.inverse_phi)
            lam = square * inverse / (1 + square * inverse)
            return lam, lam
        plain = age.astype(kind) + 1
        if weights == "adaptive":
            away = trees.dot(residual, trees.subtract(params, state.anchor)).real.astype(kind)
            square = trees.squared_norm(residual).astype(kind)
            plain = jnp.maximum(plain, 1 + 2 * safe_divide(away, square))
        return 1 / (plain + 1), state.inverse_phi

    def update(
        residual: PyTree, state: HalpernState, params: PyTree, *, merit: Any, **extra: Any
    ) -> tuple[PyTree, HalpernState]:
        del extra
        if restart is None:
            due = jnp.bool_(False)
            merit = state.last_merit
        else:
            due = _due(restart, state, merit)
        age = jnp.where(due, 0, state.age)
        lam, inverse_phi = weight(state, age, residual, params)
        pull = trees.subtract(state.anchor, params)
        moved = jax.tree.map(
            lambda a, r: lam.astype(r.dtype) * a + (1 - lam).astype(r.dtype) * r, pull, residual)
        image = trees.add(params, residual)
        return trees.where(due, residual, moved), HalpernState(
            trees.where(due, image, state.anchor),
            jnp.where(due, 0, age + 1),
            state.step + 1,
            # After a restart the merit at the new anchor is that of the next evaluation.
            jnp.where(due | (state.age > 0), jnp.where(due, jnp.inf, state.anchor_merit), merit),
            merit,
            inverse_phi,
        )

    needs = ("params",) if restart is None else ("params", "merit")
    return residual_solver("halpern", init, update, needs)


def _due(restart: Any, state: HalpernState, merit: jax.Array) -> jax.Array:
    started = state.age > 0
    if not isinstance(restart, str):
        factor = jnp.asarray(restart).astype(merit.dtype)
        return started & (merit <= factor * state.anchor_merit)
    fell = merit <= SUFFICIENT * state.anchor_merit
    turned = (merit <= NECESSARY * state.anchor_merit) & (merit > state.last_merit)
    long = state.age.astype(merit.dtype) >= ARTIFICIAL * state.step.astype(merit.dtype)
    return started & (fell | turned | (long & (state.age > 1)))
