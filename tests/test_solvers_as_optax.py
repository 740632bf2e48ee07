"""The solvers in a training loop: what optax's own tests ask of a transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from tests import optax_contract as contract

SOLVERS = {
    "picard": ji.picard,
    "damped": lambda: ji.damped(0.5),
    "inertial": lambda: ji.inertial(0.5),
    "overrelaxed": ji.overrelaxed,
    "squarem": ji.squarem,
    "squarem bare": lambda: ji.squarem(None),
    "descending": lambda: ji.descending(optax.sgd(0.8, momentum=0.1)),
    "anderson": ji.anderson,
    "anderson bare, type I": lambda: ji.anderson(3, safeguard=None, kind=1),
    "halpern": ji.halpern,
    "halpern adaptive": lambda: ji.halpern("adaptive", weights="adaptive"),
    "halpern contraction": lambda: ji.halpern(0.3, contraction=0.9),
    "guard": lambda: ji.guard(ji.damped(0.5)),
    "restarted": lambda: ji.restarted(ji.halpern(), every=5, increase=2.0),
}
INJECTED = {
    "damped": (ji.damped, {"alpha": 0.5}, ()),
    "inertial": (ji.inertial, {"beta": 0.5}, ()),
    "overrelaxed": (ji.overrelaxed, {}, ()),
    "squarem": (ji.squarem, {}, ()),
    "anderson": (ji.anderson, {}, ("memory", "period", "kind")),
    "halpern": (ji.halpern, {"restart": 0.3, "contraction": 0.9}, ()),
    "guard": (ji.guard, {"solver": ji.damped(0.5)}, ()),
    "restarted": (ji.restarted, {"solver": ji.inertial(0.5), "every": 5, "increase": 2.0}, ()),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_types_and_wrappers(name):
    make = SOLVERS[name]
    contract.check_dtypes(make, contract.TREE)
    contract.check_wrappers(make, contract.TREE)
    contract.check_map_params(make, contract.TREE)
    contract.check_shardings(make)


@pytest.mark.parametrize("name", SOLVERS)
def test_empty_trees(name):
    contract.check_empty(SOLVERS[name])


@pytest.mark.parametrize("name", SOLVERS)
def test_init(name):
    contract.check_init(SOLVERS[name], contract.TREE)


@pytest.mark.parametrize("name", INJECTED)
def test_injected_numbers(name):
    factory, options, static = INJECTED[name]
    contract.check_injected(factory, contract.TREE, static, **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_around_gradient_descent(name):
    """`optax.chain(sgd, solver)` finds the least of a parabola of real and complex leaves."""
    scales = {"x": np.array([1.0, 0.7, 0.4], np.float32), "z": np.array([0.9, 0.5], np.float32)}
    best = {"x": np.array([1.0, -1.0, 2.0], np.float32), "z": np.array([1 - 1j, 2j], np.complex64)}
    # Halpern's plain weights fall like 1 / k; the others are linear.
    steps = 4000 if name == "halpern" else 400
    optimizer = optax.chain(optax.sgd(0.5), SOLVERS[name]())

    def step(carry, _):
        params, state = carry
        gradient = jax.tree.map(lambda a, p, b: jnp.asarray(a).astype(p.dtype) * (p - b), scales,
                                params, best)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), best)
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(
        step, (p, optimizer.init(p)), None, length=steps))(start)
    for found, wanted in zip(*map(jax.tree.leaves, (params, best)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision(name):
    """Residuals of zero, of the smallest and of common size in float16: every point is finite."""
    tiny = float(jnp.finfo("float16").smallest_subnormal)
    sizes = jnp.asarray([0.0, tiny, 0.5, 0.0, tiny, 1.0], jnp.float16)
    shape = jnp.asarray([[1.0, -0.5, 0.3]], jnp.float16)
    solver = SOLVERS[name]()

    def step(carry, size):
        x, state = carry
        increment, state = solver.update(size * shape, state, x)
        return (x + increment, state), x + increment

    points = jax.jit(lambda x: jax.lax.scan(step, (x, solver.init(x)), sizes)[1])(shape)
    assert points.dtype == jnp.float16 and jnp.all(jnp.isfinite(points))
    if not name.startswith("halpern"):  # its first step pulls to an anchor that x left
        np.testing.assert_array_equal(points[0], shape)


def turned(x):
    """A contraction with a spiral, slow enough that the memory matters."""
    a = jnp.array([[0.8, -0.5, 0.0], [0.5, 0.8, 0.1], [0.0, 0.1, 0.97]])
    return 0.98 * jnp.matmul(a, x, precision="highest") + jnp.array([1.0, 0.0, -0.5])


@pytest.mark.parametrize("make", [lambda: ji.anderson(2), lambda: ji.anderson(2, 1, kind=1),
                                  lambda: ji.guard(ji.damped(1.5), 1.0),
                                  lambda: ji.anderson(2, safeguard=None)])
def test_a_chain_remembers_what_the_driver_hands_over(make):
    """The same points whoever keeps the last evaluation; in a chain the residual is another one."""
    def solve(step, solver):
        return jax.jit(lambda: ji.fixed_point(
            step, jnp.zeros(3), solver=solver, max_steps=9, stop=ji.tolerance(rtol=0, atol=1e-9),
            monitor=ji.record(9, value=lambda x: x)))().trace["value"]

    def halved(x):
        return x + 0.5 * (turned(x) - x)

    alone, chained = solve(turned, make()), solve(turned, optax.chain(make(), optax.scale(1.0)))
    np.testing.assert_allclose(alone, chained, rtol=1e-3, atol=1e-4)
    scaled = solve(turned, optax.chain(optax.scale(0.5), make()))
    np.testing.assert_allclose(solve(halved, make()), scaled, rtol=1e-3, atol=1e-4)
    assert not np.allclose(alone, scaled, rtol=0.1)


def test_no_vector_is_kept_twice():
    """Beside the histories the driver's state has the point, its image, the next, and the best."""
    state = jax.eval_shape(lambda: ji.fixed_point(
        lambda x: 0.5 * x, jnp.zeros(100), solver=ji.anderson(5)).state)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert shapes.count((100,)) == 4 and shapes.count((5, 100)) == 2
