"""Calls from a prompt: what they reuse."""

import threading
import weakref
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import reuse
from jaxiter.transport import sinkhorn

COMPILED = "/jax/core/compile/backend_compile_duration"


class Counter:
    """How many programs were compiled since it was asked."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event: str, *args: object, **keywords: object) -> None:
        self.count += event == COMPILED

    def during(self, call: Callable) -> int:
        before = self.count
        jax.block_until_ready(call())
        return self.count - before


@pytest.fixture(scope="module")
def compiles() -> Counter:
    return Counter()


def solve(rate: float, q: float = 0.5, steps: int = 50) -> ji.Solution:
    """Everything made anew: the map, the rule, the solver, the numbers."""
    w = jnp.full(3, q)
    return ji.fixed_point(lambda x, w: w * x + 1, jnp.zeros(3), w, max_steps=steps,
                          stop=ji.tolerance(rtol=rate, atol=1e-6), solver=ji.anderson(2))


def test_an_equal_call_compiles_nothing(compiles):
    solve(1e-3)
    again = []
    assert compiles.during(lambda: again.append(solve(1e-4, 0.25, 60)) or again[0].value) == 0
    np.testing.assert_allclose(again[0].value, 1 / (1 - 0.25), rtol=1e-3)
    assert compiles.during(lambda: solve(1e-4).value) == 0


def test_gradients_and_the_maps_that_close_over_what_is_differentiated_compile_once(compiles):
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum(ji.fixed_point(lambda x: jnp.cos(w * x), jnp.zeros(3)).value)

    w = jnp.array([0.3, 0.5, 0.7])
    twice = 2 * w
    first = jax.grad(loss)(w)
    assert compiles.during(lambda: jax.grad(loss)(twice)) == 0
    slope = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(first, slope(w), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(twice), slope(twice), rtol=1e-5)


def test_transport_compiles_once(compiles):
    def call(seed: int, epsilon: float) -> jax.Array:
        cost = jax.random.uniform(jax.random.key(seed), (6, 5))
        return sinkhorn(cost, epsilon=epsilon, method="kernel").f

    call(0, 0.1), jax.random.uniform(jax.random.key(1), (6, 5))
    assert compiles.during(lambda: call(1, 0.2)) == 0


def test_a_tracer_hidden_in_a_rule_is_an_error_and_no_zero():
    def loss(w: jax.Array) -> jax.Array:
        @jax.custom_jvp
        def step(x: jax.Array) -> jax.Array:
            return 0.5 * x + w

        step.defjvp(lambda primals, tangents: (step(*primals), 0.5 * tangents[0]))
        return ji.fixed_point(step, 0.0).value

    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.grad(loss)(1.0)


def test_callbacks_reach_the_objects_of_their_own_call():
    def count() -> int:
        seen: list = []

        def step(x: jax.Array) -> jax.Array:
            jax.debug.callback(seen.append, x)
            return 0.5 * x + 1

        ji.fixed_point(step, 0.0).value.block_until_ready()
        jax.effects_barrier()
        return len(seen)

    assert count() == count() > 0


def test_threads_share_the_programs(monkeypatch):
    monkeypatch.setattr(reuse, "KEPT", 1)
    maps = [lambda x, rate=rate: rate * x + 1 for rate in (0.5, 0.25)]
    found: list = []

    def work(first: int) -> None:
        for k in range(4):
            which = (first + k) % 2
            found.append(float(ji.fixed_point(maps[which], 0.0).value) * (0.5, 0.75)[which])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    np.testing.assert_allclose(found, np.ones(8), rtol=1e-3)


def test_programs_hold_few_bytes(monkeypatch):
    monkeypatch.setattr(reuse, "HELD", 1000)
    references = []
    for k in range(3):
        large = jnp.full(200, float(k))
        ji.iterate(ji.Process(lambda x0, large=large: x0 + large[0], lambda x, key: x),
                   jnp.zeros(()), key=jax.random.key(0), max_steps=1)
        references.append(weakref.ref(large))
    del large
    assert [reference() is None for reference in references] == [True, True, False]


def test_concrete_bad_input_raises_every_time():
    good = lambda cost, **k: sinkhorn(cost, epsilon=0.1, method="kernel", **k)  # noqa: E731
    cost = jnp.ones((3, 3)) - jnp.eye(3)
    good(cost)
    for _ in range(2):
        with pytest.raises(ValueError, match="cost contains NaN"):
            good(cost.at[0, 0].set(jnp.nan))
        with pytest.raises(ValueError, match="row 1 has no admissible column"):
            good(cost.at[1].set(jnp.inf))
        with pytest.raises(ValueError, match="epsilon must be positive"):
            sinkhorn(cost, epsilon=-0.1, method="kernel")
        with pytest.raises(ValueError, match="x0 contains NaN|x0 at .* contains NaN"):
            ji.fixed_point(jnp.cos, jnp.nan)
        with pytest.raises(ValueError, match="x0 at .* contains NaN"):
            ji.fixed_point(jnp.cos, jnp.array([1.0, jnp.inf]))
        with pytest.raises(ValueError, match="max_steps must be from 0"):
            ji.fixed_point(jnp.cos, 1.0, max_steps=-1)
    good(cost, a=jnp.array([1.0, 1, 1]) / 3)
    with pytest.raises(ValueError, match="differs from"):
        good(cost, a=jnp.array([1.0, 1, 1]))
    assert bool(good(cost).converged)


def test_inside_a_trace_nothing_changes():
    text = str(jax.make_jaxpr(lambda x: ji.fixed_point(jnp.cos, x).value)(1.0))
    before = len(reuse._programs)
    assert "record" not in text and "while" in text
    jax.jit(lambda x: ji.fixed_point(jnp.sin, x).value)(1.0)
    jax.vmap(lambda x: ji.fixed_point(jnp.sin, x).value)(jnp.ones(2))
    assert len(reuse._programs) == before


def test_an_answer_that_holds_new_functions_is_not_reused():
    @reuse.reused
    def factory(rate: float) -> Callable:
        return lambda x: rate * x

    assert [factory(rate)(2.0) for rate in (1.0, 3.0)] == [2.0, 6.0]


def test_settings_of_jax_are_part_of_a_call():
    def step(x: jax.Array) -> jax.Array:
        return 0.5 * x + jnp.ones((), x.dtype)

    assert ji.fixed_point(step, np.float32(0)).value.dtype == jnp.float32
    with jax.enable_x64(True):
        assert ji.fixed_point(step, np.float64(0)).value.dtype == jnp.float64


def test_programs_are_dropped_and_an_answer_may_hand_back_what_it_was_given(monkeypatch):
    monkeypatch.setattr(reuse, "KEPT", 5)
    for k in range(reuse.KEPT + 3):
        ji.iterate(ji.Process(lambda x0, k=k: x0 + k, lambda x, key: x), jnp.zeros(()),
                   key=jax.random.key(0), max_steps=1)
    assert len(reuse._programs) <= reuse.KEPT
    cost = jnp.ones((3, 3))
    out = [sinkhorn(cost, epsilon=0.1, method="kernel").geometry.cost for _ in range(2)]
    assert out[1].unsafe_buffer_pointer() == cost.unsafe_buffer_pointer()
