"""Refilled lanes give what vmap gives, for every solver, structure and width."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiter as ji
from jaxiter import Status
from jaxiter.testing import collectives

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


def lanes_of_two(x, q, s):
    return ji.solve_many(step, x, q, s, in_axes=(0, None), lanes=2, max_steps=300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_over_mesh_pads_deals_and_replicates(kind):
    spread = ji.over_mesh(lanes_of_two, jax.make_mesh((8,), ("d",), axis_types=(kind,)), "d",
                          in_axes=(0, 0, None))
    plain = jax.jit(lanes_of_two)(STARTS, RATES, SHIFT)
    for difficulty in (None, plain.steps):
        ours = jax.jit(spread)(STARTS, RATES, SHIFT, difficulty=difficulty)
        np.testing.assert_array_equal(ours.steps, plain.steps)
        np.testing.assert_allclose(ours.value, plain.value, rtol=1e-5)
    gradients = [jax.jit(jax.grad(lambda q, s, f=f: jnp.sum(f(STARTS, q, s).value), (0, 1)))(
        RATES, SHIFT) for f in (functools.partial(spread, difficulty=RATES), lanes_of_two)]
    for ours, reference in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-3)


def test_over_mesh_of_a_batch_that_the_devices_do_not_divide_outside_of_jit():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    out = ji.over_mesh(lambda x, c: c * x, mesh, "d", in_axes=(0, None))(jnp.ones(5), 2.0)
    assert out.tolist() == [2.0] * 5


def test_devices_do_not_talk_while_they_solve():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spread = ji.over_mesh(lanes_of_two, mesh, "d", in_axes=(0, 0, None))
    rows = NamedSharding(mesh, P("d"))
    args = (*jax.device_put((STARTS[:16], RATES[:16]), rows), SHIFT)
    quiet = collectives(jax.jit(spread).lower(*args).compile())
    assert quiet.looped == quiet.total == {}
    dealt = collectives(jax.jit(spread).lower(*args, difficulty=args[1]).compile())
    assert dealt.looped == {} and dealt.total  # rows travel before and after the solve
    batch = jax.vmap(lambda x, q: ji.fixed_point(step, x, q, SHIFT).value)
    assert collectives(jax.jit(batch).lower(*args[:2]).compile()).looped == {"all-reduce": 1}


def test_dealing_balances_sorted_work():
    """Sorted problems in blocks leave the last device far more than its share; dealt, none."""
    steps = jnp.round(jnp.logspace(1, 3, 64))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def work(key):
        return jnp.broadcast_to(jnp.sum(key), key.shape)

    spread = jax.jit(ji.over_mesh(work, mesh, "d"))
    share = jnp.sum(steps) / 8
    assert jnp.max(spread(steps)) > 3 * share
    for key in (steps, steps.astype(jnp.uint32)):
        assert jnp.max(spread(steps, difficulty=key)) < 1.15 * share


def test_lanes_measure_when_vmap_does():
    """A refill in the middle of a stretch of check_every steps adds no measurement."""
    choices = {"max_steps": 100, "check_every": 5}
    batch = jax.jit(jax.vmap(lambda x, q: ji.fixed_point(step, x, q, SHIFT, **choices)))(
        STARTS, RATES)
    many = jax.jit(lambda x, q: ji.solve_many(
        step, x, q, SHIFT, in_axes=(0, None), lanes=4, refill_every=3, **choices))(STARTS, RATES)
    np.testing.assert_array_equal(many.steps, batch.steps)
    np.testing.assert_array_equal(many.status, batch.status)
