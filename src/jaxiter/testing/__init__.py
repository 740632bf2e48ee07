"""The conformance suite and reference problems with known answers; usable on your own solver."""

from jaxiter.testing.conformance import (
    ADJOINT_CHECKS,
    SOLVER_CHECKS,
    check_adjoint,
    check_solver,
)
from jaxiter.testing.problems import ReferenceProblem, reference_problems

__all__ = [
    "ADJOINT_CHECKS", "SOLVER_CHECKS", "ReferenceProblem", "check_adjoint", "check_solver",
    "reference_problems",
]
