"""The laws of devices: forward and gradient under pmap, shard_map, and sharded jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiter as ji
from jaxiter import linear
from jaxiter.testing import collectives

N, D = 8, 4
KEY = jax.random.key(0)
W = 0.5 * jax.random.normal(KEY, (D, D)) / np.sqrt(D)
B = jax.random.normal(jax.random.key(1), (N, D))
TIGHT = ji.tolerance(rtol=0, atol=1e-6)
SOLVERS = {
    "picard": ji.picard(),
    "damped": ji.damped(0.7),
    "inertial": ji.inertial(0.2),
    "descending": ji.descending(optax.sgd(0.7)),
    "anderson": ji.anderson(3),
    "squarem": ji.squarem(),
    "anderson-1": ji.anderson(3, kind=1),
    "halpern": ji.halpern("adaptive"),
    "restarted": ji.restarted(ji.halpern(), every=6),
}
ADJOINTS = {
    "implicit": ji.implicit(),
    "implicit-vjp": ji.implicit(mode="vjp"),
    "gmres": ji.implicit(linear.gmres(8)),
    "neumann": ji.neumann(20),
    "one_step": ji.one_step(20),
    "unrolled": ji.unrolled(),
}


def mesh(kind):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def solve_and_grad(solver, adjoint, close=False):
    """One problem: value and gradient with respect to the weights and the bias."""

    def loss(w, b):
        order = jnp.arange(D)  # a traced integer in the closure

        def step(x, w, b):
            return jnp.tanh(x @ w + b)[order]

        if close:
            sol = ji.fixed_point(lambda x: step(x, w, b), jnp.zeros(D), solver=solver,
                                 adjoint=adjoint, max_steps=60, stop=TIGHT)
        else:
            sol = ji.fixed_point(step, jnp.zeros(D), w, b, solver=solver, adjoint=adjoint,
                                 max_steps=60, stop=TIGHT)
        return jnp.sum(sol.value**2), sol.steps

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


@functools.cache
def reference():
    def loss(w, b):
        x = lax.fori_loop(0, 80, lambda i, x: jnp.tanh(x @ w + b), jnp.zeros(D))
        return jnp.sum(x**2)

    ws = jnp.broadcast_to(W, (N, D, D))
    return jax.vmap(jax.jacfwd(loss, argnums=(0, 1)))(ws, B)


def check(out, tolerance=2e-4):
    (_, steps), (gw, gb) = out
    assert np.all(np.asarray(steps) > 1)
    np.testing.assert_allclose(gw, reference()[0], atol=tolerance)
    np.testing.assert_allclose(gb, reference()[1], atol=tolerance)


WS = jnp.broadcast_to(W, (N, D, D))
pairs = [(s, "implicit") for s in SOLVERS] + [("picard", a) for a in ADJOINTS if a != "implicit"]
SHORT = [("picard", "implicit"), ("anderson", "implicit"), ("halpern", "implicit"),
         ("picard", "implicit-vjp"), ("picard", "unrolled")]
cases = pytest.mark.parametrize("solver,adjoint", [
    pair if pair in SHORT else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs])


@cases
@pytest.mark.parametrize("close", [
    pytest.param(False, marks=pytest.mark.slow), True])
def test_shard_map_checked(solver, adjoint, close):
    one = solve_and_grad(SOLVERS[solver], ADJOINTS[adjoint], close)
    f = jax.shard_map(jax.vmap(one), mesh=mesh(AxisType.Auto), in_specs=P("d"), out_specs=P("d"))
    check(jax.jit(f)(WS, B))


def unbatched(one):
    """One problem per device, without vmap: the loop's predicate is a device's own."""

    def body(w, b):
        return jax.tree.map(lambda leaf: leaf[None], one(w[0], b[0]))

    return body


@pytest.mark.parametrize("vma", [True, False])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_shard_map_one_problem_per_device(vma, kind, solver):
    one = unbatched(solve_and_grad(SOLVERS[solver], ji.implicit(), close=True))
    m = mesh(kind)
    put = functools.partial(jax.device_put, device=NamedSharding(m, P("d")))
    f = jax.shard_map(one, mesh=m, in_specs=P("d"), out_specs=P("d"), check_vma=vma)
    check(jax.jit(f)(put(WS), put(B)))


@cases
def test_pmap(solver, adjoint):
    one = solve_and_grad(SOLVERS[solver], ADJOINTS[adjoint], close=True)
    check(jax.pmap(one)(WS, B))


def test_jit_pmap_and_pmap_vmap():
    one = solve_and_grad(ji.anderson(3), ji.implicit())
    check(jax.jit(jax.pmap(one))(WS, B))
    ws, bs = (jnp.stack([a, a[::-1]], axis=1) for a in (WS, B))
    out = jax.pmap(jax.vmap(one))(ws, bs)
    check(jax.tree.map(lambda leaf: leaf[:, 0], out))


@cases
@pytest.mark.parametrize("kind", [
    AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
def test_sharded_jit(solver, adjoint, kind):
    one = solve_and_grad(SOLVERS[solver], ADJOINTS[adjoint])
    m = mesh(kind)
    put = functools.partial(jax.device_put, device=NamedSharding(m, P("d")))
    with jax.set_mesh(m):
        check(jax.jit(jax.vmap(one))(put(WS), put(B)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_one_large_problem_sharded(kind):
    """x itself is spread over devices; the stop rule reduces over them."""
    m = mesh(kind)
    b = jax.device_put(jnp.arange(64.0), NamedSharding(m, P("d")))

    def solve(b, every):
        return ji.fixed_point(lambda x, b: 0.5 * jnp.sin(x) + b, b, b, check_every=every)

    with jax.set_mesh(m):
        sol = jax.jit(solve, static_argnums=1)(b, 1)
        lazy = jax.jit(solve, static_argnums=1)(b, 4)
        grad = jax.jit(jax.grad(lambda b: jnp.sum(solve(b, 1).value)))(b)
    assert sol.status == lazy.status == ji.Status.CONVERGED
    x = np.asarray(sol.value)
    np.testing.assert_allclose(x, 0.5 * np.sin(x) + np.arange(64.0), atol=1e-3)
    np.testing.assert_allclose(grad, 1 / (1 - 0.5 * np.cos(x)), rtol=1e-3)


def test_no_collective_in_shard_map_solve():
    """L12: a vmapped loop over a sharded batch reduces every step; shard_map never does."""
    one = solve_and_grad(ji.anderson(3), ji.implicit())
    f = jax.shard_map(jax.vmap(one), mesh=mesh(AxisType.Auto), in_specs=P("d"), out_specs=P("d"))
    assert collectives(jax.jit(f).lower(WS, B).compile()).total == {}


def test_replicated_weights_sum_their_gradient():
    """L22: the oracle for a replicated input is the unrolled map under the same transform."""
    m = mesh(AxisType.Auto)

    def one(adjoint):
        def total(w, b):
            f = jax.shard_map(
                lambda w, b: jax.vmap(
                    lambda b: ji.fixed_point(lambda x: jnp.tanh(x @ w + b), jnp.zeros(D),
                                             adjoint=adjoint, max_steps=60, stop=TIGHT).value)(b),
                mesh=m, in_specs=(P(), P("d")), out_specs=P("d"))
            return jnp.sum(f(w, b) ** 2)

        return jax.jit(jax.grad(total))(W, B)

    np.testing.assert_allclose(one(ji.implicit()), one(ji.unrolled()), atol=1e-3)


@pytest.mark.parametrize("method", [linear.cg, linear.bicgstab, linear.gmres, linear.normal_cg])
def test_krylov_under_checked_shard_map(method):
    """L5: the solvers of jax.scipy fail here."""
    a = jnp.eye(D) + 0.1 * (W + W.T)
    f = jax.shard_map(
        lambda b: jax.vmap(lambda b: method()(lambda v: a @ v, b))(b),
        mesh=mesh(AxisType.Auto), in_specs=P("d"), out_specs=P("d"))
    out = jax.jit(f)(B)
    np.testing.assert_allclose(out.value @ a.T, B, atol=1e-4)


@pytest.mark.parametrize("transform", [
    lambda f: jax.grad(jax.remat(f)),
    lambda f: jax.grad(
        lambda w: lax.scan(lambda c, _: (c + f(w), None), 0 * w[0, 0], length=2)[0] / 2),
    lambda f: jax.jacfwd(f),
])
def test_remat_scan_and_forward_mode_inside_shard_map(transform):
    def one(w, b):
        def f(w):
            return jnp.sum(
                ji.fixed_point(lambda x: jnp.tanh(x @ w + b), jnp.zeros(D)).value ** 2)

        return transform(f)(w)

    f = jax.shard_map(jax.vmap(one), mesh=mesh(AxisType.Auto), in_specs=P("d"), out_specs=P("d"))
    np.testing.assert_allclose(jax.jit(f)(WS, B), reference()[0], atol=2e-4)
