"""Balanced routing against linear programs, the published rules, and one device against eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.testing import check_front
from jaxiter.transport import balanced_topk, loss_free_bias
from tests.routing import linear_program, steps_to_balance

K = 2
default = jax.jit(lambda scores: balanced_topk(scores, K))
tight = jax.jit(lambda scores: balanced_topk(scores, K, stop=ji.tolerance(rtol=0, atol=0.01)))


def router_scores(tokens=512, experts=16):
    """Sigmoid scores of which some experts get more."""
    rng = np.random.default_rng(0)
    offset = 0.8 * rng.normal(size=experts)
    return (1 / (1 + np.exp(-offset - rng.normal(size=(tokens, experts))))).astype(np.float32)


def test_reaches_the_linear_program():
    scores = router_scores()
    best = linear_program(scores, K)
    np.testing.assert_allclose(best, 779.441, atol=1e-3)
    greedy = np.bincount(np.argsort(-scores, axis=1)[:, :K].ravel(), minlength=16)
    np.testing.assert_allclose(greedy.max() / 64 - 1, 2.42, atol=5e-3)
    out = default(scores)
    assert out.solve.converged and out.solve.steps <= 10 and out.solve.merit <= 0.05
    load = np.bincount(np.asarray(out.indices).ravel(), minlength=16)
    np.testing.assert_array_equal(out.load, load)
    np.testing.assert_allclose(load.max() / 64 - 1, out.solve.merit, rtol=1e-5)
    assert best * (1 - 1e-6) <= out.dual_value <= best * 1.001
    chosen = np.take_along_axis(scores, np.asarray(out.indices), axis=1)
    np.testing.assert_allclose(out.value, chosen.sum(), rtol=1e-5)
    assert np.all(np.diff(np.sort(out.indices, axis=1), axis=1) > 0)  # no expert twice
    exact = tight(scores)
    assert exact.solve.converged and exact.solve.steps <= 30
    np.testing.assert_allclose(exact.value, best, rtol=1e-5)
    np.testing.assert_allclose(exact.dual_value, best, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(out.bias), 0, atol=1e-6)


def test_the_dual_objective_never_rises():
    """Each step minimises the dual exactly, first in the tokens' prices, then in the experts'."""
    scores, bias, values = router_scores(), None, []
    one = jax.jit(lambda scores, bias: balanced_topk(scores, K, init=bias, max_steps=2,
                                                     stop=ji.stop.never()))
    bias = jnp.zeros(16)
    for _ in range(8):
        out = one(scores, bias)
        bias = out.bias
        values.append(float(out.dual_value))
    assert np.all(np.diff(values) <= 1e-3) and values[0] - values[-1] > 1e-2


def test_units_warm_starts_and_broken_batches():
    scores = router_scores()
    out = default(scores)
    other = default(100 * scores - 7)
    np.testing.assert_array_equal(out.indices, other.indices)
    np.testing.assert_allclose(other.bias, 100 * out.bias, atol=1e-3)
    warm = balanced_topk(scores, K, init=out.bias)
    assert warm.solve.steps == 1 and warm.solve.converged
    batch = jax.jit(jax.vmap(lambda s: balanced_topk(s, K)))(
        jnp.stack([scores, scores * jnp.nan, 2 * scores]))
    assert [ji.Status.name(s) for s in batch.status] == ["CONVERGED", "BAD_INPUT", "CONVERGED"]
    np.testing.assert_array_equal(batch.indices[0], out.indices)


def test_tokens_over_devices_are_routed_as_on_one():
    scores = jnp.asarray(router_scores())
    single = default(scores)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def shard(scores):
        out = balanced_topk(scores, K, axis_name="data")
        state = loss_free_bias(0.1, axis_name="data")
        return out.indices, out.load[None], state.update(out.load, state.init(16)).bias[None]

    indices, load, bias = jax.jit(jax.shard_map(
        shard, mesh=mesh, in_specs=spec, out_specs=spec))(scores)
    np.testing.assert_array_equal(indices, single.indices)
    np.testing.assert_array_equal(load[3], single.load)
    balance = loss_free_bias(0.1)
    np.testing.assert_allclose(bias[5], balance.update(single.load, balance.init(16)).bias)


def test_loads_as_equal_as_can_be():
    """Seven tokens for three experts: 3, 2, 2; and every expert where k is their number."""
    scores = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    out = balanced_topk(scores, 1)
    assert out.status == ji.Status.PRECISION_FLOOR and sorted(out.load.tolist()) == [2, 2, 3]
    full = balanced_topk(scores, 3)
    assert full.solve.converged and full.load.tolist() == [7, 7, 7]


@pytest.mark.parametrize(("rate", "rule", "steps"), [
    (0.02, "constant", 23), (1.0, "harmonic", 16), (0.1, "root", 8), (1e-3, "sign", 261),
    (1e-2, "sign", None)])
def test_published_rules_take_the_measured_steps(rate, rule, steps):
    assert steps_to_balance(router_scores(), K, rate, rule, 300) == steps


def test_biases_of_layers_are_those_of_each():
    balance = loss_free_bias(0.1, "root")
    load = np.random.default_rng(2).integers(0, 9, size=(3, 4)).astype(np.float32)
    state = balance.init((3, 4))
    bias = np.zeros((3, 4))
    for count in (1, 2):
        state = balance.update(load, state)
        mean = load.mean(1, keepdims=True)
        bias += 0.1 * (mean - load) / mean / np.sqrt(count)
        bias -= bias.mean(1, keepdims=True)
    np.testing.assert_allclose(state.bias, bias, atol=1e-6)
    np.testing.assert_allclose(balance.update(0 * load, state).bias, bias, atol=1e-6)


def test_bad_input():
    scores = jnp.ones((4, 3))
    for call, text in (
            (lambda: balanced_topk(scores, 4), "number of experts, 3, got 4"),
            (lambda: balanced_topk(scores, 0), "got 0"),
            (lambda: balanced_topk(scores[0], 1), "non-empty matrix"),
            (lambda: balanced_topk(scores * jnp.nan, 1), "NaN or infinity"),
            (lambda: balanced_topk(scores, 1, init=jnp.zeros(2)), r"shape \(3,\)"),
            (lambda: balanced_topk(scores, 1, adjoint=ji.implicit()), "no derivative"),
            (lambda: loss_free_bias(0.1, "step"), "rule must be one of"),
            (lambda: loss_free_bias(0.0), "rate must be positive")):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.slow
def test_routing_is_a_front():
    check_front(lambda scores, **options: balanced_topk(scores, K, **options),
                jnp.asarray(router_scores(64, 8)))
