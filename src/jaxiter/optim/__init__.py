"""Optax transformations that optax does not have."""

from jaxiter.optim.complex_momentum import trace_complex

__all__ = ["trace_complex"]
