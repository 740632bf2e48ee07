"""Adversarial risk against linear programs and matchings; balls against a slow, sure method."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

import jaxiter as ji
from jaxiter.testing import check_front
from jaxiter.transport import adversarial_risk, hypergraph_sinkhorn
from jaxiter.transport.balls import squared_radii

from .beds import TIGHT, reference, weights

CENTRES = (0, 0), (1.2, 0), (0.6, 1)


def three_classes():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(15, 2)) * 0.6 + centre for centre in CENTRES])
    return points, np.repeat([0, 1, 2], 15)


def linear_program(edges, mass, cost=None):
    rows, columns = np.nonzero(edges >= 0)
    contains = scipy.sparse.coo_array(
        (np.ones(len(rows)), (edges[rows, columns], rows)), (len(mass), len(edges)))
    cost = np.ones(len(edges)) if cost is None else cost
    return scipy.optimize.linprog(cost, A_eq=contains, b_eq=mass).fun


def the_table(radius, order, count, risk):
    points, labels = three_classes()
    out = adversarial_risk(points, labels, radius, order=order)
    assert out.converged and len(out.edges) == count
    np.testing.assert_allclose(out.risk, risk, atol=5e-5)
    np.testing.assert_allclose(
        1 - linear_program(out.edges, np.full(45, 1 / 45)), risk, atol=5e-5)


def test_risk_of_three_classes():
    the_table(0.2, 3, 75, 0.2222)
    the_table(0.2, 2, 71, 0.2111)


@pytest.mark.slow
@pytest.mark.parametrize("radius, order, count, risk", [
    (0.1, 3, 51, 0.0889), (0.3, 3, 142, 0.3111), (0.5, 3, 459, 0.4222), (0.1, 2, 51, 0.0889),
    (0.3, 2, 112, 0.3), (0.5, 2, 228, 0.4222)])
def test_the_rest_of_the_table(radius, order, count, risk):
    the_table(radius, order, count, risk)


def test_two_classes_are_a_matching():
    points, labels = three_classes()
    points, labels = points[:30], labels[:30]
    near = np.linalg.norm(points[:15, None] - points[None, 15:], axis=2) <= 0.5
    matched = maximum_bipartite_matching(scipy.sparse.csr_array(near)) >= 0
    out = adversarial_risk(points, labels, 0.25)
    np.testing.assert_allclose(out.risk, np.sum(matched) / 30, atol=1e-3)


def test_enclosing_balls():
    """Pairs to quadruples in three dimensions, collinear and double points among them."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 4, 3))
    points[0, 2] = (points[0, 0] + points[0, 1]) / 2
    points[1, 3] = points[1, 2]
    for count in (2, 3, 4):
        some = points[:, :count]
        centre = some.mean(1)
        for k in range(20_000):  # towards the farthest point (Badoiu and Clarkson)
            far = np.argmax(np.sum((some - centre[:, None]) ** 2, 2), 1)
            centre = centre + (some[np.arange(40), far] - centre) / (k + 2)
        reached = np.max(np.sum((some - centre[:, None]) ** 2, 2), 1)
        found = squared_radii(some)
        assert np.all(found <= reached * (1 + 1e-9))
        np.testing.assert_allclose(found, reached, rtol=1e-3)


def small():
    edges = np.array([[0, -1], [1, -1], [-1, 2], [-1, 3], [0, 2], [1, 2], [1, 3]], np.int32)
    mass = np.array([0.2, 0.3, 0.35, 0.15])
    return edges, mass, np.array([1.0, 1.1, 0.9, 1, 1.2, 1, 1.3])


