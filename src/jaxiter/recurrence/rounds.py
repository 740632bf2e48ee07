"""Rounds on the rows of a chain: the window in work, which rows are final, what a round changed.

The point of the solve is the trajectory and `T` is one round. A row is final when its inputs do
not move any more and it stays what it was when it was measured, so the residual reported is that
of the rows returned, whatever was proposed. The last row is nobody's input: it is taken as its step
makes it. Rows of integers are no point of a driver that adds; they stay in its memory, with the
largest change, which is the merit of a round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.known import check_count
from jaxiter.numerics import anchor, stop_gradient
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.solution import Solution, Status
from jaxiter.stop import StepInfo, Stop, first_case

PyTree = Any


class Carried(NamedTuple):
    """What goes from round to round: the largest change of a row, and what the front remembers.

    change: in units of the tolerance, float32; NaN once a row that should be final is not finite.
    rows: those of integers, else empty.
    """

    change: jax.Array
    rows: PyTree
    own: PyTree


class Ledger(NamedTuple):
    """What rounds remember: how many rows are final, and what each was when it was measured last.

    size: `[T]`, its change in units of the tolerance; infinite where nobody measured it. off: where
    a window slides, how far it was off its own step; else None. own: the memory of the chain.
    """

    final: jax.Array
    size: jax.Array
    off: PyTree
    own: PyTree


class View(NamedTuple):
    """The rows of a window within trees of all rows."""

    start: jax.Array
    width: int

    def index(self) -> jax.Array:
        """The window's rows, `[width]`."""
        return self.start + jnp.arange(self.width, dtype=jnp.int32)

    def cut(self, tree: PyTree) -> PyTree:
        """The window's rows of the tree; the tree where that is all."""
        return jax.tree.map(
            lambda leaf: leaf if len(leaf) == self.width else
            lax.dynamic_slice_in_dim(leaf, self.start, self.width), tree)

    def put(self, tree: PyTree, part: PyTree) -> PyTree:
        """The tree with new rows from start on."""
        return jax.tree.map(
            lambda leaf, new: anchor(new, (leaf, self.start)) if len(leaf) == self.width else
            lax.dynamic_update_slice_in_dim(leaf, new, self.start, 0), tree, part)


def back(rows: jax.Array, depth: int) -> jax.Array:
    """The last rows as each row sees them, itself first, `[R, depth, ...]`; zeros before all."""
    padded = jnp.concatenate([jnp.zeros((depth - 1, *rows.shape[1:]), rows.dtype), rows])
    return jnp.stack([padded[depth - 1 - j: len(padded) - j] for j in range(depth)], axis=1)


def choose_rounds(
    front: str, options: SolveOptions, count: int, most: float = 1, **refused: str
) -> Options:
    """The options of a front that runs rounds on so many rows, by default until all are calm.

    Raises:
      TypeError: an option that no front knows.
      ValueError: check_every, keep_best, or what else is refused.
    """
    rule = Stop(lambda info: (), lambda info, state: (
        first_case((info.merit <= most, Status.CONVERGED)), state))
    return choose(front, options, {
        "check_every": "a round measures its rows at no cost",
        "keep_best": "rows that are final stay so, and the last round is the best",
        **refused}, stop=rule, max_steps=count)


def without_derivatives(front: str, options: SolveOptions, count: int, most: float = 1) -> Options:
    """The same for a front whose rounds are plain and whose answer is a constant.

    Raises:
      ValueError: besides, a solver, a state to resume, or an adjoint that is not `frozen()`.
    """
    chosen = choose_rounds(
        front, options, count, most, solver="its rounds are what its rows say",
        resume="rows that were final for other data would stay; start anew from its rows")
    if chosen.adjoint is not None and chosen.adjoint != frozen():
        raise ValueError(f"{front} takes no adjoint but jaxiter.frozen(): it has no derivatives.")
    return chosen


