"""Solvers, rules, adjoints and linear solvers are values: equal calls give equal products."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import linear
from jaxiter.stop import never


def largest(x):
    return jnp.max(jnp.abs(x))


FACTORIES = {
    "picard": ji.picard, "damped": lambda: ji.damped(0.5), "inertial": lambda: ji.inertial(0.3),
    "overrelaxed": ji.overrelaxed, "descending": lambda: ji.descending(ji.damped(0.5)),
    "anderson": lambda: ji.anderson(5),
    "bare anderson": lambda: ji.anderson(5, safeguard=None),
    "halpern": lambda: ji.halpern("adaptive"),
    "guard": lambda: ji.guard(ji.inertial(0.3), 3.0),
    "restarted": lambda: ji.restarted(ji.halpern(), every=jnp.array(9)),
    "tolerance": lambda: ji.tolerance(rtol=1e-3, norm=largest),
    "accuracy": ji.accuracy, "stagnation": ji.stagnation, "divergence": ji.divergence,
    "no_fixed_point": ji.no_fixed_point, "never": never,
    "any_of": lambda: ji.any_of(ji.tolerance(atol=np.float32(1e-3)), ji.stagnation(50)),
    "all_of": lambda: ji.all_of(ji.accuracy(), ji.tolerance()),
    "bicgstab": linear.bicgstab, "gmres": lambda: linear.gmres(5), "cg": linear.cg,
    "normal_cg": linear.normal_cg, "dense": linear.dense,
    "by_rows": lambda: linear.by_rows(linear.cg(1e-3)),
    "implicit": lambda: ji.implicit(linear.gmres(5), on_failure=ji.neumann(3)),
    "neumann": lambda: ji.neumann(3), "one_step": ji.one_step, "frozen": ji.frozen,
    "unrolled": lambda: ji.unrolled(5),
}


def test_equal_calls_are_equal_and_survive_pickling():
    made = [(name, factory(), factory()) for name, factory in FACTORIES.items()]
    for i, (name, one, other) in enumerate(made):
        assert one == other and hash(one) == hash(other), name
        assert pickle.loads(pickle.dumps(one)) == one, name
        for different, third, _ in made[:i]:
            assert one != third, (name, different)


@pytest.mark.parametrize("one, other", [
    (ji.anderson(5), ji.anderson(6)), (ji.damped(0.5), ji.damped(0.25)),
    (ji.damped(jnp.array(0.5)), ji.damped(jnp.array(0.25))),
    (ji.damped(jnp.array(0.5)), ji.damped(0.5)), (ji.tolerance(1e-3), ji.tolerance(1e-4)),
    (ji.guard(ji.picard()), ji.guard(ji.damped(0.5))), (linear.gmres(5), linear.gmres(6)),
    (ji.implicit(linear.cg()), ji.implicit(linear.gmres())), (linear.cg(), "cg"),
    (ji.damped(np.ones(2, np.float32)), ji.damped(np.ones(3, np.float32))),
])
def test_other_calls_are_not(one, other):
    assert one != other and other != one


def test_defaults_and_names_do_not_count():
    assert ji.anderson() == ji.anderson(10, 2, kind=2) == ji.anderson(memory=10)
    assert ji.any_of(ji.tolerance()) != ji.all_of(ji.tolerance())
    assert repr(ji.damped(0.5).update) == "damped(0.5)"


def test_they_stay_what_they_were():
    for solver in (ji.anderson(), ji.picard(), ji.halpern()):
        init, update = solver
        assert isinstance(solver, optax.GradientTransformationExtraArgs)
        assert update is solver.update and callable(init)
    chained = optax.chain(optax.scale(0.5), ji.anderson(3))
    assert bool(ji.fixed_point(jnp.cos, jnp.float32(1), solver=chained).converged)


def test_a_pickled_choice_solves_the_same():
    def gradient(a, solver, stop, adjoint):
        return jax.grad(lambda a: jnp.sum(ji.fixed_point(
            lambda x, a: 0.9 * jnp.cos(a * x), jnp.zeros(3), a, solver=solver, stop=stop,
            adjoint=adjoint).value))(a)

    choice = ji.anderson(3), ji.accuracy(rtol=1e-4), ji.implicit(linear.gmres(3))
    again = pickle.loads(pickle.dumps(choice))
    traced = []

    def counted(*given):
        traced.append(1)
        return gradient(*given)

    run = jax.jit(counted, static_argnums=(1, 2, 3))
    a = jnp.array([0.3, 0.5, 0.8])
    np.testing.assert_array_equal(run(a, *choice), run(a, *again))
    assert len(traced) == 1  # equal choices are compiled once
    np.testing.assert_array_equal(run(a, *choice), jax.jit(
        lambda a: gradient(a, *again))(a))


def test_traced_arguments_are_equal_to_themselves_only():
    @jax.jit
    def compare(alpha, other):
        solver = ji.damped(alpha)
        assert solver == ji.damped(alpha) and solver != ji.damped(other)
        assert hash(solver) == hash(ji.damped(alpha))
        return ji.fixed_point(jnp.cos, jnp.float32(1), solver=solver).value

    np.testing.assert_allclose(compare(0.5, 0.5), 0.739085, rtol=1e-4)
    adjoint = ji.implicit(linear.gmres(4))
    assert eqx.tree_equal(adjoint, ji.implicit(linear.gmres(4)))
