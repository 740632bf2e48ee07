"""Bilevel optimisation: hypergradients of nested problems, counted in oracle calls."""

from jaxiter.bilevel.bome import bome
from jaxiter.bilevel.bsvrb import bsvrb_v1, bsvrb_v2
from jaxiter.bilevel.hypergradient import HypergradientResult, hypergradient
from jaxiter.bilevel.imaml import MamlResult, implicit_maml
from jaxiter.bilevel.inner import solve_inner
from jaxiter.bilevel.inverse import neumann_series, nystrom
from jaxiter.bilevel.lvhba import lv_hba
from jaxiter.bilevel.penalty import f2sa, f3sa, proximal_penalty, proximal_penalty_single
from jaxiter.bilevel.pzobo import pzobo
from jaxiter.bilevel.run import RunResult, run
from jaxiter.bilevel.self_tuning import self_tuning
from jaxiter.bilevel.single_loop import saba, single_loop, sl_bamm, soba, srba
from jaxiter.bilevel.stocbio import ift_neumann, mrbo, stocbio, ttsa
from jaxiter.bilevel.unrolled import aggregated_descent, unrolled_hypergradient

__all__ = [
    "HypergradientResult", "MamlResult", "RunResult", "aggregated_descent", "bome", "bsvrb_v1",
    "bsvrb_v2", "f2sa", "f3sa", "hypergradient", "ift_neumann", "implicit_maml", "lv_hba", "mrbo",
    "neumann_series", "nystrom", "proximal_penalty", "proximal_penalty_single", "pzobo", "run",
    "saba", "self_tuning", "single_loop", "sl_bamm", "soba", "solve_inner", "srba", "stocbio",
    "ttsa", "unrolled_hypergradient",
]
