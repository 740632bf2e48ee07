"""Secant quasi-Newton Picard: a whole sampling trajectory as one triangular fixed point.

A round calls the model on a window of rows at once, reads a free secant slope off the
last two rounds for every row, and solves the linearised recurrence. After k rounds the
first k rows are those of the loop, whatever the slopes are: they only decide how many
rounds are needed.
"""

from functools import partial
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxiter import trees
from jaxiter.diffusion.adjoint import attach_sampling
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.linearize import gaussian_slopes, look, nothing_seen
from jaxiter.diffusion.methods import KINDS
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, begin, evaluate, histories, walk
from jaxiter.known import check_positive
from jaxiter.options import SolveOptions
from jaxiter.recurrence.adjoint import as_chain_adjoint
from jaxiter.recurrence.methods import RowMethod, as_method
from jaxiter.recurrence.rounds import View, choose_rounds, solve_rounds
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status, reports


@reports
class ParallelSample(NamedTuple):
    """Answer of a parallel solve.

    Attributes:
      value: the sample. trajectory: all states `[R + 1, ...]`, the start first: once CONVERGED as
        they were measured, before as the last round moved them.
      slopes: `[R]`, for warm starts.
      solve: the Solution of the fixed point, as that of `solve_recurrence`: value the states after
        the start that were measured last, aux how many of them are final, `calls["model"]` the
        number of model calls.
    """

    value: jax.Array
    trajectory: jax.Array
    slopes: jax.Array
    solve: Solution

    @property
    def rounds(self) -> jax.Array:
        """Batched model calls, one after the other."""
        return self.solve.steps

    def message(self) -> str:
        """What happened, outside jit: rounds, and rows that are final; for a batch, in short."""
        if self.solve.status.ndim:
            return self.solve.message()
        name, final = Status.name(self.solve.status), int(self.solve.aux)
        rows = len(self.trajectory) - 1
        if name == "NONFINITE":
            return (f"{name} in round {int(self.rounds)}: the model is not finite at row "
                    f"{final} of {rows}, on the loop's own trajectory.")
        return f"{name} after {int(self.rounds)} rounds: {final} of {rows} rows are final."


class Absolute(eqx.Module):
    """See `absolute`."""

    tolerance: Any


def absolute(tolerance: Any) -> Absolute:
    """A tolerance of `sample_parallel` in units of the sample itself.

    >>> absolute(1e-3) == absolute(1e-3)
    True
    """
    return Absolute(tolerance)


