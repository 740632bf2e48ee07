"""Optimal transport as fixed points of potentials, and the layers built on it."""

from jaxiter.transport.alignment import FeatureAlignment, feature_alignment
from jaxiter.transport.attention import qr_doubly_stochastic, sinkhorn_attention
from jaxiter.transport.barycentre import Barycentre, barycentre
from jaxiter.transport.batch import sinkhorn_histograms, sinkhorn_many
from jaxiter.transport.class_transport import ClassTransportResult, class_transport
from jaxiter.transport.convex_gradient import ConvexGradient, icgn, init_icgn
from jaxiter.transport.cost_tree import CostTree
from jaxiter.transport.distil import sinkhorn_distillation
from jaxiter.transport.divergence import SinkhornDivergence, sinkhorn_divergence
from jaxiter.transport.expert_bias import BiasState, LossFreeBias, loss_free_bias
from jaxiter.transport.flows import (
    interpolant_loss,
    interpolant_velocity,
    rectified_flow_loss,
    rectified_velocity,
    rectify,
)
from jaxiter.transport.free_support import FreeBarycentre, free_support_barycentre
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
from jaxiter.transport.geodesic import GeodesicCost, geodesic_cost
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.grid import Grid
from jaxiter.transport.gromov import GromovResult, gromov_wasserstein
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
from jaxiter.transport.maps import (
    MongeGap,
    MongeGapLoss,
    barycentric_map,
    entropic_map,
    monge_gap,
    monge_gap_loss,
)
from jaxiter.transport.mirror import MirrorResult, mirror_sinkhorn, scale_by_mirror_sinkhorn
from jaxiter.transport.multimarginal import MultimarginalResult, multimarginal_sinkhorn
from jaxiter.transport.partial import PartialTransport, partial_transport
from jaxiter.transport.permutations import gumbel_sinkhorn, round_permutation, sinkhorn_layer
from jaxiter.transport.points import (
    PointCloud,
    PowerNorm,
    SquaredNorm,
    cosine,
    euclidean,
    squared_euclidean,
)
from jaxiter.transport.quantise import Quantised, sinkhorn_quantise
from jaxiter.transport.rebasin import MatchedWeights, match_weights, permute
from jaxiter.transport.reference_bridge import RefinedReference, refine_reference
from jaxiter.transport.relative import relative
from jaxiter.transport.result import TransportResult
from jaxiter.transport.rounding import round_to_polytope
from jaxiter.transport.routing import Routing, balanced_topk
from jaxiter.transport.sinkhorn import epsilon_scaling, sinkhorn
from jaxiter.transport.sliced import exact_1d, sliced_distance
from jaxiter.transport.sparse import SparseTransportResult, sparse_transport
from jaxiter.transport.unit_labels import UnitLabels, unit_assignment

__all__ = [
    "AdversarialRisk", "BalancedLabels", "Barycentre", "BiasState", "ClassTransportResult",
    "ConvexGradient", "CostTree", "Dense", "Divergence", "FeatureAlignment", "FreeBarycentre",
    "GeodesicCost", "Geometry", "Grid", "GromovResult", "HypergraphResult", "LightBridge",
    "LossFreeBias", "MatchedWeights", "MirrorResult", "MongeGap", "MongeGapLoss",
    "MultimarginalResult", "PartialTransport", "PointCloud", "PowerNorm", "Quantised",
    "RefinedReference", "Routing", "SaddleLosses", "SinkhornDivergence",
    "SparseTransportResult", "SquaredNorm", "TransportResult", "UnitLabels", "adversarial_risk",
    "balanced_labels", "balanced_topk", "barycentre", "barycentric_map", "bridge_path",
    "class_guided_cost", "class_transport", "cosine", "drift", "entropic_map",
    "epsilon_scaling", "euclidean", "exact_1d", "feature_alignment", "free_support_barycentre",
    "geodesic_cost", "gromov_wasserstein", "gumbel_sinkhorn", "hypergraph_sinkhorn", "icgn",
    "init_icgn", "init_light_bridge", "interpolant_loss", "interpolant_velocity", "jko_losses",
    "js_divergence", "kl_divergence", "light_bridge_loss", "loss_free_bias", "match_weights",
    "mirror_sinkhorn", "monge_gap", "monge_gap_loss", "multimarginal_sinkhorn",
    "neural_transport_losses", "partial_transport", "permute", "plan_sample", "power_entropy",
    "qr_doubly_stochastic", "rectified_flow_loss", "rectified_velocity", "rectify",
    "refine_reference", "relative", "round_permutation", "round_to_polytope",
    "scale_by_mirror_sinkhorn", "sinkhorn", "sinkhorn_attention", "sinkhorn_distillation",
    "sinkhorn_divergence", "sinkhorn_histograms", "sinkhorn_layer", "sinkhorn_many",
    "sinkhorn_quantise", "sliced_distance", "sparse_transport", "squared_euclidean",
    "swav_assignments", "unit_assignment",
]
