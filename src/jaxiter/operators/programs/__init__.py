"""Linear and quadratic programs: layers, batches, and large ones by products alone."""

from jaxiter.operators.programs.linear import linear_program
from jaxiter.operators.programs.program import PrimalDual, Program, ProgramResult

__all__ = ["PrimalDual", "Program", "ProgramResult", "linear_program"]
