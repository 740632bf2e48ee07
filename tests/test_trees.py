"""Tree algebra against numpy in float64, at the ends of the float range too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import columns, trees


def pair(scale=1.0):
    rng = np.random.default_rng(0)
    a = {"x": rng.normal(size=(3, 2)), "y": [rng.normal(size=4)]}
    return jax.tree.map(lambda leaf: jnp.float32(scale * leaf), a), np.concatenate(
        [a["x"].ravel(), a["y"][0]])


def test_sums_and_products_are_those_of_the_flat_vectors():
    a, flat = pair()
    b = jax.tree.map(lambda leaf: 2 * leaf + 1, a)
    other = 2 * flat + 1
    np.testing.assert_allclose(trees.dot(a, b), flat @ other, rtol=1e-5)
    np.testing.assert_allclose(trees.squared_norm(a), flat @ flat, rtol=1e-6)
    np.testing.assert_allclose(trees.max_norm(a), np.abs(flat).max(), rtol=1e-6)
    for tree, exact in ((trees.add(a, b), flat + other), (trees.subtract(a, b), flat - other),
                        (trees.axpy(0.5, a, b), 0.5 * flat + other),
                        (trees.negative(trees.scale(3.0, a)), -3 * flat)):
        seen = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        np.testing.assert_allclose(seen, exact, rtol=1e-5, atol=1e-6)
    z = jnp.array([1 + 2j, 3j])
    assert trees.dot(z, 1j * z) == 14j and trees.squared_norm(z) == 14


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norms_at_any_scale(scale):
    a, flat = pair(scale)
    exact = scale * np.linalg.norm(flat)
    zero = trees.zeros_like(a)
    np.testing.assert_allclose(trees.norm(a), exact, rtol=1e-6)
    np.testing.assert_allclose(trees.norms(a, zero), [exact, 0], rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(lambda *v: trees.safe_norms(lambda *v: v, *v))(a, zero), [exact, 0], rtol=1e-6)
    np.testing.assert_allclose(
        trees.norm(trees.into_ball(0.5 * exact, a)), 0.5 * exact, rtol=1e-5)


def test_what_is_not_finite_shows():
    for bad in (np.nan, np.inf, -np.inf):
        a = {"x": jnp.array([1.0, bad]), "y": jnp.ones(2)}
        assert not trees.finite(a) and np.isnan(trees.max_norm(a)) and not np.isfinite(
            trees.norm(a))
        assert trees.magnitude(a) == 1
    assert trees.finite(pair()[0]) and trees.finite({})
    assert trees.norm({}) == 0 and trees.norm_dtype({}) == np.float32


def test_half_precision_accumulates_in_float32():
    a = jnp.full(4096, 16.0, jnp.float16)
    assert trees.squared_norm(a) == 4096 * 256.0 and trees.norm(a) == 1024
    assert trees.dot(a, a).dtype == jnp.float32 and trees.scale(0.5, a).dtype == jnp.float16
    # The factor is beyond float16, and 1 / 250 is 0.3 % off in bfloat16; the products are neither.
    assert trees.scale(1e6, jnp.float16(1e-5)) == jnp.float16(1e6 * float(jnp.float16(1e-5)))
    assert trees.scale(jnp.float32(1 / 250), jnp.bfloat16(250)) == 1


def test_columns_are_a_matrix():
    a, flat = pair()
    history = columns.empty(a, 3)
    for slot in range(3):
        history = columns.put(history, slot, trees.scale(slot + 1.0, a))
    square = flat @ flat
    np.testing.assert_allclose(
        columns.dot(history, a, trees.negative(a)),
        np.outer([1, 2, 3], [square, -square]), rtol=1e-5)
    mixed = columns.combine(jnp.array([1.0, 0.0, -1.0]), history, a)
    np.testing.assert_allclose(mixed["x"], -2 * a["x"], rtol=1e-5)
    many = jax.tree.map(lambda h: jnp.concatenate([h] * 5), history)  # not term by term
    weights = np.arange(15.0) - 6
    mixed = columns.combine(jnp.asarray(weights, jnp.float32), many, a)
    np.testing.assert_allclose(mixed["x"], weights @ np.tile([1, 2, 3], 5) * a["x"], rtol=1e-5)
    pushed = columns.push(history, a)
    np.testing.assert_allclose(columns.dot(pushed, a)[:, 0], square * np.array([2, 3, 1]),
                               rtol=1e-5)


def test_the_probe_is_fixed_and_of_both_signs():
    like = {"x": jnp.zeros(1000), "y": jnp.zeros(1000)}
    probe = trees.probe_like(like)
    np.testing.assert_array_equal(probe["x"], trees.probe_like(like)["x"])
    sizes = np.abs(probe["x"])
    assert sizes.min() >= 0.5 and sizes.max() <= 1.5
    assert abs(np.mean(np.sign(probe["x"]))) < 0.1
    assert abs(np.dot(probe["x"], probe["y"])) < 100  # leaves are independent


def test_errors_name_the_leaf():
    a = {"w": [jnp.zeros((2, 3))]}
    with pytest.raises(TypeError, match=r"the map must keep shapes.*\['w'\]\[0\].*\[2, 3\]"):
        trees.check_same_structure(a, {"w": [jnp.zeros((3, 2))]}, "the map")
    with pytest.raises(TypeError, match="tree structure"):
        trees.check_same_structure(a, {"v": [jnp.zeros((2, 3))]}, "the map")
    with pytest.raises(TypeError, match="float16"):
        trees.check_same_structure(a, jax.tree.map(lambda x: x.astype(jnp.float16), a), "f")


def test_unshared_copies_what_is_held_twice():
    one, other = jnp.ones(2), jnp.zeros(2)
    first, second, third = trees.unshared((one, one, other), (other,))
    assert first is one and second is not one and third is not other
    np.testing.assert_array_equal(second, one)


def test_rows_of_a_tree():
    """Against numpy: what stands before a row, masks over rows, rows that are not finite."""
    tree = {"x": jnp.arange(6.0).reshape(3, 2), "n": jnp.arange(3)}
    first = {"x": jnp.array([8.0, 9.0]), "n": jnp.array(7)}
    mask = jnp.array([True, False, True])
    assert trees.before(tree)["x"].tolist() == [[0, 0], [0, 1], [2, 3]]
    assert trees.before(tree, first)["n"].tolist() == [7, 0, 1]
    assert trees.prepend(first, tree)["x"].tolist() == [[8, 9], [0, 1], [2, 3], [4, 5]]
    assert trees.at(tree, jnp.array([2, 0]))["n"].tolist() == [2, 0]
    assert trees.mean_rows(tree["x"]).tolist() == [2, 3]
    kept = trees.where_rows(mask, tree, jax.tree.map(jnp.negative, tree))
    assert kept["x"].tolist() == [[0, 1], [-2, -3], [4, 5]] and kept["n"].tolist() == [0, -1, 2]
    assert trees.where_rows(mask, tree["n"], first["n"]).tolist() == [0, 7, 2]
    broken = {**tree, "x": tree["x"].at[1, 0].set(jnp.nan)}
    assert trees.finite_rows(broken).tolist() == [True, False, True]
