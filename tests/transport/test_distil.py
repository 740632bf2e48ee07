"""Sinkhorn distillation against a loop in numpy, the assignment, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter.transport import sinkhorn_distillation


def probabilities(logits):
    p = np.exp(logits / 2 - np.max(logits / 2, axis=1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def distances(student, teacher):
    return np.abs(probabilities(student)[:, None] - probabilities(teacher)).sum(-1)


def published(student, teacher):
    cost = distances(student, teacher)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return np.sum(plan * cost)


def logits(size=(8, 5)):
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=size), 3 * rng.normal(size=size)


def test_is_the_published_loop():
    student, teacher = logits()
    loss = jax.jit(sinkhorn_distillation)
    ours = loss(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)))
    np.testing.assert_allclose(ours, published(student, teacher), rtol=1e-5)
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_allclose(
        loss(jnp.asarray(student[order], jnp.float32), jnp.asarray(teacher[order], jnp.float32)),
        ours, rtol=1e-5)
    assert loss(jnp.asarray(student, jnp.float32), jnp.asarray(student, jnp.float32)) > 1e-3
    one = sinkhorn_distillation(jnp.asarray(student[:1]), jnp.asarray(teacher[:1]))
    np.testing.assert_allclose(one, distances(student[:1], teacher[:1])[0, 0], rtol=1e-6)


def test_derivatives_of_the_loss_and_of_its_envelope(x64):
    student, teacher = logits()
    way, h = np.random.default_rng(2).normal(size=student.shape), 1e-6
    finite = (published(student + h * way, teacher) - published(student - h * way, teacher)) / (2*h)
    slope = jax.jit(jax.grad(sinkhorn_distillation))(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(np.sum(slope * way), finite, rtol=1e-6)
    cost = distances(student, teacher)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    held = np.sum(plan * (distances(student + h * way, teacher)
                          - distances(student - h * way, teacher))) / (2 * h)
    slope = jax.grad(lambda s: sinkhorn_distillation(s, jnp.asarray(teacher), envelope=True))(
        jnp.asarray(student))
    np.testing.assert_allclose(np.sum(slope * way), held, rtol=1e-6)


def test_small_epsilon_is_the_assignment():
    student, teacher = logits()
    cost = distances(student, teacher)
    best = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
    ours = sinkhorn_distillation(jnp.asarray(student, jnp.float32),
                                 jnp.asarray(teacher, jnp.float32), epsilon=2e-3, max_steps=400)
    np.testing.assert_allclose(ours, best, rtol=1e-3)


@pytest.mark.slow
def test_solved_to_tolerance(x64):
    student, teacher = (jnp.asarray(x) for x in logits())
    solved, looped = (jax.jit(lambda s, o=o: sinkhorn_distillation(s, teacher, **o)) for o in (
        {"adjoint": ji.implicit(), "stop": ji.tolerance(rtol=0, atol=1e-12)},
        {"max_steps": 3000}))
    np.testing.assert_allclose(solved(student), looped(student), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(solved)(student), jax.grad(looped)(student), atol=1e-7)


def test_gradient_where_a_divergence_is_flat():
    """Student and teacher sure of different classes: softmax is flat, transport is not zero."""
    student = jnp.array([[6.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    slope = jax.grad(sinkhorn_distillation)(student, jnp.flip(student, 1))
    assert jnp.linalg.norm(slope) > 0.01


def test_bad_input():
    student = jnp.ones((3, 2))
    for call, text in (
            (lambda: sinkhorn_distillation(student, student[:2]), "same samples"),
            (lambda: sinkhorn_distillation(student, student, epsilon=0.0), "epsilon"),
            (lambda: sinkhorn_distillation(student, student, temperature=0.0), "temperature")):
        with pytest.raises(ValueError, match=text):
            call()
    loss = jax.jit(lambda s, e, t: sinkhorn_distillation(s, student, epsilon=e, temperature=t))
    for bad in ((student * jnp.nan, 0.1, 2.0), (student, -0.1, 2.0), (student, 0.1, -2.0)):
        assert np.isnan(loss(*bad))
