"""Labels in given numbers against the exact assignment; geodesic costs against Dijkstra's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.csgraph

import jaxiter as ji
from jaxiter.testing import check_front
from jaxiter.transport import geodesic_cost, unit_assignment

SEEDS = np.array([[2, 3], [12, 3], [8, 8], [3, 13], [13, 12]])
assign = jax.jit(unit_assignment)


def picture(size=16):
    """Five regions of unequal size, and their noisy class probabilities."""
    rows, columns = np.mgrid[:size, :size]
    apart = (rows - SEEDS[:, 0, None, None]) ** 2 + (columns - SEEDS[:, 1, None, None]) ** 2
    truth = np.argmin(apart * np.array([1, 1.3, 0.6, 1, 1.2])[:, None, None], axis=0)
    noise = 0.3 * np.random.default_rng(0).normal(size=(size, size, 5))
    return truth, (np.eye(5)[truth] + noise).astype(np.float32)


def shortest_paths(features, seeds, length):
    height, width = features.shape[:2]
    number = np.arange(height * width).reshape(height, width)
    graph = scipy.sparse.lil_matrix((height * width,) * 2)
    for i in range(height):
        for j in range(width):
            for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if 0 <= i + di < height and 0 <= j + dj < width:
                    graph[number[i, j], number[i + di, j + dj]] = (
                        np.abs(features[i, j] - features[i + di, j + dj]).sum()
                        + length * np.hypot(di, dj))
    out = scipy.sparse.csgraph.dijkstra(
        graph.tocsr(), directed=False, indices=number[seeds[:, 0], seeds[:, 1]])
    return out / out.max()


def test_geodesics_are_shortest_paths():
    _, features = picture()
    solve = jax.jit(lambda f, s, length: geodesic_cost(f, s, length=length))
    for part, length in ((features, 0.0), (features[:9, :5], 0.2)):
        seeds = SEEDS[:1]
        out = solve(part, seeds, length)
        assert out.solve.converged
        np.testing.assert_allclose(out.cost, shortest_paths(part, seeds, length), atol=1e-6)
    bad = jax.jit(jax.vmap(lambda f: geodesic_cost(f, seeds)))(
        jnp.stack([features, features * jnp.nan]))
    assert [ji.Status.name(s) for s in bad.status] == ["CONVERGED", "BAD_INPUT"]


def test_labels_are_those_of_the_exact_assignment():
    truth, features = picture()
    flat = truth.ravel()
    cost = np.asarray(geodesic_cost(jnp.asarray(features), jnp.asarray(SEEDS)).cost)
    mask = np.ones(256, bool)
    mask[::17] = False
    units = np.bincount(flat[mask], minlength=5)
    out = assign(cost, jnp.asarray(units, jnp.float32), mask)
    labels = np.asarray(out.labels)
    assert out.solve.converged and np.all(labels[~mask] == -1)
    owners = np.repeat(np.arange(5), units)
    rows, columns = scipy.optimize.linear_sum_assignment(cost[owners][:, mask])
    exact = np.empty(mask.sum(), int)
    exact[columns] = owners[rows]
    assert np.mean(labels[mask] == exact) > 0.99
    counts = np.bincount(labels[mask], minlength=5)
    assert np.abs(counts - units).max() <= 1  # the pixels that the plan splits
    right = np.mean(labels[mask] == flat[mask])
    assert right > np.mean(np.argmin(cost, axis=0)[mask] == flat[mask]) + 0.02
    broken = assign(cost * np.nan, jnp.asarray(units, jnp.float32), mask)
    assert broken.status != ji.Status.CONVERGED and np.all(broken.labels == -1)


@pytest.mark.slow
def test_geodesics_are_a_front():
    check_front(lambda features, **options: geodesic_cost(
        features, np.array([[0, 0], [5, 6]]), **options), jnp.asarray(picture()[1][:8, :8]))


def test_bad_input():
    cost, units = jnp.ones((2, 4)), jnp.array([1.0, 2.0])
    image, seeds = jnp.ones((3, 4, 1)), jnp.array([[0, 0]])
    for call, text in (
            (lambda: unit_assignment(cost, units), "supply 3, demand 4.*slack"),
            (lambda: unit_assignment(cost, jnp.array([5.0, -1.0])), "units has negative"),
            (lambda: unit_assignment(cost, units[:1]), "cost must be"),
            (lambda: unit_assignment(cost * jnp.nan, units + 0.5), "cost contains NaN"),
            (lambda: unit_assignment(cost.at[:, 2].set(jnp.inf), units + 0.5), "column 2 has no"),
            (lambda: geodesic_cost(image[0], seeds), "features must be"),
            (lambda: geodesic_cost(image, seeds[:0]), "at least one"),
            (lambda: geodesic_cost(image * jnp.nan, seeds), "NaN"),
            (lambda: geodesic_cost(image, seeds + 3), "outside the image of 3 rows"),
            (lambda: geodesic_cost(image, seeds, length=-1.0), "length"),
            (lambda: geodesic_cost(image, seeds.astype(float)), "seeds must be integers"),
            (lambda: geodesic_cost(image, seeds, solver=ji.anderson()), "takes no solver")):
        with pytest.raises(ValueError, match=text):
            call()
