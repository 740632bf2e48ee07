"""Processes: what moves by keys, batches or noise, run by the same driver as every fixed point."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import known
from jaxiter.lanes import batch_size, normalise_axes, solve_many
from jaxiter.monitor import Monitor, seeing
from jaxiter.numerics import anchor, on_own_mesh, stop_gradient, strong
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.packed import unpacked
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status
from jaxiter.stop import StepInfo, Stop, never, without_claims

PyTree = Any

NO_SOLVER = {"solver": "what accelerates a map would mix states of different keys"}


class Process(NamedTuple):
    """A method that moves by keys: how it begins, what a step does, and how far it is.

    Attributes:
      init: `init(x0, *args) -> state`, a pytree of arrays with at least one of floating point.
      step: `step(state, key, *args) -> state`, the same tree, shapes and dtypes. Step k gets
        `fold_in(key, k)`, k = 0, 1, ...; it may ignore it.
      merit: `merit(state, *args) -> scalar`, what the tolerance is measured on: of the state
        itself, so that it holds for what is returned. An estimate should be inf until it has been
        measured exactly. Without one a run never says CONVERGED.
      calls: what one step costs in calls of the user's oracles, as in `Problem`: a tree of
        integers, or `calls(state, key, *args)`, of what the step gets.
      scale: `scale(state, *args) -> scalar`, what rtol multiplies; default: the state's norm.
    """

    init: Callable
    step: Callable
    merit: Callable | None = None
    calls: Callable | PyTree | None = None
    scale: Callable | None = None


class Batches(eqx.Module):
    """Training data with leading axis n, and rows per batch (static); None: always all rows.

    >>> import jax, jax.numpy as jnp
    >>> Batches(jnp.arange(10.0), 3).draw(jax.random.key(0)).shape
    (3,)
    """

    data: PyTree
    size: int | None = eqx.field(static=True, default=None)

    @property
    def rows(self) -> int:
        """Rows of the data; 1 without data.

        Raises:
          ValueError: leaves without one leading axis of at least one row, of which a draw would
            silently repeat the last.
        """
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.data)}
        if len(sizes) > 1 or sizes & {(), (0,)}:
            raise ValueError("data of batches need one leading axis of at least one row, got "
                             f"shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(self.data)]}.")
        return sizes.pop()[0] if sizes else 1

    def draw(self, key: jax.Array) -> PyTree:
        """`size` rows, drawn with replacement."""
        if self.size is None:
            return self.data
        chosen = jax.random.randint(key, (self.size,), 0, self.rows)
        return trees.at(self.data, chosen)


class Moving(NamedTuple):
    """What the driver carries beside the point: the key and how many steps were taken with it.

    `before`, `after`: the leaves of the state that are no floating-point numbers (counters,
    indices), as the last evaluation found and left them. `calls`: oracle calls so far.
    """

    key: jax.Array
    count: jax.Array
    before: PyTree
    after: PyTree
    calls: PyTree


class _Key(NamedTuple):
    """A key as numbers, which any saver of arrays can write, and what makes a key of them."""

    numbers: jax.Array
    restore: Callable


def _numbers(key: Any) -> _Key:
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        kind = jax.random.key_impl(key)
        return _Key(jax.random.key_data(key), lambda data: jax.random.wrap_key_data(
            data, impl=kind))
    if key.dtype != jnp.uint32:
        raise TypeError(f"key must be a random key such as jax.random.key(0), got {key.dtype}.")
    return _Key(key, lambda data: data)


def _split(state: PyTree) -> tuple[PyTree, PyTree]:
    """The floating-point leaves, which the driver measures, and the others, which it carries."""
    return eqx.partition(state, eqx.is_inexact_array)


def _start(
    process: Process, x0: PyTree, numbers: jax.Array, restore: Callable, args: tuple
) -> tuple[PyTree, Moving]:
    """The floating-point leaves of the first state, and what is carried beside them."""
    state = jax.tree.map(strong, process.init(x0, *args))
    point, rest = _split(state)
    if not jax.tree.leaves(point):
        raise TypeError("the state of a process needs a floating-point leaf, and init returned "
                        "none; convert what moves with astype(float).")
    spent = jax.eval_shape(lambda: _spent(process, state, restore(numbers), args))
    none_yet = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spent)
    return point, Moving(numbers, jnp.int32(0), rest, rest, none_yet)


def _spent(process: Process, state: PyTree, key: jax.Array, args: tuple) -> PyTree:
    """Oracle calls of one step, int32."""
    spent = process.calls(state, key, *args) if callable(process.calls) else process.calls
    return jax.tree.map(lambda count: jnp.asarray(count, jnp.int32), spent)


def as_problem(process: Process, restore: Callable, stride: int = 1) -> Problem:
    """`stride` steps as one evaluation of its floating-point leaves and of a `Moving`, an arg."""

    def state_of(point: PyTree, moving: Moving) -> PyTree:
        return eqx.combine(point, moving.after)

    def one(carry: tuple, count: jax.Array, key: jax.Array, args: tuple) -> tuple:
        state, spent = carry
        key = jax.random.fold_in(key, count)
        new = jax.tree.map(strong, process.step(state, key, *args))
        trees.check_same_structure(state, new, "The step of the process")
        return new, trees.add(spent, _spent(process, state, key, args))

    def step(point: PyTree, moving: Moving, start: Moving, *args: PyTree) -> tuple:
        del start
        key, carry = restore(moving.key), (state_of(point, moving), moving.calls)
        if stride == 1:
            carry = one(carry, moving.count, key, args)
        else:
            counts = moving.count + jnp.arange(stride, dtype=jnp.int32)
            carry, _ = lax.scan(lambda carry, count: (one(carry, count, key, args), None),
                                anchor(carry, (carry, moving, args)), counts)
        new, spent = carry
        point, rest = _split(new)
        return point, Moving(moving.key, moving.count + stride, moving.after, rest, spent)

    def of_state(measure: Callable | None) -> Callable | None:
        return measure and (lambda point, image, moving, start, *args: measure(
            state_of(point, moving), *args))

    # Without a merit none is ever met, and no norm is taken.
    return Problem(
        step=step, memory=lambda point, start, *args: start,
        merit=of_state(process.merit) or (lambda *points: jnp.inf),
        scale=0.0 if process.merit is None else of_state(process.scale),
        floor=0.0)  # how well a merit can be resolved only its process knows


def _seeing_all(monitor: Monitor | None, process: Process, stride: int) -> Monitor | None:
    """The monitor, shown whole states; without a merit it sees how far an evaluation moved."""
    def whole(info: StepInfo) -> StepInfo:
        merit = trees.norm(info.residual) if process.merit is None else info.merit
        return info._replace(x=eqx.combine(info.x, info.memory.before), merit=merit,
                             step=stride * (info.step - 1) + 1)

    return seeing(monitor, whole)


def _rule(process: Process, options: Options) -> Stop:
    """The stop rule; one that cannot say CONVERGED where there is nothing to judge by."""
    if process.merit is not None:
        return options.rule
    return never() if options.stop is None else without_claims(options.stop)


def _adapted(options: Options, process: Process) -> Options:
    """The options of the driver, whose evaluations are `check_every` steps each."""
    stride = options.check_every
    return options._replace(
        stop=_rule(process, options), max_steps=options.max_steps // stride,
        min_steps=-(-options.min_steps // stride), check_every=1,
        monitor=_seeing_all(options.monitor, process, stride))


def _check_stride(stride: int, max_steps: Any) -> None:
    if np.any(np.asarray(max_steps) % stride):
        raise ValueError(f"max_steps={max_steps} must be a multiple of check_every={stride}, the "
                         "steps of one evaluation.")


def _check(process: Any, options: Options) -> Adjoint:
    if not isinstance(process, Process):
        raise TypeError(f"expected a Process(init, step), got {type(process).__name__}.")
    if options.keep_best and process.merit is None:
        raise ValueError("keep_best compares merits, and this process has none.")
    known(partial(_check_stride, options.check_every), options.max_steps)
    adjoint = frozen() if options.adjoint is None else as_adjoint(options.adjoint)
    if not adjoint.differentiates_loop and type(adjoint) is not type(frozen()):
        raise ValueError("a step that draws a new key has no fixed point to differentiate: "
                         "adjoint must be frozen() or unrolled(); or attach_implicit the equations "
                         "that the answer solves.")
    return adjoint


def _whole(solution: Solution, stride: int) -> Solution:
    """The solution with the whole state as its value, and the account of all steps."""
    state = solution.state
    value = eqx.combine(solution.value, state.answer.memory.before)
    return solution._replace(value=value, steps=stride * solution.steps, calls=state.memory.calls)


@reused
@on_own_mesh
def iterate(
    process: Process,
    x0: PyTree,
    *args: PyTree,
    key: jax.Array,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Run a `Process`: `state <- step(state, fold_in(key, k), *args)`, k = 0, 1, ...

    A thin layer over `fixed_point`: the state is its x, so statuses, monitors, traces, resume,
    vmap (many seeds), `over_mesh` and pmap are the driver's. `value` is the state that the last
    step began from, whose residual and merit were measured; `latest` gives the one it led to.

    Args:
      process: what moves. x0, *args: what `init` gets; `step` gets the args too. Data of a
        training set are args, such as `Batches`.
      key: a random key; with `resume` that of the first run goes on.
      **options: those of `fixed_point`. `stop` is by default `tolerance()` of the merit, or
        `never()` without one: without a merit no rule says CONVERGED. `adjoint` is `frozen()`, the
        default, or `unrolled()`. With `resume` a run in chunks is the whole run, bit by bit; one
        that ended goes on from its last good state, with new keys. `check_every` steps are one
        evaluation, between whose ends nothing is measured, copied or shown to a monitor, and
        `value` is the state before it: take 10 or more where a step costs microseconds, or
        carries tables. No `solver`: what accelerates a map would mix states of different keys.

    Returns:
      A `Solution`; residual and displacement are of the floating-point leaves.

    Raises:
      TypeError: a step that changes tree, shape or dtype (names the leaf); a state without
        floating-point leaves; a key that is none.
      ValueError: an implicit adjoint; keep_best without a merit; a max_steps that is not a
        multiple of check_every (a traced one is rounded down to one).

    >>> import jax, jax.numpy as jnp
    >>> walk = Process(lambda x0: x0, lambda x, key: 0.9 * x + jax.random.normal(key))
    >>> run = iterate(walk, 5.0, key=jax.random.key(0), max_steps=100)
    >>> int(run.steps), bool(run.converged), bool(abs(run.value) < 10)
    (100, False, True)
    """
    chosen = choose("iterate", options, NO_SOLVER)
    adjoint, resume = _check(process, chosen), chosen.resume
    numbers, restore = _numbers(key)
    point, start = _start(process, x0, numbers, restore, args)
    if resume is not None:
        # Only for a state that ended: from its answer, with keys that were not used yet.
        trees.check_same_structure(start, resume.memory, "resume (a state of another process?)")
        held = resume.answer.memory
        start = resume.memory._replace(before=held.before, after=held.before)
    solution = fixed_point(
        as_problem(process, restore, chosen.check_every), point, start, *args,
        **_adapted(chosen, process)._replace(adjoint=adjoint)._asdict())
    return _whole(solution, chosen.check_every)


