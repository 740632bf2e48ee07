"""Dykstra against closed forms and linear programs; sets that do not meet; derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxiter as ji
from jaxiter import Status
from jaxiter import operators as op
from jaxiter.testing import check_front

rng = np.random.default_rng(0)
NORMALS, OFFSETS = rng.normal(size=(4, 3)), rng.uniform(0.2, 1, size=4)
CLOSE = ji.tolerance(1e-7, 0.0)


def halfspace(i):
    return lambda v, a, b: op.projection_halfspace(v, a[i], b[i])


SPACES = tuple(halfspace(i) for i in range(4))


def exact(x, a=NORMALS, b=OFFSETS):
    return minimize(lambda u: np.sum((u - x) ** 2), np.zeros(3), jac=lambda u: 2 * (u - x),
                    constraints={"type": "ineq", "fun": lambda u: b - a @ u, "jac": lambda u: -a},
                    options={"ftol": 1e-15}).x


def single(*arrays):
    return [jnp.asarray(x, jnp.zeros(0).dtype) for x in arrays]


def test_half_spaces_and_their_multipliers():
    x = 2 * rng.normal(size=3)
    point, a, b = single(x, NORMALS, OFFSETS)
    out = op.project_intersection(SPACES, point, a, b)
    assert out.converged, out.message()
    np.testing.assert_allclose(out.value, exact(x), atol=1e-4)
    np.testing.assert_allclose(sum(out.dual), point - out.value, atol=1e-4)
    for normal, correction in zip(NORMALS, out.dual, strict=True):
        along = correction @ normal / (normal @ normal)
        np.testing.assert_allclose(correction, along * normal, atol=1e-5)
        assert along >= 0
    assert out.solve.calls["projections"] == 4 * out.solve.steps


def test_trees_and_another_solver():
    tree = {"a": jnp.array([2.0, 0.9]), "b": jnp.array(-1.0)}
    ones = jax.tree.map(jnp.ones_like, tree)
    sets = [lambda v: op.projection_hyperplane(v, ones, 1.0), op.projection_non_negative]
    plain, fast = (op.project_intersection(sets, tree, solver=s) for s in (None, ji.anderson(3)))
    for out in (plain, fast):
        assert out.converged
        np.testing.assert_allclose(out.value["a"], [1.0, 0.0], atol=1e-4)
        np.testing.assert_allclose(out.value["b"], 0, atol=1e-4)


def test_vmap_is_the_loop():
    points = 2 * rng.normal(size=(6, 3))
    points, a, b = single(points, NORMALS, OFFSETS)
    many = jax.jit(jax.vmap(lambda x: op.project_intersection(SPACES, x, a, b)))(points)
    assert many.converged.all()
    for i in range(6):
        np.testing.assert_allclose(many.value[i], exact(np.asarray(points[i], float)), atol=1e-4)
    one = op.project_intersection(SPACES, points[4], a, b)
    assert one.solve.steps == many.solve.steps[4]
    np.testing.assert_allclose(one.value, many.value[4], atol=1e-6)


def test_derivatives_of_an_active_set(x64):
    """Of all operands, against differences of scipy's answer."""
    x = np.array([2.0, -1.0, 1.5])
    given = [jnp.asarray(v) for v in (x, NORMALS, OFFSETS)]

    @jax.jit
    def value(x, a, b):
        return op.project_intersection(
            SPACES, x, a, b, stop=ji.tolerance(1e-12, 0.0), max_steps=5000).value

    direction = [rng.normal(size=v.shape) for v in given]
    along = jax.jit(lambda *d: jax.jvp(value, tuple(given), d)[1])(*map(jnp.asarray, direction))
    h = 1e-4
    up, down = (exact(*(np.asarray(v) + s * h * d for v, d in zip(given, direction, strict=True)))
                for s in (1, -1))
    np.testing.assert_allclose(along, (up - down) / (2 * h), atol=1e-5)
    back = jax.jit(jax.grad(lambda *v: jnp.sum(value(*v) * given[0]), argnums=(0, 1, 2)))(*given)
    np.testing.assert_allclose(
        sum(np.sum(g * d) for g, d in zip(back, direction, strict=True)), along @ x, rtol=1e-7)