def run_rounds(
    one: Callable, rows: PyTree, memory: PyTree, operands: tuple, options: Options,
    calls: Callable | None = None,
) -> tuple[Solution, PyTree, PyTree]:
    """Rounds `one(rows, memory, *operands) -> (rows, change, memory)` in the driver.

    Returns the solution of the point, the newest rows, and the last memory. `calls(memory)`: what
    the next round costs.
    """
    rows, memory, operands = stop_gradient((rows, memory, operands))
    floating, stop = is_floating(rows), options.rule

    def step(point: PyTree, carried: Carried, start: Carried, *operands: PyTree) -> tuple:
        rows, change, own = one(point if floating else carried.rows, carried.own, *operands)
        return (rows, Carried(change, (), own)) if floating else (point, Carried(change, rows, own))

    problem = Problem(
        step=step, memory=lambda point, start, *operands: start, hindsight=True,
        merit=lambda point, image, carried, *rest: carried.change,
        scale=lambda *rest: jnp.float32(1), floor=lambda *rest: jnp.float32(0),
        calls=None if calls is None else lambda point, carried, *rest: calls(carried.own))

    def update(info: StepInfo, state: PyTree) -> tuple[jax.Array, PyTree]:
        status, state = stop.update(info, state)
        return jnp.where(jnp.isnan(info.merit), jnp.int32(Status.NONFINITE), status), state

    options = options._replace(adjoint=frozen(), stop=Stop(stop.init, update, stop.amplification))
    point, held = (rows, ()) if floating else (jnp.float32(0), rows)
    solve = fixed_point(problem, point, Carried(jnp.float32(0), held, memory), *operands,
                        **options._asdict())
    carried = solve.state.memory
    return solve, solve.state.output if floating else carried.rows, carried.own


