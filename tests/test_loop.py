"""Scales from one end of the float range to the other, and states that are taken up again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status, trees
from jaxiter.stop import Stop

SCALES = jnp.array([0.0, 1e-31, 1e-30, 1e-12, 1e-6, 1.0, 1e12, 1e20, 1e30, 1e37])
SOLVERS = {"picard": ji.picard(), "damped": ji.damped(0.5), "anderson": ji.anderson(),
           "halpern": ji.halpern("adaptive"), "guarded": ji.guard(ji.damped(0.7))}


def half(x, b):
    return 0.5 * x + b


@pytest.mark.parametrize("name", SOLVERS)
def test_every_scale_is_solved_alike(name):
    @jax.jit
    @jax.vmap
    def solve(b):
        return ji.fixed_point(half, jnp.zeros(3), b, solver=SOLVERS[name])

    out = solve(SCALES)
    assert np.all(out.converged), Status.name(out.status)
    np.testing.assert_allclose(out.value, 2 * np.asarray(SCALES)[:, None] * np.ones(3), rtol=1e-4)
    assert out.steps[0] == 1
    if name in ("picard", "damped"):  # powers of two: the same steps to the last
        exact = solve(2.0 ** jnp.array([-100, -50, 0, 10, 50, 100, 7, 3, -7, -3.0]))
        assert len(set(np.asarray(exact.steps).tolist())) == 1


@pytest.mark.parametrize("scale", [1e20, 1e-30])
def test_a_single_solve_and_lanes_at_the_ends(scale):
    one = jax.jit(lambda b: ji.fixed_point(half, 2 * b * jnp.ones(3), b))(jnp.float32(scale))
    assert one.converged and one.steps == 1
    lanes = jax.jit(lambda b: ji.solve_many(half, jnp.zeros((3, 2)), b, lanes=2))(
        scale * jnp.array([1.0, 2.0, 3.0]))
    assert np.all(lanes.converged)
    np.testing.assert_allclose(lanes.value[:, 0], 2 * scale * np.arange(1, 4), rtol=1e-4)


def test_the_last_finite_point_is_kept():
    """exp: 0, 1, 2.7, 15, 3.8e6, and then nothing that float32 knows."""
    out = jax.jit(lambda: ji.fixed_point(jnp.exp, jnp.zeros(2)))()
    assert out.status == Status.NONFINITE and out.steps == 5
    np.testing.assert_allclose(out.value, np.exp(np.exp(np.exp(1.0))), rtol=1e-5)
    best = jax.jit(lambda: ji.fixed_point(jnp.exp, jnp.zeros(2), keep_best=True))()
    assert best.status == Status.NONFINITE and np.all(best.value == 0)


def test_a_given_atol_is_absolute():
    out = ji.fixed_point(half, jnp.zeros(2), 1e-12, stop=ji.tolerance(rtol=0, atol=1e-6))
    assert out.converged and out.steps == 1
    default = ji.fixed_point(half, jnp.zeros(2), 1e-12)
    np.testing.assert_allclose(default.value, 2e-12, rtol=1e-4)


def test_what_is_called_converged_is_what_is_returned():
    """The smallest merit of all may be larger beside its own scale than the last one."""
    def spiral(x):  # residuals grow slower than x
        return 1.5 * x + 1e-3

    rule = ji.tolerance(rtol=0.5005, atol=0.0)
    out = ji.fixed_point(spiral, jnp.float32(0), keep_best=True, stop=rule, max_steps=300)
    size = max(abs(out.value), abs(spiral(out.value)))
    assert not out.converged or out.residual <= 0.5005 * size * 1.0001


def square_root(x, a):
    return 0.5 * (x + a / x)


@jax.jit
def resumed(state, a, rtol, max_steps):
    return ji.fixed_point(square_root, jnp.ones(2), a, resume=state, max_steps=max_steps,
                          stop=ji.tolerance(rtol=rtol, atol=0.0))


@jax.jit
def begun(a, rtol, max_steps):
    return ji.fixed_point(square_root, jnp.ones(2), a, max_steps=max_steps,
                          stop=ji.tolerance(rtol=rtol, atol=0.0))


def test_a_state_that_ended_is_measured_again():
    two, three = jnp.full(2, 2.0), jnp.full(2, 3.0)
    loose = begun(two, 1e-2, 100)
    assert loose.converged
    # Other args: what was solved is no longer a solution.
    other = resumed(loose.state, three, 1e-6, 100)
    assert other.converged and other.steps > loose.steps
    np.testing.assert_allclose(other.value, np.sqrt(3), rtol=1e-5)
    # A tighter rule.
    tight = resumed(loose.state, two, 1e-6, 100)
    assert tight.converged
    np.testing.assert_allclose(tight.value, np.sqrt(2), rtol=1e-5)
    # Nothing new: one evaluation, the same point.
    same = resumed(loose.state, two, 1e-2, 100)
    assert same.converged and same.steps == loose.steps + 1
    np.testing.assert_array_equal(same.value, loose.value)
    np.testing.assert_array_equal(same.residual, loose.residual)
    # No step left to measure it: the claim is not repeated.
    assert resumed(loose.state, three, 1e-6, loose.steps).status == Status.MAX_STEPS


def test_an_unfinished_state_goes_on_to_the_same_bits():
    two = jnp.full(2, 2.0)
    whole = begun(two, 1e-6, 100)
    parts = resumed(begun(two, 1e-6, 2).state, two, 1e-6, 100)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.parametrize("options", [{"keep_best": True}, {"check_every": 3},
                                     {"solver": ji.anderson()}])
def test_ended_states_of_other_choices(options):
    def solve(q, state=None):
        return ji.fixed_point(lambda x, q: q * x + 1, jnp.zeros(3), q, resume=state,
                              max_steps=2000, **options)

    first = jax.jit(solve)(0.9)
    again = jax.jit(solve)(0.95, first.state)
    assert again.converged
    np.testing.assert_allclose(again.value, 20, rtol=1e-2)
    true = np.linalg.norm(0.95 * np.asarray(again.value) + 1 - np.asarray(again.value))
    np.testing.assert_allclose(again.residual, true, rtol=1e-2, atol=1e-5)


def test_norms_over_the_whole_range():
    for size in (1e-40, 1e-30, 1.0, 1e30):
        vectors = ({"a": jnp.full(3, size)}, {"a": jnp.full(3, 2 * size)})
        for norm, factor in zip(trees.norms(*vectors), (1, 2), strict=True):
            wanted = 0 if size < 1e-38 else factor * size * np.sqrt(3)
            np.testing.assert_allclose(norm, wanted, rtol=1e-6)
    assert not np.isfinite(trees.norms({"a": jnp.array([1.0, jnp.nan])})[0])
    assert not np.isfinite(trees.norms({"a": jnp.array([1.0, jnp.inf])})[0])


def test_a_map_over_a_tracer_leaks_nothing():
    def loss(w):
        return jnp.sum(ji.fixed_point(lambda x: 0.5 * jnp.tanh(w * x) + w, jnp.zeros(3)).value)

    with jax.checking_leaks():
        assert np.isfinite(jax.jit(jax.grad(loss))(0.3))


@pytest.mark.parametrize(
    "mesh_is_set", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_batch_on_an_explicit_mesh(mesh_is_set):
    """The default kind of `jax.make_mesh`, with and without `jax.set_mesh`."""
    import contextlib

    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((8,), ("d",))
    q = jax.device_put(jnp.linspace(0.1, 0.8, 8), NamedSharding(mesh, P("d")))
    context = jax.set_mesh(mesh) if mesh_is_set else contextlib.nullcontext()

    def value(q, **options):
        return ji.fixed_point(lambda x, q: q * x + 1, jnp.zeros(2), q, **options).value

    cases = {
        "picard": value, "anderson": lambda q: value(q, solver=ji.anderson(3)),
        "slope": jax.grad(lambda q: jnp.sum(value(q, solver=ji.halpern("adaptive")))),
        "accuracy": lambda q: value(q, stop=ji.accuracy()),
        "root": lambda q: ji.root(lambda x, q: x * x - q, jnp.ones(2), q).value}
    with context:
        out = jax.jit(jax.vmap(lambda q: {k: f(q) for k, f in cases.items()}))(q)
        with pytest.raises(ValueError, match="over_mesh"):
            ji.solve_many(lambda x, q: q * x + 1, jnp.zeros(8), q)
    if not mesh_is_set:
        # From a prompt: values only, for JAX itself cannot pull a product back without a mesh.
        np.testing.assert_allclose(jax.vmap(value)(q), out["picard"], rtol=1e-6)
    q = np.asarray(q)
    np.testing.assert_allclose(out["picard"][:, 0], 1 / (1 - q), rtol=1e-4)
    np.testing.assert_allclose(out["anderson"][:, 0], 1 / (1 - q), rtol=1e-4)
    np.testing.assert_allclose(out["slope"], 2 / (1 - q) ** 2, rtol=1e-3)
    np.testing.assert_allclose(out["accuracy"][:, 0], 1 / (1 - q), rtol=1e-4)
    np.testing.assert_allclose(out["root"][:, 0], np.sqrt(q), rtol=1e-4)


@pytest.mark.parametrize("start, status", [(1.0, Status.NONFINITE), (1e30, Status.CONVERGED)])
def test_an_unrolled_loop_measures_out_of_range_too(start, status):
    def step(x):
        return jnp.where(jnp.abs(x) < 1e10, jnp.nan, 0.5 * x + 1e30)

    out = ji.fixed_point(step, start * jnp.ones(3), adjoint=ji.unrolled(), max_steps=60)
    assert int(out.status) == status
    if status == Status.CONVERGED:
        np.testing.assert_allclose(out.value, 2e30, rtol=1e-4)


def test_a_new_epoch_restarts_the_solver():
    """The map changes at its 8th step: from there on everything is as from a new start."""
    def step(x, m, q):
        turn = m // 8
        return q * jnp.sin(x) + 1.0 + turn.astype(x.dtype), m + 1

    changing = ji.Problem(step=step, memory=lambda x, q: jnp.int32(0), epoch=lambda m: m // 8)
    q = jnp.array([0.9, 0.5])

    def solve(problem, x0, *args, **keywords):
        return ji.fixed_point(problem, x0, *args, solver=ji.anderson(4, 1), **keywords)

    whole = solve(changing, jnp.zeros(2), q, max_steps=12)
    first = solve(lambda x: q * jnp.sin(x) + 1.0, jnp.zeros(2), max_steps=8)
    turned = first.value + first.displacement
    then = solve(lambda x: q * jnp.sin(x) + 2.0, turned, max_steps=4)
    np.testing.assert_allclose(whole.value, then.value, rtol=1e-6)
    with pytest.raises(TypeError, match="epoch must be an integer scalar, got float32"):
        solve(changing._replace(epoch=lambda m: m.astype(float)), jnp.zeros(2), q)


def test_memory_is_seen_by_cache_stale_and_stop_rules():
    """A cache made of the memory, and a rule that counts down in it."""
    problem = ji.Problem(
        step=lambda x, c, m: (0.0 * x + c, m + 1), memory=lambda x: jnp.float32(1), refresh=2,
        cache=lambda x, m: m, stale=lambda x, c, m: m > c + 2, scale=1.0, floor=0.0)

    def update(info, state):
        return jnp.where(info.memory >= 6, Status.STAGNATED, Status.RUNNING), state

    out = ji.fixed_point(problem, jnp.float32(0), stop=Stop(lambda info: (), update))
    # Built at memory 1; asked at 3, still fresh; asked at 5, stale; the rule ends it at 6.
    assert out.steps == 5 and out.status == Status.STAGNATED
    assert float(out.state.output) == 5.0


def test_calls_are_summed_whatever_the_solve_does():
    """A plain tree, or a function of the point; in lanes, resumed, with a kept point."""
    constant = ji.Problem(step=lambda x, q: q * x, calls={"maps": 1, "products": 3})
    seen = ji.Problem(step=lambda x, q: q * x, calls=lambda x, q: {"large": jnp.abs(x) > 0.1})
    q = jnp.array([0.5, 0.25])

    def solve(q):
        return ji.fixed_point(constant, 1.0, q), ji.fixed_point(seen, 1.0, q, keep_best=True)

    plain, counted = jax.jit(jax.vmap(solve))(q)
    assert np.array_equal(plain.calls["products"], 3 * plain.steps)
    assert counted.calls["large"].tolist() == [4, 2] and counted.calls["large"].dtype == jnp.int32
    lanes = ji.solve_many(constant, jnp.ones(2), q, lanes=1)
    assert np.array_equal(lanes.calls["maps"], lanes.steps)
    part = ji.fixed_point(constant, 1.0, 0.5, max_steps=5)
    rest = ji.fixed_point(constant, 1.0, 0.5, resume=part.state)
    assert rest.calls["maps"] == rest.steps == plain.steps[0]
    assert ji.fixed_point(jnp.cos, 1.0).calls is None
