"""Half precision, complex parameters, gradients that are missing, and where each method ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from jaxiter.optim import (
    a_dog,
    alr,
    cautious,
    cautious_momentum,
    evaluation_params,
    grams,
    mars_correction,
    mars_m,
    nag_gs,
    opt_amsgrad,
    power_sgd,
    record_gradient_norm,
    scale_by_shampoo,
    sign_agreement,
    trace_complex,
    u_dog,
)


def then(transformation, rate):
    return optax.chain(transformation, optax.scale_by_learning_rate(rate))


ADAM = optax.chain(optax.scale_by_adam(), optax.scale(-0.1))
# By method: one for a parabola with real, complex and matrix leaves, one for Rosenbrock's valley.
MAKERS = {
    "alr mag": (alr, alr),
    "alr hb": (lambda: alr("hb", beta=0.5), lambda: alr("hb")),
    "nag_gs": (lambda: nag_gs(0.1), lambda: nag_gs(0.05)),
    "a_dog": (a_dog, a_dog),
    "u_dog": (lambda: u_dog(1e-2), lambda: u_dog(1e-2)),
    "cautious": (lambda: cautious(ADAM), lambda: cautious(ADAM)),
    "sign": (lambda: sign_agreement(ADAM, "gradient_sign"),) * 2,
    "cautious_momentum": (lambda: then(cautious_momentum(), 0.1),
                          lambda: then(cautious_momentum(), 0.002)),
    "grams": (lambda: grams(0.1), lambda: grams(optax.linear_schedule(0.1, 0.0, 10_000))),
    "mars": (lambda: optax.chain(mars_correction(), ADAM),) * 2,
    "mars_m": (lambda: mars_m(optax.linear_schedule(0.3, 0.0, 10_000)), lambda: mars_m(0.1)),
    "opt_amsgrad": (lambda: opt_amsgrad(0.1),) * 2,
    "opt_amsgrad rmpe": (lambda: opt_amsgrad(0.1, predictor="rmpe"),
                         lambda: opt_amsgrad(0.02, predictor="rmpe")),
    "power_sgd": (lambda: then(power_sgd(None, 1, 0.0), 0.1),
                  lambda: then(power_sgd(None), 0.002)),
    "trace_complex": (lambda: then(trace_complex(), 0.1), lambda: then(trace_complex(), 0.001)),
    "norms": (lambda: then(record_gradient_norm(9, 1), 0.1),
              lambda: then(record_gradient_norm(9), 0.002)),
}


def squares(z):
    return jnp.square(z.real) + jnp.square(z.imag) if jnp.iscomplexobj(z) else jnp.square(z)


BEST = {"x": np.array([1.0, -1.0, 1.0], np.float32),
        "z": np.array([1 + 1j, -1 - 1j], np.complex64),
        "w": np.array([[3.0, -2.0], [1.0, 4.0]], np.float32),
        "m": np.array([[1, 1j], [0.5 - 1j, 2]], np.complex64)}
FAR = {"x": np.array([-1.0, 10.0, 1.0], np.float32), "z": np.array([-1, 10j], np.complex64),
       "w": np.zeros((2, 2), np.float32), "m": np.zeros((2, 2), np.complex64)}


def parabola(p):
    return sum(jnp.sum(squares(leaf)) for leaf in jax.tree.leaves(jax.tree.map(
        lambda a, b: a - jnp.asarray(b), p, BEST)))


def valley(p):
    return squares(1 - p["x"][0]) + 100 * squares(p["x"][1] - p["x"][0] ** 2)


def descend(optimizer, loss, start, steps):
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.tree.map(jnp.conj, grads)  # jax gives the conjugate of the direction
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    start = jax.tree.map(jnp.asarray, start)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, length=steps))(start)


@pytest.mark.parametrize("name", MAKERS)
def test_where_descent_ends(name):
    """A parabola of real and complex leaves, and Rosenbrock's valley."""
    def end(make, loss, start):
        (params, state), _ = descend(make(), loss, start, 10_000)
        return evaluation_params(state, params) if name in ("a_dog", "u_dog") else params

    easy, hard = MAKERS[name]
    for leaf, best in zip(jax.tree.leaves(end(easy, parabola, FAR)), jax.tree.leaves(BEST),
                          strict=True):
        np.testing.assert_allclose(leaf, best, rtol=3e-2, atol=3e-2)
    found = end(hard, valley, {"x": np.zeros(2, np.float32)})
    np.testing.assert_allclose(found["x"], [1, 1], rtol=3e-2, atol=3e-2)