def solve_rounds(
    look: Callable, rows: PyTree, own: PyTree, operands: tuple, options: Options, *,
    compare: Callable, window: int | None, block: int = 1, after: Callable | None = None,
    calls: str | None = None,
) -> tuple[Solution, PyTree, PyTree]:
    """The rows of a chain by rounds on a window of them.

    Args:
      look: `look(view, pending, rows, own, *operands) -> (shown, propose, own)` for a window's
        rows: what each row's step makes of its inputs as they are; `propose(kept) -> rows`, where
        they should go if those in the mask stay; the next memory.
      rows: first guess, leaves `[T, ...]`. own: first memory.
      compare: `compare(view, new, old, *operands) -> [width]`, changes in units of the tolerance.
      window: rows of a round; default all. block: rows that a step makes one after the other.
      after: `after(view, rows, own, *operands) -> rows` ends a round.
      calls: what an evaluation of a row is called in `Solution.calls`.

    Returns:
      The solution, its value the rows that were measured last, displacement and residual what a
      round makes of them (at the end, and where a window slides, their own steps), aux how many of
      them are final; the newest rows; the last memory.

    Raises:
      ValueError: window outside 1..T; a solver or a state to resume, where they make no sense.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    width = count if window is None else window
    check_count(window=width)
    if width > count:
        raise ValueError(f"window must be in 1..{count}, the number of rows, got {window}.")
    floating, held = is_floating(rows), options.solver is None
    if not (held or floating and width == count and block == 1):
        raise ValueError("a solver needs floating-point rows, each a step of its own, and no "
                         "window: it moves all of them.")
    if options.resume is not None and width < count:
        raise ValueError("a window that slides takes no resume: rows that left it would not be "
                         "measured again, whatever they were final for; start anew from them.")
    # A guess need not be finite, but a point must.
    rows = jax.tree.map(
        lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)), rows)
    slides = width < count
    start = Ledger(jnp.int32(0), jnp.full(count, jnp.inf, jnp.float32),
                   trees.full_like(rows, jnp.inf) if floating and slides else None, own)

    def one(rows: PyTree, ledger: Ledger, *operands: PyTree) -> tuple:
        # A full window measures all its rows, so that none is taken on trust by a state resumed.
        final = ledger.final if slides else 0 * ledger.final
        view = View(jnp.minimum(final, count - width), width)
        old, seen = view.cut(rows), (ledger.size, ledger.off)
        shown, propose, own = look(view, view.index() >= final, rows, ledger.own, *operands)
        new, final, size, sane = accept(
            view, final, old, shown, propose, lambda new: compare(view, new, old, *operands),
            ledger.final == 0, count, block)
        if slides:  # the last that is final was taken as its step makes it; the others stay calm
            taken = View(jnp.maximum(ledger.final - 1, 0), 1)
            seen = taken.put(seen, trees.zeros_like(taken.cut(seen)))
            size = jnp.where(view.index() >= ledger.final, size, view.cut(seen[0]))
        off = None if ledger.off is None else trees.subtract(shown, old)
        size, off = view.put(seen, (size, off))
        rows = view.put(rows, new)
        if after is not None:
            rows = after(view, rows, own, *operands)
        return rows, jnp.where(sane, jnp.max(size), jnp.nan), Ledger(final, size, off, own)

    spent = None if calls is None else lambda ledger: {
        calls: jnp.minimum(width, count - ledger.final * int(held))}
    solve, newest, ledger = run_rounds(one, rows, start, operands, options, spent)
    done = (ledger.final >= count) & jnp.isfinite(solve.merit)
    value, displacement, residual = newest, None, jnp.where(done, 0, jnp.inf)
    if floating:
        # The last row is as its step makes it: its inputs were measured.
        taken = done & (jnp.arange(count) >= count - block)
        value = trees.where_rows(taken, newest, solve.value)
        displacement = trees.subtract(newest, value)
        if slides:
            displacement = trees.where_rows(taken, trees.zeros_like(value), ledger.off)
        residual = jnp.where(jnp.isfinite(solve.merit), trees.norm(displacement), jnp.inf)
    return solve._replace(
        value=value, residual=residual, displacement=displacement,
        aux=jnp.where(done, count, jnp.maximum(ledger.final - block, 0))), newest, ledger.own


def is_floating(rows: PyTree) -> bool:
    """Whether rows can be a point of the driver; else they hold integers."""
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(rows))


def first_moving(still: jax.Array, pending: jax.Array) -> jax.Array:
    """Index of the first pending row that still moves, or of the last row."""
    moving = ~still & pending
    last = moving.shape[0] - 1
    return jnp.where(jnp.any(moving), jnp.argmax(moving), last).astype(jnp.int32)


def accept(
    view: View, final: jax.Array, old: PyTree, shown: PyTree, propose: Callable,
    compare: Callable, fresh: jax.Array, count: int, block: int,
) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
    """The window's new rows, how many of all are final, how much each changed; whether to go on.

    A row is calm when it is within the tolerance of what its step makes of its inputs, and of its
    proposal; the last of all needs not be, and its change counts for nothing. Where all rows are
    calm, all are final. Else those are that do not move at all, and calm ones that leave the
    window: the others may still come closer, at no cost, and holding them would mislead the
    proposals of the rest. A row that its step makes infinite or NaN of calm rows ends it all. In
    blocks the first guess is not calm: it was not made by any step (`fresh`).

    Rows that are final stay as they were; the first that moves is as its step makes it, for its
    inputs are final; the others are as proposed. Nothing that is not finite is taken over. Where
    all rows were measured and are final, a round is the chain's own map.
    """
    at, index = jnp.arange(view.width, dtype=jnp.int32), view.index()
    pending, last, slides = index >= final, index >= count - block, view.width < count
    proposed = propose(at < 0)
    sound, size = trees.finite_rows(shown), jnp.maximum(compare(shown), compare(proposed))
    size = jnp.where(sound, size, jnp.inf).astype(jnp.float32)  # a maximum may have dropped a NaN
    if block > 1:
        size = jnp.where(fresh, jnp.inf, size)
    calm = size <= 1
    moving = first_moving(calm | last, pending)
    settled = calm & ((index < count - view.width) | (size == 0))
    ends = (calm | last | ~sound)[moving]
    begin = jnp.where(ends, moving, first_moving(settled, pending)) // block * block
    end = begin + block
    moves, sane = at >= begin, jnp.all(sound | (at < begin) | (at >= end))
    if slides:  # calm rows that leave were to move: the others must not count on it
        proposed = propose(~moves)
    else:
        moves |= sane & (end >= count)
    plain = trees.where_rows(sound, shown, old)
    ahead = trees.where_rows((at >= end) & trees.finite_rows(proposed), proposed, plain)
    size = jnp.where(last, 0, jnp.where(jnp.isnan(size), jnp.inf, size))
    new = trees.where_rows(pending & moves, ahead, old)
    return new, view.start + end, size, sane
