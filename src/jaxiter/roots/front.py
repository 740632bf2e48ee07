"""`root`: zeros of systems, by Newton's methods or by any solver of fixed points."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.implicit import implicit
from jaxiter.lanes import batch_size, normalise_axes, solve_many
from jaxiter.linear import dense
from jaxiter.numerics import numbers_in, on_own_mesh, strong
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem, as_point
from jaxiter.reuse import reused
from jaxiter.roots.hybrid import hybrid_problem
from jaxiter.roots.krylov import krylov_problem
from jaxiter.roots.trail import confirmed, in_units, trail_problem
from jaxiter.roots.vectors import as_like
from jaxiter.solution import Solution
from jaxiter.solvers.anderson import anderson

PyTree = Any

METHODS = ("hybrid", "krylov", "anderson")
#: Up to so many unknowns "hybrid" is the default.
DENSE = 100


class _Way(NamedTuple):
    """How F is solved: the problem, the options, what is made of its solution."""

    problem: Problem
    options: Options
    finish: Callable


@reused
@on_own_mesh
def root(
    function: Callable, x0: PyTree, *args: PyTree, method: str | None = None,
    has_aux: bool = False, **options: Unpack[SolveOptions],
) -> Solution:
    """Solve `F(x, *args) = 0`.

    CONVERGED is said only where a root is near, and multiplying F by a constant changes nothing.
    The methods of Newton know its step p at x and say it where `|p| <= rtol |x|` and the step that
    led to x did what Newton's does near a root: at most a third of |F| was left, and p is the
    shorter of both (`tolerance` is asked with `|F|` for the merit and `|F| |x| / |p|` for the
    scale). `tolerance(rtol=0, atol=...)` asks for `|F(x)| <= atol` alone.

    Args:
      function: F, as many real numbers as x has, of one dtype; another tree or other shapes than
        those of x pass, entry by entry. With has_aux `(F, aux)`.
      x0, *args, has_aux: as in `fixed_point`.
      method: "hybrid", Powell's: dense Jacobians by forward mode, Newton's step in a region of
        trust, bent to the gradient; where that is stuck once the plain method from x0. The default
        up to 100 unknowns. "krylov": matrix-free, by GMRES with Eisenstat and Walker's forcing
        terms, shortened until |F| falls; the default beyond. "anderson": a multisecant method of F
        in the units of x, for F without a forward derivative (`jax.custom_vjp`, callbacks),
        complex x, and maps that are nearly contractions; judged by F's slopes along the way.
      **options: those of `fixed_point`. `solver` means that solver, of the map `x - F(x)`: for a
        gradient F, `damped(alpha)` is descent with step alpha. The methods of Newton return the
        best point that they saw (`keep_best`), and "hybrid" has dense adjoints.

    Returns:
      A `Solution`; its residual is the norm of F, its steps evaluations of F, its derivatives those
      of the root. STAGNATED where |F| has a minimum that is no root; DIVERGED where x runs to
      infinity, also where F tends to zero there; NONFINITE where F(x0) is not a number. A singular
      Jacobian is no status by itself: the step is then one of least |F| along the gradient.

    Raises:
      TypeError: F with another number of entries, or dtype, than x.
      ValueError: an unknown method, one of Newton's beside a solver or for complex x.

    Reference: Powell, "A hybrid method for nonlinear equations", in Numerical Methods for Nonlinear
    Algebraic Equations, 1970; Eisenstat and Walker, "Choosing the forcing terms in an inexact
    Newton method", SIAM J. Sci. Comput. 17, 1996.

    >>> import jax.numpy as jnp, jaxiter
    >>> solution = jaxiter.root(lambda x, a: 1e-6 * (x * x - a), jnp.array(1.0), 2.0)
    >>> round(float(solution.value), 4), bool(solution.converged)
    (1.4142, True)
    """
    x0, evaluate = as_point(x0), _evaluation(function, has_aux)
    way = _way("root", evaluate, x0, args, method, has_aux, options)
    solution = fixed_point(way.problem, x0, *args, has_aux=has_aux, **way.options._asdict())
    return way.finish(solution, x0, *args)


@reused
@on_own_mesh
def root_many(
    function: Callable, x0s: PyTree, *args: PyTree, lanes: int | None = None, in_axes: Any = 0,
    refill_every: int = 4, method: str | None = None, has_aux: bool = False,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Solve `F(x, *args) = 0` for many x0 and args, in lanes that refill when theirs ends.

    Args:
      function, method, has_aux: as in `root`, for one problem.
      x0s: starts, leaves `[n, *shape]`. *args: batched along `in_axes`.
      lanes, in_axes, refill_every: as in `solve_many`.
      **options: as in `root`; no `resume`, no `unrolled()`.

    Returns:
      A batched `Solution`.

    >>> import jax.numpy as jnp, jaxiter
    >>> squares = jnp.array([4.0, 9.0, 1e4])
    >>> out = jaxiter.root_many(lambda x, a: x * x - a, jnp.ones(3), squares, lanes=2)
    >>> out.value.round(2).tolist(), bool(out.converged.all())
    ([2.0, 3.0, 100.0], True)
    """
    x0s, evaluate = as_point(x0s), _evaluation(function, has_aux)
    axes = normalise_axes(in_axes, len(args))
    batch_size(x0s, args, axes)
    one = [tree if axis is None else jax.tree.map(
        lambda leaf, axis=axis: _first(strong(leaf), axis), tree)
        for tree, axis in zip((x0s, *args), (0, *axes), strict=True)]
    way = _way("root_many", evaluate, one[0], tuple(one[1:]), method, has_aux, options)
    solution = solve_many(way.problem, x0s, *args, lanes=lanes, in_axes=in_axes,
                          refill_every=refill_every, has_aux=has_aux, **way.options._asdict())
    return jax.vmap(way.finish, in_axes=(0, 0, *axes))(solution, x0s, *args)


