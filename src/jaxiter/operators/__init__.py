"""Proximal maps, projections and splittings; what `optax.projections` has is not repeated here."""

from jaxiter.operators.douglas_rachford import douglas_rachford
from jaxiter.operators.finite_sum_inclusion import InclusionResult, finite_sum_inclusion
from jaxiter.operators.forward_backward import forward_backward
from jaxiter.operators.matrix_game import GameResult, matrix_game
from jaxiter.operators.minimax import MinimaxKind, MinimaxResult, classify_minimax, minimax
from jaxiter.operators.projections import projection_sparse_simplex
from jaxiter.operators.projective_splitting import ProjectiveResult, projective_splitting
from jaxiter.operators.prox import prox_box, prox_l1, prox_quadratic
from jaxiter.operators.variational_inequality import VariationalResult, variational_inequality

__all__ = [
    "GameResult", "InclusionResult", "MinimaxKind", "MinimaxResult", "ProjectiveResult",
    "VariationalResult", "classify_minimax", "douglas_rachford", "finite_sum_inclusion",
    "forward_backward", "matrix_game", "minimax", "projection_sparse_simplex",
    "projective_splitting", "prox_box", "prox_l1", "prox_quadratic", "variational_inequality",
]
