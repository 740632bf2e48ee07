"""The conformance suite and reference problems with known answers; usable on your own solver."""

from jaxiter.testing.compiled import Collectives, collectives
from jaxiter.testing.conformance import (
    ADJOINT_CHECKS,
    SOLVER_CHECKS,
    check_adjoint,
    check_solver,
)
from jaxiter.testing.fronts import FRONT_CHECKS, PROCESS_CHECKS, check_front, check_process
from jaxiter.testing.problems import ReferenceProblem, reference_problems
from jaxiter.testing.splittings import check_splitting

__all__ = [
    "ADJOINT_CHECKS", "FRONT_CHECKS", "PROCESS_CHECKS", "SOLVER_CHECKS", "Collectives",
    "ReferenceProblem", "check_adjoint", "check_front", "check_process", "check_solver",
    "check_splitting", "collectives", "reference_problems",
]
