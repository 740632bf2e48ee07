"""Bilevel optimisation: hypergradients of nested problems, counted in oracle calls."""

from jaxiter.bilevel.aggregation import aggregated_descent
from jaxiter.bilevel.hypergradient import HypergradientResult, OracleCount, hypergradient
from jaxiter.bilevel.inner import solve_inner
from jaxiter.bilevel.inverse import neumann_series, nystrom
from jaxiter.bilevel.unrolled import unrolled_hypergradient

__all__ = [
    "HypergradientResult", "OracleCount", "aggregated_descent", "hypergradient",
    "neumann_series", "nystrom",
    "solve_inner", "unrolled_hypergradient",
]
