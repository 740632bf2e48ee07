"""The options of a solve: each honoured or refused, by every front, and of the right kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import transport as tr
from jaxiter.options import choose
from jaxiter.recurrence import picard, solve_recurrence
from jaxiter.solution import Status

COST = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 3)), jnp.float32)
THIRD = jnp.full(3, 1 / 3)
WALK = ji.Process(lambda x0: x0, lambda x, key: 0.5 * x + jax.random.normal(key, x.shape))


def affine(x, a):
    return 0.9 * x + a


@pytest.mark.parametrize(("name", "value", "error", "text"), [
    ("solver", ji.anderson, TypeError, "anderson.*forget to call"),
    ("stop", ji.tolerance, TypeError, "rule such as tolerance.*forget to call"),
    ("monitor", ji.record, TypeError, "record.*forget to call"),
    ("keep_best", "yes", TypeError, "True or False"),
    ("check_every", 0, ValueError, "check_every"),
    ("max_steps", 1.5, TypeError, "integer"),
    ("min_steps", -1, ValueError, "min_steps must be from 0"),
    ("max_iter", 3, TypeError, "unexpected argument 'max_iter'.*max_steps"),
])
def test_kinds(name, value, error, text):
    with pytest.raises(error, match=text):
        choose("front", {name: value}, {})
    with pytest.raises(TypeError, match="implicit.*forget to call"):
        ji.iterate(WALK, jnp.ones(2), key=jax.random.key(0), adjoint=ji.frozen)
    refused = name == "solver" and "takes no solver"
    with pytest.raises(ValueError if refused else error, match=refused or text):
        ji.iterate(WALK, jnp.ones(2), key=jax.random.key(0), **{name: value})


def test_resume_takes_a_state_and_measures_what_it_returns():
    """One that ended has no residual until it was measured, also where no step is left for that."""
    first = ji.fixed_point(affine, jnp.zeros(3), 1.0)
    with pytest.raises(TypeError, match="got Solution; pass its .state"):
        ji.fixed_point(affine, jnp.zeros(3), 1.0, resume=first)
    spent = ji.fixed_point(affine, jnp.zeros(3), 5.0, resume=first.state,
                           max_steps=int(first.steps))
    assert spent.status == Status.MAX_STEPS and spent.steps == first.steps
    assert np.isinf(spent.residual) and np.isinf(spent.merit)
    one = ji.fixed_point(affine, jnp.zeros(3), 5.0, resume=first.state,
                         max_steps=int(first.steps) + 1)
    np.testing.assert_allclose(
        one.residual, np.linalg.norm(affine(one.value, 5.0) - one.value), rtol=1e-5)


def test_adjoints_that_do_not_fit_are_refused():
    """Each gave wrong derivatives, silently."""
    cases = (
        lambda **o: tr.sinkhorn_many(COST[None], epsilon=0.3, **o),
        lambda **o: tr.sinkhorn_histograms(COST, THIRD[None], THIRD, epsilon=0.3, **o),
        lambda **o: tr.sinkhorn_divergence(COST, COST, epsilon=0.3, **o))
    for case in cases:
        with pytest.raises(ValueError, match="does not unroll"):
            case(adjoint=ji.unrolled())
    for adjoint in (ji.one_step(), ji.neumann(3), ji.unrolled()):
        with pytest.raises(ValueError, match="sparse_transport"):
            tr.sparse_transport(COST, gamma=1.0, adjoint=adjoint)
    with pytest.raises(ValueError, match="labels have no derivatives"):
        tr.balanced_labels(COST, adjoint=ji.implicit())


def test_bad_input_of_layers_and_plans():
    broken = COST.at[0, 0].set(jnp.nan)
    assert np.all(np.isnan(jax.jit(tr.sinkhorn_layer)(broken)))
    with pytest.raises(ValueError, match="max_steps"):
        tr.sinkhorn_layer(COST, adjoint=ji.unrolled(), max_steps=0)
    for bad in ({"gamma": -1.0}, {"gamma": 1.0, "a": jnp.array([1.0, -1.0, 1.0])},
                {"gamma": 1.0, "a": jnp.ones(3)}):
        with pytest.raises(ValueError, match="gamma|negative|differs"):
            tr.sparse_transport(COST, **bad)
    solve = jax.jit(lambda gamma: tr.sparse_transport(COST, gamma=gamma).status)
    assert solve(-1.0) == Status.BAD_INPUT and solve(1.0) == Status.CONVERGED
    with pytest.raises(ValueError, match="differs"):
        tr.mirror_sinkhorn(COST, THIRD, jnp.ones(3), bound=1.0)


def test_mirror_descent_never_claims():
    out = tr.mirror_sinkhorn(COST, THIRD, THIRD, bound=1.0, max_steps=np.int64(20),
                             stop=ji.tolerance(rtol=0.1))
    assert out.status == Status.MAX_STEPS and out.solve.steps == 20


def test_plain_numbers():
    """A float is a start of `root` too; a stage may say at once that it is the last."""
    assert abs(ji.root(lambda x: x**2 - 2, 1.0).value - 2**0.5) < 1e-5
    out = ji.in_stages(lambda x, a, t: 0.5 * x + a + t, jnp.zeros(2), jnp.ones(2), jnp.array(1.0),
                       update=lambda solution, a, t: (solution.value, (a, t + 0), True))
    np.testing.assert_allclose(out.value, 4.0, rtol=1e-4)
    assert out.converged


def test_methods_of_rows():
    """A solver or a factory in place of a method is named; a pair is asked for by its order."""
    drivers = jnp.ones((4, 1))
    with pytest.raises(TypeError, match="forget to call"):
        solve_recurrence(lambda s, x: s + x, jnp.zeros(1), drivers, method=picard)
    with pytest.raises(TypeError, match="takes a method such as"):
        solve_recurrence(lambda s, x: s + x, jnp.zeros(1), drivers, method=ji.picard())
    with pytest.raises(ValueError, match="pair"):
        solve_recurrence(lambda s, p, x: s + p + x, jnp.zeros(1), drivers, order=2)


def test_min_steps():
    """No verdict ends a solve before; what is not finite does. Steps of a process, of lanes too."""
    def steps(**options):
        return int(ji.fixed_point(affine, jnp.full(2, 10.0), 1.0, **options).steps)

    assert (steps(), steps(min_steps=7), steps(min_steps=7, max_steps=5)) == (1, 7, 5)
    assert int(jax.jit(lambda least: ji.fixed_point(
        affine, jnp.full(2, 10.0), 1.0, min_steps=least).steps)(9)) == 9
    broken = ji.fixed_point(lambda x: x / 0.0, jnp.ones(2), min_steps=50)
    assert broken.status == Status.NONFINITE and broken.steps < 5
    many = ji.solve_many(affine, jnp.full((3, 2), 10.0), jnp.array([1.0, 1.0, 2.0]), min_steps=6)
    assert many.steps[:2].tolist() == [6, 6] and many.steps[2] > 6 and many.converged.all()
    settled = ji.Process(lambda x0: x0, lambda x, key: 0.5 * x, merit=lambda x: jnp.abs(x))
    run = ji.iterate(settled, 1e-9, key=jax.random.key(0), min_steps=7, check_every=3,
                     stop=ji.tolerance(rtol=0, atol=1e-3), max_steps=30)
    assert run.steps == 9 and run.converged
