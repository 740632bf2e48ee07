"""Rounds on the rows of a chain: the window in work, which rows are final, the count of the rest.

A row is final when its inputs do not move any more and it stays what it was when it was measured.
So the residual reported is that of the rows returned, whatever was proposed.
The point that the driver sees is the number of rows left, for rows may be integers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.solution import Solution
from jaxiter.stop import tolerance

PyTree = Any


class Final(NamedTuple):
    """Which rows are final.

    finished: how many, int32. left: how many are not, float32; NaN once one that should be final
    is not finite. residual: the largest of the final ones, float32, in the tolerance's units.
    """

    finished: jax.Array
    left: jax.Array
    residual: jax.Array


def nothing_final(count: int) -> Final:
    """Before the first round."""
    return Final(jnp.int32(0), jnp.float32(count), jnp.float32(0))


class View(NamedTuple):
    """The rows of a window within trees of all rows."""

    start: jax.Array
    width: int

    def index(self) -> jax.Array:
        """The window's rows, `[width]`."""
        return self.start + jnp.arange(self.width, dtype=jnp.int32)

    def cut(self, tree: PyTree, back: int = 0) -> PyTree:
        """Rows start - back .. of the window's length; zeros before the first."""
        def part(leaf: jax.Array) -> jax.Array:
            if back:
                leaf = jnp.concatenate([jnp.zeros((back, *leaf.shape[1:]), leaf.dtype), leaf])
            return lax.dynamic_slice_in_dim(leaf, self.start, self.width)

        return jax.tree.map(part, tree)

    def put(self, tree: PyTree, part: PyTree, ahead: int = 0) -> PyTree:
        """The tree with new rows from start + ahead on."""
        return jax.tree.map(lambda leaf, new: lax.dynamic_update_slice_in_dim(
            leaf, new, self.start + ahead, 0), tree, part)

    def last(self, array: jax.Array, depth: int) -> jax.Array:
        """What each row of the window sees of the last rows, `[width, depth, ...]`."""
        return jnp.stack([self.cut(array, j) for j in range(depth)], axis=1)


#: Options of a solve that mean nothing in rounds, and why.
REFUSED = {
    "solver": "its rows are no point to accelerate",
    "check_every": "a round measures its rows at no cost",
    "keep_best": "rows that are final stay so, and the last round is the best",
    "resume": "rows that were final for other data would stay; start anew, from its rows where the "
              "front takes `init`",
}


def choose_rounds(front: str, options: SolveOptions, count: int) -> Options:
    """The options of a front that runs rounds on so many rows: by default until none is left.

    Raises:
      TypeError: an option that no front knows.
      ValueError: a solver, check_every, keep_best or resume.
    """
    return choose(front, options, REFUSED, stop=tolerance(rtol=0, atol=0.5), max_steps=count)


def refuse_derivatives(front: str, options: Options) -> None:
    """Raise ValueError where the options of a front without derivatives ask for some."""
    if options.adjoint is not None and options.adjoint != frozen():
        raise ValueError(f"{front} takes no adjoint but jaxiter.frozen(): it has no derivatives.")


def solve_rounds(
    step: Callable, begin: Callable, count: int, operands: tuple, options: Options
) -> tuple[Solution, Any]:
    """Rounds until no row is left: `step(memory, *operands) -> memory`, and the last memory.

    `memory.final` is a `Final`; at least one row must become final in every round. The value of
    the solution is for the caller to fill in, and so are its derivatives.
    """
    def one(left: jax.Array, memory: Any, *operands: PyTree) -> tuple:
        memory = step(memory, *operands)
        return memory.final.left.astype(left.dtype), memory

    problem = Problem(
        step=one, memory=lambda left, *operands: begin(*operands),
        merit=lambda left, image, *rest: image,
        scale=lambda *rest: jnp.float32(1), floor=lambda *rest: jnp.float32(0))
    solve = fixed_point(
        problem, jnp.float32(count), *operands, **options._replace(adjoint=frozen())._asdict())
    memory = solve.state.memory
    final = memory.final
    # Rows that are left were never measured as they are returned.
    residual = jnp.where(final.left == 0, final.residual, jnp.inf)
    merit = (count - final.finished).astype(jnp.float32)
    return solve._replace(residual=residual, merit=merit, displacement=None), memory