@pytest.mark.slow
def test_a_set_named_twice_has_the_derivative_all_the_same():
    """The corrections are not unique, the answer is."""
    def value(x, sets):
        return op.project_intersection(sets, x, stop=CLOSE).value

    a = jnp.array([1.0, 2.0, 2.0]) / 3
    plane = [lambda v: op.projection_halfspace(v, a, 0.0)]
    for sets in (plane, plane * 2, [*plane, op.projection_non_negative, *plane]):
        x = jnp.array([2.0, 1.0, 1.0]) if len(sets) < 3 else jnp.array([2.0, 1.0, -1.0])
        found = jax.jit(jax.jacobian(lambda x, sets=sets: value(x, sets)))(x)
        if len(sets) < 3:
            np.testing.assert_allclose(found, np.eye(3) - np.outer(a, a), atol=1e-4)
        else:
            np.testing.assert_allclose(found, np.zeros((3, 3)), atol=1e-3)


EPSILON = float(jnp.finfo(jnp.zeros(0).dtype).eps)


@pytest.mark.parametrize("gap, status", [
    (1.0, Status.PRIMAL_INFEASIBLE), (0.2, Status.PRIMAL_INFEASIBLE),
    (0.05 * EPSILON**0.25, Status.MAX_STEPS)])
def test_sets_that_do_not_meet(gap, status):
    """Two discs, and a plane beside a box: never CONVERGED, proved where the dtype can."""
    def disc(center):
        return op.translate(lambda v, step: op.projection_l2_ball(v), center)

    left, right = disc(jnp.array([-1.0, 0.0])), disc(jnp.array([1.0 + gap, 0.0]))
    discs = [lambda v: left(v, 1.0), lambda v: right(v, 1.0)]
    box = [lambda v: op.projection_box(v, 0.0, 1.0),
           lambda v: op.projection_hyperplane(v, jnp.ones(2), 2 + gap * 2**0.5)]
    for sets in (discs, box):
        out = op.project_intersection(sets, jnp.array([0.3, 1.5]), max_steps=2100)
        assert out.status == status, out.message()
    if status == Status.PRIMAL_INFEASIBLE:
        # The evidence: moves that cancel, as long as the gap.
        np.testing.assert_allclose(sum(out.solve.displacement), 0, atol=1e-4)
        np.testing.assert_allclose(jnp.linalg.norm(out.solve.displacement[0]), gap, rtol=1e-3)


@pytest.mark.parametrize("normal, inside, start, cycles", [
    ((0.6894138, -0.72436774), (0.04097352, 0.01652764), (-5.31572021, 3.63247818), 85),
    ((0.23536519, 0.97190701), (0.88993556, 0.82237383), (-12.52226159, -13.19282832), 199)])
def test_a_point_that_stands_still_is_not_taken_for_an_end(normal, inside, start, cycles):
    """A line through a box, from far away: Dykstra stays in a corner for so many cycles."""
    sets = [lambda v: op.projection_hyperplane(v, jnp.array(normal), np.dot(normal, inside)),
            lambda v: op.projection_box(v, 0.0, 1.0)]
    solve = jax.jit(lambda steps: op.project_intersection(sets, jnp.array(start), max_steps=steps))
    early, late = solve(cycles - 5), solve(cycles - 20)
    np.testing.assert_array_equal(early.value, late.value)
    assert early.status == late.status == Status.MAX_STEPS
    out = solve(3000)
    assert out.converged, out.message()
    exact = minimize(lambda u: np.sum((u - start) ** 2), inside, bounds=[(0, 1)] * 2, constraints={
        "type": "eq", "fun": lambda u: np.dot(normal, u) - np.dot(normal, inside)}).x
    np.testing.assert_allclose(out.value, exact, atol=1e-3)


def test_nearly_parallel_sets_that_meet_far_away_are_not_called_empty():
    """Two lines that cross 300 away."""
    a, b = np.array([0.0, 1.0]), np.array([1 / 300, 1.0])
    lines = [lambda v: op.projection_hyperplane(v, jnp.asarray(a, v.dtype), 0.0),
             lambda v: op.projection_hyperplane(v, jnp.asarray(b, v.dtype), 1.0)]
    out = op.project_intersection(lines, jnp.array([0.0, 0.3]), max_steps=600)
    assert out.status == Status.MAX_STEPS


def test_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        op.project_intersection([], jnp.ones(2))
    with pytest.raises(TypeError, match="must be a function"):
        op.project_intersection([3.0], jnp.ones(2))
    with pytest.raises(TypeError, match="real"):
        op.project_intersection([lambda v: v], jnp.ones(2, jnp.complex64))
    nan = op.project_intersection([lambda v: v * jnp.nan], jnp.ones(2))
    assert nan.status == Status.NONFINITE


@pytest.mark.slow
def test_conformance():
    point, a, b = single(2 * rng.normal(size=3), NORMALS, OFFSETS)
    check_front(lambda x, a, b, **options: op.project_intersection(SPACES, x, a, b, **options),
                point, a, b)
