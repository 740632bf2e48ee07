"""Derivatives of a recurrence: one linear recurrence forward, or its transpose backward.

`d s_{t+1} = J_t d s_t + d step_t`: the system is unipotent, so it is never singular and needs
no iterative solver. How the states were found does not matter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, frozen, with_jvp
from jaxiter.numerics import anchor, hoist, stop_gradient, typed_by
from jaxiter.recurrence.linearize import LARGEST_DENSE, apply, dense_jacobians, scan_matrix

PyTree = Any


class ChainAdjoint(Adjoint):
    """Derivatives of a chain by one linear chain, at depth O(log T) or O(1) rounds, or O(T)."""

    batched: bool = eqx.field(static=True)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> NoReturn:
        """Refused: it knows chains only."""
        raise TypeError("jaxiter.recurrence.parallel() and sequential() are derivatives of chains; "
                        "fixed points take jaxiter.implicit() and its kin.")


def parallel() -> ChainAdjoint:
    """Derivatives of a chain from all its rows at once.

    Recurrences: associative scans of d x d Jacobians, for real states with d up to 64 (else:
    `sequential()`).
    Samplers: rounds of batched VJPs. Exact, of any order.

    >>> parallel() == parallel() != sequential()
    True
    """
    return ChainAdjoint(batched=True)


def sequential() -> ChainAdjoint:
    """Derivatives of a chain by a loop of T products with a row's Jacobian; memory O(T d)."""
    return ChainAdjoint(batched=False)


def as_chain_adjoint(front: str, adjoint: Any) -> Adjoint:
    """The adjoint of a chain, `parallel()` for None.

    Raises:
      TypeError: what is neither `parallel()`, `sequential()` nor `frozen()`.
    """
    adjoint = parallel() if adjoint is None else adjoint
    if isinstance(adjoint, ChainAdjoint) or adjoint == frozen():
        return adjoint
    raise TypeError(f"{front} differentiates its chain as such: adjoint must be "
                    "jaxiter.recurrence.parallel(), jaxiter.recurrence.sequential() or "
                    f"jaxiter.frozen(), got {adjoint!r}.")


def attach_recurrence(
    step: Callable, rows: jax.Array, s0: jax.Array, xs: PyTree, *, adjoint: Adjoint | None = None
) -> jax.Array:
    """States found by any means, with the derivatives of the loop.

    Args:
      step: `step(s, x) -> s` on vectors `[d]`; what it closes over gets derivatives too.
      rows: the states s_1 .. s_T `[T, d]`; their own derivatives are dropped.
      s0: `[d]`. xs: drivers, leaves `[T, ...]`.
      adjoint: `parallel()`, the default, `sequential()`, or `jaxiter.frozen()` for none.

    Returns:
      rows, with derivatives of any order, in both modes.

    Raises:
      TypeError: an adjoint of another kind.
    """
    adjoint = as_chain_adjoint("attach_recurrence", adjoint)
    if not isinstance(adjoint, ChainAdjoint):
        return stop_gradient(rows)
    # The Jacobian of a complex step is no complex matrix, unless the step is holomorphic.
    batched = (adjoint.batched and rows.shape[1] <= LARGEST_DENSE and not jnp.iscomplexobj(rows))
    rows, s0, xs = typed_by(step, (s0, trees.first(xs)), (rows, s0, xs))
    pure, constants, _ = hoist(step, s0, trees.first(xs))

    def outputs(operands: tuple, fixed: tuple, p: jax.Array) -> jax.Array:
        _, xs, constants = operands
        return jax.vmap(partial(pure, constants))(p, xs)

    def solves(operands: tuple, fixed: tuple, p: jax.Array) -> tuple:
        _, xs, constants = operands
        return (_parallel if batched else _sequential)(partial(pure, constants), p, xs)

    return attach_rows(outputs, rows, (s0, xs, constants), (), solves)


def attach_rows(
    outputs: Callable, rows: jax.Array, operands: tuple, fixed: tuple, solves: Callable
) -> jax.Array:
    """Rows `[T, ...]` with `rows = outputs(operands, fixed, (operands[0], rows[:-1]))`, triangular.

    Args:
      operands: what derivatives are by, the state before the first row first. fixed: constants,
        which no rule may close over, for under remat they are traced.
      solves: `solves(operands, fixed, inputs) -> (forward, backward)`, exact, for their own
        derivatives are never asked for: `forward(b, like)` of the linear system, which varies over
        a mesh as `like` does, and `backward(b)` of its transpose; None transposes forward itself.
    """
    def tangent(rows: jax.Array, given: tuple, dots: tuple) -> jax.Array:
        operands, fixed = given
        _, rhs = jax.jvp(
            lambda ops: outputs(ops, fixed, trees.before(rows, ops[0])), (operands,), (dots[0],))
        p = trees.before(rows, operands[0])
        _, linear = jax.linearize(lambda p: outputs(operands, fixed, p), p)
        forward, backward = solves(*stop_gradient((operands, fixed, p)))

        def transposed(_: Callable, b: jax.Array) -> jax.Array:
            if backward is not None:
                return backward(b)
            return jax.linear_transpose(lambda c: forward(c, b), b)(b)[0]

        return lax.custom_linear_solve(
            lambda d: d - linear(trees.before(d)), rhs, lambda _, b: forward(b, b), transposed)

    return with_jvp(rows, (operands, fixed), tangent)


def _sequential(row: Callable, p: jax.Array, xs: PyTree) -> tuple:
    """A loop of T products with a row's Jacobian."""
    def move(d: jax.Array, at: tuple) -> jax.Array:
        b, p, x = at
        return jax.jvp(lambda p: row(p, x), (p,), (d,))[1] + b

    def forward(b: jax.Array, like: jax.Array) -> jax.Array:
        return trees.iterates(move, anchor(jnp.zeros_like(b[0]), (like, p)), (b, p, xs))

    return forward, None


def _parallel(row: Callable, p: jax.Array, xs: PyTree) -> tuple:
    """Two associative scans over the Jacobians of all rows."""
    jacobians = partial(dense_jacobians, row, p, xs)

    def solve(a: jax.Array, b: jax.Array) -> jax.Array:
        # scan_matrix returns the inputs' changes D_0 .. D_{T-1}; one more step gives the last.
        return apply(a, scan_matrix(a, b)) + b

    def backward(b: jax.Array) -> jax.Array:
        # g_t = b_t + J_{t+1}^T g_{t+1}: the same recurrence, read from the end.
        return solve(trees.before(jacobians().transpose(0, 2, 1)[::-1]), b[::-1])[::-1]

    return lambda b, like: solve(jacobians(), b), backward
