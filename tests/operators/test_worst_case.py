"""The proximal map of a worst case against scipy, closed forms and its Bregman inequality."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

import jaxiter as ji
from jaxiter import Problem, Status, trees
from jaxiter.operators import worst_case_prox
from jaxiter.testing import check_front


def bowls(seed, count=4, n=3):
    """Centres and curvatures of convex quadratics."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, n, n))
    return rng.normal(size=(count, n)), root @ root.transpose(0, 2, 1) + 0.5 * np.eye(n)


def losses(x, centres, bends):
    away = x - centres
    return 0.5 * jnp.einsum("si,sij,sj->s", away, bends, away)


def losses_by_numpy(x, centres, bends):
    return np.array([0.5 * (x - c) @ h @ (x - c) for c, h in zip(centres, bends, strict=True)])


move = jax.jit(partial(worst_case_prox, losses))


def test_one_step_is_scipys_saddle_point(x64):
    data = bowls(0)
    rng = np.random.default_rng(1)
    x, logits = rng.normal(size=3), rng.normal(size=4)
    for step in (0.1, 3.0):
        out = move(x, logits, step, *data).check()
        best = minimize(lambda z, step=step: logsumexp(
            np.log(softmax(logits)) + step * losses_by_numpy(z, *data)) + (z - x) @ (z - x) / 2,
            x, method="BFGS", options={"gtol": 1e-11})
        np.testing.assert_allclose(out.x, best.x, atol=1e-6)
        weights = softmax(logits + step * losses_by_numpy(best.x, *data))
        np.testing.assert_allclose(np.exp(out.logits), weights, atol=1e-6)
        np.testing.assert_allclose(out.losses, losses_by_numpy(best.x, *data), atol=1e-5)


def test_of_one_loss_it_is_the_proximal_map():
    centres, bends = bowls(2, 1)
    x, step = np.array([1.0, -2.0, 0.5]), 0.7
    out = move(*(jnp.asarray(v, jnp.float32) for v in (x, np.zeros(1), step, centres, bends)))
    expected = np.linalg.solve(np.eye(3) + step * bends[0], x + step * bends[0] @ centres[0])
    np.testing.assert_allclose(out.x, expected, atol=1e-5)
    assert out.converged and out.logits == 0


def test_it_is_firmly_nonexpansive_in_its_bregman_distance(x64):
    """`<dh(Tu) - dh(Tv), Tu - Tv> <= <dh(u) - dh(v), Tu - Tv>`, dh = (x, log q)."""
    data, rng = bowls(3), np.random.default_rng(4)
    starts = 2 * rng.normal(size=(100, 2, 3)), rng.normal(size=(100, 2, 4))
    out = jax.jit(jax.vmap(jax.vmap(lambda x, q: worst_case_prox(losses, x, q, 0.8, *data))))(
        *starts)
    assert out.converged.all()
    old, new = starts[0], out.x
    before = starts[1] - logsumexp(starts[1], axis=-1, keepdims=True)
    apart, weights = new[:, 0] - new[:, 1], np.exp(out.logits[:, 0]) - np.exp(out.logits[:, 1])

    def product(x, logits):
        return np.sum((x[:, 0] - x[:, 1]) * apart, 1) + np.sum(
            (logits[:, 0] - logits[:, 1]) * weights, 1)

    slack = product(old, before) - product(new, out.logits)
    assert slack.min() > 0.01, slack.min()


def test_its_steps_lead_to_the_least_worst_case(x64):
    """At a linear rate, in the fewer steps the longer each is; SLSQP on the epigraph."""
    data = bowls(2)
    best = minimize(lambda v: v[3], np.r_[np.zeros(3), 10], method="SLSQP", tol=1e-14, constraints=[
        {"type": "ineq", "fun": lambda v: v[3] - losses_by_numpy(v[:3], *data)}])
    for step, counts in ((0.5, (15, 29)), (2.0, (6, 11)), (10.0, (3, 6))):
        x, logits, far = np.ones(3), np.zeros(4), []
        while not far or far[-1] > 1e-6 and len(far) < 40:
            x, logits, values, _ = move(x, logits, step, *data)
            far.append(np.linalg.norm(x - best.x[:3]))
        assert 1 + np.argmax(np.array(far) < 1e-3) == counts[0] and len(far) == counts[1]
    np.testing.assert_allclose(values, best.x[3], atol=1e-5)
    weights = np.exp(logits)
    pull = sum(w * h @ (x - c) for w, c, h in zip(weights, *data, strict=True))
    np.testing.assert_allclose(pull, 0, atol=1e-5)


