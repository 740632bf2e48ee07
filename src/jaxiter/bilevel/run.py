"""`run`: a bilevel method on its data, by the driver of every process."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import check_count, check_floating
from jaxiter.monitor import Monitor, blank
from jaxiter.options import SolveOptions, choose
from jaxiter.process import Batches, Process, iterate, latest
from jaxiter.reuse import reused
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


class NamedBatches(Batches):
    """Batches that are no larger than their data, which has a name."""

    name: str = eqx.field(static=True, default="data")

    @property
    def rows(self) -> int:
        """Rows of the data, where the method looks for them: below the blocks of `bsvrb_v1`."""
        for leaf in jax.tree.leaves(self.data):
            if self.size is not None and jnp.shape(leaf)[:1] < (self.size,):
                raise ValueError(f"batch_size={self.size} is larger than {self.name}, whose leaf "
                                 f"of shape {jnp.shape(leaf)} has not so many rows.")
        return super().rows


class Traced(NamedTuple):
    """The trace of a run with `trace`: what its monitor recorded, and rows of its own.

    Row k is of the state after k evaluations, and of the calls until the next.
    """

    monitor: PyTree
    rows: tuple


@reused
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
      TypeError: no process, a `resume` of other choices, whole numbers in x0 or y0.

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
    check_floating(jnp.inexact, x0=x0, y0=y0)
    if batch_size is not None:
        check_count(batch_size=batch_size)
    data = (NamedBatches(inner_data, batch_size, "inner_data"),
            NamedBatches(outer_data, batch_size, "outer_data"))
    if trace is None:
        solution = iterate(method, (x0, y0), *data, key=key, **chosen._asdict())
        return RunResult(latest(solution), None, None, solution)
    if not isinstance(chosen.max_steps, int | np.integer):
        raise ValueError("trace has max_steps / check_every rows, so max_steps must be a Python "
                         f"integer, got {chosen.max_steps!r}.")
    every = chosen.check_every
    count = int(chosen.max_steps) // every + 1
    solution = iterate(method, (x0, y0), *data, key=key, **chosen._replace(
        monitor=_recording(chosen.monitor, trace, count, every),
        resume=_with_rows(chosen.resume, count))._asdict())
    state, (rows, calls) = latest(solution), solution.trace.rows
    last = jnp.where(solution.status == Status.NONFINITE, count, solution.steps // every)
    rows = _put(rows, last, trace(state))
    return RunResult(state, trees.at(rows, slice(1, None)), trees.at(calls, slice(-1)), solution)


def _recording(monitor: Monitor | None, trace: Callable, count: int, every: int) -> Monitor:
    """The monitor, and beside it the rows, of which an evaluation makes the one it begins from."""
    def seen(info: StepInfo) -> tuple:
        return jax.tree.map(jnp.asarray, trace(info.x)), info.memory.calls

    def init(info: StepInfo) -> Traced:
        rows = jax.tree.map(lambda leaf: blank(count, leaf.shape, leaf.dtype),
                            jax.eval_shape(seen, info))
        return Traced(None if monitor is None else monitor.init(info), rows)

    def update(info: StepInfo, state: Traced, active: jax.Array) -> Traced:
        row = jnp.where(active, (info.step - 1) // every, count)
        watched = None if monitor is None else monitor.update(info, state.monitor, active)
        return Traced(watched, _put(state.rows, row, seen(info)))

    return Monitor(init, update)


def _put(rows: PyTree, row: jax.Array, new: PyTree) -> PyTree:
    """The rows with a new one; one beyond the last is dropped."""
    return jax.tree.map(lambda leaf, new: leaf.at[row].set(new, mode="drop"), rows, new)


def _with_rows(resume: LoopState | None, count: int) -> LoopState | None:
    """The state of an earlier part of the run, with room for the rows of this one."""
    if resume is None:
        return None
    held = getattr(resume, "monitor", None)
    if not isinstance(held, Traced):
        raise TypeError("resume (a state of a run without trace?) has no rows to go on with.")
    longer = jax.tree.map(lambda leaf: jnp.concatenate(
        [leaf, blank(count, leaf.shape[1:], leaf.dtype)])[:count], held.rows)
    return resume._replace(monitor=held._replace(rows=longer))
