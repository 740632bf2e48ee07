"""Solvers: optax transformations of the residual `T(x) - x`."""

from jaxiter.solvers.anderson import anderson
from jaxiter.solvers.descending import descending
from jaxiter.solvers.guard import guard, restarted
from jaxiter.solvers.halpern import halpern
from jaxiter.solvers.mixing import damped, inertial, picard
from jaxiter.solvers.overrelaxation import overrelaxed
from jaxiter.solvers.squarem import squarem

__all__ = ["anderson", "damped", "descending", "guard", "halpern", "inertial", "overrelaxed",
           "picard", "restarted", "squarem"]
