"""Recurrences `s_{t+1} = step(s_t, x_t)` solved as triangular fixed points, many rows a round."""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.known import check_not_negative
from jaxiter.numerics import machine_epsilon, strong
from jaxiter.options import SolveOptions
from jaxiter.recurrence.adjoint import as_chain_adjoint, attach_recurrence
from jaxiter.recurrence.methods import KINDS, GaussSeidel, Past, RowMethod, Rows, Secant, as_method
from jaxiter.recurrence.rounds import View, choose_rounds, is_floating, solve_rounds
from jaxiter.reuse import reused
from jaxiter.solution import Solution

PyTree = Any


@reused
def solve_recurrence(
    step: Callable, s0: PyTree, xs: PyTree = None, *, method: str | RowMethod = "newton",
    order: int = 1, window: int | None = None, length: int | None = None, init: PyTree = None,
    rtol: Any = None, atol: Any = None, **options: Unpack[SolveOptions],
) -> Solution:
    """All states of `s_{t+1} = step(s_t, x_t)`, t = 0..T-1, in a few rounds of batched steps.

    A round evaluates `step` on a window of rows at once; round k knows the first k rows of the
    loop whatever the method, so T rounds always suffice. How many are
    needed depends on how fast the chain forgets: a counter needs T, and no method
    makes a chaotic chain parallel.

    Args:
      step: `step(s, x) -> s`; with order=2 `step(s, previous, x) -> s`. It may close over arrays.
      s0: the state before the first row; order=2: a pair `(s, previous)`.
      xs: pytree of drivers, leaves `[T, ...]`; None with `length`.
      method: `newton()` (DEER: d x d Jacobians, d up to 64), `diagonal()` (quasi-DEER),
        `elk(damping)` (quasi-ELK: damped diagonal Newton), `secant()` (one free slope a row),
        `picard()`, `jacobi()`, `gauss_seidel(block)` (blocks of rows side by side, each one
        sequential inside), all of `jaxiter.recurrence`; names stand for those with their defaults.
        Integer states: jacobi and gauss_seidel, equal to the loop bit for bit.
      order: 1 or 2, how many earlier states a step reads.
      window: rows of a round; default T. It slides as rows become final. Not of gauss_seidel.
      length: T where xs is None.
      init: first guess of the rows `[T, ...]`; default s0 in every row.
      rtol, atol: a row is final once the rows before it are, it moves by no more than
        `atol + rtol max|row|`, and it is as near to what its step makes of them; default
        1e-10, 1e-5, 1e-2 for 64, 32, 16 bits, for atol times the largest entry of the window's
        rows up to this one where that is below 1. An atol that you give is absolute. Integers must
        be equal.
      **options: as in `fixed_point`, with these meanings. stop and monitor see as merit the largest
        change of a row, in units of its tolerance; by default it may be 1. solver: moves all
        rows by what a round says, for floating-point rows without window and gauss_seidel; no row
        is held then, and T rounds need not suffice. max_steps: most rounds, default T. adjoint:
        `parallel()` of `jaxiter.recurrence`, the default, differentiates by two linear
        recurrences in O(log T) depth with d x d Jacobians for d up to 64, `sequential()` by two
        loops of T steps; exact either way, of any order; `jaxiter.frozen()`: none. resume: goes
        on from a state, all whose rows are measured again; not with a window. No
        check_every, keep_best.

    Returns:
      A `Solution`: value `[T, ...]`, the rows measured last, steps in rounds, merit the largest
      change of a row in units of its tolerance, infinite while rows were not measured; displacement
      and residual `T(value) - value` and its norm, where T is a round: once CONVERGED, for jacobi,
      and where a window slides, the chain's own step. aux: how many rows of value are final; one
      more is right in `value + displacement`. NONFINITE: the chain itself left the float
      range after those; the rest is the last guess that was finite. Rows of integers are equal or
      infinitely far: merit and residual are 0 or infinite, displacement is None, and value is
      the newest guess.

    Raises:
      ValueError: T = 0, an unknown method, window outside 1..T, shapes that differ, tolerances
        below 0, complex states with a method of slopes, a solver or a resume where they make no
        sense.
      TypeError: a method, an adjoint or an option of another kind.

    Source: Song et al., "Accelerating feedforward computation via parallel nonlinear equation
    solving", 2021; Lim et al., "Parallelizing non-linear sequential models", 2024.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.recurrence.solve_recurrence(
    ...     lambda s, x: 0.5 * jnp.sin(s) + x, jnp.zeros(1), jnp.ones((100, 1)))
    >>> out.value.shape, int(out.steps) < 8, bool(out.converged)
    ((100, 1), True, True)
    """
    s0, xs = (jax.tree.map(strong, tree) for tree in (s0, xs))
    if order == 2:
        if not isinstance(s0, tuple | list) or len(s0) != 2:
            raise ValueError("order=2 needs s0 as a pair (s, previous).")
        step, s0 = _augment(step), tuple(s0)
    elif order != 1:
        raise ValueError(f"order must be 1 or 2, got {order!r}.")
    count = _length(xs, length)
    guess = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), s0)
    if init is not None:
        init = jax.tree.map(strong, init)
        trees.check_same_structure(guess[0] if order == 2 else guess, init, "init")
        guess = (init, trees.before(init, s0[0])) if order == 2 else init
    method = as_method("solve_recurrence", method, KINDS, own=True)
    chosen = choose_rounds("solve_recurrence", options, count)
    adjoint = as_chain_adjoint("solve_recurrence", chosen.adjoint)
    block = method.block if isinstance(method, GaussSeidel) else 1
    if window is not None and isinstance(method, GaussSeidel):
        raise ValueError("gauss_seidel(block) takes no window: all blocks run in every round.")
    if count % block:
        raise ValueError(f"gauss_seidel needs blocks that divide the {count} rows, got "
                         f"block={block}.")
    _check(step, s0, xs, method)
    floating = is_floating(s0)
    if floating:
        flat, unravel = ravel_pytree(s0)
        guess = jax.vmap(lambda s: ravel_pytree(s)[0])(guess)
        row_step = lambda s, x: ravel_pytree(step(unravel(s), x))[0]  # noqa: E731
    else:
        flat, unravel, row_step = s0, lambda s: s, step
    past = None
    if isinstance(method, Secant):
        unseen = trees.full_like(guess, jnp.nan)
        past = Past(unseen, unseen, jnp.zeros(count, flat.dtype))
    solve, *_ = solve_rounds(
        partial(_look, row_step, method, block), guess, past, (flat, xs), chosen,
        compare=comparison(flat, rtol, atol), window=window, block=block,
        after=_one_value_each if floating and order == 2 else None)
    rows, off = solve.value, solve.displacement
    if floating:
        rows = attach_recurrence(row_step, rows, flat, xs, adjoint=adjoint)
        rows, off = jax.vmap(unravel)(rows), jax.vmap(unravel)(off)
    if order == 2:
        rows, off = rows[0], None if off is None else off[0]
    return solve._replace(value=rows, displacement=off)


