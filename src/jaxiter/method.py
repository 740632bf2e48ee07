"""The static choices of a solve, bundled and checked once, so that every loop agrees on them."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from jaxiter.monitor import Monitor
from jaxiter.options import Options, checked
from jaxiter.problem import Problem, as_problem
from jaxiter.solvers.mixing import picard
from jaxiter.stop import Stop


class Method(NamedTuple):
    """What a solve is: problem, solver, stop rule, monitor, and how often it looks."""

    problem: Problem
    solver: optax.GradientTransformation
    stop: Stop
    monitor: Monitor | None = None
    check_every: int = 1
    keep_best: bool = False
    has_aux: bool = False

    @property
    def lazy(self) -> bool:
        """Whether some steps are not measured."""
        return self.check_every > 1


def make_method(
    problem: Problem | Callable, options: Options, has_aux: bool = False
) -> Method:
    """The static choices among the options, checked.

    Raises:
      ValueError, TypeError: as `checked`; ValueError for refresh below 1.
    """
    problem, options = as_problem(problem), checked(options)
    solver = picard() if options.solver is None else options.solver
    if problem.refresh < 1:
        raise ValueError(f"refresh must be at least 1, got {problem.refresh}.")
    return Method(problem, solver, options.rule, options.monitor, options.check_every,
                  options.keep_best, has_aux)
