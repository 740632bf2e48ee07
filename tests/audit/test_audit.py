"""The small truth audit: no status that its own answer contradicts; see benchmarks/audit.py."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import linear
from jaxiter.testing.audit import (
    audit_fixed_point,
    audit_hypergradient,
    audit_inner,
    audit_linear,
    audit_recurrence,
    audit_sample,
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
    "lanes": lambda: audit_fixed_point(8, 200, 2, jnp.float32, ji.picard(), "picard", lanes=16),
    "solve_inner": lambda: audit_inner(9, 200),
    "sample_parallel": lambda: audit_sample(10, 200, "secant"),
    "hypergradient": lambda: audit_hypergradient(7, 300, "cg"),
}


@pytest.mark.parametrize("name", CASES)
def test_no_answer_contradicts_its_status(name):
    verdict = CASES[name]()
    assert verdict.false == 0 and verdict.silent == 0, verdict
    assert verdict.converged > verdict.solves / 10


ANY = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
ENTRIES = st.tuples(*(ANY for _ in range(3)))
SOLVERS = {"picard": ji.picard(), "anderson": ji.anderson(2), "halpern": ji.halpern("adaptive"),
           "guarded": ji.guard(ji.damped(0.5))}
SOLVE = {name: jax.jit(lambda a, x, b, s=solver: ji.fixed_point(
    lambda x, a, b: a * x[::-1] + b, x, a, b, solver=s, max_steps=40))
    for name, solver in SOLVERS.items()}


@pytest.mark.parametrize("name", SOLVERS)
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(a=ENTRIES, x=ENTRIES, b=ENTRIES)
def test_no_number_makes_a_solve_lie(name, a, x, b):
    """Any three floats in any place: a status, never an exception, and none that is false."""
    arrays = [np.array(part, np.float32) for part in (a, x, b)]
    out = SOLVE[name](*arrays)
    assert int(out.status) > ji.Status.RUNNING
    assert bool(out.converged) == (int(out.status) == ji.Status.CONVERGED)
    if not np.all(np.isfinite(arrays[1])):
        assert out.status == ji.Status.BAD_INPUT
    if out.converged:
        value = np.asarray(out.value, float)
        image = np.asarray(arrays[0], float) * value[::-1] + np.asarray(arrays[2], float)
        scale = max(np.linalg.norm(value), np.linalg.norm(image))
        assert np.linalg.norm(image - value) <= 1e-6 + 1.1e-5 * scale + 1e-37
