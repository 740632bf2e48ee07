"""Solvers: optax transformations of the residual `T(x) - x`."""

from jaxiter.solvers.anderson import anderson
from jaxiter.solvers.guard import guard, restarted
from jaxiter.solvers.halpern import halpern
from jaxiter.solvers.mixing import damped, inertial, picard

__all__ = ["anderson", "damped", "guard", "halpern", "inertial", "picard", "restarted"]
