"""One large problem over many devices: the rows of the cost sharded, everything else as before."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxiter.testing import collectives
from jaxiter.transport import sinkhorn

SIZE = 192


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("method", ["kernel", pytest.param("log", marks=pytest.mark.slow)])
def test_sharded_rows_are_one_device(kind, method):
    """Same iterates; per iteration one reduction of an m-vector and one of the error, no gather."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, SIZE, 2))
    cost = jnp.asarray(((x[:, None] - y) ** 2).sum(-1), jnp.float32)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))

    def solve(cost):
        out = sinkhorn(cost, epsilon=0.3, method=method, max_steps=200)
        return out.f, out.g, out.solve.steps, out.solve.status

    with jax.set_mesh(mesh):
        rows = jax.device_put(cost, NamedSharding(mesh, PartitionSpec("rows", None)))
        compiled = jax.jit(solve).lower(rows).compile()
        ours = compiled(rows)
    one = jax.jit(solve).lower(cost).compile()
    reference = one(cost)
    for a, b in zip(ours[:2], reference[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # stopping one step apart shows
    assert abs(int(ours[2]) - int(reference[2])) <= 2 and int(ours[3]) == int(reference[3]) == 1
    found = collectives(compiled)
    assert found.looped == {"all-reduce": 2} and set(found.total) == {"all-reduce"}, found
    memory = [c.memory_analysis().temp_size_in_bytes for c in (compiled, one)]
    assert memory[0] < memory[1] / 4, memory


@pytest.mark.parametrize("within", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_batch_on_an_explicit_mesh(within):
    """One problem a device, every stage of "auto", with the mesh set and, slopes too, without."""
    mesh = jax.make_mesh((8,), ("problems",))
    costs = jnp.asarray(np.random.default_rng(1).uniform(size=(8, 5, 4)), jnp.float32)

    def value(cost):
        out = sinkhorn(cost, epsilon=0.02, max_steps=300)
        return jnp.sum(out.f**2), out.status

    both = jax.value_and_grad(value, has_aux=True)
    solve = jax.jit(jax.vmap((lambda cost: (value(cost), 0.0)) if within else both))
    (ours, _), slope = solve(costs)
    with jax.set_mesh(mesh) if within else contextlib.nullcontext():
        shares = jax.device_put(costs, NamedSharding(mesh, PartitionSpec("problems")))
        (theirs, status), other = solve(shares)
    assert np.all(np.asarray(status) == 1)
    np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(other), slope, atol=1e-4)
