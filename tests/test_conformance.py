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
#: What the others share most of their code with runs by default, these with the slow tests.
LONG_SOLVERS = {"damped", "inertial", "descending", "overrelaxed", "squarem", "anderson-1",
                "restarted"}
LONG_ADJOINTS = {"vjp", "gmres", "dense"}


def marked(names, long):
    return [pytest.param(name, marks=pytest.mark.slow) if name in long else name for name in names]


@pytest.mark.parametrize("check", SOLVER_CHECKS)
@pytest.mark.parametrize("solver", marked(SOLVERS, LONG_SOLVERS))
def test_solver(solver, check):
    SOLVER_CHECKS[check](SOLVERS[solver])


@pytest.mark.parametrize("check", ADJOINT_CHECKS)
@pytest.mark.parametrize("adjoint", marked(ADJOINTS, LONG_ADJOINTS))
def test_adjoint(adjoint, check):
    ADJOINT_CHECKS[check](ADJOINTS[adjoint])
