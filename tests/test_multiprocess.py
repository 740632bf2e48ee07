"""Two and four processes on localhost give the single process's answer, forward and gradient."""

import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji

SCRIPT = """
import sys
import jax
port, rank, processes = (int(word) for word in sys.argv[1:4])
jax.config.update("jax_num_cpu_devices", 4 // processes)
jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=rank)
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxiter as ji

mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
rates = np.linspace(0.1, 0.9, 8).astype(np.float32)
share = 8 // processes
local = rates[share * rank:share * (rank + 1)]
q = jax.make_array_from_process_local_data(NamedSharding(mesh, P("d")), local)

def solve(q):
    return ji.solve_many(lambda x, q: q * jnp.cos(x) + q, jnp.zeros((q.shape[0], 3)), q, lanes=2,
                         solver=ji.anderson(3))

spread = ji.over_mesh(solve, mesh, "d")
value = jax.jit(lambda q: spread(q).value)(q)
dealt = jax.jit(lambda q: spread(q, difficulty=q).value)(q)
gradient = jax.jit(jax.grad(lambda q: jnp.sum(spread(q).value ** 2)))(q)
out = [multihost_utils.process_allgather(leaf, tiled=True) for leaf in (value, dealt, gradient)]
if rank == 0:
    np.savez(sys.argv[4], value=out[0], dealt=out[1], gradient=out[2])
multihost_utils.sync_global_devices("done")
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_are_one(tmp_path, processes):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script, result = tmp_path / "worker.py", tmp_path / "out.npz"
    script.write_text(textwrap.dedent(SCRIPT))
    # CPU devices come from the script, not from the test session's flags.
    env = {"PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    workers = [subprocess.Popen([sys.executable, str(script), str(port), str(rank),
                                 str(processes), str(result)],
                                env=env, stderr=subprocess.PIPE) for rank in range(processes)]
    try:
        errors = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), errors[0][-2000:]

    def solve(q):
        return ji.solve_many(lambda x, q: q * jnp.cos(x) + q, jnp.zeros((8, 3)), q, lanes=2,
                             solver=ji.anderson(3)).value

    rates = jnp.linspace(0.1, 0.9, 8).astype(jnp.float32)
    both = np.load(result)
    for name in ("value", "dealt"):
        np.testing.assert_allclose(both[name], jax.jit(solve)(rates), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda q: jnp.sum(solve(q) ** 2)))(rates)
    np.testing.assert_allclose(both["gradient"], gradient, rtol=1e-4)


def test_collective_in_the_map_agrees_when_the_predicate_is_reduced():
    """L10: a collective in the body hangs unless every device stops at the same step.

    The core holds no collective; a map that has one gets a merit that is reduced
    over the axis, and then all devices agree.
    """
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def solve(b):
        problem = ji.Problem(
            step=lambda x: 0.5 * jax.lax.pmean(x, "d") + b,
            merit=lambda x, image: jax.lax.pmax(jnp.linalg.norm(image - x), "d"),
            scale=lambda x, image: jax.lax.pmax(jnp.linalg.norm(x), "d"))
        return ji.fixed_point(problem, jnp.zeros(1), adjoint=ji.frozen()).value

    f = jax.shard_map(solve, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)
    b = jnp.arange(8.0)
    np.testing.assert_allclose(jax.jit(f)(b), b + np.mean(b), rtol=1e-4)
