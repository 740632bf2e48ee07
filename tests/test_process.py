"""Processes: what moves by keys has the driver's statuses, resume, lanes, monitors and devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import Batches, Process, Status, iterate, iterate_many
from jaxiter.bilevel import soba
from jaxiter.process import latest
from jaxiter.testing import PROCESS_CHECKS, check_process
from jaxiter.testing.bilevel import quadratic
from jaxiter.testing.fronts import resume_is_bitwise

KEY = jax.random.key(7)
rng = np.random.default_rng(0)
A = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
TRUTH = jnp.array([1.0, -2.0, 0.5])
DATA = (A, A @ TRUTH + 0.1 * jnp.asarray(rng.normal(size=40), jnp.float32))


def slope(x, rows):
    a, b = rows
    return a.T @ (a @ x - b) / a.shape[0]


class Svrg(NamedTuple):
    x: jax.Array
    anchor: jax.Array
    full: jax.Array
    age: jax.Array


def svrg(step_size, epoch):
    """A newcomer's method: the gradient at an anchor corrects that of a batch."""
    def init(x0, data):
        return Svrg(x0, x0, slope(x0, data.data), jnp.int32(0))

    def step(state, key, data):
        due = state.age == epoch
        anchor = jnp.where(due, state.x, state.anchor)
        full = jnp.where(due, slope(state.x, data.data), state.full)
        batch = data.draw(key)
        direction = slope(state.x, batch) - slope(anchor, batch) + full
        return Svrg(state.x - step_size * direction, anchor, full,
                    jnp.where(due, 1, state.age + 1))

    def merit(state, data):  # exact right after a full gradient; no estimate says CONVERGED
        return jnp.where(state.age == 0, jnp.linalg.norm(state.full), jnp.inf)

    return Process(init, step, merit, calls=lambda state, key, data: {
        "gradients": 2 * data.size + jnp.where(state.age == epoch, data.rows, 0)})


def exact_merit(state, data):
    return jnp.linalg.norm(slope(state.x, data.data))


def test_svrg_solves_least_squares_with_a_status():
    process = svrg(0.1, 20)._replace(merit=exact_merit)
    exact = np.linalg.lstsq(*(np.asarray(part, float) for part in DATA), rcond=None)[0]
    run = jax.jit(lambda key: iterate(
        process, jnp.zeros(3), Batches(DATA, 4), key=key, max_steps=5000,
        stop=ji.tolerance(rtol=0, atol=1e-4)))(KEY)
    assert run.converged, run.message()
    np.testing.assert_allclose(run.value.x, exact, atol=1e-3)
    full = (int(run.steps) - 1) // 20
    assert int(run.calls["gradients"]) == 8 * int(run.steps) + 40 * full
    lazy = iterate(svrg(0.1, 20), jnp.zeros(3), Batches(DATA, 4), key=KEY, max_steps=50)
    assert lazy.status == Status.MAX_STEPS and np.isinf(lazy.merit)


@pytest.mark.slow  # the default run has that of SOBA
def test_conformance_of_svrg():
    check_process(svrg(0.1, 4)._replace(merit=exact_merit), jnp.zeros(3), Batches(DATA, 4), key=KEY)


def test_conformance_of_soba():
    problem = quadratic()
    process = soba(lambda x, y, _: problem.outer(x, y), lambda x, y, _: problem.inner(x, y),
                   inner_optimizer=optax.sgd(0.3, momentum=0.5), outer_optimizer=optax.sgd(0.05))
    start = jnp.asarray(problem.x, jnp.float32), jnp.zeros(10)
    args = Batches(None), Batches(None)
    for check in PROCESS_CHECKS.values():
        check(process, start, args, KEY)
    resume_is_bitwise(lambda x, key, **options: iterate(process, x, *args, key=key, **options),
                      (start, KEY))


def test_nan_in_the_data_ends_with_the_last_finite_state():
    process = Process(lambda x: x, lambda x, key, bad: x + jnp.where(x > 3, bad, 1.0))
    process = process._replace(init=lambda x, bad: x)
    run = iterate(process, 0.5, jnp.nan, key=KEY, max_steps=20)
    assert run.status == Status.NONFINITE and run.value == latest(run) == 3.5
    again = iterate(process, 0.5, 1.0, key=KEY, max_steps=10, resume=run.state)
    # Measured again where it broke, and on from there, with keys that were not used yet.
    assert again.status == Status.MAX_STEPS and int(again.state.memory.count) == 10
    assert latest(again) == 3.5 + 10 - int(run.steps)


def test_keep_best_keeps_the_whole_state():
    process = Process(
        lambda x: (x, jnp.int32(0)), lambda s, key: (s[0] + 1, s[1] + 1),
        merit=lambda s: (s[0] - 4.0) ** 2)
    run = iterate(process, jnp.float32(0), key=KEY, max_steps=9, keep_best=True,
                  stop=ji.tolerance(rtol=0, atol=1e-9))
    assert run.converged and run.value[1] == 4
    run = iterate(process, jnp.float32(0.5), key=KEY, max_steps=9, keep_best=True)
    assert float(run.value[0]) == 3.5 and int(run.value[1]) == 3 and int(latest(run)[1]) == 9


