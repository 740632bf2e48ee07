"""Proximal maps, projections and splittings; what `optax.projections` has is not repeated here."""

from jaxiter.operators.douglas_rachford import douglas_rachford
from jaxiter.operators.forward_backward import forward_backward
from jaxiter.operators.programs import PrimalDual, ProgramResult, linear_program
from jaxiter.operators.projections import projection_sparse_simplex
from jaxiter.operators.prox import prox_box, prox_l1, prox_quadratic

__all__ = [
    "PrimalDual", "ProgramResult", "linear_program",
    "douglas_rachford", "forward_backward", "projection_sparse_simplex", "prox_box", "prox_l1",
    "prox_quadratic",
]
