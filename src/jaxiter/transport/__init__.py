"""Optimal transport as fixed points of potentials, and the layers built on it."""

from jaxiter.transport.barycentre import Barycentre, barycentre
from jaxiter.transport.batch import sinkhorn_histograms, sinkhorn_many
from jaxiter.transport.divergence import SinkhornDivergence, sinkhorn_divergence
from jaxiter.transport.free_support import FreeBarycentre, free_support_barycentre
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.grid import Grid
from jaxiter.transport.gromov import GromovResult, gromov_wasserstein
from jaxiter.transport.labelling import BalancedLabels, balanced_labels, swav_assignments
from jaxiter.transport.maps import (
    MongeGap,
    MongeGapLoss,
    barycentric_map,
    entropic_map,
    monge_gap,
    monge_gap_loss,
)
from jaxiter.transport.mirror import MirrorResult, mirror_sinkhorn, scale_by_mirror_sinkhorn
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
from jaxiter.transport.rebasin import MatchedWeights, match_weights, permute
from jaxiter.transport.relative import relative
from jaxiter.transport.result import TransportResult
from jaxiter.transport.rounding import round_to_polytope
from jaxiter.transport.sinkhorn import epsilon_scaling, sinkhorn
from jaxiter.transport.sliced import exact_1d, sliced_distance
from jaxiter.transport.sparse import SparseTransportResult, sparse_transport

__all__ = [
    "BalancedLabels", "Barycentre", "Dense", "FreeBarycentre", "Geometry", "Grid", "GromovResult",
    "MatchedWeights", "MirrorResult", "MongeGap", "MongeGapLoss", "PartialTransport", "PointCloud",
    "PowerNorm", "SinkhornDivergence", "SparseTransportResult", "SquaredNorm", "TransportResult",
    "balanced_labels", "barycentre", "barycentric_map", "cosine", "entropic_map",
    "epsilon_scaling", "euclidean", "exact_1d", "free_support_barycentre", "gromov_wasserstein",
    "gumbel_sinkhorn", "match_weights", "mirror_sinkhorn", "monge_gap", "monge_gap_loss",
    "partial_transport", "permute", "relative", "round_permutation", "round_to_polytope",
    "scale_by_mirror_sinkhorn", "sinkhorn", "sinkhorn_divergence", "sinkhorn_histograms",
    "sinkhorn_layer", "sinkhorn_many", "sliced_distance", "sparse_transport", "squared_euclidean",
    "swav_assignments",
]
