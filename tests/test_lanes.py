"""Refilled lanes give what vmap gives, for every solver, structure and width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status

RATES = jnp.asarray(1 - 10 ** np.random.default_rng(0).uniform(-2, -0.2, 23), jnp.float32)
STARTS = jnp.zeros((23, 3))


def step(x, q, shift):
    return q * x + (1 - q) * shift


SHIFT = jnp.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize("solver", [ji.picard(), ji.anderson(3)])
@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_same_as_vmap(solver, lanes):
    batch = jax.jit(jax.vmap(lambda x, q: ji.fixed_point(
        step, x, q, SHIFT, solver=solver, max_steps=300)))(STARTS, RATES)
    many = jax.jit(lambda x, q: ji.solve_many(
        step, x, q, SHIFT, solver=solver, max_steps=300, lanes=lanes, in_axes=(0, None)))(
        STARTS, RATES)
    np.testing.assert_array_equal(many.steps, batch.steps)
    np.testing.assert_array_equal(many.status, batch.status)
    np.testing.assert_allclose(many.value, batch.value, rtol=1e-5, atol=1e-6)
    assert np.any(batch.converged)  # and, for picard, some that need more than 300 steps


def test_gradients_through_lanes():
    def loss(solve, rates, shift):
        return jnp.sum(jnp.sin(solve(rates**2, shift).value))

    def step(x, q, s):
        return q * jnp.sin(x) + s

    def many(q, s):
        return ji.solve_many(step, STARTS, q, s, lanes=5, in_axes=(0, None), max_steps=2000)

    def batch(q, s):
        return jax.vmap(lambda x, q: ji.fixed_point(step, x, q, s, max_steps=2000))(STARTS, q)

    for argument in (1, 2):
        ours, reference = (jax.jit(jax.grad(lambda q, s, f=f: loss(f, q, s), argnums=argument - 1))(
            RATES**0.5, SHIFT) for f in (many, batch))
        np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-4)


def test_trees_aux_axes_and_bad_lanes():
    data = {"q": jnp.array([[0.5, 0.9, jnp.nan, 0.2]]), "c": jnp.ones((4,))}

    def tree_step(x, q, c):
        new = {"u": q["q"][0] * x["u"] + c}
        return new, jnp.sum(new["u"])

    out = ji.solve_many(tree_step, {"u": jnp.zeros((4, 2))}, {"q": data["q"]}, data["c"],
                        in_axes=(1, 0), lanes=2, has_aux=True)
    assert out.status.tolist() == [Status.CONVERGED] * 2 + [Status.NONFINITE, Status.CONVERGED]
    np.testing.assert_allclose(out.value["u"][1], 10, rtol=1e-3)
    np.testing.assert_allclose(out.aux[0], 4, rtol=1e-3)
    traced = ji.solve_many(lambda x: 0.5 * x + 1, jnp.zeros((3, 2)), lanes=2,
                           monitor=ji.record(5))
    assert traced.trace["merit"].shape == (3, 5)


def test_cache_and_uneven_starts_with_stop_rules():
    problem = ji.Problem(lambda x, c, q: 0.5 * c * x + 1, cache=lambda x, q: q, refresh=4)
    rule = ji.any_of(ji.tolerance(), ji.stagnation(50))
    out = ji.solve_many(problem, jnp.zeros((5, 2)), RATES[:5], stop=rule, lanes=2, refill_every=3)
    np.testing.assert_allclose(out.value[:, 0], 1 / (1 - 0.5 * RATES[:5]), rtol=1e-4)


def test_over_mesh_pads_and_replicates():
    mesh = jax.make_mesh((8,), ("d",))

    def solve(x, q, s):
        return ji.solve_many(step, x, q, s, in_axes=(0, None), lanes=2, max_steps=300)

    spread = ji.over_mesh(solve, mesh, "d", in_axes=(0, 0, None))
    ours = jax.jit(spread)(STARTS, RATES, SHIFT)
    plain = jax.jit(solve)(STARTS, RATES, SHIFT)
    np.testing.assert_array_equal(ours.steps, plain.steps)
    np.testing.assert_allclose(ours.value, plain.value, rtol=1e-5)
    gradients = [jax.jit(jax.grad(lambda s, f=f: jnp.sum(f(STARTS, RATES, s).value)))(SHIFT)
                 for f in (spread, solve)]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-3)
    auto = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    text = jax.jit(ji.over_mesh(solve, auto, "d", in_axes=(0, 0, None))).lower(
        STARTS[:16], RATES[:16], SHIFT).compile().as_text()
    loops = text.split("ENTRY")[0]
    assert "while" in text and "all-reduce" not in loops


def test_lanes_measure_when_vmap_does():
    """A refill in the middle of a stretch of check_every steps adds no measurement."""
    choices = {"max_steps": 100, "check_every": 5}
    batch = jax.jit(jax.vmap(lambda x, q: ji.fixed_point(step, x, q, SHIFT, **choices)))(
        STARTS, RATES)
    many = jax.jit(lambda x, q: ji.solve_many(
        step, x, q, SHIFT, in_axes=(0, None), lanes=4, refill_every=3, **choices))(STARTS, RATES)
    np.testing.assert_array_equal(many.steps, batch.steps)
    np.testing.assert_array_equal(many.status, batch.status)
