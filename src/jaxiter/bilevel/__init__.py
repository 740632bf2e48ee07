"""Bilevel optimisation: hypergradients of nested problems, counted in oracle calls."""

from jaxiter.bilevel.aggregation import aggregated_descent
from jaxiter.bilevel.hypergradient import HypergradientResult, OracleCount, hypergradient
from jaxiter.bilevel.inner import solve_inner
from jaxiter.bilevel.inverse import neumann_series, nystrom
from jaxiter.bilevel.methods import Batches, Method, f2sa, run, soba
from jaxiter.bilevel.unrolled import unrolled_hypergradient

__all__ = [
    "Batches", "HypergradientResult", "Method", "OracleCount", "aggregated_descent", "f2sa",
    "hypergradient", "neumann_series", "nystrom", "run", "soba", "solve_inner",
    "unrolled_hypergradient",
]
