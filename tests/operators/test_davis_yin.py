"""Davis-Yin splitting against scikit-learn, the one-sided threshold, and what it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso
from tests.sparse_models import floats, positive_lasso

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import davis_yin, douglas_rachford, forward_backward, prox_box, prox_l1
from jaxiter.testing import check_splitting


def slope(x, a, b, lam):
    return jnp.matmul(jnp.matmul(a, x) - b, a)


def positive(v, step, *_):
    return prox_box(v, step, lower=0.0)


def threshold(v, step, a, b, lam):
    return prox_l1(v, step, lam)


@pytest.mark.parametrize("proxes", [(threshold, positive), (positive, threshold)])
def test_the_positive_lasso_is_scikit_learns_and_one_sided_thresholds(proxes):
    a, b, lam = positive_lasso(0)
    split = davis_yin(*proxes, slope)
    out = jax.jit(lambda *data: ji.solve_splitting(split, jnp.zeros(8, jnp.float32), *data))(
        *floats(a, b, lam)).check()
    expected = Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-12, positive=True).fit(a, b)
    np.testing.assert_allclose(out.value, expected.coef_, atol=2e-4)
    # The dual is a subgradient of what the second proximal map is of.
    gradient = a.T @ (a @ expected.coef_ - b)
    inside = expected.coef_ > 0
    wanted = lam * np.ones(8) if proxes[1] is threshold else -gradient - lam
    np.testing.assert_allclose(out.dual[inside], wanted[inside], atol=2e-2)


def test_it_is_its_special_cases(x64):
    """Without g forward-backward, without h Douglas-Rachford, step by step."""
    a, b, lam = map(jnp.asarray, positive_lasso(1))
    size = float(1 / jnp.linalg.norm(a, 2) ** 2)

    def orbit(splitting, steps=7):
        return ji.solve_splitting(splitting, jnp.ones(8), a, b, lam, max_steps=steps,
                                  stop=ji.tolerance(0.0, 1e-30)).value

    nothing = davis_yin(threshold, lambda v, *_: v, slope, step_size=size)
    np.testing.assert_allclose(
        orbit(nothing), orbit(forward_backward(slope, threshold, step_size=size)), atol=1e-14)
    flat = davis_yin(threshold, positive, lambda x, *_: 0 * x, step_size=size)
    np.testing.assert_allclose(
        orbit(flat), orbit(douglas_rachford(positive, threshold, step_size=size)), atol=1e-14)


def test_it_is_averaged_as_it_says(x64):
    """`|Tu - Tv|^2 <= |u - v|^2 - (1 - alpha) / alpha |(I - T) u - (I - T) v|^2`, in Euclid's."""
    a, b, lam = map(jnp.asarray, positive_lasso(2))
    split = davis_yin(threshold, positive, slope)
    size = split.problem.memory(jnp.zeros(8), a, b, lam)
    move = jax.vmap(lambda z: split.problem.residual(z, size, a, b, lam)[0])
    u, v = 3 * jax.random.normal(jax.random.key(0), (2, 200, 8))
    moved = move(u) - move(v)
    left = jnp.sum((u - v + moved) ** 2, 1)
    right = jnp.sum((u - v) ** 2, 1) - (1 / split.averaged - 1) * jnp.sum(moved**2, 1)
    assert jnp.all(left <= right * (1 + 1e-9))


def test_bad_steps():
    with pytest.raises(ValueError, match="step_size must be positive"):
        davis_yin(threshold, positive, slope, step_size=0.0)
    args = floats(*positive_lasso(1))
    norm = np.linalg.norm(args[0], 2) ** 2
    found = jax.jit(jax.vmap(lambda size: ji.solve_splitting(
        davis_yin(threshold, positive, slope, step_size=size), jnp.zeros(8, jnp.float32),
        *args).status))(jnp.array([-1.0, jnp.nan, 5 / norm, 1 / norm], jnp.float32))
    assert found[0] == found[1] == Status.BAD_INPUT and found[3] == Status.CONVERGED
    assert found[2] not in (Status.CONVERGED, Status.PRECISION_FLOOR)


@pytest.mark.slow
def test_conformance():
    kind = jnp.zeros(0).dtype
    check_splitting(davis_yin(threshold, positive, slope), jnp.zeros(8),
                    *(jnp.asarray(x, kind) for x in positive_lasso(9)))
