"""Many problems at once: refill finished lanes on one device, spread problems over a mesh.

`vmap(fixed_point)` runs every lane until the slowest has stopped. Here a fixed
number of lanes works through a queue: a lane whose problem ended takes the
next one, so the cost is that of the useful steps.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxiter import trees
from jaxiter.adjoint import Adjoint, split
from jaxiter.driver import conclude, forward
from jaxiter.implicit import as_adjoint
from jaxiter.known import check_count
from jaxiter.loop import active, first_step, init, run
from jaxiter.method import Method, make_method
from jaxiter.numerics import anchor, hoist_typed, is_array, numbers_in, on_own_mesh, stop_gradient
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem, as_point
from jaxiter.reuse import reused
from jaxiter.solution import LoopState, Solution, Status

PyTree = Any


class Queue(NamedTuple):
    """What the refill loop carries: lanes, the problem and the start of each, the results."""

    lanes: LoopState
    owner: jax.Array
    tried: jax.Array
    waiting: jax.Array
    done: LoopState


def batch_size(x0s: PyTree, args: tuple, axes: tuple) -> int:
    """The common leading size.

    Raises:
      ValueError: naming the leaf whose batch size differs, or a leaf without a batch axis.
    """
    seen: dict[int, str] = {}
    for what, tree, axis in [("x0s", x0s, 0), *((f"args[{i}]", a, axes[i])
                                                for i, a in enumerate(args))]:
        if axis is None:
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = what + jax.tree_util.keystr(path)
            if np.ndim(leaf) <= axis:
                raise ValueError(f"{name} has shape {np.shape(leaf)}, but its problems should be "
                                 f"along axis {axis}; use None in in_axes for a shared argument.")
            seen.setdefault(np.shape(leaf)[axis], name)
    if len(seen) != 1:
        sizes = ", ".join(f"{name} has {size}" for size, name in seen.items())
        raise ValueError(f"the number of problems differs: {sizes}.")
    return next(iter(seen))


def check_one_device(name: str, *operands: PyTree) -> None:
    """Raise ValueError for a batch that an explicit mesh spreads: lanes refill on one device."""
    for leaf in filter(is_array, jax.tree.leaves(operands)):
        names = [axis for axis in jax.typeof(leaf).sharding.spec if axis is not None]
        if names:
            raise ValueError(
                f"{name} refills its lanes on one device, but the batch is laid out over the mesh "
                f"axis {names[0]!r}. Give every device its share: over_mesh(lambda *args: "
                f"{name}(...), mesh, {names[0]!r})(*args); or map the single solve by vmap.")


def normalise_axes(in_axes: Any, count: int) -> tuple:
    """in_axes as one entry (int or None) per argument."""
    axes = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * count
    if len(axes) != count:
        raise ValueError(f"in_axes has {len(axes)} entries for {count} args; give an int, None, "
                         "or one entry per argument.")
    if not all(axis is None or (isinstance(axis, int) and axis >= 0) for axis in axes):
        raise ValueError(f"in_axes must hold None or integers of at least 0, got {in_axes!r}.")
    return tuple(axes)


@reused
@on_own_mesh
def solve_many(
    problem: Problem | Callable,
    x0s: PyTree,
    *args: PyTree,
    lanes: int | None = None,
    in_axes: Any = 0,
    refill_every: int = 16,
    has_aux: bool = False,
    retries: PyTree = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Solve a batch of problems of uneven difficulty, refilling lanes that finish.

    Gives the iterates, steps and statuses of `vmap(fixed_point)`, but a lane is
    handed the next problem when its own ends. Worth it when step counts are
    uneven; when they are even, vmap is simpler.

    Args:
      problem: as in `fixed_point`, for one problem.
      x0s: starts, leaves `[n, *shape]`.
      *args: arguments, batched along `in_axes`.
      lanes: how many problems run side by side; also bounds memory. Default: on CPUs about
        3 sqrt(n); on accelerators, where a wide step costs as much as a narrow one, all n, up
        to 2**26 numbers in all their points.
      in_axes: int, None (shared), or one of these per argument.
      refill_every: steps between two looks for finished lanes.
      retries: other starts, leaves `[tries, n, *shape]`, from which a lane goes on in turn with a
        problem that ended neither CONVERGED nor PRECISION_FLOOR. The last one counts, its steps
        alone.
      has_aux, **options: those of `fixed_point`. No `resume`, no `unrolled()`: both are for
        `vmap(fixed_point)`.

    Returns:
      A batched `Solution`: every field has a leading axis n.

    Raises:
      ValueError: lanes or refill_every below 1, mismatched batch sizes, `resume` given, a batch
        that lies on an explicit mesh (`over_mesh` is for those).

    >>> import jax.numpy as jnp, jaxiter
    >>> rates = jnp.array([0.1, 0.9, 0.5])
    >>> sol = jaxiter.solve_many(lambda x, q: q * x + 1 - q, jnp.zeros((3, 2)), rates, lanes=2)
    >>> sol.value.shape, bool(sol.converged.all())
    ((3, 2), True)
    """
    chosen = choose("solve_many", options, {"resume": "call vmap(fixed_point) with it"})
    check_count(refill_every=refill_every, lanes=1 if lanes is None else lanes)
    method = make_method(problem, chosen, has_aux)
    adjoint, max_steps = as_adjoint(chosen.adjoint), chosen.max_steps
    if adjoint.differentiates_loop:
        raise ValueError("solve_many refills lanes in a loop that cannot be unrolled; use "
                         "vmap(fixed_point) for unrolled().")
    check_one_device("solve_many", x0s, args)
    x0s = as_point(x0s)
    axes = normalise_axes(in_axes, len(args))
    count = batch_size(x0s, args, axes)
    arrays, restore = split(args)

    def alone(x0: PyTree, *arrays: PyTree) -> LoopState:
        return forward(method, adjoint, x0, arrays, restore, max_steps, None)

    width = default_lanes(x0s, count) if lanes is None else min(lanes, count)
    if count == 0:
        end = jax.vmap(lambda x0, *arrays: init(method, x0, *restore(arrays)),
                       in_axes=(0, *axes))(x0s, *arrays)
    elif width == count and retries is None:  # nothing to refill
        end = jax.vmap(alone, in_axes=(0, *axes))(x0s, *arrays)
    else:
        end = _queue(method, adjoint, _starts(x0s, retries), arrays, axes, restore, max_steps,
                     width, refill_every, count)

    def finished(state: LoopState, *arrays: PyTree) -> Solution:
        return conclude(method, adjoint, state, arrays, restore, max_steps)

    return jax.vmap(finished, in_axes=(0, *axes))(end, *arrays)


