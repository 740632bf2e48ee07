"""Linear and quadratic programs, as layers: batched, differentiable, with a status each."""

from jaxiter.operators.programs.kkt import kkt
from jaxiter.operators.programs.linear import linear_program
from jaxiter.operators.programs.program import PrimalDual
from jaxiter.operators.programs.quadratic import quadratic_program, quadratic_program_many
from jaxiter.operators.programs.result import ProgramResult

__all__ = ["PrimalDual", "ProgramResult", "kkt", "linear_program", "quadratic_program",
           "quadratic_program_many"]