def test_shampoo_ends_at_matrices():
    start = {"w": FAR["w"], "m": FAR["m"]}

    def loss(p):
        return parabola({**p, "x": jnp.asarray(BEST["x"]), "z": jnp.asarray(BEST["z"])})

    rate = optax.linear_schedule(0.3, 0.0, 2000)
    (params, _), _ = descend(then(scale_by_shampoo(every=1), rate), loss, start, 2000)
    for key in start:
        np.testing.assert_allclose(params[key], BEST[key], rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", ["alr mag", "alr hb", "nag_gs", "a_dog", "u_dog",
                                  "trace_complex"])
def test_complex_parameters_are_pairs_of_real_ones(name):
    """Methods of whole-tree norms and linear sequences see the plane, not the number."""
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))).astype(np.complex64)
    b = a @ (rng.normal(size=3) + 1j * rng.normal(size=3)).astype(np.complex64)

    def loss(z):
        return jnp.sum(squares(jnp.asarray(a) @ z - jnp.asarray(b))) / 8

    def loss_of_pair(pair):
        return loss(jax.lax.complex(*pair))

    make = MAKERS[name][0]
    (z, _), values = descend(make(), loss, np.zeros(3, np.complex64), 10)
    (pair, _), others = descend(make(), loss_of_pair, (np.zeros(3, np.float32),) * 2, 10)
    np.testing.assert_allclose(values, others, rtol=1e-3)
    np.testing.assert_allclose(z, np.asarray(pair[0]) + 1j * np.asarray(pair[1]), rtol=1e-3,
                               atol=1e-4)
    assert values[-1] < values[0]


def sequence(optimizer, gradients):
    """The updates for gradients `[k, ...]`, from zero parameters, under one compilation."""
    def step(state, g):
        updates, state = optimizer.update(g, state, jax.tree.map(jnp.zeros_like, g))
        return state, updates

    return jax.lax.scan(step, optimizer.init(jax.tree.map(lambda g: g[0], gradients)), gradients)[1]


@pytest.mark.parametrize("name", ["cautious", "grams", "mars_m", "opt_amsgrad",
                                  "opt_amsgrad rmpe", "power_sgd", "shampoo"])
