"""The static choices of a solve, bundled and checked once, so that every loop agrees on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.monitor import Monitor, check_monitor
from jaxiter.numerics import check_count, is_concrete
from jaxiter.options import Options
from jaxiter.problem import Problem, as_problem
from jaxiter.solvers.mixing import picard
from jaxiter.stop import Stop, tolerance


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
    """Validate the static choices among the options.

    Raises:
      ValueError: check_every or refresh below 1.
      TypeError: a solver that is no optax transformation, a stop that is no rule, a monitor of
        another kind.
    """
    problem, monitor, check_every = as_problem(problem), options.monitor, options.check_every
    solver = picard() if options.solver is None else options.solver
    if not (hasattr(solver, "init") and hasattr(solver, "update")):
        raise TypeError(f"solver must be an optax transformation such as anderson(), got "
                        f"{type(solver).__name__}; did you forget to call it?")
    check_count(check_every=check_every)
    if problem.refresh < 1:
        raise ValueError(f"refresh must be at least 1, got {problem.refresh}.")
    stop = tolerance() if options.stop is None else options.stop
    if not isinstance(stop, Stop):
        raise TypeError(f"stop must be a rule such as tolerance(), got {type(stop).__name__}.")
    check_monitor(monitor)
    return Method(problem, solver, stop, monitor, check_every, options.keep_best, has_aux)


def check_max_steps(max_steps: Any) -> None:
    """Refuse a max_steps that is no int32 of at least 0, as far as that is known.

    Raises:
      TypeError: when it is not an integer.
      ValueError: when it is negative or beyond int32.
    """
    if not isinstance(max_steps, int | np.integer | np.ndarray | jax.Array) or (
            not jnp.issubdtype(jnp.result_type(max_steps), jnp.integer)):
        raise TypeError(f"max_steps must be an integer, got {max_steps!r}.")
    if np.ndim(max_steps):
        raise TypeError(f"max_steps must be a scalar, got shape {np.shape(max_steps)}; map the "
                        "solve over it with vmap.")
    if is_concrete(max_steps):
        host = np.asarray(max_steps)
        if np.any(host < 0) or np.any(host > 2**31 - 1):
            raise ValueError(f"max_steps must be from 0 to 2**31 - 1, got {max_steps}.")
