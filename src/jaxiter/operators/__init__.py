"""Monotone operators and projections; what `optax.projections` has is not repeated here."""

from jaxiter.operators.projections import projection_sparse_simplex

__all__ = ["projection_sparse_simplex"]
