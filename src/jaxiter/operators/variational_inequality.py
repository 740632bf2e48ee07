"""Variational inequalities and monotone inclusions, by extragradient methods."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from jaxiter.adjoint import Adjoint
from jaxiter.driver import fixed_point
from jaxiter.implicit import implicit
from jaxiter.known import check_positive, known
from jaxiter.linear import dense, gmres
from jaxiter.numerics import numbers_in, on_own_mesh, stop_gradient
from jaxiter.operators.extragradient import METHODS, Method
from jaxiter.operators.monotone import Choice, inclusion_problem
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any

#: Up to so many unknowns the adjoint's systems, often nearly skew, are solved as matrices.
DENSE = 256


@reports
class VariationalResult(NamedTuple):
    """What `variational_inequality` has found.

    Attributes:
      value: the last point where F was evaluated, in the tree of z0, with derivatives.
      average: the mean, weighted by the steps, of the points that the rate 1 / k is proved for;
        None unless asked for. A constant for derivatives.
      residual: `|z - J(z - step F(z))| / step` at value, in units of F; a constant too.
      step: the step at the end.
      solve: the untouched `Solution`.
    """

    value: PyTree
    average: PyTree
    residual: jax.Array
    step: jax.Array
    solve: Solution


@reused
@on_own_mesh
def variational_inequality(
    F: Callable, z0: PyTree, *args: PyTree, resolvent: Callable | None = None,
    method: str = "extragradient", step: Any = None, lipschitz: Any = None,
    average: bool = False, restart: Any = 0.2, **options: Unpack[SolveOptions],
) -> VariationalResult:
    """Find z with `0 in F(z) + A(z)` for a monotone F: constrained games, saddle points.

        h = J(z - step F(z)),    z <- J(z - step F(h))          ("extragradient")

    with `J(v) = (I + step A)^-1 v`, the projection where A is the normal cone of a set. One point
    and what the method remembers move; F is evaluated once in a step, twice by "extragradient" and
    "mirror". The merit is `|z - J(z - step F(z))|`, relative to z; derivatives are those of
    its zero, never of the algorithm.

    Args:
      F: `F(z, *args)`, a tree like z. For a minimax problem `(grad_x f, -grad_y f)`.
      z0: start, in the set.
      resolvent: `resolvent(v, step, *args)`, such as a projection that ignores the step; default
        none, the whole space.
      method: "extragradient"; "past", Popov's; "reflected", whose points may lie off the set, by
        no more than the residual; "optimistic", which in the points where F is evaluated is
        "forward_reflected"; "anchored" (AOG), whose last point has the rate 1 / k where
        others have 1 / sqrt(k); "mirror", extragradient in entropy, where the last axis of every
        leaf is a simplex, and no resolvent is taken.
      step: a number below bound / L for a Lipschitz constant L; the bound is 1 for "extragradient"
        and "mirror", 0.41 for "reflected", 0.57 for "anchored", else 0.5. Default: from `lipschitz`
        where that is given, else from L at z0 by power iteration on the derivative of F, and
        shorter where F is steeper elsewhere, longer where it is flatter. "extragradient" and
        "mirror" take a step back that was too long, the others one that was so eightfold.
      lipschitz: L, in the Euclidean norm; for "mirror" from |.|_1 to |.|_inf: max |A| of a matrix
        game.
      average: whether to keep the mean of the points.
      restart: of "anchored": a new anchor where the residual fell to this share of the last
        anchor's; None is the published method.
      **options: those of `fixed_point`. A `solver` only for "extragradient" with a step that is
        given, for other steps are no map of the point alone. The adjoint is dense up to 256
        unknowns, GMRES above; NaN where the solution is not unique, and then
        `implicit(normal_cg())` gives the least change.

    Returns:
      A `VariationalResult`. DIVERGED or MAX_STEPS where F is not monotone or the step too long.

    Raises:
      TypeError: F(z) of another structure than z.
      ValueError: an unknown method; a step that is not positive or, for a known L, above its bound;
        "mirror" with a resolvent or a start that is not positive. Traced ones are BAD_INPUT.

    Reference: Hsieh, Iutzeler, Malick and Mertikopoulos, "On the convergence of single-call
    stochastic extra-gradient methods", NeurIPS, 2019; Cai and Zheng, "Doubly optimal no-regret
    learning in monotone games", ICML, 2023; Malitsky and Tam, "A forward-backward splitting method
    for monotone inclusions without cocoercivity", SIAM J. Optim. 30, 2020.

    >>> import jax.numpy as jnp
    >>> turn = lambda z, b: jnp.array([z[1] - b, -z[0] + b])
    >>> out = variational_inequality(turn, jnp.zeros(2), 0.5)
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)
    ([0.5, 0.5], True)
    """
    return solve("variational_inequality", F, z0, args, resolvent, method, step, lipschitz,
                 average, restart, options)


def solve(
    front: str, F: Callable, z0: PyTree, args: tuple, resolvent: Callable | None, method: str,
    step: Any, lipschitz: Any, average: bool, restart: Any, options: SolveOptions,
) -> VariationalResult:
    """What `variational_inequality` does, for any front."""
    way = _way(front, method, resolvent, step, lipschitz, z0)
    z0 = as_point(z0)
    refused = {}
    if method != "extragradient" or (step is None and lipschitz is None):
        refused["solver"] = ("its steps remember more than the point; only extragradient with a "
                             "step that is given is a map of it")
    chosen = choose(front, options, refused, adjoint=default_adjoint(z0))
    problem = inclusion_problem(
        F, resolvent, Choice(way, method, step, lipschitz, average, restart))
    solution = fixed_point(problem, z0, *args, **chosen._asdict())
    held = stop_gradient(solution.state.answer.memory)
    return VariationalResult(
        solution.value, held.mean if average else None, held.rate, held.size, solution)


def default_adjoint(x: PyTree) -> Adjoint:
    """For systems that are far from symmetric."""
    return implicit(dense() if numbers_in(x) <= DENSE else gmres())


def _way(
    front: str, method: str, resolvent: Any, step: Any, lipschitz: Any, z0: PyTree
) -> Method:
    """The method.

    Raises:
      ValueError: an unknown one; numbers, a resolvent or a start that it cannot take.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    way = METHODS[method]
    given = {"step": step, "lipschitz": lipschitz}
    check_positive(**{name: value for name, value in given.items() if value is not None})
    if step is not None and lipschitz is not None:
        known(partial(_check_bound, method, way.bound), step, lipschitz)
    if method == "mirror":
        if resolvent is not None:
            raise ValueError(f'{front} takes no resolvent with method="mirror", whose set is the '
                             "simplex in the last axis of every leaf.")
        known(_check_strategies, z0)
    return way


def _check_bound(method: str, bound: float, step: Any, lipschitz: Any) -> None:
    if not np.all(np.asarray(step) * np.asarray(lipschitz) < bound):
        raise ValueError(
            f"step must be below {bound:.3g} / L = {bound / float(np.max(lipschitz)):.4g} for "
            f"method={method!r} with lipschitz={lipschitz}, got {step}.")


def _check_strategies(z0: PyTree) -> None:
    for leaf in jax.tree.leaves(z0):
        if np.ndim(leaf) == 0 or not np.all(np.asarray(leaf) > 0):
            raise ValueError('method="mirror" starts within simplices: z0 must be positive, with '
                             f"a strategy in the last axis of every leaf; got {leaf}.")


