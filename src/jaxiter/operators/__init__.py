"""Proximal maps, projections, mirror steps and splittings.

What `optax.projections` has for whole trees is here under its names, unchanged; what couples the
entries of a row is our own.
"""

from optax.projections import (
    projection_box,
    projection_halfspace,
    projection_hyperplane,
    projection_l2_ball,
    projection_linf_ball,
    projection_non_negative,
)

from jaxiter.operators.admm import admm
from jaxiter.operators.bregman import mirror_box, mirror_burg, mirror_orthant, mirror_simplex
from jaxiter.operators.combinators import add_quadratic, conjugate, rotate, scale, translate
from jaxiter.operators.cones import (
    projection_psd,
    projection_rotated_cone,
    projection_second_order_cone,
    radial_psd,
    radial_rotated_cone,
    radial_second_order_cone,
)
from jaxiter.operators.davis_yin import davis_yin
from jaxiter.operators.douglas_rachford import douglas_rachford
from jaxiter.operators.dual_completion import CompletedDual, complete_dual, dual_bound
from jaxiter.operators.exponential_cone import projection_exponential_cone
from jaxiter.operators.finite_sum_inclusion import InclusionResult, finite_sum_inclusion
from jaxiter.operators.forward_backward import forward_backward
from jaxiter.operators.intersection import project_intersection
from jaxiter.operators.matrix_game import GameResult, matrix_game
from jaxiter.operators.minimax import MinimaxKind, MinimaxResult, classify_minimax, minimax
from jaxiter.operators.nonconvex import accelerated_nonconvex, mcp_concave, scad_concave
from jaxiter.operators.primal_dual import primal_dual
from jaxiter.operators.programs import (
    PrimalDual,
    ProgramResult,
    kkt,
    linear_program,
    quadratic_program,
    quadratic_program_many,
)
from jaxiter.operators.projections import (
    projection_affine,
    projection_l1_ball,
    projection_simplex,
    projection_sparse_simplex,
    projection_spectral_ball,
)
from jaxiter.operators.projective_splitting import ProjectiveResult, projective_splitting
from jaxiter.operators.prox import (
    prox_box,
    prox_elastic_net,
    prox_huber,
    prox_l1,
    prox_non_negative_l1,
    prox_squared_l2,
)
from jaxiter.operators.prox_barriers import prox_entropy, prox_log_barrier, prox_log_det
from jaxiter.operators.prox_nonconvex import prox_l0, prox_mcp, prox_scad
from jaxiter.operators.prox_norms import prox_l2, prox_linf, prox_nuclear, prox_pair
from jaxiter.operators.prox_quadratic import prox_least_squares, prox_quadratic
from jaxiter.operators.proximal_gradient import proximal_gradient
from jaxiter.operators.regularisation_path import regularisation_path
from jaxiter.operators.sections import (
    projection_box_section,
    projection_capped_simplex,
    projection_weighted_simplex,
)
from jaxiter.operators.tseng import tseng
from jaxiter.operators.variational_inequality import VariationalResult, variational_inequality
from jaxiter.operators.worst_case import WorstCase, worst_case_prox

__all__ = [
    "CompletedDual", "GameResult", "InclusionResult", "MinimaxKind", "MinimaxResult",
    "PrimalDual", "ProgramResult", "ProjectiveResult", "VariationalResult", "WorstCase",
    "accelerated_nonconvex", "add_quadratic", "admm", "classify_minimax", "complete_dual",
    "conjugate", "davis_yin", "douglas_rachford", "dual_bound", "finite_sum_inclusion",
    "forward_backward", "kkt", "linear_program", "matrix_game", "mcp_concave", "minimax",
    "mirror_box", "mirror_burg", "mirror_orthant", "mirror_simplex", "primal_dual",
    "project_intersection", "projection_affine", "projection_box", "projection_box_section",
    "projection_capped_simplex", "projection_exponential_cone", "projection_halfspace",
    "projection_hyperplane", "projection_l1_ball", "projection_l2_ball", "projection_linf_ball",
    "projection_non_negative", "projection_psd", "projection_rotated_cone",
    "projection_second_order_cone", "projection_simplex", "projection_sparse_simplex",
    "projection_spectral_ball", "projection_weighted_simplex", "projective_splitting",
    "prox_box", "prox_elastic_net", "prox_entropy", "prox_huber", "prox_l0", "prox_l1",
    "prox_l2", "prox_least_squares", "prox_linf", "prox_log_barrier", "prox_log_det",
    "prox_mcp", "prox_non_negative_l1", "prox_nuclear", "prox_pair", "prox_quadratic",
    "prox_scad", "prox_squared_l2", "proximal_gradient", "quadratic_program",
    "quadratic_program_many", "radial_psd", "radial_rotated_cone", "radial_second_order_cone",
    "regularisation_path", "rotate", "scad_concave", "scale", "translate", "tseng",
    "variational_inequality", "worst_case_prox",
]
