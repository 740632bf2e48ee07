"""The public contract of fixed_point: counts, statuses, invariants, resume, caches, args."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxiter as ji
from jaxiter import Status
from jaxiter.stop import never


def half(x):
    return 0.5 * x + 1.0


def test_counts_evaluations_from_one():
    solved = ji.fixed_point(half, jnp.full(3, 2.0))
    assert solved.steps == 1 and solved.converged and solved.residual == 0
    untouched = ji.fixed_point(half, jnp.zeros(3), max_steps=0)
    assert untouched.status == Status.MAX_STEPS and untouched.steps == 0
    assert np.isinf(untouched.residual)
    np.testing.assert_array_equal(untouched.value, np.zeros(3))
    seven = ji.fixed_point(half, jnp.zeros(3), max_steps=7)
    assert seven.status == Status.MAX_STEPS and seven.steps == 7
    np.testing.assert_allclose(seven.value, 2 - 2 * 0.5**6, rtol=1e-6)


def test_value_is_the_point_that_was_measured():
    for solver in (ji.picard(), ji.anderson(3), ji.damped(0.6)):
        sol = jax.jit(lambda x, s=solver: ji.fixed_point(jnp.cos, x, solver=s))(jnp.ones(5))
        np.testing.assert_array_equal(jnp.cos(sol.value) - sol.value, sol.displacement)
        norm = np.linalg.norm(np.float64(sol.displacement))
        np.testing.assert_allclose(sol.residual, norm, rtol=4 * np.finfo(np.float32).eps)


def test_nan_keeps_the_last_finite_point():
    sol = ji.fixed_point(lambda x: jnp.where(x > 3, jnp.nan, x + 1), jnp.zeros(()))
    assert sol.status == Status.NONFINITE and sol.steps == 5 and sol.value == 4
    overflow = ji.fixed_point(lambda x: x * x, jnp.full(2, 3.0))
    assert overflow.status == Status.NONFINITE and np.all(np.isfinite(overflow.value))
    diverging = ji.fixed_point(lambda x: 1.5 * x + 1, jnp.zeros(2))
    assert diverging.status == Status.DIVERGED


def test_guard_recovers_from_nan_outside_the_domain():
    """An extrapolation that leaves the domain is rejected, not fatal."""

    def step(x):  # defined on positive numbers only; the fixed point is 1/4
        return jnp.where(x > 0, jnp.sqrt(jnp.abs(x)) / 2, jnp.nan)

    sol = ji.fixed_point(step, jnp.full(1, 30.0), solver=ji.anderson(3, period=1))
    assert sol.converged, sol.message()
    np.testing.assert_allclose(sol.value, 0.25, rtol=1e-3)


def test_precision_floor_is_not_convergence():
    """L18: float32 cannot resolve a tolerance of 1e-12; the iterate only stops moving."""
    sol = ji.fixed_point(
        lambda x: 0.9 * x + 0.123, jnp.zeros(3, jnp.float32), stop=ji.tolerance(rtol=1e-12, atol=0))
    assert sol.status == Status.PRECISION_FLOOR
    np.testing.assert_allclose(sol.value, 1.23, rtol=1e-5)


def test_scaling_does_not_fool_the_norms():
    """Huge and tiny problems are never called converged by overflow or underflow."""
    for size in (1e-30, 1e30):
        sol = ji.fixed_point(lambda x, s=size: 0.5 * x + s, jnp.zeros(3),
                             stop=ji.tolerance(rtol=1e-4, atol=0), max_steps=40)
        truth = abs(0.5 * sol.value + size - sol.value) <= 1e-3 * abs(sol.value)
        assert not sol.converged or np.all(truth)
        np.testing.assert_allclose(
            sol.residual, np.linalg.norm(np.float64(sol.displacement)), rtol=1e-5)


def test_check_every_and_keep_best():
    exact = ji.fixed_point(jnp.cos, jnp.ones(4))
    lazy = ji.fixed_point(jnp.cos, jnp.ones(4), check_every=5)
    assert lazy.converged and lazy.steps % 5 == 0 and lazy.steps >= exact.steps
    np.testing.assert_allclose(lazy.residual, jnp.linalg.norm(jnp.cos(lazy.value) - lazy.value))
    short = ji.fixed_point(jnp.cos, jnp.ones(4), check_every=5, max_steps=8)
    assert short.steps == 8 and short.status == Status.MAX_STEPS
    broken = ji.fixed_point(
        lambda x: jnp.where(x > 7, jnp.nan, x + 1), jnp.zeros(2), check_every=3)
    assert broken.status == Status.NONFINITE and np.all(np.isfinite(broken.value))

    def wobble(x):  # leaves its best point again
        return x + jnp.where(x < 2, 0.5 * (2.1 - x), 1.0)

    last = ji.fixed_point(wobble, jnp.zeros(()), max_steps=30, stop=never())
    best = ji.fixed_point(wobble, jnp.zeros(()), max_steps=30, stop=never(), keep_best=True)
    assert best.residual < last.residual
    np.testing.assert_allclose(jnp.abs(wobble(best.value) - best.value), best.residual)


def test_resume_counts_and_is_bitwise():
    def run(steps, state=None):
        return ji.fixed_point(jnp.cos, jnp.ones(3), solver=ji.anderson(2), max_steps=steps,
                              stop=never(), resume=state)

    whole, part = run(9), run(4)
    assert part.steps == 4
    jax.tree.map(np.testing.assert_array_equal, whole, run(9, part.state))
    with pytest.raises(TypeError, match="resume"):
        ji.fixed_point(jnp.cos, jnp.ones(4), solver=ji.anderson(2), resume=part.state)
    with pytest.raises(TypeError, match="resume"):
        ji.fixed_point(jnp.cos, jnp.ones(3), resume=part.state)


def test_has_aux_carries_gradients():
    def step(x, a):
        return 0.5 * jnp.cos(a * x), {"square": a * x**2}

    def aux(a):
        return jnp.sum(ji.fixed_point(step, jnp.zeros(2), a, has_aux=True).aux["square"])

    h = 1e-2
    np.testing.assert_allclose(jax.grad(aux)(0.8), (aux(0.8 + h) - aux(0.8 - h)) / (2 * h),
                               rtol=2e-2)


def test_cache_is_rebuilt_and_differentiated():
    builds = ji.Problem(
        step=lambda x, c, a: jnp.cos(a * x) * 0.5 + 0 * c,
        cache=lambda x, a: jnp.exp(-a) + x[0], refresh=3)
    direct = ji.Problem(step=lambda x, c, a: 0.5 * c * jnp.cos(x), cache=lambda x, a: a**2,
                        refresh=4)

    def solve(problem, a):
        return ji.fixed_point(problem, jnp.ones(2), a)

    assert solve(builds, 0.7).converged
    plain = ji.fixed_point(lambda x, a: 0.5 * a**2 * jnp.cos(x), jnp.ones(2), 0.9)
    cached = solve(direct, 0.9)
    assert cached.steps == plain.steps
    np.testing.assert_allclose(cached.value, plain.value)
    g = jax.grad(lambda a: jnp.sum(solve(direct, a).value))(0.9)
    e = jax.grad(lambda a: jnp.sum(ji.fixed_point(
        lambda x, a: 0.5 * a**2 * jnp.cos(x), jnp.ones(2), a).value))(0.9)
    np.testing.assert_allclose(g, e, rtol=1e-5)
    capped = jax.jit(lambda a: ji.fixed_point(direct, jnp.ones(2), a, max_steps=6))(0.9)
    assert capped.steps == 6


def test_a_cache_is_rebuilt_where_it_is_stale(x64):
    """Rebuilt once x has moved: the same answer, also batched; each build records its x."""
    problem = ji.Problem(
        step=lambda x, c, a: a * x + (1 - a), cache=lambda x, a: x, refresh=2,
        stale=lambda x, c, a: jnp.abs(x - c) > 0.5)
    # This one sees the cache alone, and never stops by itself.
    seen = problem._replace(step=lambda x, c, a: a * c + (1 - a),
                            merit=lambda x, image, c, a: jnp.float64(1.0) + 0 * x)

    def solve(problem, a, **keywords):
        return ji.fixed_point(problem, jnp.float64(0.0), a, **keywords)

    assert solve(problem, 0.5).converged
    # From 0 the cache is 0 until x = 1 - a is judged: 0.7 is stale, 0.3 is not.
    assert float(solve(seen, 0.3, max_steps=3).value) == pytest.approx(0.7)
    assert float(solve(seen, 0.3, max_steps=4).value) == pytest.approx(0.3 * 0.7 + 0.7)
    assert float(solve(seen, 0.7, max_steps=9).value) == pytest.approx(0.3)
    rates = jnp.array([0.3, 0.7, 0.5])
    batch = jax.vmap(lambda a: solve(seen, a, max_steps=4))(rates)
    single = [float(solve(seen, a, max_steps=4).value) for a in rates]
    np.testing.assert_allclose(batch.value, single)
    unrolled = jax.jit(jax.grad(lambda a: solve(
        seen, a, max_steps=4, adjoint=ji.unrolled()).value))(0.3)
    np.testing.assert_allclose(unrolled, -2 * 0.3, rtol=1e-12)  # of 1 - a^2


def test_memory_is_carried_and_frozen_for_the_adjoint(x64):
    """A step that adapts its own damping; the solution does not depend on it."""
    problem = ji.Problem(
        step=lambda x, m, a: (x + m * (jnp.cos(a * x) - x), 0.5 + 0.5 * m),
        memory=lambda x, a: jnp.float64(0.1))

    def value(a):
        return jnp.sum(ji.fixed_point(problem, jnp.zeros(2), a,
                                      stop=ji.tolerance(rtol=0, atol=1e-12)).value)

    h = 1e-6
    np.testing.assert_allclose(jax.grad(value)(0.8), (value(0.8 + h) - value(0.8 - h)) / (2 * h),
                               rtol=1e-6)


def test_retract_keeps_points_in_the_domain():
    problem = ji.Problem(step=lambda x: 0.3 * x - 0.5, retract=lambda x: jnp.maximum(x, 0.25))
    sol = ji.fixed_point(problem, jnp.ones(2), max_steps=20)
    assert np.all(sol.value == 0.25) and sol.status != Status.CONVERGED


def test_equinox_models_and_dictionaries_are_args():
    model = eqx.nn.MLP(3, 3, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: 0.3 * leaf if eqx.is_array(leaf) else leaf, model)

    def loss(model, scale):
        def step(x, model, config):
            return model(x) + config["scale"] * jnp.ones(3)

        return jnp.sum(ji.fixed_point(step, jnp.zeros(3), model, {"scale": scale}).value ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(model, jnp.asarray(0.5))
    leaf = gradient.layers[0].weight
    assert leaf.shape == (8, 3) and float(jnp.abs(leaf).max()) > 0
    keys = jax.random.split(jax.random.key(1), 2)  # PRNG keys and integers may be args
    out = jax.grad(lambda s: ji.fixed_point(
        lambda x, s, k, i: 0.5 * x * s + jax.random.normal(k[i]) * 0.1, jnp.zeros(()), s, keys,
        jnp.int32(1)).value)(jnp.asarray(0.5))
    assert np.isfinite(out)


@pytest.mark.parametrize("solve", [
    lambda T, x: ji.fixed_point(T, x).value,
    jax.grad(lambda T, x: ji.fixed_point(lambda y: T(y) * x, 1.0).value, argnums=1),
    lambda T, x: ji.solve_many(T, x[None]).value])
def test_a_map_is_traced_once_to_be_measured_and_once_in_the_loop(solve):
    calls = []
    jax.jit(lambda x: solve(lambda y: calls.append(0) or jnp.cos(y), x)).trace(1.0)
    assert len(calls) == 2


def test_numbers_are_traced_not_static():
    traces = 0

    def solve(alpha, tol, limit):
        nonlocal traces
        traces += 1
        return ji.fixed_point(half, jnp.zeros(2), solver=ji.guard(ji.damped(alpha), 1 + alpha),
                              stop=ji.tolerance(rtol=tol, atol=0.0), max_steps=limit).steps

    jitted = jax.jit(solve)
    steps = [int(jitted(a, t, n)) for a, t, n in ((0.5, 1e-3, 50), (0.9, 1e-3, 50),
                                                  (0.9, 1e-5, 50), (0.9, 1e-5, 3))]
    assert traces == 1 and len(set(steps)) == 4 and steps[-1] == 3
    batch = jax.vmap(lambda a: solve(a, 1e-4, 100))(jnp.array([0.3, 0.6, 0.9]))
    assert np.all(np.diff(batch) < 0)


def test_composes_with_optax():
    sol = ji.fixed_point(half, jnp.zeros(2), solver=optax.chain(
        ji.anderson(3, safeguard=None), optax.scale(0.9)))
    assert sol.converged
    sgd = ji.fixed_point(half, jnp.zeros(2), solver=optax.sgd(-0.7, momentum=0.1))
    assert sgd.converged
    # L26: MultiSteps calls update with params=...
    multi = optax.MultiSteps(ji.anderson(2), every_k_schedule=2)
    params, state = jnp.zeros(2), multi.init(jnp.zeros(2))
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps itself mixes int32 and float32
        for _ in range(12):
            update, state = multi.update(half(params) - params, state, params=params)
            params = optax.apply_updates(params, update)
    np.testing.assert_allclose(params, 2, rtol=1e-3)


def test_root_and_messages():
    sol = ji.root(lambda x, a: x**3 - a, jnp.full(2, 1.5), jnp.array([2.0, 3.0]))
    assert sol.check() is sol
    np.testing.assert_allclose(sol.value, np.cbrt([2.0, 3.0]), rtol=1e-4)
    g = jax.jit(jax.jacobian(lambda a: ji.root(lambda x, a: x**3 - a, jnp.full(2, 1.5), a).value))(
        jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(np.diag(g), np.cbrt([2.0, 3.0]) / np.array([6.0, 9.0]), rtol=1e-3)
    failed = ji.fixed_point(lambda x: -x, jnp.ones(2), max_steps=5)
    with pytest.raises(RuntimeError, match="MAX_STEPS after 5 steps"):
        failed.check()
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: ji.fixed_point(half, x).check().value)(jnp.ones(2))
    for code in range(12):
        assert Status.name(code) and len(Status.message(code)) > 20
    batch = jax.vmap(lambda x: ji.fixed_point(half, x))(jnp.ones((3, 2)))
    assert "3 x CONVERGED" in batch.message()


def test_solve_inside_a_compiled_loop():
    def outer(c, _):
        return c + ji.fixed_point(lambda x: 0.5 * x + c, jnp.zeros(())).value * 0.1, None

    total, _ = jax.jit(lambda c: lax.scan(outer, c, length=3))(jnp.asarray(1.0))
    np.testing.assert_allclose(total, 1.2**3, rtol=1e-4)
