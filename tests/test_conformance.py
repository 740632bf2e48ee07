"""The public conformance suite on every solver and adjoint of the library."""

import jax
import optax
import pytest

import jaxiter as ji
from jaxiter import linear
from jaxiter.testing import ADJOINT_CHECKS, SOLVER_CHECKS

pytestmark = pytest.mark.skipif(jax.config.jax_enable_x64, reason="the suite is in float32")

SOLVERS = {
    "picard": ji.picard(),
    "damped": ji.damped(0.8),
    "inertial": ji.inertial(0.05),
    "descending": ji.descending(optax.sgd(0.8, momentum=0.1)),
    "overrelaxed": ji.overrelaxed(),
    "squarem": ji.squarem(),
    "anderson": ji.anderson(4),
    "anderson-1": ji.anderson(4, kind=1),
    "halpern": ji.halpern("adaptive"),
    "restarted": ji.restarted(ji.halpern(weights="adaptive"), every=8),
}
ADJOINTS = {
    "implicit": ji.implicit(),
    "vjp": ji.implicit(mode="vjp"),
    "gmres": ji.implicit(linear.gmres()),
    "dense": ji.implicit(linear.dense()),
    "neumann": ji.neumann(80),
    "one_step": ji.one_step(80),
}
LONG = [("gmres", "works_under_vmap_remat_and_scan")]


@pytest.mark.parametrize("check", SOLVER_CHECKS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solver(solver, check):
    SOLVER_CHECKS[check](SOLVERS[solver])


@pytest.mark.parametrize("adjoint,check", [
    pytest.param(a, c, marks=pytest.mark.slow) if (a, c) in LONG else (a, c)
    for a in ADJOINTS for c in ADJOINT_CHECKS])
def test_adjoint(adjoint, check):
    ADJOINT_CHECKS[check](ADJOINTS[adjoint])
