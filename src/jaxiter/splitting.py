"""`solve_splitting`: a map of a governing point, and what is read from it when it is solved."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, real_dtype, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem, as_point, as_problem, build_cache, extras
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any


@reports
class SplitResult(NamedTuple):
    """What a splitting has found.

    Attributes:
      value: the answer, in the tree, shapes and dtypes of x0, with derivatives.
      dual: the multiplier that the method carries; None where it carries none.
      solve: the untouched `Solution` of the governing point: its `value` is that point, and its
        `state` is what `resume=` takes.
    """

    value: PyTree
    dual: PyTree
    solve: Solution


class Splitting(NamedTuple):
    """A method whose fixed point s is not the answer itself, but something it is read from.

    Forward-backward, Douglas-Rachford, Davis-Yin, ADMM, primal-dual methods: each is one map of a
    governing point. Solvers, stop rules, lanes and meshes act on that point, never on the answer:
    `solve_many(splitting.problem, ...)` and every other front take the problem as any.

    Attributes:
      problem: the map `T(s, *args) -> s`, or a `Problem` of it.
      start: `start(x0, *args) -> s`, in the precision of x0.
      extract: `extract(s, *args) -> (value, dual)`; value is like x0, so that it is a start
        for the next solve; dual may be None. With a cache or a memory it takes them after s, as
        all functions of a `Problem` do.
      averaged: alpha in (0, 1], where it is known: `T = (1 - alpha) I + alpha N` for a
        nonexpansive N. Half of it is wasted on `halpern`, which is best on N itself:
        `optax.chain(optax.scale(1 / averaged), halpern())`.
    """

    problem: Problem | Callable
    start: Callable
    extract: Callable
    averaged: float | None = None

    def result(self, solution: Solution, *args: PyTree) -> SplitResult:
        """What a `Solution` of `problem` says; the derivatives of its value pass through.

        For a batch by `solve_many`: `jax.vmap(splitting.result)(solution, data)`.

        Raises:
          TypeError: extract returns no pair.
        """
        problem, s = as_problem(self.problem), solution.value
        memory = stop_gradient(solution.state.answer.memory)
        cache = build_cache(problem, s, memory, args)
        pair = self.extract(s, *extras(problem, cache, memory), *args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError("extract must return (value, dual), dual None where there is none; "
                            f"got {type(pair).__name__}.")
        value, dual = jax.tree.map(strong, tuple(pair))
        return SplitResult(value, dual, solution)


@reused
@on_own_mesh
def solve_splitting(
    splitting: Splitting, x0: PyTree, *args: PyTree, has_aux: bool = False,
    **options: Unpack[SolveOptions],
) -> SplitResult:
    """Solve `s = T(s, *args)` from start(x0) and read the answer from it.

        s_0 = start(x0),    s* = fixed_point(T, s_0),    (value, dual) = extract(s*)

    Derivatives are those of extract at the fixed point, with respect to everything in args and
    what the functions close over; the adjoint itself sees T alone.

    Args:
      splitting: such as `operators.douglas_rachford(...)`.
      x0: start, a pytree of floating-point or complex arrays, like the answer.
      *args: pytrees passed to T, start and extract.
      has_aux, **options: those of `fixed_point`. `resume` is `result.solve.state`.

    Returns:
      A `SplitResult`, with the status, `converged`, `message()` and `check()` of its solve.

    Raises:
      TypeError: no Splitting; start changes the precision; extract returns no pair, or a value
        that is not like x0; and what `fixed_point` raises.
      ValueError: averaged outside (0, 1].

    Reference: Bauschke and Combettes, "Convex analysis and monotone operator theory in Hilbert
    spaces", 2017.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import douglas_rachford, prox_l1
    >>> near = lambda v, step, target: (v + step * target) / (1 + step)
    >>> split = douglas_rachford(near, lambda v, step, _: prox_l1(v, step), step_size=1.0)
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(2), jnp.array([3.0, 0.5]))
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)
    ([2.0, 0.0], True)
    """
    if not isinstance(splitting, Splitting):
        raise TypeError(f"expected a Splitting, got {type(splitting).__name__}; a map alone is "
                        "for fixed_point.")
    chosen = choose("solve_splitting", options, {})
    known(_check_averaged, splitting.averaged)
    x0 = as_point(x0)
    s = jax.tree.map(strong, splitting.start(x0, *args))
    _check_precision(x0, s)
    result = splitting.result(fixed_point(
        splitting.problem, s, *args, has_aux=has_aux, **chosen._asdict()), *args)
    trees.check_same_structure(x0, result.value, "The value that extract returns (against x0)")
    return result


def _check_averaged(averaged: Any) -> None:
    if averaged is not None and (np.ndim(averaged) or not 0 < float(averaged) <= 1):
        raise ValueError(f"averaged must be a number in (0, 1], got {averaged}.")


def _check_precision(x0: PyTree, s: PyTree) -> None:
    """A start in another precision would decide that of the whole solve unseen."""
    given = {real_dtype(leaf.dtype) for leaf in jax.tree.leaves(x0)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(s):
        floating = jnp.issubdtype(leaf.dtype, jnp.inexact)
        if not floating or real_dtype(leaf.dtype) not in given:
            raise TypeError(f"start must keep the precision of x0 ({', '.join(map(str, given))}), "
                            f"but at {trees.path_name(path)} it returned {leaf.dtype}.")
