"""Proximal maps, projections and splittings; what `optax.projections` has is not repeated here."""

from jaxiter.operators.douglas_rachford import douglas_rachford
from jaxiter.operators.forward_backward import forward_backward
from jaxiter.operators.minimax import MinimaxKind, MinimaxResult, classify_minimax, minimax
from jaxiter.operators.projections import projection_sparse_simplex
from jaxiter.operators.prox import prox_box, prox_l1, prox_quadratic
from jaxiter.operators.variational_inequality import VariationalResult, variational_inequality

__all__ = [
    "MinimaxKind", "MinimaxResult", "VariationalResult", "classify_minimax", "douglas_rachford",
    "forward_backward", "minimax", "projection_sparse_simplex", "prox_box", "prox_l1",
    "prox_quadratic", "variational_inequality",
]
