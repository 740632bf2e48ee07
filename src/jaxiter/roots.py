"""Zeros of F as fixed points."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.problem import Problem
from jaxiter.solution import Solution

PyTree = Any


def root(
    function: Callable, x0: PyTree, *args: PyTree, solver: Any = None, **keywords: Any
) -> Solution:
    """Solve `F(x, *args) = 0` as the fixed point of `x - F(x)`.

    Args:
      function: F, same tree, shapes and dtypes as x.
      x0, *args: as in `fixed_point`.
      solver: default `anderson(period=1, safeguard=None)`, a multisecant method: it does not
        need `x - F(x)` to contract, so it takes no plain steps. For a gradient F,
        `damped(alpha)` is descent with step alpha.
      **keywords: as in `fixed_point`.

    Returns:
      A `Solution`; its residual is the norm of F, its derivatives those of the root.

    >>> import jax.numpy as jnp, jaxiter
    >>> round(float(jaxiter.root(lambda x, a: x * x - a, jnp.array(1.0), 2.0).value), 4)
    1.4142
    """
    from jaxiter.solvers.anderson import anderson

    def step(x: PyTree, *args: PyTree) -> PyTree:
        out = function(x, *args)
        trees.check_same_structure(x, jax.tree.map(jnp.asarray, out), "F")
        return trees.subtract(x, out)

    problem = Problem(step=step, equations=function)
    return fixed_point(
        problem, x0, *args, solver=solver or anderson(period=1, safeguard=None), **keywords)
