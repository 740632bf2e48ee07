"""Class transport against linear programs at both ends of the strength, and numpy in between."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import jaxiter as ji
from jaxiter import Status
from jaxiter.testing import check_front
from jaxiter.transport import class_transport

#: The card's problem: all pairs, strength 0.05, value 0.3724860.
COST = np.random.default_rng(1).random((6, 5))
TWO = [0, 1, 0, 1, 1, 0]


def floats(*values):
    return [jnp.asarray(value, jnp.float32) for value in values]


def earth_movers(cost, a, b):
    """The value of a linear program."""
    n, m = cost.shape
    rows = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return linprog(cost.ravel(), A_eq=rows, b_eq=np.r_[a, b]).fun


def objective(plan, cost, classes, strength):
    """In numpy, by a loop over pairs."""
    plan = np.asarray(plan, float)
    total = (cost * plan).sum()
    for i in range(len(plan)):
        for j in range(i):
            if classes[i] == classes[j]:
                total += strength * np.linalg.norm(plan[i] - plan[j])
    return total


@jax.jit
def together(cost, a, b, strength):
    return class_transport(cost, a, b, [0] * 6, strength)


@jax.jit
def apart(cost, a, b, strength):
    return class_transport(cost, a, b, TWO, strength)


def test_the_known_value_and_its_dual(x64):
    a, b = np.full(6, 1 / 6), np.full(5, 0.2)
    out = together(COST, a, b, 0.05).check()
    assert int(out.solve.steps) <= 91  # of the plain method, in the card's steps
    for found in (out.value, out.dual_value, objective(out.plan, COST, [0] * 6, 0.05)):
        np.testing.assert_allclose(found, 0.3724860, atol=1e-7)
    np.testing.assert_allclose(out.plan.sum(0), b, atol=1e-12)
    np.testing.assert_allclose(out.plan.sum(1), a, atol=1e-12)


def weights(seed):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(3 * np.ones(6)), rng.dirichlet(3 * np.ones(5))


def test_both_ends_are_linear_programs():
    """Without strength optimal transport; with much of it that of classes, by mean costs."""
    a, b = weights(0)
    out = apart(*floats(COST, a, b, 0.0)).check()
    np.testing.assert_allclose(out.value, earth_movers(COST, a, b), atol=1e-5)
    a, labels = np.full(6, 1 / 6), np.array(TWO)
    out = apart(*floats(COST, a, b, 5.0)).check()
    for label in (0, 1):
        rows = np.asarray(out.plan)[labels == label]
        np.testing.assert_allclose(rows, rows[:1].repeat(len(rows), 0), atol=1e-6)
    means = np.stack([COST[labels == label].mean(0) for label in (0, 1)])
    np.testing.assert_allclose(out.value, earth_movers(means, np.full(2, 0.5), b), atol=1e-5)


def test_value_plan_and_bound_agree_in_float32():
    a, b = weights(1)
    for strength in (0.02, 0.1):
        out = apart(*floats(COST, a, b, strength)).check()
        value = objective(out.plan, COST, TWO, strength)
        np.testing.assert_allclose(out.value, value, atol=1e-6)
        assert 0 <= value - float(out.dual_value) + 1e-7 < 2e-5
        f, g = np.asarray(out.f, float), np.asarray(out.g, float)
        assert abs(float(out.dual_value) - (f @ a + g @ b)) < 1e-6
        np.testing.assert_allclose(out.plan.sum(0), b, atol=1e-6)
        np.testing.assert_allclose(out.plan.sum(1), a, atol=1e-6)


def test_a_constant_in_the_cost_is_none_of_the_plans():
    a, b = weights(1)
    plain = apart(*floats(COST, a, b, 0.1))
    shifted, flat = apart(*floats(COST + 64, a, b, 0.1)), apart(*floats(0 * COST + 3, a, b, 0.1))
    np.testing.assert_allclose(shifted.plan, plain.plan, atol=1e-4)
    np.testing.assert_allclose(shifted.value - 64, plain.value, atol=1e-4)
    assert shifted.converged and flat.converged and flat.value >= 3 - 1e-6


def test_a_point_that_owns_its_class_is_free():
    a, b = weights(2)
    out = jax.jit(lambda *operands: class_transport(*operands, list(range(6)), 3.0))(
        *floats(COST, a, b)).check()
    np.testing.assert_allclose(out.value, earth_movers(COST, a, b), atol=1e-5)


def test_derivatives_are_those_of_differences(x64):
    """Of the value always, of the plan where it is unique."""
    a, b = weights(3)
    rng = np.random.default_rng(0)
    face, *ways = (rng.normal(size=size) for size in ((6, 5), (6, 5), 6, 5, ()))
    ways[1:3] = [way - way.mean() for way in ways[1:3]]

    def read(shift):
        operands = [x + shift * way for x, way in zip((COST, a, b, 0.05), ways, strict=True)]
        out = class_transport(*operands[:3], TWO, operands[3], stop=ji.tolerance(1e-11, 0))
        return jnp.stack([out.value, jnp.sum(face * out.plan)])

    at = jax.jit(lambda shift: jax.jvp(read, (shift,), (jnp.ones(()),)))
    (high, _), (low, _), (_, slope) = (at(jnp.array(shift)) for shift in (1e-5, -1e-5, 0.0))
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-5)


def test_bad_input():
    a, b = (np.asarray(v, np.float32) for v in weights(4))
    cost = np.asarray(COST, np.float32)
    for match, given in (
        ("class 1 has no rows", (cost, a, b, [0, 0, 2, 2, 0, 2], 0.1)),
        ("one label for each row", (cost, a, b, [0, 0], 0.1)),
        ("differs from sum", (cost, a, 2 * b, TWO, 0.1)),
        ("strength must not be negative", (cost, a, b, TWO, -0.1)),
        ("a has negative", (cost, -a, b, TWO, 0.1)),
        ("a must have shape", (cost, a[:5], b, TWO, 0.1)),
        ("cost must be finite", (cost * np.nan, a, b, TWO, 0.1)),
    ):
        with pytest.raises(ValueError, match=match):
            class_transport(*given)
    with pytest.raises(TypeError, match="must be integers"):
        class_transport(cost, a, b, [0.5] * 6, 0.1)
    with pytest.raises(TypeError, match="classes must be known"):
        jax.jit(lambda labels: class_transport(cost, a, b, labels, 0.1).value)(jnp.array(TWO))
    whole = np.arange(1, 7)  # legal, as floats
    out = jax.eval_shape(lambda: class_transport(cost, whole, np.array([3, 4, 5, 4, 5]), TWO, 0.1))
    assert out.plan.dtype == jnp.float32
    for given in ((cost, a, 2 * b, 0.1), (cost, a, b, -0.1), (cost * np.nan, a, b, 0.1)):
        assert apart(*floats(*given)).status == Status.BAD_INPUT


@pytest.mark.slow
def test_classes_are_recovered_where_optimal_transport_mixes_them():
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0], [2, 0], [0, 2]])
    labels = np.repeat(np.arange(3), 10)
    x, y = (means[labels] + noise * rng.normal(size=(30, 2)) for noise in (1.5, 0.3))
    y = y + np.array([5, 3])
    cost = ((x[:, None] - y) ** 2).sum(-1)
    solve = jax.jit(jax.vmap(lambda strength: class_transport(
        jnp.asarray(cost, jnp.float32), None, None, labels, strength)))
    out = solve(jnp.array([0.0, 1.0]))
    assert out.converged.all()
    right = (np.asarray(out.plan) * (labels[:, None] == labels)).sum((1, 2))
    assert right[0] < 0.85 and right[1] > 0.999, right


@pytest.mark.slow
def test_the_front():
    a, b = weights(5)
    check_front(partial(lambda cost, a, b, strength, **options: class_transport(
        cost, a, b, TWO, strength, solver=ji.picard(), **options)), *floats(COST, a, b, 0.05))
