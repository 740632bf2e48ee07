"""One large problem over many devices: what every iteration communicates, and what it holds.

A heat equation whose grid rows are spread, and a deep equilibrium layer spread by batch or by
feature, each against the same solve on one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiter as ji
from jaxiter.testing import collectives
from jaxiter.testing.problems import heat

SIZE, WIDTH = 256, 64


def layer(z, w, x, whole=None):
    """A deep equilibrium layer; `whole` says how to bring spread features together."""
    return jnp.tanh((z if whole is None else jax.reshard(z, whole)) @ w + x)


def solve(step, every, *args, **keywords):
    def run(*args):
        out = ji.fixed_point(step, jnp.zeros_like(args[-1]), *args, check_every=every,
                             max_steps=1000, **keywords)
        return out.value, out.steps, out.status

    return jax.jit(run).lower(*args).compile()


@functools.cache
def data():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=(SIZE, SIZE)), jnp.float32),
            jnp.asarray(0.5 * rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH), jnp.float32),
            jnp.asarray(rng.normal(size=(32, WIDTH)), jnp.float32))


@pytest.mark.parametrize("solver", [ji.picard(), ji.damped(0.9)])
def test_grid_rows(solver):
    """Two exchanges of edges an iteration; the stop test's reductions only when it is due."""
    source, programs = data()[0], {}
    for devices in (2, 8):
        mesh = jax.make_mesh((devices,), ("rows",), axis_types=(AxisType.Auto,),
                             devices=jax.devices()[:devices])
        spread = jax.device_put(source, NamedSharding(mesh, P("rows", None)))
        programs[devices] = solve(heat, 1, spread, solver=solver)
    often, seldom = programs[8], solve(heat, 10, spread, solver=solver)
    assert collectives(often).looped == {"all-reduce": 1, "collective-permute": 2}
    assert collectives(seldom).looped == {"collective-permute": 2}
    assert collectives(seldom).branched == {"all-reduce": 2}
    one = solve(heat, 1, source, solver=solver)(source)
    value, steps, status = often(spread)
    assert status == ji.Status.CONVERGED and value.sharding.spec == P("rows", None)
    assert abs(int(steps) - int(one[1])) <= 1
    np.testing.assert_allclose(value, one[0], atol=2e-3)
    assert 0 <= int(seldom(spread)[1]) - int(steps) < 10
    held = {n: c.memory_analysis().temp_size_in_bytes for n, c in programs.items()}
    assert held[8] < 0.3 * held[2], held


@pytest.mark.parametrize("kind,by", [
    (AxisType.Auto, "batch"), (AxisType.Explicit, "feature"),
    pytest.param(AxisType.Explicit, "batch", marks=pytest.mark.slow),
    pytest.param(AxisType.Auto, "feature", marks=pytest.mark.slow)])
def test_layer(kind, by):
    """By batch no iteration communicates; by feature it gathers the layer's input once."""
    _, w, x = data()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    specs = (P(), P("d")) if by == "batch" else (P(None, "d"), P(None, "d"))
    explicit = kind == AxisType.Explicit and by == "feature"
    step = functools.partial(layer, whole=P() if explicit else None)
    with jax.set_mesh(mesh):
        args = [jax.device_put(a, NamedSharding(mesh, s))
                for a, s in zip((w, x), specs, strict=True)]
        often, seldom = (solve(step, every, *args) for every in (1, 5))
        per_step = {} if by == "batch" else {"all-gather": 1}
        assert collectives(often).looped == per_step | {"all-reduce": 1}
        assert collectives(seldom).looped == per_step

        def loss(w, x):
            return jnp.sum(ji.fixed_point(step, jnp.zeros_like(x), w, x).value ** 2)

        gradient = jax.jit(jax.grad(loss))(*args)
        ours = often(*args)
    reference = solve(layer, 1, w, x)(w, x)
    np.testing.assert_allclose(ours[0], reference[0], atol=1e-4)
    assert abs(int(ours[1]) - int(reference[1])) <= 1

    def plain(w):
        return jnp.sum(lax.fori_loop(0, 40, lambda i, z: layer(z, w, x), 0 * x) ** 2)

    exact = jax.jit(jax.jacfwd(plain))(w) if by == "batch" else None
    if exact is not None:
        np.testing.assert_allclose(gradient, exact, rtol=2e-3, atol=2e-3)


def test_overflow_between_looks_is_found_at_the_next():
    """With check_every the last measured finite point is kept."""
    out = jax.jit(lambda: ji.fixed_point(
        lambda x: 1e4 * x, jnp.ones(3), check_every=4, max_steps=50,
        stop=ji.tolerance(rtol=0, atol=1e-3)))()
    assert out.status == ji.Status.NONFINITE and out.steps == 12  # 1e48; 1e32 was fine
    assert np.all(np.isfinite(out.value)) and not out.converged


def test_what_is_closed_over_may_be_spread():
    """x0 says nothing of devices then: T is traced once more, and the carry typed by it."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    shift = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("rows")))
    out = jax.jit(lambda x0: ji.fixed_point(lambda x: 0.5 * x + shift, x0).value)(jnp.zeros(8))
    np.testing.assert_allclose(out, 2 * np.arange(8), rtol=1e-4)
