"""`run`: a bilevel method on its data, by the driver of every process."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.monitor import Monitor
from jaxiter.options import SolveOptions, choose
from jaxiter.process import Batches, Process, iterate, latest
from jaxiter.solution import LoopState, Solution, Status, reports
from jaxiter.stop import StepInfo

PyTree = Any


@reports
class RunResult(NamedTuple):
    """What a bilevel method came to.

    Attributes:
      state: after the last step, with fields x and y; the last finite one where the status is
        NONFINITE.
      trace: the records of `trace`, stacked, or None. calls: oracle calls until each of them.
      solve: the driver's `Solution`; its `value` is the state that the last step began from, its
        `calls` are the gradients of `inner` and `outer` and `products` with the inner Hessian.
    """

    state: PyTree
    trace: PyTree
    calls: PyTree
    solve: Solution


class Traced(NamedTuple):
    """The trace of a run with `trace`: what its monitor recorded, the rows, and calls until each.

    Its rows lack the one after the last step, which `RunResult.trace` has.
    """

    monitor: PyTree
    rows: PyTree
    calls: PyTree


def run(
    method: Process, x0: PyTree, y0: PyTree, inner_data: PyTree = None, outer_data: PyTree = None,
    *, key: jax.Array, batch_size: int | None = None, trace: Callable | None = None,
    **options: Unpack[SolveOptions],
) -> RunResult:
    """Run a bilevel method from (x0, y0): `iterate`, with batches and records.

    Args:
      method: such as `soba(outer, inner, ...)`.
      inner_data, outer_data: pytrees with one leading axis each; None without data.
      key: step k draws from `fold_in(key, k)`.
      batch_size: rows of a batch, drawn with replacement; default all rows.
      trace: `trace(state) -> pytree`, recorded after every `check_every` steps, `[max_steps /
        check_every, ...]`; NaN (or 0) where the run ended before. What a monitor recorded is
        then in `solve.trace.monitor`.
      **options: max_steps, stop, adjoint, check_every, keep_best, monitor, resume as in
        `iterate`; no solver: accelerating would mix states of different keys. The methods have
        no merit: none says CONVERGED unless it gets one by `method._replace(merit=...)`. `resume`
        is a `result.solve.state`, of a run with `trace` if this one has it.

    Returns:
      A `RunResult`.

    Raises:
      ValueError: a batch larger than the data, a max_steps that is no multiple of check_every,
        a solver, `trace` with a traced max_steps.
      TypeError: no process, a `resume` of other choices.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import soba
    >>> method = soba(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_optimizer=optax.sgd(0.4), outer_optimizer=optax.sgd(0.1))
    >>> out = run(method, 0.0, 0.0, key=jax.random.key(0), max_steps=200)
    >>> round(float(out.state.x), 3), int(out.solve.calls["products"])
    (1.0, 200)
    """
    chosen = choose("run", options, {
        "solver": "accelerating would mix states of different keys; give the method optimizers"})
    for name, data in (("inner_data", inner_data), ("outer_data", outer_data)):
        for leaf in jax.tree.leaves(data) if batch_size is not None else ():
            if leaf.shape[0] < batch_size:
                raise ValueError(f"batch_size={batch_size} is larger than {name}, which has "
                                 f"{leaf.shape[0]} rows.")
    data = Batches(inner_data, batch_size), Batches(outer_data, batch_size)
    monitor, resume = chosen.monitor, chosen.resume
    if trace is not None:
        count = _rows(chosen.max_steps, chosen.check_every)
        monitor = _recording(monitor, trace, count, chosen.check_every)
        resume = None if resume is None else _with_rows(resume, count)
    solution = iterate(
        method, (x0, y0), *data, key=key, stop=chosen.stop, adjoint=chosen.adjoint,
        max_steps=chosen.max_steps, check_every=chosen.check_every, keep_best=chosen.keep_best,
        monitor=monitor, resume=resume)
    state = latest(solution)
    if trace is None:
        return RunResult(state, None, None, solution)
    rows = _with_last(trace, state, solution, chosen.check_every)
    return RunResult(state, rows, solution.trace.calls, solution)


def _rows(max_steps: Any, every: int) -> int:
    if not isinstance(max_steps, int | np.integer):
        raise ValueError("trace has max_steps / check_every rows, so max_steps must be a Python "
                         f"integer, got {max_steps!r}.")
    return max(int(max_steps), 0) // max(every, 1)  # what is no count is refused by `iterate`


def _blank(leaf: Any, count: int) -> jax.Array:
    nothing = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return jnp.full((count, *leaf.shape), nothing, leaf.dtype)


def _recording(monitor: Monitor | None, trace: Callable, count: int, every: int) -> Monitor:
    """The monitor, and beside it the rows of `trace`.

    A monitor sees a state when a step begins from it, so `_with_last` adds the last row.
    """
    def seen(state: PyTree) -> PyTree:
        return jax.tree.map(jnp.asarray, trace(state))

    def init(info: StepInfo) -> Traced:
        rows, calls = (jax.tree.map(lambda leaf: _blank(leaf, count), shape)
                       for shape in (jax.eval_shape(seen, info.x), info.memory.calls))
        return Traced(None if monitor is None else monitor.init(info), rows, calls)

    def update(info: StepInfo, state: Traced, active: jax.Array) -> Traced:
        watched, made = state.monitor, (info.step - 1) // every  # looks before this one
        if monitor is not None:
            watched = monitor.update(info, watched, active)
        before = jnp.where(active & (made > 0), made - 1, count)
        return Traced(watched, _put(state.rows, before, seen(info.x)),
                      _put(state.calls, jnp.where(active, made, count), info.memory.calls))

    return Monitor(init, update)


def _put(rows: PyTree, row: jax.Array, new: PyTree) -> PyTree:
    """The rows with a new one; one out of range is dropped."""
    return jax.tree.map(lambda rows, leaf: rows.at[row].set(leaf, mode="drop"), rows, new)


def _with_rows(resume: LoopState, count: int) -> LoopState:
    """The state of an earlier part of the run, with room for the rows of this one."""
    held = getattr(resume, "monitor", None)
    if not isinstance(held, Traced):
        raise TypeError("resume (a state of a run without trace?) has no rows to go on with.")

    def longer(leaf: jax.Array) -> jax.Array:
        blank = _blank(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), count)
        return jnp.concatenate([leaf, blank])[:count]

    rows, calls = jax.tree.map(longer, (held.rows, held.calls))
    return resume._replace(monitor=held._replace(rows=rows, calls=calls))


def _with_last(trace: Callable, state: PyTree, solution: Solution, every: int) -> PyTree:
    """All rows: those that the monitor saw, and the one after the last step."""
    rows, steps = solution.trace.rows, solution.steps
    count = jax.tree.leaves(rows)[0].shape[0]
    due = (steps > 0) & (solution.status != Status.NONFINITE)
    return _put(rows, jnp.where(due, steps // every - 1, count),
                jax.tree.map(jnp.asarray, trace(state)))
