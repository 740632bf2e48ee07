"""Bilevel optimisation: hypergradients of nested problems, counted in oracle calls."""

from jaxiter.bilevel.aggregation import aggregated_descent
from jaxiter.bilevel.bamm import sl_bamm
from jaxiter.bilevel.hypergradient import HypergradientResult, OracleCount, hypergradient
from jaxiter.bilevel.inner import solve_inner
from jaxiter.bilevel.inverse import neumann_series, nystrom
from jaxiter.bilevel.lvhba import lv_hba
from jaxiter.bilevel.methods import Batches, Method, f2sa, run, soba
from jaxiter.bilevel.unrolled import unrolled_hypergradient

__all__ = [
    "Batches", "HypergradientResult", "Method", "OracleCount", "aggregated_descent", "f2sa",
    "hypergradient", "lv_hba", "neumann_series", "nystrom", "run", "sl_bamm", "soba",
    "solve_inner", "unrolled_hypergradient",
]
