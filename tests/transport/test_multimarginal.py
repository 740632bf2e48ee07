"""Many marginals: numpy's loop over a tensor, Sinkhorn for two, finite differences, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxiter as ji
from jaxiter.stop import never
from jaxiter.testing import check_front
from jaxiter.transport import CostTree, multimarginal_sinkhorn
from jaxiter.transport.cost_tensor import CostTensor

from .beds import TIGHT, clouds, reference, weights

#: A marginal with three neighbours: sweeps come back from a branch.
BRANCHES = ((0, 1), (2, 1), (1, 3))


def cyclic(cost, marginals, epsilon, steps=400):
    """The plan by the textbook's loop over the marginals of a tensor."""
    f = [np.zeros(len(a)) for a in marginals]
    count = cost.ndim
    for _ in range(steps):
        for k, a in enumerate(marginals):
            z = -cost / epsilon + sum(
                part.reshape([-1 if j == i else 1 for j in range(count)])
                for i, part in enumerate(f))
            f[k] = f[k] + np.log(a) - scipy.special.logsumexp(
                z, axis=tuple(j for j in range(count) if j != k))
    return np.exp(-cost / epsilon + sum(
        part.reshape([-1 if j == i else 1 for j in range(count)]) for i, part in enumerate(f)))


def branching(sizes=(3, 4, 2, 3), seed=0):
    rng = np.random.default_rng(seed)
    costs = [rng.uniform(size=(sizes[i], sizes[j])) for i, j in BRANCHES]
    marginals = [rng.dirichlet(np.full(n, 3.0)) for n in sizes]
    return costs, marginals


@pytest.fixture(scope="module")
def solve():
    """Trees and tensors alike; one compilation for each structure and shape."""
    return jax.jit(partial(multimarginal_sinkhorn, stop=TIGHT, max_steps=5000))


@pytest.mark.slow
def test_tree_and_tensor_are_numpys_loop(x64, solve):
    costs, marginals = branching()
    tree = CostTree(costs, BRANCHES)
    dense = sum(c.reshape([n if k in edge else 1 for k, n in enumerate(tree.shape)])
                if edge[0] < edge[1] else c.T.reshape(
                    [n if k in edge else 1 for k, n in enumerate(tree.shape)])
                for edge, c in zip(BRANCHES, costs, strict=True))
    np.testing.assert_allclose(tree.tensor(), dense, atol=1e-15)
    plan, pairs = cyclic(dense, marginals, 0.1), None
    for cost in (tree, dense):
        out = solve(cost, marginals, epsilon=0.1)
        assert out.converged and out.marginal_error < 1e-10
        np.testing.assert_allclose(out.plan(), plan, atol=1e-10)
        np.testing.assert_allclose(out.transport_cost, np.sum(dense * plan), rtol=1e-9)
        prior = np.einsum("i,j,k,l->ijkl", *marginals)
        primal = np.sum(dense * plan) + 0.1 * np.sum(plan * np.log(plan / prior))
        np.testing.assert_allclose(out.dual_value, primal, rtol=1e-9)
        for f, a in zip(out.potentials[1:], marginals[1:], strict=True):
            np.testing.assert_allclose(np.mean(f - 0.1 * np.log(a)), 0, atol=1e-12)
        pairs = out.pair_plans() if cost is tree else pairs
    np.testing.assert_allclose(pairs[1], plan.sum((0, 3)).T, atol=1e-10)
    for k, at in ((1, 2), (0, 0), (3, 1)):  # a point without mass, in the middle and at the ends
        marginals[k] = np.where(np.arange(len(marginals[k])) == at, 0, marginals[k])
        marginals[k] = marginals[k] / marginals[k].sum()
    out = solve(tree, marginals, epsilon=0.1)
    plan, pairs = np.asarray(out.plan()), out.pair_plans()
    assert out.converged
    for (i, j), pair in zip(BRANCHES, pairs, strict=True):
        held = plan.sum(tuple({0, 1, 2, 3} - {i, j}))
        np.testing.assert_allclose(pair, held if i < j else held.T, atol=1e-12)
    assert not np.any(pairs[0][0]) and not np.any(pairs[2][:, 1])
    cheap = out._replace(  # where there is no mass the exponential may be beyond the range
        potentials=(jnp.array([-jnp.inf, 0.0]), jnp.zeros(2)), epsilon=jnp.asarray(1.0),
        cost=CostTree([jnp.array([[-1e4, 0.0], [0.0, 0.0]])]))
    np.testing.assert_array_equal(cheap.pair_plans()[0], [[0, 0], [1, 1]])