def _look(
    step: Callable, method: RowMethod, block: int, view: View, pending: jax.Array, rows: PyTree,
    past: Past | None, s0: PyTree, xs: PyTree,
) -> tuple[PyTree, Callable, Past | None]:
    """One batched evaluation of the window and one linear recurrence."""
    p, x, old, before = view.cut((trees.before(rows, s0), xs, rows, past))
    shown = jax.vmap(step)(p, x) if block == 1 else _blocks(step, block, p, x)
    if method.takes_integers:  # they are compared and copied, never added
        return shown, lambda kept: shown, past
    safe = trees.where_rows(trees.finite_rows(shown) & pending, shown, old)  # final rows stay
    lift, slope = method.linearize(Rows(step, p, x, safe, before))
    if past is not None and slope is not None:
        past = view.put(past, Past(p, safe, slope))
    return shown, lambda kept: safe + lift(trees.where_rows(~kept, safe - old, 0)), past


def _one_value_each(
    view: View, rows: jax.Array, past: Past | None, s0: jax.Array, xs: PyTree
) -> jax.Array:
    """Rows that are pairs of a state and the one before: only the first of a pair is returned."""
    size = rows.shape[1] // 2
    rows = rows[:, :size]
    return jnp.concatenate([rows, trees.before(rows, s0[:size])], axis=1)


def comparison(like: PyTree, rtol: Any, atol: Any) -> Callable:
    """Changes of rows in units of the tolerance; integers are equal, or infinitely far."""
    if not is_floating(like):
        return lambda view, new, old, *operands: _largest(
            jax.tree.map(lambda a, b: jnp.where(a == b, 0, jnp.float32(jnp.inf)), new, old))
    check_not_negative(rtol=rtol, atol=atol)
    epsilon = machine_epsilon(like)
    default = 1e-10 if epsilon < 1e-12 else 1e-5 if epsilon < 1e-5 else 1e-2
    rtol = default if rtol is None else rtol

    def close(view: View, new: PyTree, old: PyTree, *operands: PyTree) -> jax.Array:
        change, size = _largest(trees.subtract(new, old)), _largest(new)
        least = atol
        if least is None:
            # Small states are not still for being small. Later rows are guesses and do not count.
            known = lax.cummax(jnp.where(jnp.isfinite(size), size, 0))
            least = default * jnp.minimum(1, known)
        allowed = least + rtol * size
        # A traced tolerance that is negative or NaN allows nothing.
        return jnp.where(change == 0, 0, jnp.where(allowed < 0, jnp.inf, change / allowed))

    return close


def _largest(tree: PyTree) -> jax.Array:
    """The largest magnitude in every row."""
    rows = [jnp.max(jnp.abs(leaf.reshape(leaf.shape[0], -1)), axis=1, initial=0)
            for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(rows), axis=0)


def _blocks(step: Callable, block: int, p: PyTree, xs: PyTree) -> PyTree:
    """Blocks side by side, each sequential inside, from the first input of each."""
    steps = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]).swapaxes(0, 1), xs)
    out = trees.iterates(jax.vmap(step), trees.at(p, slice(None, None, block)), steps, length=block)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), out)


def _augment(step: Callable) -> Callable:
    """A step that reads two states, as a step on pairs."""
    return lambda pair, x: (step(*pair, x), pair[0])


def _length(xs: PyTree, length: int | None) -> int:
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(xs)}
    sizes |= {length} - {None}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError("xs must have one leading axis T, or be None with `length`; "
                         f"found lengths {sorted(sizes)} (-1 is a scalar).")
    count = int(sizes.pop())
    if count < 1:
        raise ValueError("the recurrence has no step: T = 0.")
    return count


def _check(step: Callable, s0: PyTree, xs: PyTree, method: RowMethod) -> None:
    leaves, floating = jax.tree.leaves(s0), is_floating(s0)
    if not floating and not method.takes_integers:
        raise ValueError(f"method {method.name!r} needs floating-point states; jacobi() and "
                         "gauss_seidel(block) take integers.")
    if not method.takes_complex and any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ValueError(f"method {method.name!r} needs real states: hold real and imaginary parts "
                         "as two leaves, or take jacobi(), picard() or gauss_seidel(block).")
    if floating and len({leaf.dtype for leaf in leaves}) > 1:
        raise ValueError("all leaves of a floating-point state must have one dtype.")
    trees.check_same_structure(s0, jax.eval_shape(step, s0, trees.first(xs)), "The step")