@reused
def sample_parallel(
    sampler: Sampler, denoiser: Denoiser, x_init: jax.Array, key: jax.Array | None = None, *,
    method: str | RowMethod = "secant", window: int | None = None, tolerance: Any = 1e-3,
    init: Any = "auto", slopes: jax.Array | None = None, noise: jax.Array | None = None,
    mesh: Mesh | None = None, **options: Unpack[SolveOptions],
) -> ParallelSample:
    """The loop's sample, `sample(sampler, ...)`, in a few rounds of batched model calls.

    Args:
      sampler, denoiser, x_init, key, noise: as in `sample`; `vmap` for a batch, each sample with
        its own rounds. A batch inside x_init is one sample of one window: all its members wait
        for the slowest, as large networks prefer.
      method: how a row answers its input. `secant()`: slopes between the last two rounds.
        `gaussian()`: slopes of Gaussian data. `jvp()`: the secant mended by one jvp a round, which
        is then two calls deep. `picard()` (ParaDiGMS) and `jacobi()` have none.
        `paratta(order, memory)` (ParaTAA): maps of so many rows, mixed over so many rounds.
        secant, picard and jacobi are those of `jaxiter.recurrence`; names stand for defaults.
      window: rows of a round, 1..R; default R. Rows entering a window that slides are
        predicted from the newest guess of the data.
      tolerance: a row is final once the rows before it are, it moves by no more than this, and
        it is as near to what the sampler makes of them: root mean squares, in units of the
        standard deviation of the step's posterior noise; `absolute(tolerance)` in those of the
        sample. At 0.1 samples may land in another mode than the loop's; 1e-3 is close, 1e-5 is
        float32's rounding.
      init: "auto" (a copy of x_init; for samplers with noise a roll-out of Gaussian data), "copy",
        or states `[R + 1, ...]` of a similar solve. slopes: `[R]` of that solve.
      mesh: devices that share every round: the rows of the window are split over the mesh's
        axis "time", with one all_gather of model values a round.
      **options: stop, max_steps (rounds, default R, which always suffice), monitor, solver and
        resume as in `solve_recurrence`; no check_every, keep_best. adjoint: `parallel()` of
        `jaxiter.recurrence`, rounds of batched VJPs, or `sequential()`, R VJPs in a loop: the
        loop's derivatives at the trajectory found, in memory O(R), noise a constant;
        `jaxiter.frozen()`: none.

    Returns:
      A `ParallelSample`. MAX_STEPS: the first `solve.aux` rows are final. NONFINITE: the
      model is not finite on the loop's own trajectory; that row and those after it are the last
      finite guess. `.message()` says where.

    Raises:
      TypeError: a sampler, denoiser, x_init, method, adjoint or option of another kind.
      ValueError: window outside 1..R, tolerance <= 0, unknown choices, wrong shapes.

    Source: construction of this library; frame: Gonzalez et al., "Predictability enables
    parallelization of nonlinear state space models", 2025; window and tolerance: Shih,
    Belkhale, Ermon and Sadigh, "Parallel sampling of diffusion models", 2023.

    >>> import jax.numpy as jnp
    >>> from jaxiter.diffusion import Denoiser, ddim, linear_beta_schedule
    >>> model = Denoiser(lambda x, t: jnp.tanh(x), "eps")
    >>> out = sample_parallel(ddim(linear_beta_schedule(50)), model, jnp.ones(2))
    >>> bool(out.converged), int(out.rounds) < 12
    (True, True)
    """
    x_init, table = begin(sampler, denoiser, x_init, key, noise)
    count = sampler.rows
    method = as_method("sample_parallel", method, KINDS)
    chosen = choose_rounds("sample_parallel", options, count)
    adjoint = as_chain_adjoint("sample_parallel", chosen.adjoint)
    if isinstance(tolerance, Absolute):
        tolerance, table = tolerance.tolerance, table._replace(scale=jnp.ones_like(table.scale))
    if not isinstance(tolerance, int | float | np.ndarray | np.generic | jax.Array):
        raise TypeError("tolerance must be a number, or absolute(number), got "
                        f"{type(tolerance).__name__}.")
    check_positive(tolerance=tolerance)
    if slopes is not None and slopes.shape != (count,):
        raise ValueError(f"slopes must have shape ({count},), got {slopes.shape}.")
    if mesh is not None and "time" not in mesh.shape:
        raise ValueError(f"the mesh needs an axis 'time', found {tuple(mesh.shape)}.")
    kind = trees.norm_dtype(x_init)
    # From here on the scale of a row is the change that it may make.
    table = table._replace(scale=table.scale.astype(kind) * jnp.asarray(tolerance, kind))
    first = gaussian_slopes(sampler, denoiser, table)
    guess = _first_rows(sampler, first, table, x_init, init)
    if slopes is not None:  # a solve that broke down may hand on slopes that are not finite
        first = jnp.where(jnp.isfinite(slopes), slopes.astype(first.dtype), first)
    first = first.astype(x_init.dtype)
    solve, newest, (found, _) = solve_rounds(
        partial(look, sampler, denoiser, method, mesh), guess, nothing_seen(guess, first, method),
        (x_init, table), chosen, compare=_change, window=window, calls="model",
        after=partial(_roll_out, sampler))
    newest = jnp.where(solve.aux == count, solve.value, newest)
    x = attach_sampling(
        partial(evaluate, sampler, denoiser), newest, x_init, table, found.slope, adjoint)
    return ParallelSample(x[-1], x, found.slope, solve)


def _change(
    view: View, new: jax.Array, old: jax.Array, x_init: jax.Array, table: SamplerTable
) -> jax.Array:
    """Root mean squares by rows, in units of the tolerance."""
    return jax.vmap(trees.norm)(new - old) / max(new[0].size, 1) ** 0.5 / view.cut(table.scale)


def _first_rows(
    sampler: Sampler, slopes: jax.Array, table: SamplerTable, x_init: jax.Array, init: Any
) -> jax.Array:
    """The first guess `[R, ...]`; `slopes` `[R]` of a model of Gaussian data."""
    shape = (sampler.rows + 1, *x_init.shape)
    if not isinstance(init, str):
        init = jnp.asarray(init, x_init.dtype)
        if init.shape != shape:
            raise ValueError("init must have one state per row and the start: "
                             f"{shape}, got {init.shape}.")
        return init[1:]
    if init not in ("auto", "copy"):
        raise ValueError(f"init must be 'auto', 'copy' or states, got {init!r}.")
    if init == "copy" or not sampler.stochastic:
        return jnp.broadcast_to(x_init, (sampler.rows, *x_init.shape))
    return walk(table, histories(table, x_init), lambda x, row, slope: slope * x, slopes)[1]


def _roll_out(
    sampler: Sampler, view: View, rows: jax.Array, seen: tuple, x_init: jax.Array,
    table: SamplerTable,
) -> jax.Array:
    """The rows, those after the window as if its newest guess of the data were right."""
    if view.width == len(rows):
        return rows
    x, values, end = trees.prepend(x_init, rows), seen[0].f, view.start + view.width
    last, newest, at = trees.at((table, values, x), end - 1)
    guess = newest if sampler.currency == "x0" else (at - last.sigma * newest) / last.alpha

    def value(x: jax.Array, row: SamplerTable, _: None) -> jax.Array:
        return guess if sampler.currency == "x0" else (x - row.alpha * guess) / row.sigma

    def before(array: jax.Array, at: jax.Array, depth: int) -> jax.Array:
        return array[jnp.maximum(at - jnp.arange(depth, dtype=jnp.int32), 0)]

    carry = (before(x, end, table.state.shape[1]), before(values, end - 1, table.model.shape[1]))
    index = view.index() + view.width
    ahead = trees.at(table, jnp.minimum(index, len(rows) - 1))
    return rows.at[index].set(walk(ahead, carry, value)[1], mode="drop")
