"""`solve_splitting`: a splitting that a newcomer writes, and what goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter import Problem, Splitting, Status, solve_splitting
from jaxiter.operators import davis_yin, prox_box, prox_l1
from jaxiter.testing import check_splitting, splittings
from tests.sparse_models import floats, positive_lasso

POSITIVE_LASSO = davis_yin(
    lambda v, t, a, b, lam: prox_l1(v, t, lam),
    lambda v, t, a, b, lam: prox_box(v, t, lower=0.0),
    lambda x, a, b, lam: jnp.matmul(jnp.matmul(a, x) - b, a), step_size=0.02)


def oracle(a, b, lam):
    return Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-12, positive=True).fit(a, b).coef_


def test_a_newcomers_splitting_has_status_resume_and_lanes():
    problems = [positive_lasso(seed) for seed in range(5)]
    solve = jax.jit(lambda limit, data, state=None: solve_splitting(
        POSITIVE_LASSO, jnp.zeros(8, jnp.float32), *data, max_steps=limit, resume=state))
    whole = solve(1000, floats(*problems[0]))
    np.testing.assert_allclose(whole.value, oracle(*problems[0]), atol=2e-4)
    part = solve(5, floats(*problems[0]))
    assert part.status == Status.MAX_STEPS and "MAX_STEPS after 5 steps" in part.message()
    with pytest.raises(RuntimeError, match="MAX_STEPS"):
        part.check()
    resumed = solve(1000, floats(*problems[0]), part.solve.state)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    batch = [jnp.stack(leaves) for leaves in zip(*(floats(*p) for p in problems), strict=True)]
    starts = jnp.zeros((5, 8), jnp.float32)
    solution = ji.solve_many(POSITIVE_LASSO.problem, starts, *batch, lanes=2)
    many = jax.vmap(POSITIVE_LASSO.result)(solution, *batch).check()
    for row, problem in zip(many.value, problems, strict=True):
        np.testing.assert_allclose(row, oracle(*problem), atol=2e-4)


@pytest.mark.slow
def test_a_newcomers_splitting_passes_the_audit():
    kind = jnp.zeros(0).dtype
    check_splitting(
        POSITIVE_LASSO, jnp.zeros(8), *(jnp.asarray(x, kind) for x in positive_lasso(9)))


def test_the_audit_finds_what_is_wrong():
    good = POSITIVE_LASSO
    args = floats(*positive_lasso(9))

    with pytest.raises(AssertionError, match="MAX_STEPS"):
        check_splitting(good, jnp.zeros(8, jnp.float32), *args, max_steps=3)
    cut = good._replace(extract=lambda z, *args: jax.lax.stop_gradient(good.extract(z, *args)))
    with pytest.raises(AssertionError):
        splittings.gradients_are_differences(
            splittings._Runs(cut, jnp.zeros(8, jnp.float32), tuple(args), {}))


def test_a_memory_reaches_extract_and_aux_comes_through():
    """A weight that the map counts up; extract takes it where a Problem's functions do."""
    problem = Problem(step=lambda s, m, a: ((0.5 * s + a, m + 1), jnp.sum(s)),
                      memory=lambda s, a: jnp.int32(0))
    split = Splitting(problem, lambda x0, a: x0, lambda s, m, a: (s, m))
    out = solve_splitting(split, jnp.zeros(2), jnp.array([1.0, 2.0]), has_aux=True)
    assert out.converged and out.dual == out.solve.steps
    np.testing.assert_allclose(out.solve.aux, 6, rtol=1e-4)


def test_derivatives_pass_through_extract_and_start():
    """x = s / a, s = 0.5 s + a^2: x = 2 a, through both; the start counts where the loop does."""
    split = Splitting(
        lambda s, a: 0.5 * s + a * a, lambda x0, a: a * x0, lambda s, a: (s / a, None))

    def value(x0, a, **options):
        return solve_splitting(split, x0, a, **options).value

    np.testing.assert_allclose(jax.grad(value, 1)(0.0, 3.0), 2.0, rtol=1e-4)
    assert jax.grad(value)(0.0, 3.0) == 0
    unrolled = jax.grad(lambda x0: value(x0, 3.0, adjoint=ji.unrolled(), max_steps=2))(0.0)
    np.testing.assert_allclose(unrolled, 0.5)  # the value is the point that was measured last


@pytest.mark.parametrize("change, match", [
    ({"extract": lambda s: s}, r"must return \(value, dual\)"),
    ({"extract": lambda s: (s, None, None)}, r"must return \(value, dual\)"),
    ({"extract": lambda s: (jnp.sum(s), None)}, r"against x0.*float32\[3, 2\], got float32\[\]"),
    ({"extract": lambda s: (s[0], None)}, r"float32\[3, 2\], got float32\[2\]"),
    ({"extract": lambda s: ({"x": s}, None)}, "tree structure"),
    ({"extract": lambda s: (s.astype(jnp.float16), None)}, "got float16"),
    ({"start": lambda x0: x0.astype(jnp.float16)}, r"precision of x0 \(float32\).*float16"),
    ({"start": lambda x0: {"z": jnp.zeros(2, jnp.int32)}}, r"at \['z'\] it returned int32"),
])
def test_what_the_functions_must_return(change, match):
    split = Splitting(lambda s: 0.5 * s, lambda x0: x0, lambda s: (s, None))._replace(**change)
    with pytest.raises(TypeError, match=match):
        solve_splitting(split, jnp.ones((3, 2), jnp.float32))


def test_bad_input():
    split = Splitting(lambda s: 0.5 * s, lambda x0: x0, lambda s: (s, None))
    for averaged in (0.0, 1.5, float("nan"), -1, jnp.array(0.0)):
        with pytest.raises(ValueError, match="averaged must be"):
            solve_splitting(split._replace(averaged=averaged), jnp.ones(2))
    with pytest.raises(TypeError, match="a map alone is for fixed_point"):
        solve_splitting(lambda s: 0.5 * s, jnp.ones(2))
    with pytest.raises(TypeError, match="x0"):
        solve_splitting(split, jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match="NaN"):
        solve_splitting(split, jnp.array([jnp.nan]))
    with pytest.raises(TypeError, match="tolerence"):
        solve_splitting(split, jnp.ones(2), tolerence=1)