def test_plan_is_optimal_and_differentiable(x64):
    edges, mass, cost = small()
    solve = jax.jit(lambda mass, cost, epsilon: hypergraph_sinkhorn(
        edges, mass, cost=cost, epsilon=epsilon, stop=TIGHT))
    sharp = solve(mass, cost, 0.005)
    np.testing.assert_allclose(sharp.value, linear_program(edges, mass, cost), atol=1e-4)

    def value(mass, cost, epsilon):
        out = solve(mass, cost, epsilon)
        return out.value + jnp.sum(out.potentials**2)

    at = mass, cost, 0.1
    slopes = jax.grad(value, argnums=(0, 1, 2))(*at)
    rng = np.random.default_rng(0)
    ways = jax.tree.map(lambda p: rng.normal(size=np.shape(p)), at)
    up, down = (value(*jax.tree.map(lambda p, w, h=h: p + h * w, at, ways)) for h in (1e-6, -1e-6))
    slope = sum(np.sum(g * w) for g, w in zip(slopes, ways, strict=True))
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-6)


def test_without_absent_members_it_is_sinkhorn(x64):
    a, b = weights(3, 4)
    cost = np.random.default_rng(3).uniform(size=(3, 4))
    edges = np.stack(np.meshgrid(np.arange(3), 3 + np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    out = hypergraph_sinkhorn(edges, np.r_[a, b], cost=cost.ravel(), epsilon=0.1, stop=TIGHT)
    f, g = reference(cost, a, b, 0.1)
    plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / 0.1)
    np.testing.assert_allclose(out.weights.reshape(3, 4), plan, atol=1e-9)


def test_bad_input():
    edges, mass, _ = small()
    edges, mass = jnp.asarray(edges), jnp.asarray(mass, jnp.float32)
    solve = partial(hypergraph_sinkhorn, epsilon=0.1)
    for given, message in (
            ((edges[1:4], mass), "point 0 has mass and is in no edge"),
            ((edges + 1, mass), "from 0 to 3"), ((edges[:, ::-1].at[0, 0].set(0), mass), "columns"),
            ((edges, -mass), "mass must not be negative"), ((edges[0], mass), "shapes")):
        with pytest.raises(ValueError, match=message):
            solve(*given)
    with pytest.raises(ValueError, match="epsilon"):
        hypergraph_sinkhorn(edges, mass, epsilon=-1.0)
    points, labels = three_classes()
    for change, message in (
            ({"labels": 0 * labels}, "two classes"), ({"radius": -1.0}, "radius"),
            ({"points": points[:, 0]}, "shapes"),
            ({"mass": np.where(labels == 1, 0, 1 / 30)}, "class 1 is empty")):
        with pytest.raises(ValueError, match=message):
            adversarial_risk(**{"points": points, "labels": labels, "radius": 0.1, **change})
    with pytest.raises(ValueError, match="enumerated on the host"):
        jax.jit(lambda p: adversarial_risk(p, labels, 0.1).risk)(points)

    @jax.jit
    @jax.vmap
    def batch(mass):
        return solve(edges, mass)

    out = batch(jnp.stack([mass, mass * jnp.nan, -mass]))
    assert out.status.tolist() == [ji.Status.CONVERGED, ji.Status.BAD_INPUT, ji.Status.BAD_INPUT]
    np.testing.assert_allclose(out.weights[0], solve(edges, mass).weights, atol=1e-6)
    np.testing.assert_allclose(solve(edges, jnp.array([1, 1, 1, 1])).weights,
                               solve(edges, jnp.ones(4)).weights)


def test_traced_edges_are_looked_at():
    edges, mass, _ = small()
    edges, mass = jnp.asarray(edges), jnp.asarray(mass, jnp.float32)
    cases = (edges, edges.at[6, 1].set(4), edges.at[6, 0].set(-2), edges.at[6, 1].set(0),
             edges.at[0, 0].set(-1).at[4, 0].set(-1))  # the last one: point 0 is in none
    solve = jax.jit(jax.vmap(lambda edges, mass: hypergraph_sinkhorn(edges, mass, epsilon=0.1)))
    lone = mass.at[0].set(0)
    out = solve(jnp.stack([*cases, cases[-1]]), jnp.stack([mass] * 5 + [lone]))
    bad = np.asarray(out.status) == ji.Status.BAD_INPUT
    assert bad.tolist() == [False, True, True, True, True, False]


@pytest.mark.slow
def test_front():
    edges, mass, _ = small()
    check_front(partial(hypergraph_sinkhorn, epsilon=0.1), jnp.asarray(edges),
                jnp.asarray(mass, jnp.float32))