def test_complex_updates_turn_with_the_gradients(name):
    """One angle for all gradients is that angle for all updates; real ones stay what they were."""
    make = (lambda: scale_by_shampoo(every=2)) if name == "shampoo" else MAKERS[name][0]
    rng = np.random.default_rng(0)
    real = {"w": rng.normal(size=(6, 3, 2)).astype(np.float32)}
    if name != "shampoo":
        real["b"] = rng.normal(size=(6, 3)).astype(np.float32)
    imaginary = jax.tree.map(lambda g: rng.normal(size=g.shape).astype(np.float32), real)
    numbers = jax.tree.map(lambda x, y: (x + 1j * y).astype(np.complex64), real, imaginary)
    turn = np.complex64(np.exp(0.7j))

    @jax.jit
    def both(real, numbers):
        with jax.numpy_dtype_promotion("standard"):
            three = jax.tree.map(lambda x, z: jnp.stack([z, turn * z, x.astype(z.dtype)]), real,
                                 numbers)
            # power_sgd's random start differs between real and complex numbers.
            plain = sequence(make(), real) if name != "power_sgd" else None
            return jax.vmap(lambda g: sequence(make(), g))(three), plain

    three, plain = both(real, numbers)
    updates, turned, lifted = (jax.tree.map(lambda u, i=i: u[i], three) for i in range(3))
    for a, b, g in zip(*map(jax.tree.leaves, (updates, turned, numbers)), strict=True):
        np.testing.assert_allclose(turn * a, b, rtol=2e-3, atol=2e-4)
        if name == "cautious":
            axes = tuple(range(1, g.ndim))
            assert np.all(np.sum((np.conj(g) * a).real, axis=axes) < 0)
    if plain is not None:
        for a, b in zip(*map(jax.tree.leaves, (plain, lifted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_complex_matrices_against_singular_values():
    """The first step of Shampoo is |G| U S^-1 V^H; MARS-M's is near U V^H; full rank is G."""
    rng = np.random.default_rng(0)
    g = (rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))).astype(np.complex64)
    u, s, vh = np.linalg.svd(g)

    def step(optimizer):
        return jax.jit(lambda g: optimizer.update(g, optimizer.init(g), jnp.zeros_like(g))[0])(g)

    first = step(scale_by_shampoo(b1=0.0, b2=0.0, every=1, damping=1e-6))
    np.testing.assert_allclose(first, np.linalg.norm(g) * (u / s) @ vh, rtol=2e-3, atol=2e-3)
    polar = np.asarray(step(mars_m(1.0))) / (-0.2 * np.sqrt(3))
    assert np.linalg.norm(polar - u @ vh, 2) < 0.4  # five standard steps leave 0.32
    np.testing.assert_allclose(step(power_sgd(None, 3, 0.0)), g, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        mars_m(1.0, preconditioning="schatten").init(jnp.asarray(g))


HALF = [(name, "float16") for name in MAKERS if name not in ("cautious", "sign")]


@pytest.mark.parametrize("name, kind", HALF + [
    (name, "bfloat16") for name in ("alr mag", "opt_amsgrad")])
def test_half_precision_is_float32_rounded(name, kind):
    """Zero, smallest, largest and common gradients in turn: rounding, and a NaN only for a NaN."""
    info = jnp.finfo(kind)
    sizes = [0.0, float(info.smallest_subnormal), float(info.tiny), 0.5,
             float(info.max) if kind == "float16" else 1e10, 1.0, np.nan]
    half = {"w": np.outer([1, -0.7], [0.3, 1, -0.5]), "b": np.array([0.2, -1.0])}
    gradients = jax.tree.map(
        lambda leaf: jnp.stack([jnp.asarray(size * leaf, kind) for size in sizes]), half)
    transformation = {"cautious_momentum": cautious_momentum, "trace_complex": trace_complex,
                      "power_sgd": lambda: power_sgd(None, 1, 0.0),
                      "norms": lambda: record_gradient_norm(9),
                      "mars": mars_correction}.get(name, MAKERS[name][0])
    optimizer = optax.with_extra_args_support(transformation())
    optimizer = optimizer._replace(
        update=lambda g, s, p, update=optimizer.update: update(g, s, p, value=jnp.float32(1)))

    @jax.jit
    def both(gradients):
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        return sequence(optimizer, gradients), sequence(optimizer, wide)

    updates, wide = both(gradients)
    for u, w in zip(*map(jax.tree.leaves, (updates, wide)), strict=True):
        assert u.dtype == kind and not np.any(np.isnan(w[:-1])) and np.all(np.isnan(w[-1]))
        np.testing.assert_array_equal(u[0], 0)
        np.testing.assert_allclose(np.float32(u), np.float32(w.astype(kind)),
                                   rtol=4 * float(info.eps), atol=4 * float(info.tiny))


def test_wrapped_optimisers_keep_their_own_precision():
    """What `cautious` wraps sees what it would see alone, and a zero gradient moves nothing."""
    params = jnp.ones(2, jnp.float16)
    for mode in ("mask", "gradient_sign"):
        optimizer = sign_agreement(optax.adam(0.1), mode)
        state = optimizer.init(params)
        assert state[0].mu.dtype == jnp.float16
        updates, state = optimizer.update(jnp.zeros_like(params), state, params)
        np.testing.assert_array_equal(updates, 0)  # adam alone: 0 / 0
        # The product of update and gradient underflows.
        updates, _ = optimizer.update(jnp.full_like(params, 1e-5), optimizer.init(params), params)
        assert jnp.all(updates < 0)
        updates, _ = optimizer.update(jnp.array([1, jnp.nan], jnp.float16), state, params)
        np.testing.assert_array_equal(jnp.isnan(updates), [False, True])  # hiding it would stall


def test_gradients_that_are_missing():
    """None for a float is a zero gradient: its average moves on."""
    optimizer, params = opt_amsgrad(0.1), {"w": jnp.ones(3), "frozen": jnp.ones(2)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    zeros, missing = ({"w": jnp.ones(3), "frozen": none} for none in (jnp.zeros(2), None))
    expected, after = optimizer.update(zeros, state, params)
    updates, new = optimizer.update(missing, state, params)
    assert updates["frozen"] is None
    np.testing.assert_array_equal(updates["w"], expected["w"])
    np.testing.assert_array_equal(new.first["frozen"], after.first["frozen"])


def test_trees_given_beside_the_gradients():
    """`grad` and `prev_point_grad` may hold integers where the gradients do."""
    g = {"w": jnp.ones(2), "table": jnp.zeros(3, jnp.int32)}
    optimizer = cautious(optax.sgd(1.0), scale="none")
    updates, _ = optimizer.update(g, optimizer.init(g), g, grad={**g, "w": jnp.array([1.0, -1.0])})
    np.testing.assert_array_equal(updates["w"], [-1, 0])
    exact = mars_correction(0.5, 1.0, clip=None, exact=True)
    state = exact.init(g)._replace(count=jnp.int32(1))
    updates, _ = exact.update(g, state, prev_point_grad={**g, "w": jnp.zeros(2)})
    np.testing.assert_array_equal(updates["w"], 2)


def test_a_donated_state():
    """A training step that gives its buffers away; and a leaf without entries."""
    params = {"none": jnp.zeros((0, 3)), "w": jnp.ones((2, 3))}
    for optimizer in (a_dog(), opt_amsgrad(0.1, predictor="rmpe"), scale_by_shampoo()):
        mine = jax.tree.map(jnp.copy, params)
        state = optimizer.init(mine)
        step = jax.jit(lambda p, s, o=optimizer: o.update(params, s, p), donate_argnums=(0, 1))
        updates, _ = step(mine, state)
        assert updates["none"].shape == (0, 3) and jnp.all(jnp.isfinite(updates["w"]))


@pytest.mark.parametrize("make", [
    lambda: opt_amsgrad(0.1, predictor="rmpe"), scale_by_shampoo], ids=["rmpe", "shampoo"])
def test_explicitly_sharded_matrices(make):
    """Over eight devices the updates are those of one, and lie where the gradients lie."""
    rows = jax.random.normal(jax.random.key(0), (3, 8, 4))
    alone = jax.jit(lambda g: sequence(make(), g))(rows)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, NamedSharding(mesh, jax.P(None, "x")))
        spread = jax.jit(lambda g: sequence(make(), g))(placed)
        assert spread.sharding.spec[1] == "x"
    np.testing.assert_allclose(spread, alone, rtol=1e-4, atol=1e-5)


def test_a_constant_schedule_is_a_rate():
    for make in (nag_gs, grams, mars_m, opt_amsgrad):
        @jax.jit
        def both(g, make=make):
            return [sequence(make(rate), g) for rate in (0.1, optax.constant_schedule(0.1))]

        a, b = both({"w": jax.random.normal(jax.random.key(0), (4, 3, 2))})
        np.testing.assert_allclose(a["w"], b["w"], rtol=1e-5)


@pytest.mark.parametrize("factory, options", [
    (opt_amsgrad, {"learning_rate": 0.1, "predictor": "rmpe"}), (scale_by_shampoo, {}),
    (power_sgd, {"axis_name": None}), (record_gradient_norm, {"total": 3})])
def test_sizes_cannot_be_traced(factory, options):
    with pytest.raises(ValueError, match="static_args"):
        optax.inject_hyperparams(factory)(**options).init(jnp.ones((3, 3)))
