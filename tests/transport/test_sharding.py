"""One large problem over many devices: the rows of the cost sharded, everything else as before."""

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
    """Same iterates; per iteration one reduction of an m-vector and one of the error, no gather.

    The third one in a loop is that of the last look, in a loop of at most one round.
    """
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
    assert found.looped == {"all-reduce": 3} and set(found.total) == {"all-reduce"}, found
    memory = [c.memory_analysis().temp_size_in_bytes for c in (compiled, one)]
    assert memory[0] < memory[1] / 4, memory