@reused
@on_own_mesh
def iterate_many(
    process: Process, x0s: PyTree, *args: PyTree, key: jax.Array, lanes: int | None = None,
    in_axes: Any = 0, refill_every: int = 16, **options: Unpack[SolveOptions],
) -> Solution:
    """Many runs of a process of uneven length, in lanes that refill when theirs ends.

    Args:
      process: as in `iterate`, for one run.
      x0s: starts, leaves `[n, *shape]`. *args: batched along `in_axes`.
      key: keys `[n]`, or one key, of which run i gets `split(key, n)[i]`.
      lanes, in_axes, refill_every: as in `solve_many`. **options: as in `iterate`; no `resume`,
        no `unrolled()`.

    Returns:
      A batched `Solution`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter import tolerance
    >>> walk = Process(lambda x0: x0, lambda x, key: 0.5 * x + 0 * jax.random.normal(key),
    ...                merit=lambda x: abs(x))
    >>> runs = iterate_many(walk, jnp.array([1.0, 8.0]), key=jax.random.key(0),
    ...                     stop=tolerance(rtol=0, atol=0.5))
    >>> runs.steps.tolist(), runs.value.tolist()
    ([2, 5], [0.5, 0.5])
    """
    chosen = choose("iterate_many", options, {
        **NO_SOLVER, "resume": "call vmap(iterate) with it"})
    adjoint = _check(process, chosen)
    axes = normalise_axes(in_axes, len(args))
    count = batch_size(x0s, args, axes)
    key = jnp.asarray(key)
    one_key = 0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1
    numbers, restore = _numbers(jax.random.split(key, count) if key.ndim == one_key else key)
    arrays, others = eqx.partition(args, eqx.is_array)
    points, starts = jax.vmap(
        lambda x0, numbers, *arrays: _start(
            process, x0, numbers, restore, eqx.combine(arrays, others)),
        in_axes=(0, 0, *axes))(x0s, numbers, *arrays)
    return _whole(solve_many(
        as_problem(process, restore, chosen.check_every), points, starts, *args, lanes=lanes,
        in_axes=(0, *axes), refill_every=refill_every,
        **_adapted(chosen, process)._replace(adjoint=adjoint)._asdict()), chosen.check_every)


def latest(solution: Solution) -> PyTree:
    """The state after the last step of a run, which was not measured any more.

    That of `steps` steps where the run was not cut short by something not finite; then the one
    before the evaluation that was, of which `check_every` steps are one.
    """
    state = stop_gradient(unpacked(solution.state))
    broken = solution.status == Status.NONFINITE
    after = eqx.combine(state.output, state.memory.after)
    return jax.tree.map(lambda new, old: jnp.where(jnp.reshape(
        broken, broken.shape + (1,) * (new.ndim - broken.ndim)), old, new), after, solution.value)