def test_two_marginals_are_sinkhorn_and_zeros_are_legal(x64):
    x, y = clouds(6)
    cost = ((x[:, None] - y) ** 2).sum(-1)
    a, b = weights(6, 6)
    a[2] = 0
    a = a / a.sum()
    f, g = reference(cost, a, b, 0.05)
    plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / 0.05)
    solve = partial(multimarginal_sinkhorn, marginals=[a, b], epsilon=0.05, stop=TIGHT,
                    solver=ji.anderson())
    for given in (cost, [cost]):
        out = solve(given)
        np.testing.assert_allclose(out.plan(), plan, atol=1e-10)
        assert out.potentials[0][2] == -np.inf and out.converged
    assert solve([cost], init=out.potentials).solve.steps <= 2


@pytest.mark.slow
def test_chain_of_five_equals_its_tensor_in_float32():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(5, 12, 2)).astype(np.float32)
    costs = [((a[:, None] - b) ** 2).sum(-1) for a, b in zip(points, points[1:], strict=False)]
    marginals = [np.full(12, 1 / 12, np.float32)] * 5
    chain = multimarginal_sinkhorn(costs, marginals, epsilon=0.1)
    tensor = multimarginal_sinkhorn(chain.cost.tensor(), marginals, epsilon=0.1)
    assert chain.converged and tensor.converged
    # Entries of the plan are at most 1 / 12.
    np.testing.assert_allclose(chain.plan(), tensor.plan(), atol=1e-6 / 12)
    for one, other in zip(chain.potentials, tensor.potentials, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_derivatives_against_differences(x64):
    costs, marginals = branching((2, 3, 2, 2))
    costs[0] = costs[0].copy()
    costs[0][0, 0] = np.inf  # a forbidden pair has no derivative, and disturbs no other
    rng = np.random.default_rng(1)
    probe = [rng.normal(size=f.shape) for f in marginals]

    @jax.jit
    def value(costs, marginals, epsilon):
        out = multimarginal_sinkhorn(CostTree(costs, BRANCHES), marginals, epsilon=epsilon,
                                     stop=TIGHT, max_steps=5000)
        return out.transport_cost + out.dual_value + sum(
            jnp.sum(p * f) for p, f in zip(probe, out.potentials, strict=True))

    at = costs, marginals, 0.2
    slopes = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*at)
    direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), at)
    for d in direction[1]:  # masses stay equal
        d -= d.mean()
    h = 1e-6

    def moved(sign):
        return value(*jax.tree.map(lambda x, d: x + sign * h * d, at, direction))

    slope = sum(np.sum(g * d) for g, d in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (moved(1) - moved(-1)) / (2 * h), rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(slopes))


def test_small_epsilon_and_batches():
    """In float32 at an epsilon where the plain kernel underflows; NaN data have a status."""
    x = np.random.default_rng(2).uniform(size=(3, 8, 2)).astype(np.float32)
    costs = jnp.stack([((a[:, None] - b) ** 2).sum(-1) for a, b in zip(x, x[1:], strict=False)])
    uniform = jnp.full(8, 1 / 8, jnp.float32)
    assert np.exp(-costs / 0.002).min() == 0

    @jax.jit
    @jax.vmap
    def batch(costs):
        return multimarginal_sinkhorn(list(costs), [uniform] * 3, epsilon=0.002,
                                      solver=ji.anderson(), stop=ji.tolerance(atol=1e-3))

    out = batch(jnp.stack([costs, costs * jnp.nan, costs[::-1]]))
    assert out.status.tolist() == [ji.Status.CONVERGED, ji.Status.BAD_INPUT, ji.Status.CONVERGED]
    assert np.all(out.marginal_error[::2] < 2e-3)


def test_points_without_mass_cost_nothing():
    """Both potentials there are free, and their exponent is beyond the floats."""
    weights = 2 * (jnp.array([1.0, 0.0]),)
    cost, f = jnp.array([[1.0, 100.0], [100.0, 1.0]]), 2 * (jnp.array([0.5, 99.0]),)

    def totals(cost):
        tree = CostTree([cost])
        return (CostTensor(cost).total(f, weights, 1.0, None),
                tree.total(f, weights, 1.0, tree.absorbed(f, weights, 1.0)))

    np.testing.assert_allclose(jax.jit(totals)(cost), 1.0, rtol=1e-6)


