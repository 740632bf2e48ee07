"""Hypergradients against closed forms, one another and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxiter import Status
from jaxiter.bilevel import (
    aggregated_descent,
    hypergradient,
    neumann_series,
    nystrom,
    solve_inner,
    unrolled_hypergradient,
)
from jaxiter.linear import cg
from jaxiter.testing.bilevel import many_minimisers, quadratic, ridge

PROBLEMS = {"B1": quadratic(), "B2": ridge()}


def error(ours, exact):
    return float(np.linalg.norm(np.asarray(ours) - exact) / np.linalg.norm(exact))


def at_argmin(problem, dtype=None, **keywords):
    dtype = dtype or jnp.result_type(float)
    x, y = (jnp.asarray(t, dtype) for t in (problem.x, problem.argmin(problem.x)))
    return jax.jit(lambda x, y: hypergradient(problem.outer, problem.inner, x, y, **keywords))(x, y)


def test_condition_number_of_ridge_is_the_published_one():
    problem = PROBLEMS["B2"]
    with jax.enable_x64(True):
        h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    np.testing.assert_allclose(np.linalg.cond(h), 24.879, atol=0.001)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solve, limit", [("dense", 1e-10), ("cg", 1e-8), ("fixed_point", 1e-6)])
def test_closed_forms(name, solve, limit, x64):
    problem = PROBLEMS[name]
    out = at_argmin(problem, solve=solve)
    assert error(out.grad, problem.gradient(problem.x)) < limit
    assert out.status == Status.CONVERGED and float(out.inner_residual) < 1e-12
    assert float(out.linear_residual) < max(limit, 1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_float32(name):
    problem = PROBLEMS[name]
    out = at_argmin(problem, jnp.float32)
    assert error(out.grad, problem.gradient(problem.x)) < 1e-4 and out.grad.dtype == jnp.float32


def test_published_errors_of_linear_solvers(x64):
    """B2 at the argmin: CG at 2 and 10 products, Neumann at 20 and 100 terms."""
    problem = PROBLEMS["B2"]
    exact = problem.gradient(problem.x)
    for products, known in ((2, 0.38), (10, 1.3e-3)):
        got = error(at_argmin(problem, solve=cg(rtol=1e-14, max_steps=products)).grad, exact)
        assert known / 2 < got < 2 * known, (products, got)
    h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    step = 1 / float(np.linalg.eigvalsh(h).max())
    for terms, known in ((20, 0.115), (100, 1.9e-3)):
        got = error(at_argmin(problem, solve=neumann_series(terms, step)).grad, exact)
        assert known / 2 < got < 2 * known, (terms, got)


def test_published_errors_at_an_inexact_inner_point(x64):
    """B2 after 100 steps of gradient descent from 0: unrolled 9.5e-3, CG(20) 1.35e-3."""
    problem = PROBLEMS["B2"]
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
    assert int(unrolled.counts.inner) - 1 == 100 == int(unrolled.counts.products)
    # The bias of short memories, which no number of steps removes.
    for last, known in ((10, 0.294), (1, 0.828)):
        got = jax.jit(lambda x, k=last: unrolled_hypergradient(
            problem.outer, step, x, jnp.zeros(20), steps=2000, last=k))(x)
        assert abs(error(got.grad, exact) / known - 1) < 0.05


def test_truncation_is_the_neumann_series(x64):
    problem = PROBLEMS["B2"]
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.argmin(problem.x))

    def step(x, y):
        return y - 0.3 * jax.grad(problem.inner, 1)(x, y)

    unrolled = {mode: jax.jit(lambda x, m=mode: unrolled_hypergradient(
        problem.outer, step, x, y, steps=7, mode=m))(x) for mode in (
            "reverse", "checkpoint", "forward")}
    series = at_argmin(problem, solve=neumann_series(7, 0.3))
    for out in unrolled.values():
        np.testing.assert_allclose(out.grad, series.grad, rtol=1e-12)


def test_optimiser_states_unroll(x64):
    problem = PROBLEMS["B1"]
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


def test_nystrom_with_all_columns_is_the_damped_solve(x64):
    problem = PROBLEMS["B2"]
    x = jnp.asarray(problem.x)
    h = jax.hessian(problem.inner, 1)(x, jnp.zeros(20))
    b = jnp.asarray(np.random.default_rng(0).normal(size=20))
    for rank, wanted in ((20, 1e-8), (5, None)):
        out = jax.jit(lambda b, k=rank: nystrom(k, 1e-2, jax.random.key(0))(lambda v: h @ v, b))(b)
        exact = np.linalg.solve(h + 1e-2 * np.eye(20), b)
        assert int(out.steps) == rank
        if wanted:
            np.testing.assert_allclose(out.value, exact, rtol=wanted)
        else:
            assert 0.05 < error(out.value, exact) and out.status == Status.MAX_STEPS
    # A matrix of low rank, all of it seen: exact from as many columns.
    low = np.random.default_rng(1).normal(size=(20, 4))
    out = jax.jit(lambda b: nystrom(4, 0.1, jax.random.key(0))(lambda v: low @ (low.T @ v), b))(b)
    np.testing.assert_allclose(out.value, np.linalg.solve(low @ low.T + 0.1 * np.eye(20), b),
                               rtol=1e-8)


def test_corrected_value_and_error_estimate(x64):
    """Value errors fall with the square of the inner error; the estimate is of the right size."""
    problem = PROBLEMS["B2"]
    x, y = jnp.asarray(problem.x), problem.argmin(problem.x)
    best = float(problem.outer(x, jnp.asarray(y)))
    off = np.random.default_rng(2).normal(size=20)
    run = jax.jit(lambda y: hypergradient(
        problem.outer, problem.inner, x, y, corrected_value=True, estimate_error=True))
    errors = []
    for size in (0.1, 0.01):
        out = run(jnp.asarray(y + size * off))
        errors.append(abs(float(out.value) - best))
        true = np.linalg.norm(np.asarray(out.grad) - problem.gradient(problem.x))
        assert true / 3 < float(out.error_estimate) < 3 * true
    assert 80 < errors[0] / errors[1] < 125


def test_warm_start_damping_and_counts(x64):
    problem = PROBLEMS["B2"]
    cold = at_argmin(problem)
    warm = at_argmin(problem, v_init=cold.v)
    assert int(warm.counts.products) < int(cold.counts.products) / 3
    assert int(cold.counts.inner) == 1 == int(cold.counts.outer)
    damped = at_argmin(problem, damping=0.5, solve="dense")
    h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    y = jnp.asarray(problem.argmin(problem.x))
    pull = jax.grad(problem.outer, 1)(jnp.asarray(problem.x), y)
    np.testing.assert_allclose(damped.v, np.linalg.solve(h + 0.5 * np.eye(20), pull), rtol=1e-9)


def test_batches_and_second_derivatives(x64):
    problem = PROBLEMS["B2"]
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(8, 20)) - 3)
    ys = jnp.asarray(np.stack([problem.argmin(np.asarray(x)) for x in xs]))
    batch = jax.jit(jax.vmap(lambda x, y: hypergradient(problem.outer, problem.inner, x, y).grad))(
        xs, ys)
    for x, grad in zip(xs, batch, strict=True):
        assert error(grad, problem.gradient(np.asarray(x))) < 1e-7

    def through(x):  # the whole: inner solve, hypergradient, and its Jacobian
        y = solve_inner(problem.inner, jnp.zeros(20), x, max_steps=3000).value
        return hypergradient(problem.outer, problem.inner, x, y, solve="dense").grad

    jacobian = jax.jit(jax.jacrev(through))(xs[0])
    h = 1e-5
    for i in (0, 7):
        bump = h * np.eye(20)[i]
        column = (problem.gradient(np.asarray(xs[0]) + bump)
                  - problem.gradient(np.asarray(xs[0]) - bump)) / (2 * h)
        np.testing.assert_allclose(jacobian[:, i], column, atol=1e-6 * np.abs(jacobian).max())


def test_solve_inner(x64):
    problem = PROBLEMS["B2"]
    x = jnp.asarray(problem.x)
    solve = jax.jit(lambda x, y0: solve_inner(problem.inner, y0, x, max_steps=3000))
    out = solve(x, jnp.zeros(20))
    assert out.converged and error(out.value, problem.argmin(problem.x)) < 1e-6
    assert int(solve(x, out.value).steps) < int(out.steps) / 3  # warm
    grads = jax.jit(jax.grad(lambda x, y0: problem.outer(
        x, solve_inner(problem.inner, y0, x, max_steps=3000).value), (0, 1)))(x, jnp.zeros(20))
    assert error(grads[0], problem.gradient(problem.x)) < 1e-6
    np.testing.assert_array_equal(grads[1], 0)
    aux = jax.jit(lambda x: solve_inner(
        lambda x, y: (problem.inner(x, y), y.sum()), jnp.zeros(20), x, has_aux=True))(x)
    np.testing.assert_allclose(aux.aux, aux.value.sum(), rtol=1e-3)


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


def test_bad_input():
    def outer(x, y):
        return jnp.sum(y**2)

    def inner(x, y):
        return jnp.sum((y - x) ** 2)

    one = jnp.ones(2)
    for call, kind, text in [
        (lambda: hypergradient(lambda x, y: y, inner, one, one), ValueError, "outer returns shape"),
        (lambda: hypergradient(outer, lambda x, y: (y, y), one, one), ValueError, "inner returns"),
        (lambda: hypergradient(outer, inner, jnp.arange(2), one), TypeError, "x must have"),
        (lambda: hypergradient(outer, inner, one, one, solve="lu"), ValueError, "solve must be"),
        (lambda: hypergradient(outer, inner, one, one, damping=-1.0), ValueError, "damping"),
        (lambda: hypergradient(outer, inner, one, one, v_init=jnp.ones(3)), TypeError, "v_init"),
        (lambda: neumann_series(0), ValueError, "terms"),
        (lambda: nystrom(3, 0.0, jax.random.key(0)), ValueError, "damping must be positive"),
        (lambda: unrolled_hypergradient(outer, lambda x, y: y, one, one, steps=3, last=4),
         ValueError, "last must be in 1..3"),
        (lambda: unrolled_hypergradient(outer, lambda x, y: y, one, one, steps=3, mode="back"),
         ValueError, "mode must be"),
    ]:
        with pytest.raises(kind, match=text):
            call()
    broken = jax.jit(lambda y: hypergradient(lambda x, y: jnp.sum(jnp.log(y)), inner, one, y))(
        jnp.array([-1.0, 1.0]) * jnp.nan)
    assert broken.status == Status.NONFINITE
    flat = jax.jit(lambda y: hypergradient(outer, lambda x, y: jnp.sum(x * y), one, y))(one)
    assert flat.status != Status.CONVERGED  # no curvature: no argmin


def test_as_many_hyperparameters_as_weights():
    """Per-weight decay of a digits classifier: hypergradients align as terms are added."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = jnp.asarray(np.c_[np.asarray(pixels) / 16, np.ones(len(pixels))], jnp.float32)
    labels = jnp.asarray(labels)

    def loss(y, rows):
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(pixels[rows] @ y), labels[rows][:, None], axis=1)
        return -jnp.mean(chosen)

    def inner(x, y):
        return loss(y, slice(0, 200)) + jnp.sum(jnp.exp(x) * y * y) / 2

    def outer(x, y):
        return loss(y, slice(200, 250))

    x = jnp.full((65, 10), -5.0)
    y = jax.jit(lambda x: solve_inner(inner, jnp.zeros((65, 10)), x, max_steps=5000).value)(x)
    exact, *series = jax.jit(lambda x, y: [
        hypergradient(outer, inner, x, y, solve=solve).grad.ravel()
        for solve in ("dense", *(neumann_series(n, 1.6) for n in (1, 2, 6, 21)))])(x, y)
    cosines = [float(g @ exact / jnp.linalg.norm(g) / jnp.linalg.norm(exact)) for g in series]
    np.testing.assert_allclose(cosines, [0.73, 0.80, 0.87, 0.92], atol=0.02)
