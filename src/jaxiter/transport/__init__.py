"""Optimal transport as fixed points of potentials."""

from jaxiter.transport.sinkhorn import TransportResult, sinkhorn

__all__ = ["TransportResult", "sinkhorn"]
