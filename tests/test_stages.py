"""Stages on one budget: augmented Lagrangians and continuation, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxiter as ji
from jaxiter import Status
from jaxiter.stages import follow

RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
B = jnp.asarray(RNG.normal(size=2), jnp.float32)
C = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)


def kkt(c):
    """Minimise |x - c|^2 / 2 subject to A x = b: the point and the multipliers."""
    a, b = np.asarray(A, np.float64), np.asarray(B, np.float64)
    matrix = np.block([[np.eye(4), a.T], [a, np.zeros((2, 2))]])
    return np.split(np.linalg.solve(matrix, np.concatenate([np.asarray(c, np.float64), b])), [4])


def descend(x, c, penalty, multipliers):
    """A gradient step on the augmented Lagrangian."""
    slope = A.T @ (multipliers + penalty * (A @ x - B))
    return x - (x - c + slope) / (1 + penalty * jnp.linalg.norm(A) ** 2)


def ascend(solution, c, penalty, multipliers):
    gap = A @ solution.value - B
    return (solution.value, (c, penalty, multipliers + penalty * gap),
            jnp.linalg.norm(gap) < 1e-5)


ANDERSON = ji.anderson(4)


def lagrangian(c, solver=ANDERSON, **keywords):
    return ji.in_stages(ji.Problem(step=descend, calls={"gradients": 1}), jnp.zeros(4), c,
                        jnp.float32(3.0), jnp.zeros(2), update=ascend, max_steps=5000,
                        solver=solver, **keywords)


def scaled(x, epsilon, b):
    """Contracts as epsilon does: `x = epsilon tanh(x) + b`, of rate epsilon."""
    return epsilon * jnp.tanh(x) + b


def down(solution, epsilon, level, b):
    """One level down: b is shifted by the level, and at level 0 not."""
    return solution.value, (epsilon, level - 1, b), level == 0


def rough(epsilon, level, b):
    shift = level.astype(b.dtype)
    return {"args": (epsilon, b + shift), "max_steps": jnp.where(level > 0, 7, 1000),
            "stop": ji.tolerance(rtol=jnp.where(level > 0, 1e-2, 1e-6), atol=0.0)}


def continued(epsilon, b, levels=2, **keywords):
    return ji.in_stages(scaled, jnp.zeros_like(b), epsilon, jnp.int32(levels), b,
                        update=down, each=rough, **keywords)


def test_an_augmented_lagrangian_solves_the_kkt_system():
    out = jax.jit(lambda c: lagrangian(c, monitor=ji.record(300)))(C[0])
    x, multipliers = kkt(C[0])
    assert out.converged and out.state is None
    np.testing.assert_allclose(out.value, x, atol=1e-5)
    # A residual of 1e-5 of |x| is a slope (1 + 3 |A|^2) times as large.
    np.testing.assert_allclose(out.aux[2], multipliers, atol=1e-3)
    assert out.calls["gradients"] == out.steps
    # One trace through all stages: every step has its row, and each stage starts anew.
    merit = np.asarray(out.trace["merit"])
    assert np.isfinite(merit[:out.steps]).all() and np.isnan(merit[out.steps:]).all()
    assert np.sum(merit[:out.steps] < 1e-5) > 1


def test_the_stages_are_those_of_a_loop_by_hand():
    out = jax.jit(lagrangian)(C[0])
    stage = jax.jit(lambda x, *args: ji.fixed_point(
        descend, x, *args, solver=ji.anderson(4), max_steps=5000))
    x, args, done, steps = jnp.zeros(4), (C[0], jnp.float32(3.0), jnp.zeros(2)), False, 0
    while not done:
        solution = stage(x, *args)
        x, args, done = ascend(solution, *args)
        steps += int(solution.steps)
    assert steps == out.steps
    np.testing.assert_array_equal(x, out.value)
    np.testing.assert_array_equal(args[2], out.aux[2])


def test_lanes_and_devices_solve_as_one_does():
    def numbers(c):
        out = lagrangian(c, solver=ji.picard())
        return out.value, out.status, out.steps, out.aux[2]

    batch = jax.vmap(numbers)
    expected = jax.jit(batch)(C)
    assert (expected[1] == Status.CONVERGED).all()
    assert len(set(np.asarray(expected[2]).tolist())) > 1
    for c, x in zip(C, expected[0], strict=True):
        np.testing.assert_allclose(x, kkt(c)[0], atol=2e-5)
    auto, explicit = (jax.make_mesh((4,), ("p",), axis_types=(kind,))
                      for kind in (AxisType.Auto, AxisType.Explicit))
    spread = jax.jit(jax.shard_map(batch, mesh=auto, in_specs=P("p"), out_specs=P("p")))(C)
    laid = jax.jit(batch)(jax.device_put(C, jax.NamedSharding(explicit, P("p"))))
    for out in (spread, laid):  # rounding may end a stage a step earlier; each is within 2e-5
        for have, want in zip(out, expected, strict=True):
            atol = 2 if jnp.issubdtype(want.dtype, jnp.integer) else 4e-5
            np.testing.assert_allclose(have, want, rtol=0, atol=atol)


def test_a_continuation_differentiates_at_its_end():
    b, epsilon = jnp.array([0.3, -1.0]), jnp.float32(0.6)

    def loss(solve):
        return lambda epsilon, b: jnp.sum(solve(epsilon, b).value ** 2)

    def plain(epsilon, b):
        return ji.fixed_point(scaled, jnp.zeros(2), epsilon, b,
                              stop=ji.tolerance(rtol=1e-6, atol=0.0))

    def derivatives(solve, epsilon, b):
        return (jax.value_and_grad(loss(solve), (0, 1))(epsilon, b),
                jax.jvp(lambda e: solve(e, b).value, (epsilon,), (jnp.float32(1.0),))[1])

    both = jax.jit(lambda *args: [derivatives(f, *args) for f in (continued, plain)])
    for have, want in zip(*map(jax.tree.leaves, both(epsilon, b)), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4)


def test_derivatives_at_other_numbers_are_nan_and_closures_are_cut():
    def loss(c, shift, adjoint):
        def step(x, *args):
            return descend(x, *args) + 0 * shift

        out = ji.in_stages(step, jnp.zeros(4), c, jnp.float32(3.0), jnp.zeros(2), update=ascend,
                           max_steps=5000, solver=ji.anderson(4), adjoint=adjoint)
        return jnp.sum(out.value)

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    assert all(np.isnan(g).all() for g in gradient(C[0], jnp.float32(1.0), ji.implicit()))
    frozen = gradient(C[0], jnp.float32(1.0), ji.frozen())
    assert all((np.asarray(g) == 0).all() for g in frozen)


def test_statuses_and_the_budget():
    b, epsilon = jnp.array([0.3, -1.0]), jnp.float32(0.6)
    solve = jax.jit(lambda epsilon, b, most: continued(epsilon, b, max_steps=most))
    whole = solve(epsilon, b, 1000)
    assert whole.converged and whole.aux[1] == -1
    for most in (0, 3, int(whole.steps) - 1):  # in the first stage, in the last but one, at the end
        out = solve(epsilon, b, most)
        assert out.status == Status.MAX_STEPS and out.steps == most
        assert np.isinf(out.residual) == (most == 0)
    bad = solve(jnp.float32(jnp.nan), b, 1000)
    assert bad.status == Status.NONFINITE and bad.aux[1] == 1  # no second stage
    # A stage's own limit is no end; where it is the last one, it has not converged.
    short = ji.in_stages(scaled, jnp.zeros(2), epsilon, b, each=lambda *args: {"max_steps": 2},
                         update=lambda s, *args: (s.value, args, s.steps >= 6))
    assert short.status == Status.MAX_STEPS and short.steps == 6


def test_follow_goes_on_where_needed():
    def run(needed, most):
        first = ji.fixed_point(scaled, jnp.zeros(2), jnp.float32(0.9), jnp.ones(2), max_steps=5,
                               monitor=ji.record(60))._replace(state=None)
        return follow(first, lambda previous, left, monitor: ji.fixed_point(
            scaled, previous.value, jnp.float32(0.9), jnp.ones(2), solver=ji.anderson(2),
            max_steps=left, monitor=monitor)._replace(state=None), needed, max_steps=most,
            monitor=ji.record(60))

    run = jax.jit(run)
    out = run(True, 60)
    assert out.converged and np.isfinite(out.trace["merit"]).sum() == out.steps
    assert run(False, 60).steps == 5 and run(True, 5).steps == 5
    cut = run(True, 7)
    assert cut.steps == 7 and cut.status == Status.MAX_STEPS


def test_bad_input_is_named():
    def solve(update=down, **keywords):
        return ji.in_stages(lambda x, e, level, b: scaled(x, e, b["b"]), jnp.zeros(2),
                            jnp.float32(0.5), jnp.int32(1), {"b": jnp.ones(2), "name": "n"},
                            update=update, **keywords)

    def changing(b=None, x0=None, done=True):
        def update(s, e, level, old):
            return (s.value if x0 is None else x0), (e, level, old if b is None else b), done
        return update

    with pytest.raises(TypeError, match=r"\[2\]\['b'\].*float32\[3\]"):
        solve(changing({"b": jnp.ones(3), "name": "n"}))
    with pytest.raises(TypeError, match=r"\[2\]\['name'\].*no array"):
        solve(changing({"b": jnp.ones(2), "name": "m"}))
    with pytest.raises(TypeError, match="keep the tree structure"):
        solve(changing({"b": jnp.ones(2)}))
    with pytest.raises(TypeError, match="x0 that update returns"):
        solve(changing(x0=jnp.zeros(3)))
    with pytest.raises(TypeError, match="bool scalar"):
        solve(changing(done=jnp.int32(1)))
    with pytest.raises(TypeError, match=r"update must return \(x0, args, done\)"):
        solve(lambda s, *args: args)
    with pytest.raises(TypeError, match="each must return a dict"):
        solve(each=lambda *args: {"solver": ji.picard()})
    with pytest.raises(ValueError, match="cannot unroll"):
        solve(adjoint=ji.unrolled())
    with pytest.raises(ValueError, match="takes no resume"):
        solve(resume=ji.fixed_point(jnp.cos, 1.0).state)
