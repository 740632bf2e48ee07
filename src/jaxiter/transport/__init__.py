"""Optimal transport as fixed points of potentials."""

from jaxiter.transport.batch import sinkhorn_many
from jaxiter.transport.geometry import (
    Dense,
    Geometry,
    PointCloud,
    PowerNorm,
    cosine,
    euclidean,
    squared_euclidean,
)
from jaxiter.transport.result import TransportResult
from jaxiter.transport.sinkhorn import epsilon_scaling, sinkhorn

__all__ = [
    "Dense", "Geometry", "PointCloud", "PowerNorm", "TransportResult", "cosine", "epsilon_scaling",
    "euclidean", "sinkhorn", "sinkhorn_many", "squared_euclidean",
]
