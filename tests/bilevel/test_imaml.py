"""Implicit MAML against finite differences of the closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.bilevel import implicit_maml


def regression_tasks(tasks=8, d=8, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=d)
    w = mean + 0.3 * rng.normal(size=(tasks, d))
    a, c = rng.normal(size=(2, tasks, 20, d))
    return mean, tuple(jnp.asarray(part, jnp.float32) for part in (
        a, np.einsum("tnd,td->tn", a, w), c, np.einsum("tnd,td->tn", c, w)))


def train(phi, task):
    return jnp.mean(jnp.square(task[0] @ phi - task[1])) / 2


def validation(phi, task):
    return jnp.mean(jnp.square(task[2] @ phi - task[3])) / 2


def test_implicit_maml_is_the_derivative_of_the_closed_form():
    _, tasks = regression_tasks()

    def objective(theta):
        """Post-adaptation loss, every adaptation by one linear solve in numpy."""
        total = 0.0
        for a, b, c, d in zip(*(np.asarray(t, float) for t in tasks), strict=True):
            phi = np.linalg.solve(a.T @ a / len(b) + np.eye(8), a.T @ b / len(b) + theta)
            total += np.mean((c @ phi - d) ** 2) / 2 / len(tasks[0])
        return total

    theta = np.linspace(-1, 1, 8)
    out = jax.jit(lambda t: implicit_maml(train, validation, t, tasks))(
        jnp.asarray(theta, jnp.float32))
    numeric = [(objective(theta + 1e-5 * e) - objective(theta - 1e-5 * e)) / 2e-5
               for e in np.eye(8)]
    np.testing.assert_allclose(out.grad, numeric, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.value, objective(theta), rtol=1e-4)
    assert np.all(np.asarray(out.status) <= 1)
    with pytest.raises(ValueError, match="strength must be positive"):
        implicit_maml(train, validation, jnp.zeros(8), tasks, strength=0.0)


@pytest.mark.slow
def test_implicit_maml_learns_the_task_mean():
    """Published: 300 steps of 8 tasks bring the adapted loss near that of the true mean."""
    mean, tasks = regression_tasks()

    def step(theta, _):
        out = implicit_maml(train, validation, theta, tasks)
        return theta - 0.3 * out.grad, out.value

    theta, values = jax.jit(lambda t: jax.lax.scan(step, t, None, length=300))(jnp.zeros(8))
    best = implicit_maml(train, validation, jnp.asarray(mean, jnp.float32), tasks).value
    assert values[-1] < 1.02 * best < values[0] / 4, (values[0], values[-1], best)


@pytest.mark.slow
def test_adaptations_go_on_where_they_stopped():
    """resume takes the state of all tasks; solve is their solution; no names for solvers."""
    _, tasks = regression_tasks()
    theta = jnp.linspace(-1, 1, 8)

    meta = jax.jit(lambda steps, resume: implicit_maml(
        train, validation, theta, tasks, max_steps=steps, resume=resume,
        stop=ji.tolerance(rtol=1e-6)))
    part, whole = meta(3, None), meta(200, None)
    assert np.all(np.asarray(part.solve.status) == ji.Status.MAX_STEPS) and not part.converged.any()
    resumed = meta(200, part.solve.state)
    np.testing.assert_array_equal(resumed.solve.value, whole.solve.value)
    np.testing.assert_array_equal(resumed.solve.steps, whole.solve.steps)
    with pytest.raises(TypeError, match="linear solver"):
        implicit_maml(train, validation, theta, tasks, solve="cg")
    with pytest.raises(TypeError, match="unexpected argument 'steps'"):
        implicit_maml(train, validation, theta, tasks, steps=3)
