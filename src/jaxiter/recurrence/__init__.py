"""Chains of dependent steps, solved in a few batched rounds as triangular fixed points."""

from jaxiter.recurrence.adjoint import attach_recurrence, parallel, sequential
from jaxiter.recurrence.causal import check_causal, solve_causal
from jaxiter.recurrence.methods import (
    RowMethod,
    diagonal,
    elk,
    gauss_seidel,
    jacobi,
    newton,
    picard,
    secant,
)
from jaxiter.recurrence.optimize import ParallelRun, adaptive, parallel_optimize
from jaxiter.recurrence.solve import solve_recurrence

__all__ = [
    "ParallelRun", "RowMethod", "adaptive", "attach_recurrence", "check_causal", "diagonal", "elk",
    "gauss_seidel", "jacobi", "newton", "parallel", "parallel_optimize", "picard", "secant",
    "sequential", "solve_causal", "solve_recurrence",
]
