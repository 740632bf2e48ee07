"""Calls from a prompt: what they must see anew."""

import dataclasses
import functools
import random
import sys
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji

RATE = 0.5
SETTINGS = types.ModuleType("settings")
SETTINGS.rate = 0.5


class Config:
    """Rates as an attribute of a class."""

    rate = 0.5


def limit(function: Callable) -> float:
    return float(ji.fixed_point(function, 0.0).value)


def check(function: Callable, change: Callable, before: float = 2.0, after: float = 4 / 3) -> None:
    """The fixed point of x -> rate x + 1 before and after what `change` does to the rate."""
    for _ in range(2):
        assert limit(function) == pytest.approx(before, rel=1e-3)
    change()
    for _ in range(2):
        assert limit(function) == pytest.approx(after, rel=1e-3)


def test_a_rebound_enclosing_variable_is_seen():
    rate = 0.5

    def change() -> None:
        nonlocal rate
        rate = 0.25

    check(lambda x: rate * x + 1, change)


def test_a_rebound_global_is_seen_through_other_functions(monkeypatch):
    def inner(x: jax.Array) -> jax.Array:
        return RATE * x

    check(lambda x: inner(x) + 1, lambda: monkeypatch.setitem(globals(), "RATE", 0.25))


def test_attributes_of_modules_and_classes_are_seen(monkeypatch):
    check(lambda x: SETTINGS.rate * x + 1, lambda: monkeypatch.setattr(SETTINGS, "rate", 0.25))
    check(lambda x: Config.rate * x + 1, lambda: monkeypatch.setattr(Config, "rate", 0.25))


@pytest.mark.parametrize("holder", [
    np.array([0.5], np.float32), [0.5], {0: 0.5}, [[0.5]], np.full(10**6, 0.5, np.float32)],
    ids=["array", "list", "dict", "nested", "large array"])
def test_what_is_mutated_in_place_is_seen(holder):
    inner = holder[0] if isinstance(holder[0], list) else holder

    def change() -> None:
        inner[0] = 0.25

    check(lambda x: jnp.asarray(inner[0]) * x + 1, change)


def test_objects_that_may_change_are_never_reused():
    holder = types.SimpleNamespace(rate=0.5)

    class Map:
        def __init__(self) -> None:
            self.rate = 0.5

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.rate * x + 1

    own = Map()
    check(lambda x: holder.rate * x + 1, lambda: setattr(holder, "rate", 0.25))
    check(own, lambda: setattr(own, "rate", 0.25))
    check(own.__call__, lambda: setattr(own, "rate", 0.5), 4 / 3, 2.0)


def test_a_default_argument_and_a_function_attribute_are_seen():
    def step(x: jax.Array, rate: float = 0.5) -> jax.Array:
        return rate * x + 1

    check(step, lambda: setattr(step, "__defaults__", (0.25,)))

    def read(x: jax.Array) -> jax.Array:
        return read.rate * x + 1

    read.rate = 0.5
    check(read, lambda: setattr(read, "rate", 0.25))


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Equal to others of equal fields; its methods read what they like."""

    inner: Any = None

    def own(self, x: jax.Array) -> jax.Array:
        return self.inner.rate * x + 1

    def shared(self, x: jax.Array) -> jax.Array:
        return RATE * x + 1


class Hashed:
    """Says that it equals itself, whatever changes."""

    def __init__(self) -> None:
        self.rate = 0.5

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed)

    def __hash__(self) -> int:
        return 1


class Sequence(list):
    """A list with an attribute."""


@functools.wraps(jnp.sin)
def disguised(x: jax.Array) -> jax.Array:
    return RATE * x + 1


def rate_of(owner: Any) -> float:
    return owner.rate


@pytest.mark.parametrize("function", [
    disguised, Frozen().shared, lambda x: globals()["RATE"] * x + 1,
    lambda x: eval("RATE") * x + 1],
    ids=["wraps", "frozen method", "globals", "eval"])
def test_a_global_is_seen_wherever_it_is_read(function, monkeypatch):
    check(function, lambda: monkeypatch.setitem(globals(), "RATE", 0.25))


@pytest.mark.parametrize("function", [
    lambda x: rate_of(SETTINGS) * x + 1, lambda x: getattr(SETTINGS, "rate") * x + 1,  # noqa: B009
    lambda x: SETTINGS.__dict__["rate"] * x + 1, Frozen(SETTINGS).own],
    ids=["function", "getattr", "dict", "field"])
def test_an_attribute_is_seen_however_it_is_read(function, monkeypatch):
    check(function, lambda: monkeypatch.setattr(SETTINGS, "rate", 0.25))


def test_a_module_imported_as_a_map_runs_is_seen(monkeypatch):
    monkeypatch.setitem(sys.modules, "settings", SETTINGS)

    def step(x: jax.Array) -> jax.Array:
        from settings import rate  # type: ignore
        return rate * x + 1

    check(step, lambda: monkeypatch.setattr(SETTINGS, "rate", 0.25))


@pytest.mark.parametrize("kind", ["hashed", "list", "partial", "weak", "frozen"])
def test_attributes_of_what_compares_equal_are_seen(kind):
    holder = {"list": Sequence, "partial": lambda: functools.partial(abs)}.get(kind, Hashed)()
    holder.rate = 0.5
    reference = weakref.ref(holder)
    functions = {"weak": lambda x: reference().rate * x + 1, "frozen": Frozen(holder).own}
    check(functions.get(kind, lambda x: holder.rate * x + 1),
          lambda: setattr(holder, "rate", 0.25))


def test_what_bound_methods_of_containers_read_is_seen():
    rates = {0: 0.5}
    get = rates.get
    check(lambda x: get(0) * x + 1, lambda: rates.update({0: 0.25}))


def test_a_tracer_read_as_a_number_is_read_again():
    def loss(w: jax.Array) -> jax.Array:
        return ji.fixed_point(lambda x: (0.5 if bool(w) else 0.25) * x + 1, 0.0).value

    assert [float(jax.value_and_grad(loss)(w)[0]) for w in (1.0, 0.0)] == pytest.approx(
        [2.0, 4 / 3], rel=1e-3)


def test_one_tracer_in_two_places_is_not_two_tracers():
    def solve(a: jax.Array, b: jax.Array) -> jax.Array:
        return ji.fixed_point(lambda x: a * x + b, 0.0, stop=ji.tolerance(rtol=1e-6)).value

    assert float(jax.grad(lambda a: solve(a, a))(0.5)) == pytest.approx(4.0, rel=1e-4)
    slopes = jax.grad(solve, (0, 1))(0.5, 1.0)
    np.testing.assert_allclose(slopes, (4.0, 2.0), rtol=1e-4)


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), random.random, time.perf_counter],
                         ids=["numpy", "random", "clock"])
def test_chance_is_not_frozen(draw):
    seen = {limit(lambda x: 0.5 * x + draw() % 1) for _ in range(3)}
    assert len(seen) == 3


def test_what_the_first_trace_counts_is_counted_again():
    traced = []

    def step(x: jax.Array) -> jax.Array:
        traced.append(1)
        return 0.5 * x

    limit(step)
    before = len(traced)
    limit(step)
    assert len(traced) > before
