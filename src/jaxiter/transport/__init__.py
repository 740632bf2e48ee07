"""Optimal transport as fixed points of potentials, and the layers built on it."""

from jaxiter.transport.batch import sinkhorn_histograms, sinkhorn_many
from jaxiter.transport.convex_gradient import ConvexGradient, icgn, init_icgn
from jaxiter.transport.cost_tree import CostTree
from jaxiter.transport.divergence import SinkhornDivergence, sinkhorn_divergence
from jaxiter.transport.flows import (
    interpolant_loss,
    interpolant_velocity,
    rectified_flow_loss,
    rectified_velocity,
    rectify,
)
from jaxiter.transport.functional import (
    Divergence,
    SaddleLosses,
    class_guided_cost,
    jko_losses,
    js_divergence,
    kl_divergence,
    neural_transport_losses,
    power_entropy,
)
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.grid import Grid
from jaxiter.transport.hypergraph import (
    AdversarialRisk,
    HypergraphResult,
    adversarial_risk,
    hypergraph_sinkhorn,
)
from jaxiter.transport.labelling import BalancedLabels, balanced_labels, swav_assignments
from jaxiter.transport.light_bridge import (
    LightBridge,
    bridge_path,
    drift,
    init_light_bridge,
    light_bridge_loss,
    plan_sample,
)
from jaxiter.transport.mirror import MirrorResult, mirror_sinkhorn, scale_by_mirror_sinkhorn
from jaxiter.transport.multimarginal import MultimarginalResult, multimarginal_sinkhorn
from jaxiter.transport.permutations import gumbel_sinkhorn, round_permutation, sinkhorn_layer
from jaxiter.transport.points import (
    PointCloud,
    PowerNorm,
    SquaredNorm,
    cosine,
    euclidean,
    squared_euclidean,
)
from jaxiter.transport.rebasin import MatchedWeights, match_weights, permute
from jaxiter.transport.reference_bridge import RefinedReference, refine_reference
from jaxiter.transport.relative import relative
from jaxiter.transport.result import TransportResult
from jaxiter.transport.rounding import round_to_polytope
from jaxiter.transport.sinkhorn import epsilon_scaling, sinkhorn
from jaxiter.transport.sparse import SparseTransportResult, sparse_transport

__all__ = [
    "AdversarialRisk", "BalancedLabels", "ConvexGradient", "CostTree", "Dense", "Divergence",
    "Geometry", "Grid", "HypergraphResult", "LightBridge", "MatchedWeights", "MirrorResult",
    "MultimarginalResult", "PointCloud", "PowerNorm", "RefinedReference", "SaddleLosses",
    "SinkhornDivergence", "SparseTransportResult", "SquaredNorm", "TransportResult",
    "adversarial_risk", "balanced_labels", "bridge_path", "class_guided_cost", "cosine", "drift",
    "epsilon_scaling", "euclidean", "gumbel_sinkhorn", "hypergraph_sinkhorn", "icgn", "init_icgn",
    "init_light_bridge", "interpolant_loss", "interpolant_velocity", "jko_losses", "js_divergence",
    "kl_divergence", "light_bridge_loss", "match_weights", "mirror_sinkhorn",
    "multimarginal_sinkhorn", "neural_transport_losses", "permute", "plan_sample", "power_entropy",
    "rectified_flow_loss", "rectified_velocity", "rectify", "refine_reference", "relative",
    "round_permutation", "round_to_polytope", "scale_by_mirror_sinkhorn", "sinkhorn",
    "sinkhorn_divergence", "sinkhorn_histograms", "sinkhorn_layer", "sinkhorn_many",
    "sparse_transport", "squared_euclidean", "swav_assignments",
]