def test_bad_input():
    cost, half = jnp.zeros((2, 2)), jnp.full(2, 0.5)
    refused = partial(multimarginal_sinkhorn, epsilon=0.1)
    for marginals, message in (
            ([half], "shape mismatch"), ([half, jnp.ones(3) / 3], "shape mismatch"),
            ([half, 2 * half], "marginals 0 .* and 1"), ([half, -half], "negative"),
            ([half, 0 * half], "sums to 0")):
        with pytest.raises(ValueError, match=message):
            refused(cost, marginals)
    with pytest.raises(ValueError, match="epsilon"):
        multimarginal_sinkhorn(cost, [half, half], epsilon=0.0)
    with pytest.raises(ValueError, match="NaN"):
        refused(cost * jnp.nan, [half, half])
    with pytest.raises(ValueError, match="at least two marginals"):
        refused(half, [half])
    with pytest.raises(ValueError, match="one tree"):
        CostTree([cost, cost, cost], [(0, 1), (1, 2), (2, 0)])
    with pytest.raises(ValueError, match="another 2"):
        CostTree([cost, jnp.zeros((3, 2))])
    with pytest.raises(ValueError, match="init"):
        refused(cost, [half, half], init=(half,))
    with pytest.raises(ValueError, match="no edges"):
        refused(cost, [half, half]).pair_plans()
    with pytest.raises(TypeError, match="floating point, got int32"):
        refused(jnp.zeros((2, 2), jnp.int32), [half, half])
    huge = jax.ShapeDtypeStruct((600, 600, 600), jnp.float32)
    with pytest.raises(ValueError, match=r"864,000,000 bytes.*CostTree"):
        jax.eval_shape(lambda c: refused(c, [jnp.ones(600) / 600] * 3), huge)
    whole = np.array([1, 2])  # legal, as floats
    out = jax.eval_shape(lambda c: refused(c, [whole, whole]).transport_cost, cost)
    assert out.dtype == jnp.float32
    under = jax.jit(lambda e, a: multimarginal_sinkhorn(cost, [a, half], epsilon=e).status)
    assert under(0.0, half) == under(0.1, 2 * half) == ji.Status.BAD_INPUT


@pytest.mark.slow
def test_front():
    costs, marginals = branching((2, 3, 2, 2))
    costs, marginals = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (costs, marginals))

    def front(costs, marginals, *, stop=None, max_steps=None, monitor=None):  # resume: see below
        return multimarginal_sinkhorn(CostTree(costs, BRANCHES), marginals, epsilon=0.1, stop=stop,
                                      max_steps=max_steps, monitor=monitor)

    check_front(front, costs, marginals)


@pytest.mark.parametrize("solver", [None, ji.anderson(3)], ids=["plain", "anderson"])
def test_a_run_in_parts_is_the_whole_run_to_rounding(solver):
    """Parts that end within a block of 20 steps: its kernels are rebuilt where a part begins."""
    costs, marginals = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), branching((2, 3, 2, 2)))

    @jax.jit
    def run(steps, state, costs, marginals):
        return multimarginal_sinkhorn(CostTree(costs, BRANCHES), marginals, epsilon=0.02,
                                      stop=never(), solver=solver, max_steps=steps, resume=state)

    whole, part = run(33, None, costs, marginals), run(7, None, costs, marginals)
    assert part.solve.steps == 7 and part.marginal_error > 10 * whole.marginal_error
    part = run(28, part.solve.state, costs, marginals)
    part = run(33, part.solve.state, costs, marginals)
    assert part.solve.steps == 33
    for one, other in zip(part.potentials, whole.potentials, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    with pytest.raises(TypeError, match="resume"):
        run(40, part.solve.state._replace(x=part.solve.state.x[:1]), costs, marginals)


def test_an_ended_solve_is_taken_up_again():
    cost = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 2, 3)), jnp.float32)
    run = partial(multimarginal_sinkhorn, cost, [jnp.ones(n) / n for n in cost.shape], epsilon=0.1)
    rough = run(stop=ji.tolerance(rtol=1e-1, atol=0))
    fine = run(stop=ji.tolerance(rtol=1e-5, atol=0), resume=rough.solve.state)
    assert rough.converged and fine.converged and fine.solve.steps > rough.solve.steps
    np.testing.assert_allclose(
        fine.plan(), run(stop=ji.tolerance(rtol=1e-5, atol=0)).plan(), atol=1e-5)
