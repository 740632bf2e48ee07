"""Zeros of F: what is claimed does not depend on the units of F, and nothing is claimed of none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.roots.trail import confirmed

FACTORS = jnp.array([1.0, -1.0, 1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9])


@jax.jit
@jax.vmap
def square_root(factor):
    return ji.root(lambda x: factor * (x * x - 2), jnp.float32(1))


def test_constants_change_no_status_and_no_answer():
    out = square_root(FACTORS)
    assert np.all(out.converged)
    np.testing.assert_allclose(out.value, np.sqrt(2), rtol=1e-5)
    # Exactly where the factor is a power of two, and to rounding where it is not.
    two = square_root(2.0 ** jnp.array([-40.0, -20, 0, 20, 40, 1, -1, 3]))
    assert len(set(np.asarray(two.value).tolist())) == len(set(np.asarray(two.steps).tolist())) == 1
    np.testing.assert_allclose(out.residual / np.abs(FACTORS), out.residual[0], rtol=0.5)


def test_constants_over_the_whole_float_range():
    factors = jnp.asarray(10.0 ** np.array([-34.0, -25, -20, 0, 20, 25, 32, 36]), jnp.float32)

    def system(c):
        return ji.root(lambda x: c * (jnp.cos(x) - x * jnp.array([1.0, 2.0, 3.0])), jnp.ones(3))

    single, out = square_root(factors), jax.jit(jax.vmap(system))(factors)
    assert np.all(single.converged) and np.all(out.converged), (single.status, out.status)
    np.testing.assert_allclose(single.value, np.sqrt(2), rtol=1e-5)
    # At 1e-34 a change of x by 7e-5 changes F by less than the smallest float.
    np.testing.assert_allclose(out.value[1:], out.value[3:4].repeat(7, 0), rtol=1e-5)
    np.testing.assert_allclose(out.value[0], out.value[3], rtol=1e-4)


def test_constants_change_nothing_in_float64(x64):
    def run(c):
        return ji.root(lambda x: c * (x * x - 2), jnp.float64(1))

    out = jax.jit(jax.vmap(run))(jnp.asarray(np.array(FACTORS)).astype(jnp.float64))
    assert np.all(out.converged)
    np.testing.assert_allclose(out.value, np.sqrt(2), rtol=1e-9)


def coupled(x):
    """A system whose second start runs to infinity, where |F| tends to 21."""
    p = (3.0, 2.0, 5.0, -4.0)
    return -jnp.stack([jnp.exp(p[2] - x[0] - x[1] + p[0]) - jnp.exp(jnp.float32(p[0])),
                       jnp.exp(p[3] - x[1] + p[1]) - jnp.exp(jnp.float32(p[1]))])


NO_ROOT = {
    "exp": (jnp.exp, 0.0), "square": (lambda x: x * x + 1, 1.0),
    "cosine": (lambda x: jnp.cos(x) + 1.5, 1.0), "far cosine": (lambda x: jnp.cos(x) + 1.5, 3e5),
    "inverse": (lambda x: 1 / x, 1.0), "distance": (lambda x: jnp.abs(x) + 1, 1.0),
    "tiny exp": (lambda x: 1e-6 * jnp.exp(x), 0.0),
}


@pytest.mark.parametrize("name", NO_ROOT)
def test_what_has_no_root_is_never_solved(name):
    function, start = NO_ROOT[name]
    out = jax.jit(lambda x: ji.root(function, x))(jnp.float32(start))
    assert not out.converged, out.message()
    if name in ("exp", "inverse", "tiny exp"):  # F tends to zero while x runs to infinity
        assert out.status == Status.DIVERGED, out.message()


@pytest.mark.parametrize("solver", [None, ji.anderson(), ji.anderson(period=1)])
def test_running_off_is_no_root(solver):
    out = jax.jit(lambda x: ji.root(coupled, x, solver=solver))(jnp.zeros(2))
    assert not out.converged or np.abs(coupled(out.value)).max() < 1e-3, out.message()


@pytest.mark.parametrize(("function", "x0", "x"), [
    (lambda x: jnp.exp(x) - jnp.array([0.1559146, 97.005516]), [-1.7364097, 25.1], [-1.85, -1216]),
    (lambda x: jnp.array([jnp.exp(x[0]), x[1] ** 2 - 1.0]), [73.0, 494.0], [-5e31, -6e10])])
def test_where_an_equation_is_flat_no_root_is_confirmed(function, x0, x):
    """Thrown there by a first step: what no unknown changes any more is off by all that it is."""
    start = jnp.array(x0)

    def run(x):
        found = ji.root(function, start, method="anderson", max_steps=1)._replace(
            value=x, status=jnp.int32(Status.CONVERGED))
        return confirmed(found, function, start, (), ji.tolerance(),
                         jnp.linalg.norm(function(start))).status

    assert jax.jit(run)(jnp.array(x)) == Status.DIVERGED


def test_far_and_flat_roots():
    def solve(function, start):
        return jax.jit(lambda x: ji.root(function, x))(jnp.float32(start))

    for function, start, answer in (
            (lambda x: jnp.exp(x) - 1e-6, 0.0, np.log(1e-6)),
            (lambda x: jnp.exp(x) - 1, 20.0, 0.0), (lambda x: x - 1e9, 0.0, 1e9)):
        out = solve(function, start)
        assert out.converged, out.message()
        np.testing.assert_allclose(out.value, answer, rtol=1e-5, atol=2e-6)
    solved = solve(lambda x: x - 3, 3.0)
    assert solved.converged and solved.steps == 1


def test_against_scipy_on_a_system(x64):
    from scipy.optimize import root as reference

    rng = np.random.default_rng(0)
    a, b = np.eye(20) + 0.1 * rng.normal(size=(20, 20)), rng.normal(size=20)

    def function(x, np=np):
        return a @ x + 0.1 * np.sin(x) - b

    exact = reference(function, np.zeros(20), tol=1e-13).x
    out = jax.jit(lambda c: ji.root(lambda x: c * function(x, jnp), jnp.zeros(20)))(1e6)
    assert out.converged
    np.testing.assert_allclose(out.value, exact, rtol=1e-6, atol=1e-7)
    # The residual is that of F, and so is the displacement.
    np.testing.assert_allclose(out.displacement, -1e6 * function(np.asarray(out.value)), atol=1e-9)
    np.testing.assert_allclose(out.residual, np.linalg.norm(out.displacement), rtol=1e-12)


def test_a_given_atol_is_that_of_the_function():
    rule = ji.tolerance(rtol=0, atol=1e-3)
    out = jax.jit(lambda: ji.root(lambda x: x * x - 2, jnp.float32(1), stop=rule))()
    assert out.converged and 1e-6 < out.residual <= 1e-3


def test_aux_and_derivatives():
    def function(x, a):
        return x**3 - a, {"cube": x**3}

    def solve(a):
        out = ji.root(function, jnp.full(2, 1.5), a, has_aux=True)
        return out.value, out.aux

    a = jnp.array([2.0, 3.0])
    (value, aux), (slope, _) = jax.jit(lambda a: (solve(a), jax.jacobian(solve)(a)))(a)
    np.testing.assert_allclose(aux["cube"], a, rtol=1e-4)
    np.testing.assert_allclose(slope, np.diag(1 / (3 * np.asarray(value) ** 2)), rtol=1e-4)


def test_another_number_of_equations_is_named():
    with pytest.raises(TypeError, match=r"F must keep shapes.*float32\[2\], got float32\[3\]"):
        ji.root(lambda x: jnp.concatenate([x, x[:1]]), jnp.ones(2))


def test_a_problem_has_one_map():
    with pytest.raises(TypeError, match="exactly one of step and residual"):
        ji.fixed_point(ji.Problem(step=jnp.cos, residual=jnp.cos), 1.0)
    with pytest.raises(TypeError, match="exactly one of step and residual"):
        ji.fixed_point(ji.Problem(), 1.0)


def test_a_residual_is_a_map():
    """The same iterates, and digits that `T(x) - x` has lost."""
    by_step = ji.fixed_point(lambda x: 0.5 * x + 1, jnp.zeros(3), max_steps=9)
    by_residual = ji.fixed_point(
        ji.Problem(residual=lambda x: 1 - 0.5 * x), jnp.zeros(3), max_steps=9)
    np.testing.assert_allclose(by_step.value, by_residual.value, rtol=1e-6)
    fine = ji.fixed_point(ji.Problem(residual=lambda x: 1e-10 * (1 - x)), jnp.float32(3),
                          max_steps=1, stop=ji.tolerance(rtol=0, atol=1e-20))
    np.testing.assert_allclose(fine.residual, 2e-10, rtol=1e-6)


def test_certificates_count_by_severity():
    def certify(x, image):
        return jnp.where(image > 2.5, Status.PRIMAL_INFEASIBLE, Status.RUNNING)

    out = ji.fixed_point(ji.Problem(step=lambda x: x + 1, certify=certify), jnp.float32(0))
    assert out.status == Status.PRIMAL_INFEASIBLE and out.steps == 3