def test_evaluations_of_several_steps_are_the_steps():
    """check_every changes no state and no call, only when they are looked at."""
    process = Process(
        lambda x: (x, jnp.int32(0)), lambda s, key: (0.9 * s[0] + jax.random.normal(key), s[1] + 1),
        calls=lambda s, key: {"draws": jax.random.randint(key, (), 0, 3), "odd": s[1] % 2})

    def runs(every, steps, resume=None):
        return iterate(process, jnp.ones(3), key=KEY, max_steps=steps, check_every=every,
                       monitor=ji.record(4, every=4, value=True), resume=resume)

    plain, wide = runs(1, 12), runs(4, 12)
    for ours, theirs in zip(jax.tree.leaves(latest(wide)), jax.tree.leaves(latest(plain)),
                            strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(wide.steps) == 12 and wide.value[1] == 8 and wide.status == Status.MAX_STEPS
    assert {k: int(v) for k, v in wide.calls.items()} == {
        k: int(v) for k, v in plain.calls.items()}
    np.testing.assert_array_equal(wide.trace["value"][0], plain.trace["value"][0])
    np.testing.assert_array_equal(
        latest(runs(4, 12, runs(4, 8).state))[0], latest(wide)[0])
    lanes = iterate_many(process, jnp.ones((2, 3)), key=jnp.stack([KEY, KEY]), max_steps=12,
                         check_every=4, lanes=1)
    np.testing.assert_array_equal(latest(lanes)[0][1], latest(wide)[0])
    assert lanes.steps.tolist() == [12, 12]


def test_seeds_over_a_mesh():
    process = Process(lambda x: x, lambda x, key: 0.5 * x + jax.random.normal(key))
    mesh = jax.make_mesh((8,), ("seeds",))
    keys = jax.random.split(KEY, 12)

    def seeds(keys):
        return jax.vmap(lambda key: iterate(process, 0.0, key=key, max_steps=9).value)(keys)

    np.testing.assert_allclose(
        jax.jit(ji.over_mesh(seeds, mesh, "seeds"))(keys), jax.jit(seeds)(keys), rtol=1e-6)


def test_unrolled_gradients_reach_step_sizes():
    process = Process(lambda x, rate: x, lambda x, key, rate: x - rate * (
        x + jax.random.normal(key)))

    def last(rate):
        return latest_x(iterate(process, 1.0, rate, key=KEY, max_steps=4, adjoint=ji.unrolled()))

    def latest_x(run):
        return run.value

    h = 1e-2
    np.testing.assert_allclose(
        jax.grad(last)(0.3), (last(0.3 + h) - last(0.3 - h)) / (2 * h), rtol=1e-3)


def test_recorded_functions_of_the_state():
    process = Process(lambda x: (x, jnp.int32(0)), lambda s, key: (0.5 * s[0], s[1] + 1))
    run = iterate(process, 8.0, key=KEY, max_steps=6,
                  monitor=ji.record(4, every=2, value=lambda s: {"x": s[0], "n": s[1]}))
    assert run.trace["value"]["n"].tolist() == [0, 2, 4, 0]
    np.testing.assert_array_equal(run.trace["value"]["x"], [8.0, 2.0, 0.5, np.nan])
    np.testing.assert_allclose(run.trace["merit"][:3], [4.0, 1.0, 0.25])


BAD = {
    "shape": (lambda: iterate(Process(lambda x: {"a": x}, lambda s, key: {"a": s["a"][:1]}),
                              jnp.ones(2), key=KEY), TypeError, r"\['a'\].*\[2\].*\[1\]"),
    "integers": (lambda: iterate(Process(lambda x: x, lambda s, key: s), 1, key=KEY), TypeError,
                 "floating-point leaf"),
    "key": (lambda: iterate(Process(lambda x: x, lambda s, key: s), 1.0, key=3), TypeError,
            "random key"),
    "no process": (lambda: iterate(jnp.cos, 1.0, key=KEY), TypeError, r"Process\(init, step\)"),
    "adjoint": (lambda: iterate(Process(lambda x: x, lambda s, key: s), 1.0, key=KEY,
                                adjoint=ji.implicit()), ValueError, "no fixed point"),
    "keep_best": (lambda: iterate(Process(lambda x: x, lambda s, key: s), 1.0, key=KEY,
                                  keep_best=True), ValueError, "merits"),
    "multiple": (lambda: iterate(Process(lambda x: x, lambda s, key: s), 1.0, key=KEY,
                                 max_steps=10, check_every=4), ValueError, "multiple"),
    "many": (lambda: iterate_many(Process(lambda x: x, lambda s, key: s), jnp.ones(3), key=KEY,
                                  lanes=0), ValueError, "lanes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, pattern = BAD[name]
    with pytest.raises(kind, match=pattern):
        call()