def _first(leaf: jax.Array, axis: int) -> jax.Array:
    """The first problem's part; of no problems what has its shape."""
    if leaf.shape[axis]:
        return jnp.take(leaf, 0, axis)
    return jnp.zeros(leaf.shape[:axis] + leaf.shape[axis + 1:], leaf.dtype)


def _evaluation(function: Callable, has_aux: bool) -> Callable:
    """`evaluate(x, *args) -> (F in the tree of x, aux)`."""
    def evaluate(x: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        out = function(x, *args)
        value, aux = out if has_aux else (out, None)
        return as_like(x, jax.tree.map(strong, value), "F"), aux

    return evaluate


def _way(
    front: str, evaluate: Callable, x0: PyTree, args: tuple, method: str | None, has_aux: bool,
    options: SolveOptions,
) -> _Way:
    """How one problem is solved.

    Raises:
      ValueError: an unknown method, one beside a solver, a Newton method of complex unknowns, or
        "hybrid" of none.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    given = options.get("solver") is not None
    if given and method in ("hybrid", "krylov"):
        raise ValueError(f"{front} takes no solver beside method={method!r}, whose steps are its "
                         "own; leave one of them out.")
    if method is None:
        method = "anderson" if given else _default(evaluate, x0, args)

    def confirm(solution: Solution, x0: PyTree, args: tuple, start: jax.Array) -> Solution:
        return confirmed(
            solution, lambda x, *args: evaluate(x, *args)[0], x0, args, chosen.rule, start)

    if method == "anderson":
        chosen = choose(front, options, {}, solver=in_units(
            anderson(period=1, safeguard=None, weight_cap=1e12)))
        forward = _differentiable(evaluate, x0, args)

        def finish(solution: Solution, x0: PyTree, *args: PyTree) -> Solution:
            start = solution.state.answer.memory.start
            return confirm(solution, x0, args, start) if forward else solution

        return _Way(trail_problem(evaluate, has_aux), chosen, finish)
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(x0)):
        raise ValueError(f'method="{method}" solves for real unknowns; give F of real and '
                         'imaginary parts, or take method="anderson".')
    if method == "hybrid":
        if not numbers_in(x0):
            raise ValueError('x0 has no entries; method="hybrid" needs at least one unknown.')
        chosen = choose(front, options, {}, keep_best=True, adjoint=implicit(dense()))
        return _Way(hybrid_problem(evaluate, x0, has_aux), chosen,
                    lambda solution, *given: _of_value(solution))
    chosen = choose(front, options, {}, keep_best=True)

    def judged(solution: Solution, x0: PyTree, *args: PyTree) -> Solution:
        # An inexact step may miss the direction in which the root is far: solved once to the end.
        start = solution.state.answer.memory.course.start
        return confirm(_of_value(solution), x0, args, start)

    return _Way(krylov_problem(evaluate, x0, has_aux), chosen, judged)


def _of_value(solution: Solution) -> Solution:
    """The solution with F in place of the step that Newton's method would make next."""
    value = solution.state.answer.memory.value
    measured = jnp.isfinite(solution.residual)
    residual = jnp.where(measured, trees.norm(value), solution.residual)
    displacement = trees.where(measured, trees.negative(value), solution.displacement)
    return solution._replace(residual=residual, displacement=displacement)


def _default(evaluate: Callable, x0: PyTree, args: tuple) -> str:
    """The method for F, by what is static."""
    leaves = jax.tree.leaves(x0)
    if any(jnp.iscomplexobj(leaf) for leaf in leaves) or not _differentiable(evaluate, x0, args):
        return "anderson"
    return "hybrid" if 0 < numbers_in(x0) <= DENSE else "krylov"


def _differentiable(evaluate: Callable, x0: PyTree, args: tuple) -> bool:
    """Whether F has a derivative in forward mode; one with a custom rule or a callback has none."""
    try:
        # Under vmap, for only there a custom rule in the way is met.
        jax.eval_shape(jax.vmap(lambda x, dot: jax.jvp(
            lambda x: evaluate(x, *args)[0], (x,), (dot,))[1], in_axes=(None, 0)),
            x0, jax.tree.map(lambda leaf: leaf[None], x0))
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True
