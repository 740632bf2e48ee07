"""What every transformation must do: jit, vmap, odd trees, low precision, every optax wrapper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter.optim import (
    a_dog,
    alr,
    cautious,
    cautious_momentum,
    mars_correction,
    nag_gs,
    opt_amsgrad,
    power_sgd,
    record_gradient_norm,
    scale_by_shampoo,
    trace_complex,
    u_dog,
)

MAKERS = {
    "alr mag": lambda: alr("mag"),
    "alr hb": lambda: alr("hb"),
    "nag_gs": lambda: nag_gs(0.1),
    "a_dog": lambda: a_dog(0.1),
    "u_dog": lambda: u_dog(0.1),
    "cautious": lambda: cautious(optax.sgd(0.1, momentum=0.9)),
    "cautious_momentum": lambda: optax.chain(cautious_momentum(0.9), optax.scale(-0.1)),
    "mars": lambda: optax.chain(mars_correction(), optax.scale(-0.1)),
    "opt_amsgrad": lambda: opt_amsgrad(0.1, predictor="rmpe"),
    "complex momentum": lambda: optax.chain(trace_complex(), optax.scale(-0.1)),
    "power_sgd": lambda: optax.chain(power_sgd(None, 1, 0.0), optax.scale(-0.1)),
    "norms": lambda: optax.chain(record_gradient_norm(9), optax.scale(-0.1)),
    "anderson": lambda: optax.chain(optax.sgd(0.1), ji.anderson(3)),
    "halpern": lambda: optax.chain(optax.sgd(0.1), ji.halpern()),
}
TREE = {"w": jnp.array([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0]]), "b": jnp.array([0.5, -0.2]),
        "scalar": jnp.float32(0.7), "nothing": {}}


def loss(params):
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32)))
               for leaf in jax.tree.leaves(params)) / 2


def descend(optimizer, params, steps=4):
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    (params, state), values = jax.lax.scan(step, (params, optimizer.init(params)), None,
                                           length=steps)
    return params, state, values


@pytest.mark.parametrize("name", MAKERS)
def test_jit_vmap_and_mixed_trees(name):
    """A scan (so state dtypes are stable) of a batch is the loop over its problems; loss falls."""
    make = MAKERS[name]
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -0.5 * leaf]), TREE)
    batch, _, values = jax.jit(jax.vmap(lambda p: descend(make(), p)))(starts)
    single = jax.jit(lambda p: descend(make(), p))
    for i in range(3):
        one, _, _ = single(jax.tree.map(lambda leaf, i=i: leaf[i], starts))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(batch), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=2e-4, atol=1e-5)
    assert jnp.all(jnp.isfinite(values)) and jnp.all(values[:, -1] < values[:, 0])


@pytest.mark.parametrize("name", MAKERS)
def test_wrappers_precisions_and_zero_gradients(name):
    """bfloat16 parameters, MultiSteps, masked, partition; zero gradients give finite updates."""
    make = MAKERS[name]
    low = {"w": TREE["w"].astype(jnp.bfloat16)}
    rest = {"w": "ours", "b": "ours", "scalar": "other", "nothing": {}}

    def run_all():
        zero = jax.tree.map(jnp.zeros_like, TREE)
        optimizer = optax.with_extra_args_support(make())
        still, _ = optimizer.update(zero, optimizer.init(TREE), TREE, value=jnp.float32(0))
        return (
            descend(make(), low, 3)[0], still,
            descend(optax.partition({"ours": make(), "other": optax.sgd(0.1)}, rest), TREE, 3)[0],
            descend(optax.masked(make(), {"w": True, "b": False, "scalar": True, "nothing": {}}),
                    TREE, 3)[0],
            descend(optax.chain(optax.clip_by_global_norm(1.0), make()), TREE, 3)[0])

    narrow, still, *others = jax.jit(run_all)()
    assert narrow["w"].dtype == jnp.bfloat16
    for tree in (narrow, still, *others):
        assert all(np.all(np.isfinite(np.asarray(leaf, np.float32)))
                   for leaf in jax.tree.leaves(tree))
    np.testing.assert_allclose(others[0]["scalar"], 0.7 * 0.9**3, rtol=1e-5)
    np.testing.assert_allclose(others[1]["b"], 8 * TREE["b"], rtol=1e-5)  # b + b, three times

    # Two micro-batches with the same gradient are one step.
    if name not in ("u_dog", "alr mag", "alr hb"):
        plain, _, _ = jax.jit(lambda: descend(make(), TREE, 1))()
        with jax.numpy_dtype_promotion("standard"):  # MultiSteps mixes dtypes
            several, _, _ = jax.jit(lambda: descend(
                optax.MultiSteps(make(), 2).gradient_transformation(), TREE, 2))()
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_step_sizes_can_be_injected_and_batched():
    """`inject_hyperparams` makes a rate part of the state: one compile for a grid of rates."""
    optimizer = optax.inject_hyperparams(nag_gs, static_args=("constant_gamma",))(
        learning_rate=0.1, constant_gamma=True)

    def solve(rate):
        state = optimizer.init(TREE)
        state.hyperparams["learning_rate"] = rate
        params = TREE
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params["b"]

    rates = jnp.array([0.05, 0.2])
    batch = jax.jit(jax.vmap(solve))(rates)
    for i, rate in enumerate((0.05, 0.2)):
        alone = descend(nag_gs(rate, constant_gamma=True), TREE, 3)[0]["b"]
        np.testing.assert_allclose(batch[i], alone, rtol=1e-5)


def test_shampoo_with_the_rest_elsewhere():
    """Matrices by Shampoo, others by another optimiser; blocks, grafts, vmap."""
    labels = {"w": "matrix", "b": "rest", "scalar": "rest", "nothing": {}}

    def make(**keywords):
        return optax.partition({
            "matrix": optax.chain(scale_by_shampoo(every=2, **keywords), optax.scale(-0.1)),
            "rest": optax.sgd(0.1)}, labels)

    ends = jax.jit(lambda: [descend(make(**k), TREE)[2] for k in (
        {}, {"power": 0.25}, {"block_size": 2}, {"graft": optax.sgd(-1.0)})])()
    for values in ends:
        assert values[-1] < values[0] and jnp.all(jnp.isfinite(values))
    narrow = jax.jit(lambda: descend(optax.chain(scale_by_shampoo(), optax.scale(-0.1)),
                                     {"w": TREE["w"].astype(jnp.bfloat16)})[0])()
    assert narrow["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="takes matrices"):
        scale_by_shampoo().init(TREE)


@pytest.mark.parametrize("call, message", [
    (lambda: alr("fast"), "kind must be"),
    (lambda: alr(beta=1.0), r"beta must be in \[0, 1\)"),
    (lambda: alr(c=0.0), "c must be positive"),
    (lambda: alr().update(jnp.ones(1), alr().init(jnp.ones(1)), jnp.ones(1)),
     "alr needs the current loss"),
    (lambda: nag_gs(0.1).update(jnp.ones(1), nag_gs(0.1).init(jnp.ones(1))),
     "nag_gs needs the parameters"),
    (lambda: nag_gs(-1.0), "learning_rate must be positive"),
    (lambda: a_dog(0.0), "initial_movement must be positive"),
    (lambda: cautious(optax.sgd(1.0), "median"), "scale must be one of"),
    (lambda: mars_correction(1.0), r"beta must be in \(0, 1\)"),
    (lambda: mars_correction(exact=True).update(jnp.ones(1), None), "needs prev_point_grad"),
    (lambda: opt_amsgrad(0.1, predictor="oracle"), "predictor must be"),
    (lambda: opt_amsgrad(0.1, history=0), "history must be at least 1"),
    (lambda: scale_by_shampoo(0.3), "power must be"),
    (lambda: power_sgd("data", rank=0), "rank must be positive"),
    (lambda: power_sgd("data").update(
        jnp.ones((9, 9)), power_sgd("data").init(jnp.ones((9, 9)))), "no axis 'data' here"),
    (lambda: record_gradient_norm(0), "total must be at least 1"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_wrong_lower_bound_is_counted():
    optimizer = alr(f_min=10.0)
    updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2),
                                      value=jnp.float32(1))
    np.testing.assert_array_equal(updates, 0)
    assert int(state.below_f_min) == 1
    _, state = optimizer.update(jnp.ones(2), state, jnp.ones(2), value=jnp.float32(1), f_min=0.0)
    assert int(state.below_f_min) == 1 and float(state.eta) > 0
