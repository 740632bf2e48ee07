"""Iterative differentiation against closed forms and the Neumann series."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter import picard
from jaxiter.bilevel import (
    aggregated_descent,
    f2sa,
    hypergradient,
    neumann_series,
    run,
    solve_inner,
    unrolled_hypergradient,
)
from jaxiter.linear import cg
from jaxiter.testing.bilevel import many_minimisers
from tests.bilevel.problems import B1, B2, START, error, plain


def test_published_errors_at_an_inexact_inner_point(x64):
    """B2 after 100 steps of gradient descent from 0: unrolled 9.5e-3, CG(20) 1.35e-3."""
    problem = B2
    x, exact = jnp.asarray(problem.x), problem.gradient(problem.x)
    h = jax.hessian(problem.inner, 1)(x, jnp.zeros(20))
    size = 1 / float(np.linalg.eigvalsh(h).max())

    def step(x, y):
        return y - size * jax.grad(problem.inner, 1)(x, y)

    for steps, known in ((20, (0.249, 0.088)), (100, (9.5e-3, 1.35e-3))):
        unrolled = jax.jit(lambda x, n=steps: unrolled_hypergradient(
            problem.outer, step, x, jnp.zeros(20), steps=n))(x)
        y = jax.lax.fori_loop(0, steps, lambda _, y: step(x, y), jnp.zeros(20))
        implicit = jax.jit(lambda y: hypergradient(
            problem.outer, problem.inner, x, y, solve=cg(rtol=1e-12, max_steps=20)))(y)
        for got, wanted in zip((unrolled.grad, implicit.grad), known, strict=True):
            assert wanted / 2 < error(got, exact) < 2 * wanted, (steps, error(got, exact))
    assert int(unrolled.calls["inner"]) - 1 == 100 == int(unrolled.calls["products"])
    # The bias of short memories, which no number of steps removes.
    for last, known in ((10, 0.294), (1, 0.828)):
        got = jax.jit(lambda x, k=last: unrolled_hypergradient(
            problem.outer, step, x, jnp.zeros(20), steps=2000, last=k))(x)
        assert abs(error(got.grad, exact) / known - 1) < 0.05


def test_truncation_is_the_neumann_series(x64):
    problem = B2
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.argmin(problem.x))

    def step(x, y):
        return y - 0.3 * jax.grad(problem.inner, 1)(x, y)

    unrolled = {mode: jax.jit(lambda x, m=mode: unrolled_hypergradient(
        problem.outer, step, x, y, steps=7, mode=m))(x) for mode in (
            "reverse", "checkpoint", "forward")}
    series = jax.jit(lambda x: hypergradient(
        problem.outer, problem.inner, x, y, solve=neumann_series(7, 0.3)))(x)
    for out in unrolled.values():
        np.testing.assert_allclose(out.grad, series.grad, rtol=1e-12)


def test_optimizer_states_unroll(x64):
    problem = B1
    optimizer = optax.sgd(0.3, momentum=0.5)
    y = jnp.zeros(problem.dim)

    def step(x, state):
        y, inner = state
        updates, inner = optimizer.update(jax.grad(problem.inner, 1)(x, y), inner, y)
        return optax.apply_updates(y, updates), inner

    out = jax.jit(lambda x: unrolled_hypergradient(
        problem.outer, step, x, (y, optimizer.init(y)), steps=200,
        readout=lambda state: state[0]))(jnp.asarray(problem.x))
    assert error(out.grad, problem.gradient(problem.x)) < 1e-8


def test_memory_does_not_grow_with_inner_steps():
    """Compiled temporaries of implicit and first-order methods; unrolling grows, as it must."""
    problem = B2
    x0, y0 = jnp.full(20, -3.0), jnp.zeros(20)

    def bytes_of(function):
        return jax.jit(function).lower(x0).compile().memory_analysis().temp_size_in_bytes

    def implicit(x, steps):
        y = solve_inner(problem.inner, y0, x, step_size=0.3, max_steps=steps,
                        solver=picard()).value
        return hypergradient(problem.outer, problem.inner, x, y).grad

    def first_order(x, steps):
        method = f2sa(plain(problem.outer), plain(problem.inner), inner_rate=0.3,
                      penalty_rate=0.1, inner_steps=steps)
        return run(method, x, y0, key=jax.random.key(0), max_steps=1).state.x

    def unrolled(x, steps):
        def descent(x, y):
            return y - 0.5 * jax.grad(problem.inner, 1)(x, y)
        return unrolled_hypergradient(problem.outer, descent, x, y0, steps=steps).grad

    for function in (implicit, first_order):
        few, many = (bytes_of(lambda x, n=n, f=function: f(x, n)) for n in (10, 1000))
        assert many <= few + 64 * 1000, (few, many)  # at most the keys of the steps
    few, many = (bytes_of(lambda x, n=n: unrolled(x, n)) for n in (10, 1000))
    assert many > 20 * few


def test_bad_input():
    for keywords, text in (({"last": 4}, "last must be in 1..3"), ({"mode": "back"}, "mode must")):
        with pytest.raises(ValueError, match=text):
            unrolled_hypergradient(B1.outer, lambda x, y: y, *START, steps=3, **keywords)


def test_aggregated_descent_finds_the_optimistic_solution(x64):
    """B5: unrolling descent on the inner problem ends at c / (1 + c^2), aggregation at 1."""
    problem = many_minimisers()

    def train(step, start, readout, rounds):
        def update(x, _):
            return x - 0.1 * unrolled_hypergradient(
                problem.outer, step, x, start, steps=rounds, readout=readout).grad, None
        return jax.jit(lambda x: jax.lax.scan(update, x, length=500)[0])(jnp.zeros(1))

    zero = jnp.zeros(2)
    for rounds in (8, 16):
        c = 1 - 0.8**rounds
        plain = train(lambda x, y: y - 0.2 * jax.grad(problem.inner, 1)(x, y), zero, None, rounds)
        np.testing.assert_allclose(plain, c / (1 + c**2), rtol=1e-8)
    for settings, wanted in (
            ({"inner_rate": 0.5, "outer_rate": 1.0}, 1.0),
            ({"inner_rate": 0.2, "outer_rate": 0.7, "weight": 0.5}, 0.863)):
        step = aggregated_descent(problem.outer, problem.inner, **settings)
        x = train(step, (zero, jnp.int32(0)), lambda state: state[0], 8)
        np.testing.assert_allclose(x, wanted, atol=2e-3)
    with pytest.raises(ValueError, match="weight must be positive"):
        aggregated_descent(problem.outer, problem.inner, inner_rate=1, outer_rate=1, weight=0.0)
