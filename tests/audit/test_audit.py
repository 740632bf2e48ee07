"""The small truth audit: no status that its own answer contradicts; see benchmarks/audit.py."""

import jax.numpy as jnp
import pytest

import jaxiter as ji
from jaxiter import linear
from jaxiter.testing.audit import (
    audit_fixed_point,
    audit_hypergradient,
    audit_linear,
    audit_recurrence,
    audit_sinkhorn,
)

CASES = {
    "anderson float32": lambda: audit_fixed_point(0, 200, 3, jnp.float32, ji.anderson(3),
                                                  "anderson"),
    "picard bfloat16": lambda: audit_fixed_point(1, 200, 2, jnp.bfloat16, ji.picard(), "picard"),
    "halpern float16": lambda: audit_fixed_point(2, 200, 1, jnp.float16, ji.halpern(), "halpern"),
    "bicgstab": lambda: audit_linear(3, 300, 4, linear.bicgstab(), "bicgstab", False),
    "cg": lambda: audit_linear(4, 300, 3, linear.cg(), "cg", True),
    "sinkhorn": lambda: audit_sinkhorn(5, 200, "kernel"),
    "recurrence": lambda: audit_recurrence(6, 200, "secant"),
    "hypergradient": lambda: audit_hypergradient(7, 300, "cg"),
}


@pytest.mark.parametrize("name", CASES)
def test_no_answer_contradicts_its_status(name):
    verdict = CASES[name]()
    assert verdict.false == 0 and verdict.silent == 0, verdict
    assert verdict.converged > verdict.solves / 10