def first_moving(still: jax.Array, pending: jax.Array) -> jax.Array:
    """Index of the first pending row that still moves, or of the last row."""
    moving = ~still & pending
    last = moving.shape[0] - 1
    return jnp.where(jnp.any(moving), jnp.argmax(moving), last).astype(jnp.int32)


def accept(
    view: View, final: Final, rows: PyTree, shown: PyTree, propose: Callable, compare: Callable, *,
    block: int = 1,
) -> tuple[PyTree, Final]:
    """The window's new rows and what became final.

    A row is calm when it is within the tolerance of what its step makes of its inputs, and of its
    proposal. Where all rows are calm, all are final. Else those are that do not move at all, and
    calm ones that leave the window: the others may still come closer, at no cost, and holding
    them would mislead the proposals of the rest. A row that its step makes infinite or NaN of
    calm rows ends it all.

    Args:
      rows: all rows `[R, ...]`; the other trees are of the window.
      shown: what each row's step makes of its inputs as they are.
      propose: `propose(kept) -> rows`, where they should go if those in the mask stay.
      compare: `compare(new, old) -> (size of the change, the size that is allowed)`.
      block: rows that a step makes one after the other: inside, they have no residual.

    Returns:
      Rows that are final as they were; the first that moves as its step makes it, for its
      inputs are final; the others as proposed. Nothing that is not finite is taken over.
    """
    count, old = jax.tree.leaves(rows)[0].shape[0], view.cut(rows)
    at = jnp.arange(view.width, dtype=jnp.int32)
    proposed = propose(at < 0)
    index = view.index()
    pending = index >= final.finished
    (gap, near), (move, slow) = compare(shown, old), compare(proposed, old)
    sound = finite_rows(shown)
    calm = (gap <= near) & (move <= slow) & jnp.isfinite(gap) & jnp.isfinite(move)
    if block > 1:  # the first guess was not made by any step
        calm &= final.finished > 0
        gap = jnp.where(at % block == 0, gap, 0)
    moving = first_moving(calm, pending)
    ends = calm[moving] | ~sound[moving]
    leaves = index < count - view.width
    settled = calm & (leaves | ((gap == 0) & (move == 0)))
    begin = jnp.where(ends, moving, first_moving(settled, pending)) // block * block
    end = begin + block
    if view.width < count:  # calm rows that leave were to move: the others must not count on it
        proposed = propose(at < begin)
    plain = jax.tree.map(lambda s, o: jnp.where(spread(sound, s), s, o), shown, old)
    free = (at >= end) & finite_rows(proposed)
    new = jax.tree.map(lambda n, s: jnp.where(spread(free, n), n, s), proposed, plain)
    moves = pending & (at >= begin)
    new = jax.tree.map(lambda n, o: jnp.where(spread(moves, n), n, o), new, old)
    kept = pending & (at < begin)
    largest = jnp.max(jnp.where(kept, gap, 0), initial=0).astype(jnp.float32)
    lost = ~sound & (at >= begin) & (at < end)
    sane = ~jnp.any(lost)
    finished = view.start + jnp.where(sane, end, jnp.argmax(lost).astype(jnp.int32) + 1)
    left = jnp.where(sane, (count - finished).astype(jnp.float32), jnp.nan)
    return new, Final(finished, left, jnp.maximum(final.residual, largest))


def finite_rows(tree: PyTree) -> jax.Array:
    """Which rows are finite, `[W]`; integers are."""
    flags = [jnp.all(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1)
             for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags), axis=0)


def spread(mask: jax.Array, like: jax.Array) -> jax.Array:
    """One number per row, against arrays `[W, ...]`."""
    return mask.reshape((like.shape[0],) + (1,) * (like.ndim - 1))
