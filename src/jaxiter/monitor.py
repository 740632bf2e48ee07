"""Monitors watch a solve and never change its numbers.

A monitor is two functions: `init(info) -> state`, `update(info, state, active)
-> state`. `active` is False for the finished lanes of a vmapped solve, whose
loop body still runs. `record` uses no host callback; the others call the host
at most every `every` steps.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.stop import StepInfo

PyTree = Any


class Monitor(NamedTuple):
    """`init(info) -> state` and `update(info, state, active) -> state`."""

    init: Callable[[StepInfo], PyTree]
    update: Callable[[StepInfo, PyTree, jax.Array], PyTree]


def seeing(monitor: Monitor | None, view: Callable[[StepInfo], StepInfo]) -> Monitor | None:
    """The monitor, shown what `view` makes of each step; None stays None."""
    if monitor is None:
        return None
    return Monitor(lambda info: monitor.init(view(info)),
                   lambda info, state, active: monitor.update(view(info), state, active))


def record(
    capacity: int = 1000, every: int = 1, value: bool | Callable[[PyTree], PyTree] = False
) -> Monitor:
    """Store merits (and iterates) in arrays of fixed size: `Solution.trace`.

    Row i holds step `1 + i * every`; rows never reached are NaN, steps beyond the
    capacity are dropped. Whole numbers are 0 where there is none yet.

    Args:
      capacity: number of rows. every: steps between rows.
      value: also store x, leaves `[capacity, *shape]`; or a function of x, and store that.

    Returns:
      A monitor; the trace is a dict with `merit` and `scale` `[capacity]` and perhaps `value`.

    >>> import jax.numpy as jnp, jaxiter
    >>> sol = jaxiter.fixed_point(jnp.cos, 1.0, max_steps=3, monitor=jaxiter.record(4))
    >>> [f"{merit:.2f}" for merit in sol.trace["merit"]]
    ['0.46', '0.32', '0.20', 'nan']
    """
    if capacity < 1 or every < 1:
        raise ValueError(f"capacity and every must be at least 1, got {capacity} and {every}.")

    def seen(x: PyTree) -> PyTree:
        return jax.tree.map(jnp.asarray, value(x)) if callable(value) else x

    def init(info: StepInfo) -> dict:
        empty = jnp.full((capacity,), jnp.nan, info.merit.dtype)
        trace = {"merit": empty, "scale": empty}
        if value:
            trace["value"] = jax.tree.map(
                lambda leaf: blank(capacity, leaf.shape, leaf.dtype),
                jax.eval_shape(seen, info.x))
        return trace

    def update(info: StepInfo, state: dict, active: jax.Array) -> dict:
        due = active & ((info.step - 1) % every == 0)
        row = jnp.where(due, (info.step - 1) // every, capacity)  # out of range: dropped
        new = {"merit": info.merit, "scale": info.scale}
        if value:
            new["value"] = seen(info.x)
        return jax.tree.map(lambda rows, leaf: rows.at[row].set(leaf, mode="drop"), state, new)

    return Monitor(init, update)


def blank(count: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Rows in which nothing was recorded yet."""
    return jnp.full((count, *shape), jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def callback(function: Callable[[dict], None], every: int = 1) -> Monitor:
    """Call `function({"step", "merit", "scale", "value"})` on the host, with numpy arrays.

    Under vmap it is called once per active lane. The call is unordered and
    costs a host round trip; `record` is cheaper.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")

    def on_host(due: Any, step: Any, merit: Any, scale: Any, x: Any) -> None:
        if due:  # under vmap a cond becomes a select, so the host looks again
            function({"step": int(step), "merit": float(merit), "scale": float(scale), "value": x})

    def update(info: StepInfo, state: tuple, active: jax.Array) -> tuple:
        due = active & ((info.step - 1) % every == 0)
        operands = (due, info.step, info.merit, info.scale, info.x)
        lax.cond(due, lambda ops: jax.debug.callback(on_host, *ops), lambda ops: None, operands)
        return state

    return Monitor(lambda info: (), update)


def printer(every: int = 100) -> Monitor:
    """Print step and merit every `every` steps."""

    def show(entry: dict) -> None:
        print(f"step {entry['step']:>8d}   merit {entry['merit']:.3e}", flush=True)

    return callback(show, every)


def progress(total: int | None = None, every: int = 50, description: str = "solve") -> Monitor:
    """A tqdm bar over evaluations, refreshed every `every` steps; one bar for a whole batch.

    Args:
      total: steps that fill the bar, usually `max_steps`. every: steps between refreshes.
      description: text before the bar.

    Raises:
      ImportError: tqdm is not installed (`pip install tqdm`). ValueError: every or total below 1.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress() needs tqdm: pip install tqdm") from error
    if total is not None and total < 1:
        raise ValueError(f"total must be at least 1, got {total}.")

    @cache
    def begun() -> Any:
        return tqdm(total=total, desc=description, leave=False)

    def show(entry: dict) -> None:
        bar = begun()
        # In a batch the bar follows the lane that is furthest.
        bar.update(max(entry["step"] - bar.n, 0))
        bar.set_postfix_str(f"merit {entry['merit']:.2e}")
        if total is not None and entry["step"] + every > total:
            bar.close()

    return callback(show, every)