def _starts(x0s: PyTree, retries: PyTree) -> PyTree:
    """All starts of all problems, leaves `[1 + tries, n, *shape]`.

    Raises:
      TypeError: retries of another tree or dtype. ValueError: of other shapes.
    """
    if retries is None:
        return jax.tree.map(lambda leaf: leaf[None], x0s)
    retries = as_point(retries)
    trees.check_same_structure(x0s, trees.first(retries), "Each of retries")
    return trees.prepend(x0s, retries)


#: Numbers in the points of all lanes that accelerators take at once.
AT_ONCE = 1 << 26


def default_lanes(x0s: PyTree, count: int) -> int:
    """How many problems run side by side where nothing is said, by the static shapes."""
    if count == 0:
        return 0
    if jax.default_backend() == "cpu":
        return min(count, max(32, min(1024, 2 ** round(math.log2(3 * count**0.5)))))
    numbers = max(1, numbers_in(x0s) // count)
    return min(count, max(1024, AT_ONCE // numbers))


def _queue(
    method: Method, adjoint: Adjoint, starts: PyTree, arrays: tuple, axes: tuple,
    restore: Callable, max_steps: Any, width: int, refill_every: int, count: int,
) -> LoopState:
    """Final states of all problems, leaves `[n, ...]`, cut off from every derivative."""
    tries = jax.tree.leaves(starts)[0].shape[0]
    refresh = 1 if method.problem.cache is None else method.problem.refresh
    block = -(-refill_every // refresh) * refresh  # a cache lives for whole blocks only

    def gather(owner: jax.Array, tried: jax.Array, starts: PyTree, arrays: tuple) -> tuple:
        """x0 and args of the problems that the lanes own, leaves `[width, ...]`."""
        index = jnp.minimum(owner, count - 1)
        rows = [a if axis is None else
                jax.tree.map(lambda leaf, axis=axis: jnp.take(leaf, index, axis), a)
                for a, axis in zip(arrays, axes, strict=True)]
        return jax.tree.map(lambda leaf: leaf[tried, index], starts), tuple(rows)

    def begin(idle: jax.Array, x0: PyTree, *arrays: PyTree) -> LoopState:
        state = init(method, x0, *restore(arrays))
        return state._replace(status=jnp.where(idle, jnp.int32(Status.MAX_STEPS), state.status))

    def queue(given: tuple, max_steps: jax.Array) -> LoopState:
        def fresh(owner: jax.Array, tried: jax.Array) -> LoopState:
            first, rows = gather(owner, tried, *given)
            return jax.vmap(begin, in_axes=(0, 0, *axes))(owner >= count, first, *rows)

        def work(state: LoopState, *arrays: PyTree) -> LoopState:
            pause = jnp.minimum(state.step + block, max_steps)
            return run(method, adjoint.loop, state, restore(arrays), max_steps, pause)

        def body(q: Queue) -> Queue:
            rows = gather(q.owner, q.tried, *given)[1]
            lanes = jax.vmap(work, in_axes=(0, *axes))(q.lanes, *rows)
            ended = ~jax.vmap(lambda s: active(s, max_steps))(lanes)
            # A lane without a problem owns `count`: out of range, so its row is dropped.
            row = jnp.where(ended, q.owner, count)
            done = jax.tree.map(lambda old, new: old.at[row].set(new, mode="drop"), q.done, lanes)
            good = (lanes.status == Status.CONVERGED) | (lanes.status == Status.PRECISION_FLOOR)
            again = ended & ~good & (q.owner < count) & (q.tried < tries - 1)
            free = ended & ~again
            rank = jnp.cumsum(free.astype(jnp.int32)) - 1
            owner = jnp.where(free, jnp.minimum(q.waiting + rank, count), q.owner)
            tried = jnp.where(free, 0, q.tried + again.astype(jnp.int32))
            lanes = jax.vmap(trees.where)(ended, fresh(owner, tried), lanes)
            waiting = jnp.minimum(q.waiting + rank[-1] + 1, count)
            return Queue(lanes, owner, tried, waiting, done)

        owner = jnp.arange(width, dtype=jnp.int32)
        tried = jnp.zeros_like(owner)
        lanes = fresh(owner, tried)
        done = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), lanes)
        start = anchor(Queue(lanes, owner, tried, jnp.int32(width), done), (given, max_steps))
        return lax.while_loop(lambda q: jnp.any(q.owner < count), body, start).done

    one = jax.vmap(lambda x0, *arrays: first_step(method, x0, restore(arrays)), in_axes=(0, *axes))
    operands = stop_gradient(((starts, arrays), jnp.asarray(max_steps, jnp.int32)))
    pure, constants, operands = hoist_typed(
        queue, lambda given, steps: one(trees.first(given[0]), *given[1]), *operands)
    return pure(stop_gradient(constants), *operands)


def deal(difficulty: jax.Array, devices: int, padded: int) -> jax.Array:
    """Rows `[padded]` dealt to the devices like cards: hardest first, back and forth.

    Every device gets its share of hard problems and meets them first, so that its lanes end
    together; rows of padding repeat the easiest problem.
    """
    if difficulty.ndim != 1:
        raise ValueError(f"difficulty must be one number per problem, got {difficulty.shape}.")
    hardest = jnp.argsort(difficulty, descending=True)
    order = hardest[jnp.minimum(jnp.arange(padded), difficulty.size - 1)]
    rounds = order.reshape(-1, devices)
    odd = jnp.arange(rounds.shape[0])[:, None] % 2
    return jnp.where(odd, rounds[:, ::-1], rounds).T.reshape(-1)


def over_mesh(solve: Callable, mesh: Mesh, axis: str, in_axes: Any = 0) -> Callable:
    """Spread a batched solve over the devices of a mesh axis; no communication in its loops.

    Every device solves its share with its own stopping, through `jax.shard_map`.
    A batch that the devices do not divide is padded with copies of its last problem.

    Where the batch is sorted or clustered, one device may draw all the hard problems: give the
    returned function `difficulty=`, one number per problem (a predicted count of steps, or
    `steps` of the last solve), and they are dealt hardest first, back and forth. This moves the
    arguments and results between devices once, before and after the solve.

    Args:
      solve: `solve(*args)`, batched: for example
        `lambda x0s, data: solve_many(T, x0s, data)` or a vmapped `fixed_point`.
      mesh: a `jax.sharding.Mesh`. axis: the name of the mesh axis that problems lie along.
      in_axes: 0 (batched along axis 0), None (replicated), or one of these per argument.

    Returns:
      `spread(*args, difficulty=None)`, with the results of `solve`; wrap it in `jax.jit`.
      Gradients work.

    Raises:
      ValueError: an unknown mesh axis, in_axes other than 0 or None, mismatched batch sizes,
        among them the size of `difficulty`.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> mesh = jax.make_mesh((1,), ("problems",))
    >>> solve = lambda x0s: jaxiter.solve_many(jnp.cos, x0s)
    >>> jax.jit(jaxiter.over_mesh(solve, mesh, "problems"))(jnp.ones(5)).value.shape
    (5,)
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}.")
    if axis not in mesh.axis_names:
        raise ValueError(f"axis {axis!r} is not an axis of the mesh {mesh.axis_names}.")
    explicit = AxisType.Explicit in mesh.axis_types
    split_rows, whole = (NamedSharding(mesh, spec) for spec in (P(axis), P()))

    def take(tree: PyTree, index: Any, sharding: NamedSharding) -> PyTree:
        """Rows of every leaf, laid out as said."""

        def rows(leaf: jax.Array) -> jax.Array:
            if explicit:
                return leaf.at[index].get(out_sharding=sharding)
            return lax.with_sharding_constraint(leaf[index], sharding)

        return jax.tree.map(lambda leaf: rows(jnp.asarray(leaf)), tree)

    def spread(*args: PyTree, difficulty: Any = None) -> PyTree:
        axes = normalise_axes(in_axes, len(args))
        if any(a not in (0, None) for a in axes):
            raise ValueError(f"over_mesh spreads problems along axis 0; got in_axes={in_axes!r}.")
        keys = () if difficulty is None else (lax.stop_gradient(jnp.asarray(difficulty)),)
        count = batch_size((), (*args, *keys), (*axes, *(0 for _ in keys)))
        devices = mesh.shape[axis]
        padded = -(-count // devices) * devices
        index = np.minimum(np.arange(padded), count - 1)
        if keys:
            key = jax.reshard(keys[0], whole) if explicit else keys[0]
            index = deal(key, devices, padded)
        elif explicit:  # else, outside of jit, nothing there says which devices are meant
            index = jax.reshard(jnp.asarray(index, jnp.int32), whole)
        moved = bool(keys) or padded != count
        if moved:
            args = tuple(a if ax is None else take(a, index, split_rows)
                         for a, ax in zip(args, axes, strict=True))
        specs = tuple(P() if ax is None else P(axis) for ax in axes)
        if explicit:
            args = tuple(jax.reshard(a, NamedSharding(mesh, spec))
                         for a, spec in zip(args, specs, strict=True))
        out = jax.shard_map(solve, mesh=mesh, in_specs=specs, out_specs=P(axis))(*args)
        if not moved:
            return out
        # Where row i went; with padding, any copy of it. A length that the devices do not divide
        # cannot stay sharded.
        back = jnp.zeros(count, jnp.int32).at[index].set(jnp.arange(padded, dtype=jnp.int32))
        return take(out, back, split_rows if padded == count else whole)

    return spread
