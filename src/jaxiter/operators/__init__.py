"""Proximal maps, projections and splittings; what `optax.projections` has is not repeated here."""

from jaxiter.operators.admm import admm
from jaxiter.operators.davis_yin import davis_yin
from jaxiter.operators.douglas_rachford import douglas_rachford
from jaxiter.operators.forward_backward import forward_backward
from jaxiter.operators.nonconvex import accelerated_nonconvex, mcp_concave, scad_concave
from jaxiter.operators.primal_dual import primal_dual
from jaxiter.operators.projections import projection_sparse_simplex
from jaxiter.operators.prox import prox_box, prox_l1, prox_quadratic
from jaxiter.operators.proximal_gradient import proximal_gradient
from jaxiter.operators.regularisation_path import regularisation_path
from jaxiter.operators.tseng import tseng

__all__ = [
    "accelerated_nonconvex", "admm", "davis_yin", "douglas_rachford", "forward_backward",
    "mcp_concave", "primal_dual", "projection_sparse_simplex", "prox_box", "prox_l1",
    "prox_quadratic", "proximal_gradient", "regularisation_path", "scad_concave", "tseng",
]
