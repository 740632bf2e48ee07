"""Linear and quadratic programs, as layers: batched, differentiable, with a status each."""

from jaxiter.operators.programs.program import PrimalDual, Program, ProgramResult

__all__ = ["PrimalDual", "Program", "ProgramResult"]
