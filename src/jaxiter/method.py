"""The static choices of a solve, bundled and checked once, so that every loop agrees on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter.monitor import Monitor
from jaxiter.options import Options, checked
from jaxiter.problem import Problem, as_problem
from jaxiter.solution import Status
from jaxiter.solvers.mixing import picard
from jaxiter.stop import StepInfo, Stop

PyTree = Any


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
    rule = _not_before(options.rule, options.min_steps)
    return Method(problem, solver, rule, options.monitor, options.check_every,
                  options.keep_best, has_aux)


def _not_before(stop: Stop, min_steps: Any) -> Stop:
    """The rule, whose verdicts do not count before so many steps, but for NONFINITE and BAD_INPUT.

    It sees every step all the same.
    """
    if isinstance(min_steps, int) and min_steps <= 1:
        return stop

    def update(info: StepInfo, state: PyTree) -> tuple[jax.Array, PyTree]:
        status, state = stop.update(info, state)
        hopeless = (status == Status.NONFINITE) | (status == Status.BAD_INPUT)
        counts = hopeless | (info.step >= min_steps)
        return jnp.where(counts, status, jnp.int32(Status.RUNNING)), state

    return Stop(stop.init, update, stop.amplification)