def test_as_a_fixed_point_in_float32():
    """A tree, one loss that never matters, whose weight falls below every float."""
    def worst(x, height):
        return jnp.stack([(x["a"] + 1) ** 2, (x["a"] - 2) ** 2, height + 0 * x["b"]]) + x["b"] ** 2

    def step(s, *args):
        return worst_case_prox(worst, *s, jnp.float32(10), *args)[:2]

    def near(s, image, *args):
        return trees.norm(trees.subtract(image[0], s[0]))

    start = {"a": jnp.float32(0.3), "b": jnp.float32(1.0)}, jnp.zeros(3, jnp.float32)
    out = jax.jit(lambda height: ji.fixed_point(
        Problem(step=step, merit=near, scale=1.0), start, height))(jnp.float32(-50)).check()
    x, logits = out.value
    np.testing.assert_allclose([x["a"], x["b"]], [0.5, 0], atol=1e-4)
    np.testing.assert_allclose(jnp.exp(logits), [0.5, 0.5, 0], atol=1e-4)
    assert logits[2] < -120


def test_derivatives_are_those_of_differences(x64):
    rng = np.random.default_rng(5)
    given = [rng.normal(size=3), rng.normal(size=4), np.float64(0.6), *bowls(6)]
    ways = [rng.normal(size=np.shape(part)) for part in given]

    def at(shift):
        out = worst_case_prox(losses, *(x + shift * way for x, way in zip(
            given, ways, strict=True)), stop=ji.tolerance(1e-12, 0))
        return out.x, out.logits, out.losses

    both = jax.jit(lambda shift: jax.jvp(at, (shift,), (jnp.ones(()),)))
    (high, _), (low, _), (_, slope) = (both(jnp.array(shift)) for shift in (1e-5, -1e-5, 0.0))
    for one, up, down in zip(slope, high, low, strict=True):
        np.testing.assert_allclose(one, (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


def test_bad_input():
    data = [jnp.asarray(v, jnp.float32) for v in bowls(0)]
    x, logits = jnp.ones(3, jnp.float32), jnp.zeros(4, jnp.float32)
    with pytest.raises(ValueError, match="step must be positive"):
        worst_case_prox(losses, x, logits, 0.0, *data)
    with pytest.raises(ValueError, match="all of them are -inf"):
        worst_case_prox(losses, x, jnp.full(4, -jnp.inf, jnp.float32), 1.0, *data)
    with pytest.raises(ValueError, match="numbers or -inf"):
        worst_case_prox(losses, x, jnp.full(4, jnp.nan, jnp.float32), 1.0, *data)
    with pytest.raises(ValueError, match=r"must both have shape \[s\], got \(4,\) and \(2,\)"):
        worst_case_prox(losses, x, jnp.zeros(2, jnp.float32), 1.0, *data)
    many = jax.jit(jax.vmap(lambda step, q: worst_case_prox(losses, x, q, step, *data)))
    rows = jnp.zeros((4, 4), jnp.float32).at[1].set(-jnp.inf).at[2, 0].set(-jnp.inf)
    out = many(jnp.array([-1.0, 1.0, 1.0, 1.0], jnp.float32), rows)
    assert [Status.name(code) for code in out.status] == [
        "NONFINITE", "NONFINITE", "CONVERGED", "CONVERGED"]
    assert out.logits[2, 0] == -jnp.inf and jnp.isfinite(out.logits[3]).all()
    # A batch is a loop.
    np.testing.assert_allclose(out.x[3], move(x, rows[3], 1.0, *data).x, atol=1e-5)


@pytest.mark.slow
def test_the_front():
    data = [jnp.asarray(v, jnp.float32) for v in bowls(7)]
    check_front(partial(worst_case_prox, losses), jnp.ones(3, jnp.float32),
                jnp.zeros(4, jnp.float32), jnp.float32(0.5), *data)
