"""Equilibria of two-player zero-sum games given by a matrix, sharp or of bounded rationality."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.driver import fixed_point
from jaxiter.known import check_finite, check_not_negative
from jaxiter.numerics import (
    HIGHEST,
    floating,
    is_concrete,
    on_own_mesh,
    stop_gradient,
    strong,
)
from jaxiter.operators import simplices
from jaxiter.operators.domain import real
from jaxiter.operators.game_maps import (
    Pair,
    exploitability,
    primal_dual,
    quantal_problem,
    sharp_problem,
)
from jaxiter.operators.variational_inequality import default_adjoint
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.solvers.anderson import anderson
from jaxiter.solvers.halpern import halpern
from jaxiter.stop import tolerance

#: PDLP's restarts. Beside guesses it is no matter: on twenty games a new anchor where the gap fell
#: to 0.2, Anderson's method and plain steps need as many steps (`benchmarks/games.py`).
RESTART = "adaptive"
#: Games of at most so many strategies in all get guesses; with a temperature, where steps are of
#: more use, at most so many.
DENSE, DENSE_QUANTAL = 512, 256


@reports
class GameResult(NamedTuple):
    """What `matrix_game` has found.

    Attributes:
      x: strategy `[m]` of the rows, who maximise.
      y: strategy `[n]` of the columns, who minimise.
      value: `x' A y`; its derivative is `x' dA y` where the temperature is 0.
      exploitability: `max(A y) - min(A' x)`, what both could win by turning from these very
        strategies; at temperature 0 the merit. A constant.
      solve: the untouched `Solution` of the governing pair: strategies before their last step, or
        logits where there is a temperature.
    """

    x: jax.Array
    y: jax.Array
    value: jax.Array
    exploitability: jax.Array
    solve: Solution


def matrix_game(
    A: jax.Array, *, temperature: Any = 0.0, start: Pair | None = None,
    **options: Unpack[SolveOptions],
) -> GameResult:
    """The equilibrium `max_x min_y x' A y` over mixed strategies x, y.

        x <- P(x + t A y),    y <- P(y - t A' (2 x_new - x)),    t |C A C| < 1

    on simplices, C the removal of a mean; the solver is Halpern's, reflected and restarted. A game
    of up to 512 strategies in all is also guessed at, every fifth step, by one interior-point step
    and one of Newton's: then neither units nor ties of payoffs make the steps many. With a
    temperature the players maximise and minimise `x' A y + temperature (H(x) - H(y))`, H the
    entropy: the quantal response equilibrium `x = softmax(A y / temperature)`,
    `y = softmax(-A' x / temperature)`, which is unique, by the same steps in entropy, Anderson
    acceleration and, up to 256 strategies, guesses of Newton's. Below some hundredth of max |A|
    steps may be thousands.

    CONVERGED means an exploitability of at most `1e-5 max |A|` in float32, 1e-8 in float64, by
    the default rule; with a temperature, that no payoff differs by more from what the logits say.

    Args:
      A: payoffs `[m, n]` of the row player.
      temperature: not negative; in units of payoffs. One that is traced must be positive.
      start: strategies `(x, y)` to begin with; default uniform.
      **options: those of `fixed_point`; max_steps 10,000. A `solver` acts on the governing pair.

    Returns:
      A `GameResult`. Derivatives are exact where the equilibrium is unique, NaN for x and y where
      it is not; those of the value need no unique x and y, those at a temperature always exist.

    Raises:
      ValueError: a game without rows or columns, with NaN or infinity, a negative temperature, a
        start of another shape. Traced ones are BAD_INPUT. TypeError: complex payoffs.

    Reference: Chambolle and Pock, "A first-order primal-dual algorithm for convex problems with
    applications to imaging", J. Math. Imaging Vis. 40, 2011; Lu and Yang, "Restarted Halpern PDHG
    for linear programming", 2024; McKelvey and Palfrey, "Quantal response equilibria for normal
    form games", Games Econ. Behav. 10, 1995; Wright, "Primal-dual interior-point methods", SIAM,
    1997.

    >>> import jax.numpy as jnp
    >>> out = matrix_game(jnp.array([[2.0, -1.0], [-1.0, 1.0]]))
    >>> [round(float(p), 3) for p in out.x], round(float(out.value), 3)
    ([0.4, 0.6], 0.2)
    """
    check_not_negative(temperature=temperature)
    if is_concrete(temperature) and not np.any(np.asarray(temperature)):
        return _equilibrium(A, start, **options)
    return _quantal(A, temperature, start, **options)


def _checked(A: Any, start: Any) -> tuple[jax.Array, Pair]:
    """The payoffs, and strategies to begin with.

    Raises:
      ValueError: shapes that make no game, payoffs that are not finite.
    """
    if np.ndim(A) != 2 or 0 in np.shape(A):
        raise ValueError(f"A must be a matrix with at least one row and one column, got shape "
                         f"{np.shape(A)}.")
    check_finite(A=real("matrix_game", A))
    A = floating(np.asarray(A) if isinstance(A, list | tuple) else A)
    m, n = A.shape
    if start is None:
        return A, (jnp.full(m, 1 / m, A.dtype), jnp.full(n, 1 / n, A.dtype))
    x, y = (strong(part).astype(A.dtype) for part in start)
    if x.shape != (m,) or y.shape != (n,):
        raise ValueError(f"start must be strategies of shapes {(m,)} and {(n,)}, got {x.shape} and "
                         f"{y.shape}.")
    return A, (x, y)


def _result(A: jax.Array, x: jax.Array, y: jax.Array, solve: Solution, sharp: bool) -> GameResult:
    held = stop_gradient((x, y))
    played = held if sharp else (x, y)
    value = jnp.einsum("i,ij,j->", played[0], A, played[1], precision=HIGHEST)
    return GameResult(x, y, value, exploitability(stop_gradient(A), *held), solve)


def _solved(problem: Problem, z: Pair, A: Any, *rest: Any, options: SolveOptions, solver: Callable
            ) -> Solution:
    chosen = choose("matrix_game", options, {}, adjoint=default_adjoint(z), max_steps=10_000,
                    solver=solver(), stop=tolerance(atol=0.0))
    return fixed_point(problem, z, A, *rest, **chosen._asdict())


def reflected_halpern() -> optax.GradientTransformation:
    """Halpern's iteration on the reflected map, with restarts."""
    return optax.chain(optax.scale(2.0), halpern(restart=RESTART))


@reused
@on_own_mesh
def _equilibrium(A: jax.Array, start: Pair | None, **options: Unpack[SolveOptions]) -> GameResult:
    A, z = _checked(A, start)
    problem = sharp_problem(sum(A.shape) <= DENSE)
    solve = _solved(problem, z, A, options=options, solver=reflected_halpern)
    # The merit is that of the image, whose strategies are such.
    held = stop_gradient(solve.state.answer.memory)
    x, y = primal_dual(solve.value, held.size, A)
    return _result(A, x, y, solve, True)


@reused
@on_own_mesh
def _quantal(
    A: jax.Array, temperature: Any, start: Pair | None, **options: Unpack[SolveOptions]
) -> GameResult:
    A, z = _checked(A, start)
    tiny = jnp.finfo(A.dtype).tiny
    logits = simplices.normalised(simplices.log(jax.tree.map(lambda p: jnp.maximum(p, tiny), z)))
    problem = quantal_problem(sum(A.shape) <= DENSE_QUANTAL)
    solve = _solved(problem, logits, A, strong(temperature).astype(A.dtype), options=options,
                    solver=anderson)
    x, y = simplices.softmax(solve.value)
    return _result(A, x, y, solve, False)
