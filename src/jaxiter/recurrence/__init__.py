"""Chains of dependent steps, solved in a few batched rounds as triangular fixed points."""

from jaxiter.recurrence.adjoint import attach_recurrence
from jaxiter.recurrence.causal import check_causal, solve_causal
from jaxiter.recurrence.optimize import ParallelRun, parallel_optimize
from jaxiter.recurrence.solve import solve_recurrence

__all__ = [
    "ParallelRun", "attach_recurrence", "check_causal", "parallel_optimize", "solve_causal",
    "solve_recurrence",
]
