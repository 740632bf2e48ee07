"""Inclusions of a sum of very many operators: Halpern's iteration with variance reduction."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.implicit import as_adjoint, attach_implicit
from jaxiter.known import check_count, check_positive
from jaxiter.numerics import on_own_mesh, stop_gradient
from jaxiter.operators.variance_reduction import halpern_process, mean_of, nested, single
from jaxiter.operators.variational_inequality import default_adjoint
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.process import NO_SOLVER, iterate
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any

METHODS = ("single", "nested")
#: Of "nested": inner steps per component, and a step of the theory.
INNER = 0.25


@reports
class InclusionResult(NamedTuple):
    """What `finite_sum_inclusion` has found.

    Attributes:
      value: the point, like z0, with derivatives.
      residual: `|z - J(z - step F(z))| / step` there, with all components: exact; a constant.
      components: evaluations of components so far, int32.
      solve: the untouched `Solution` of `iterate`; its value is the whole state.
    """

    value: PyTree
    residual: jax.Array
    components: jax.Array
    solve: Solution


@reused
@on_own_mesh
def finite_sum_inclusion(
    component: Callable, z0: PyTree, data: PyTree, *args: PyTree, key: jax.Array, lipschitz: Any,
    resolvent: Callable | None = None, method: str = "single", step_scale: Any = 1.0,
    batch: int | None = None, period: int | None = None, **options: Unpack[SolveOptions],
) -> InclusionResult:
    """Find z with `0 in (1/n) sum_i F_i(z) + A(z)` from a few F_i at a time.

        G <- F(z), every `period` inner steps, else  G <- G + mean_batch(F_i(z) - F_i(z_before))
        z <- J(lam z0 + (1 - lam) z - step G),    lam = 2 / (k + 4)               ("single")

    For F_i that are cocoercive on average, `(1/n) sum |F_i u - F_i v|^2 <= L <F u - F v, u - v>`,
    the residual falls like 1 / k in about `sqrt(n)` evaluations a step. "nested" is for F_i that
    are Lipschitz alone: Halpern's iteration on the resolvent of `c (F + A)`, c = sqrt(n) / L, each
    computed by variance-reduced forward-reflected-backward steps.

    One step of the driver is a period, or a resolvent: it ends with all of F, so the merit is
    exact, and the schedule is the same in every lane of a batch. It is worth while where n is
    large and the conditioning bad; with the theory's step it loses to the deterministic method in
    every case that was measured, with 4 to 20 times that it wins (`benchmarks/games.py`).

    Args:
      component: `component(z, row, *args)`, one F_i, a tree like z.
      z0: start, and anchor. data: what makes the F_i differ, leaves `[n, ...]`.
      key: a random key.
      lipschitz: L, as above; "nested": of the mean square, `(1/n) sum |F_i u - F_i v|^2 <=
        L^2 |u - v|^2`.
      resolvent: `resolvent(v, step, *args)` of A; default none.
      method: "single" or "nested".
      step_scale: what the theory's step is multiplied by: `1 / (4 L)`, or for "nested" that of
        the inner steps.
      batch: rows in a batch, drawn with replacement; default `ceil(sqrt(n))`; "nested" takes 1.
      period: inner steps between two evaluations of all of F; default `(sqrt(n) + 5) / 4`;
        "nested": n / 4. 1 is the deterministic method.
      **options: those of `iterate`, and an adjoint: of the inclusion with all of F.

    Returns:
      An `InclusionResult`.

    Raises:
      ValueError: L or step_scale that is not positive, data of different counts, an unknown method.

    Reference: Cai, Alacaoglu and Diakonikolas, "Variance reduced Halpern iteration for finite-sum
    monotone inclusions", ICLR, 2024.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> points = jnp.arange(16.0)[:, None]
    >>> out = finite_sum_inclusion(lambda z, row: z - row, jnp.zeros(1), points, lipschitz=1.0,
    ...                            key=jax.random.key(0), step_scale=4.0,
    ...                            stop=jaxiter.tolerance(rtol=1e-3))
    >>> round(float(out.value[0]), 1), bool(out.converged)
    (7.5, True)
    """
    chosen = choose("finite_sum_inclusion", options, NO_SOLVER)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    check_positive(lipschitz=lipschitz, step_scale=step_scale)
    count, z0 = _count(data), as_point(z0)
    batch, period = _sizes(method, count, batch, period)
    numbers = _numbers(method, count, lipschitz, step_scale, trees.norm_dtype(z0))
    mean = partial(mean_of, component)
    near = (lambda v, size, *args: v) if resolvent is None else resolvent
    moves = partial(single if method == "single" else nested, component, near, batch, period)
    spent = count + 2 * batch * (period - (method == "single"))
    solution = iterate(
        halpern_process(mean, near, moves, spent), z0, data, numbers, *args, key=key,
        **chosen._replace(adjoint=frozen())._asdict())
    size = stop_gradient(numbers[0])

    def equations(z: PyTree, data: PyTree, *args: PyTree) -> PyTree:
        return trees.subtract(z, near(trees.axpy(-size, mean(z, data, args), z), size, *args))

    point = stop_gradient(solution.value.point)
    adjoint = default_adjoint(z0) if chosen.adjoint is None else as_adjoint(chosen.adjoint)
    value = attach_implicit(equations, point, data, *args, adjoint=adjoint)
    return InclusionResult(value, solution.value.residual / size, solution.calls["components"],
                           solution)


def _count(data: PyTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or counts == {0}:
        raise ValueError("data must be a tree of arrays whose leading axes have one length, at "
                         f"least 1, got shapes {shapes}.")
    return counts.pop()


def _sizes(method: str, count: int, batch: int | None, period: int | None) -> tuple[int, int]:
    one = method == "single"
    if batch is None:
        batch = -int(-(count**0.5) // 1) if one else 1
    if period is None:
        period = -int(-(count**0.5 + 5) // 4) if one else -int(-(INNER * count) // 1)
    check_count(batch=batch, period=period)
    return batch, period


def _numbers(method: str, count: int, lipschitz: Any, scale: Any, kind: Any) -> tuple:
    """The step of the natural residual, c, and the step of the inner problem."""
    constant = jnp.asarray(lipschitz, kind)
    if method == "single":
        size = jnp.asarray(scale, kind) / (4 * constant)
        return size, size, size
    share = 1 / max(count, 2)
    inner = jnp.asarray(scale, kind) * (share * (1 - share)) ** 0.5 / (count**0.5 + 1)
    return 1 / constant, count**0.5 / constant, inner
