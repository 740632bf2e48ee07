"""The small truth audit: no status that its own answer contradicts; see benchmarks/audit.py."""

import itertools
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import linear
from jaxiter.testing.audit import (
    all_cases,
    audit_accuracy,
    audit_batched,
    audit_fit,
    audit_fixed_point,
    audit_game,
    audit_hypergradient,
    audit_inclusion,
    audit_inner,
    audit_linear,
    audit_near_singular,
    audit_piecewise,
    audit_process,
    audit_program,
    audit_recurrence,
    audit_root,
    audit_rows,
    audit_sinkhorn,
    audit_splitting,
)
from jaxiter.testing.audit.drawn_programs import KINDS as PROGRAMS
from jaxiter.testing.audit.inclusions import KINDS as INCLUSIONS
from jaxiter.testing.audit.roots import ALL as SYSTEMS
from jaxiter.testing.audit.transport import KINDS

ANDERSON = ji.anderson(3)
BICGSTAB, CG = linear.bicgstab(), linear.cg()

#: Several kinds of problems by one program each: a compilation is most of the time here. The table
#: of the slow tests has all families.
CASES = {
    "linear maps": [partial(audit_fixed_point, 1, 200, 3, jnp.float32, ANDERSON, "anderson",
                            kind=kind, certain=True, steps=600)
                    for kind in ("odd", "scaled", "expansive")],
    "bfloat16": [partial(audit_fixed_point, 1, 200, 3, jnp.bfloat16, ji.picard(), "picard",
                         kind=kind) for kind in ("odd", "scaled")],
    "lanes": [partial(audit_fixed_point, 8, 200, 2, jnp.float32, ji.picard(), "picard", lanes=16,
                      kind=kind) for kind in ("odd", "scaled")],
    "contractions": [partial(audit_piecewise, 3, 100, 6, kind, ji.anderson(), "anderson")
                     for kind in ("layers", "pieces", "bellman")],
    "roots": [partial(audit_root, seed, 100, system, None, "default", free=True)
              for seed, system in enumerate(SYSTEMS)],
    "bicgstab": [partial(audit_linear, 3, 300, 4, BICGSTAB, "bicgstab", False, kind=kind)
                 for kind in ("odd", "conditioned")],
    "nearly singular": [partial(audit_near_singular, 7, 400, ji.implicit(), "implicit")],
    "gradients of rows": [partial(audit_rows, 8, 400, ji.implicit(rows=True), "implicit")],
    "fits": [partial(audit_fit, 11, 200, "huber", True)],
    "sinkhorn": [partial(audit_sinkhorn, 10, 100, "log", kind) for kind in KINDS],
    "sinkhorn_many": [partial(audit_batched, 13, 100, "sinkhorn_many", kind) for kind in KINDS],
    "recurrence": [partial(audit_recurrence, 16, 200, "secant", 6)],
    "hypergradient": [partial(audit_hypergradient, 18, 300, None, "cg", kind)
                      for kind in ("odd", "conditioned")],
    "splittings": [partial(audit_splitting, 22, 200, "douglas_rachford", None, "plain", kind)
                   for kind in ("odd", "regular")],
    "processes": [partial(audit_process, 23, 200, 10, kind) for kind in ("odd", "regular")],
    "programs": [partial(audit_program, seed, 100, "quadratic_program", "interior", kind)
                 for seed, kind in enumerate(PROGRAMS)],
    "inclusions": [partial(audit_inclusion, seed, 100, "variational_inequality extragradient",
                           kind) for seed, kind in enumerate(INCLUSIONS)],
    "games": [partial(audit_game, 25, 100, "quantal", kind)
              for kind in ("regular", "scaled", "degenerate", "odd")],
    "solve_inner": [partial(audit_inner, 20, 200, kind) for kind in ("odd", "scaled")],
}


def judge(verdicts):
    verdicts = list(verdicts)
    for verdict in verdicts:
        failures = verdict.false, verdict.silent, verdict.unsolved, verdict.lost
        assert failures == (0, 0, 0, 0), verdict
    return verdicts


@pytest.mark.parametrize("name", CASES)
def test_no_answer_contradicts_its_status(name):
    verdicts = judge(case() for case in CASES[name])
    assert sum(v.converged for v in verdicts) > sum(v.solves for v in verdicts) / 20


@pytest.mark.slow
def test_no_claimed_accuracy_is_missed():
    kinds = ("positive", "negative", "complex", "non-normal", "bounded slope")
    judge(audit_accuracy(21, 100, kind, ji.picard(), "picard", ji.accuracy)
          for kind in kinds)


PARTS = 8


def program_of(case):
    """What a row compiles: its choices but for the kind of its problems."""
    if not isinstance(case, partial):
        return str(case)
    choices = {name: str(value) for name, value in case.keywords.items()
               if name not in ("kind", "change")}
    return str((case.func, *map(program_of, case.args), choices))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_answer_contradicts_its_status_anywhere(part):
    """The table of the benchmark, with fewer problems a row.

    Rows that share a program are in one part: each is traced once.
    """
    groups = {}
    for seed, (share, case) in enumerate(all_cases(ji.accuracy)):
        groups.setdefault(program_of(case), []).append((seed, share, case))
    for seed, share, case in itertools.chain(*list(groups.values())[part::PARTS]):
        judge([case(1000 + seed, max(int(share * 100) // 8 * 8, 8))])
    jax.clear_caches()  # some fifty programs that nothing needs again


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
        value, slopes, shift = np.asarray(out.value, float), *(part.astype(float) for part in (
            arrays[0], arrays[2]))
        image, first = (slopes * at[::-1] + shift for at in (value, arrays[1].astype(float)))
        scale = max(np.linalg.norm(value), np.linalg.norm(image))
        start = max(np.linalg.norm(arrays[1].astype(float)), np.linalg.norm(first))
        room = 3e-7 * np.linalg.norm(np.abs(slopes * value[::-1]) + np.abs(shift)) + 4e-38
        assert np.linalg.norm(image - value) <= 1e-6 * min(1, start) + 1.05e-5 * scale + room
