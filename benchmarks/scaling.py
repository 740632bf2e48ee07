"""What an iteration costs on many devices: `python benchmarks/scaling.py [model | larger]`.

`model`: flops, bytes and collectives of one iteration per family, predicted by a line of arithmetic
and counted by XLA in the compiled iteration, on one device and eight. `larger`: the same lines on
machines that were not measured.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiter as ji
from harness import run_parts, show
from jaxiter import trees
from jaxiter.loop import advance, init
from jaxiter.method import make_method
from jaxiter.options import Options
from jaxiter.problem import build_cache
from jaxiter.testing import collectives
from jaxiter.testing.problems import heat
from jaxiter.transport import Dense
from jaxiter.transport.iteration import Marginals, kernel_problem


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,),
                         devices=jax.devices()[:devices])


class Load(NamedTuple):
    """What one iteration costs a device: operations, bytes of memory, messages and their bytes."""

    flops: float
    bytes: float
    messages: int
    sent: float


def sinkhorn(n: int, devices: int) -> Load:
    """Two products with the kernel; an n-vector and the marginal error are reduced."""
    return Load(4 * n**2 / devices, 2 * 4 * n**2 / devices, 2, 4 * n + 4)


def layer_by_batch(width: int, devices: int, batch: int = 4096) -> Load:
    """z W + x with W whole on every device; the stop test reduces three norms at once."""
    entries = batch * width / devices
    return Load(2 * entries * width + 6 * entries, 4 * (width**2 + 10 * entries), 1, 12)


def layer_by_feature(width: int, devices: int, batch: int = 64) -> Load:
    """The columns of W spread: every step gathers z."""
    entries = batch * width / devices
    gathered = 4 * batch * width if devices > 1 else 0
    return Load(2 * entries * width + 6 * entries,
                4 * (width**2 / devices + gathered + 10 * entries), 2, 4 * batch * width + 12)


def grid(n: int, devices: int) -> Load:
    """Five points of an n x n grid spread by rows: two edges are exchanged."""
    cells = n**2 / devices
    return Load(10 * cells, 4 * 8 * cells, 3, 2 * 4 * n + 12)


def grid_anderson(n: int, devices: int, memory: int = 5) -> Load:
    """The same with Anderson: a row of the Gram matrix, a combination of the history."""
    cells, plain = n**2 / devices, grid(n, devices)
    return Load(plain.flops + (6 * memory + 24) * cells,
                plain.bytes + 4 * (6 * memory + 46) * cells, plain.messages + 2,
                plain.sent + 4 * (2 * memory + 2))


FAMILIES = {"Sinkhorn, n x n": sinkhorn, "layer, by batch": layer_by_batch,
            "layer, by feature": layer_by_feature, "grid, n x n": grid,
            "grid, Anderson(5)": grid_anderson}


def problems(size: int, mesh: Any) -> dict[str, tuple]:
    """problem, solver, x0 and args of every family, laid out on the mesh."""
    def put(array: Any, *spec: Any) -> jax.Array:
        return jax.device_put(jnp.asarray(array, jnp.float32), NamedSharding(mesh, P(*spec)))

    cost = put(np.random.default_rng(0).uniform(size=(size, size)), "d", None)
    uniform = put(jnp.full(size, 1 / size), "d"), put(jnp.full(size, 1 / size))
    weights, tall, wide = jnp.ones((size, size)), jnp.ones((4096, size)), jnp.ones((64, size))

    def layer(z: Any, w: Any, x: Any) -> Any:
        return jnp.tanh(z @ w + x)

    field = put(jnp.ones((size, size)), "d", None)
    tall, wide = put(tall, "d", None), put(wide, None, "d")
    return {
        "Sinkhorn, n x n": (kernel_problem(), None, put(jnp.zeros(size)), Dense(cost),
                            Marginals(*uniform, put(0.1)).at(put(0.1))),
        "layer, by batch": (layer, None, tall, put(weights), tall),
        "layer, by feature": (layer, None, wide, put(weights, None, "d"), wide),
        "grid, n x n": (heat, None, field, field),
        "grid, Anderson(5)": (heat, ji.anderson(5), field, field)}


def one_iteration(problem: Any, solver: Any, x0: Any, *args: Any) -> jax.stages.Compiled:
    """The body of the driver's loop, compiled alone, on the layout that the solve would have.

    But for norms that are taken again where a sum of squares leaves the float range: a loop of no
    round in a usual step, whose body XLA would count as one.
    """
    method = make_method(problem, Options(solver))
    state = jax.jit(lambda x0, args: init(method, x0, *args))(x0, args)
    cache = jax.jit(lambda x0, memory, args: build_cache(
        method.problem, x0, memory, args))(x0, state.memory, args)
    step = jax.jit(lambda state, cache, args: advance(method, state, cache, *args))
    with patch.object(trees, "if_needed", lambda needed, norms, given, like, usual: usual):
        return step.lower(state, cache, args).compile()


def model(size: int = 1024) -> list[dict]:
    """Predicted over counted, on one device and on eight."""
    rows = []
    for devices in (1, 8):
        for name, (problem, solver, x0, *args) in problems(size, mesh_of(devices)).items():
            compiled = one_iteration(problem, solver, x0, *args)
            counted, told = compiled.cost_analysis(), FAMILIES[name](size, devices)
            rows.append({
                "family": name, "devices": devices, "flops": counted["flops"],
                "predicted flops / counted": told.flops / counted["flops"],
                "predicted bytes / counted": told.bytes / counted["bytes accessed"],
                "messages": sum(collectives(compiled).total.values()),
                "predicted messages": told.messages if devices > 1 else 0})
    show(rows)
    return rows


class Machine(NamedTuple):
    """Per device: operations and bytes per second (vendors' figures), latency of a message."""

    devices: int
    flops: float
    memory: float
    link: float
    latency: float


# float32 operations (a TPU makes one of six in bfloat16); the latencies are assumptions.
MACHINES = {"8 H100 (NVLink)": Machine(8, 67e12, 3.35e12, 450e9, 15e-6),
            "64 TPU v5p": Machine(64, 76e12, 2.77e12, 600e9, 15e-6)}


def seconds(load: Load, machine: Machine, devices: int) -> tuple[float, float]:
    """Work and communication of one iteration."""
    work = max(load.flops / machine.flops, load.bytes / machine.memory)
    if devices == 1:
        return work, 0.0
    share = 2 * (devices - 1) / devices
    return work, load.messages * machine.latency + share * load.sent / machine.link


def larger() -> list[dict]:
    """The same lines on larger machines, and the size at which communication is half the time."""
    rows = []
    for name, family in FAMILIES.items():
        for host, machine in MACHINES.items():
            def spread(n: int, family: Callable = family, machine: Machine = machine) -> tuple:
                return seconds(family(n, machine.devices), machine, machine.devices)

            sizes = [2**k for k in range(6, 24)]
            even = next((n for n in sizes if spread(n)[0] > spread(n)[1]), None)
            n = 32_768 if "layer" not in name else 8192
            work, talk = spread(n)
            alone = seconds(family(n, 1), machine, 1)[0]
            rows.append({"family": name, "machine": host, "n": n, "one device us": 1e6 * alone,
                         "all us": 1e6 * (work + talk), "speedup": alone / (work + talk),
                         "communication": talk / (work + talk), "even from n": even})
    show(rows)
    return rows


if __name__ == "__main__":
    run_parts("scaling", {"model": model, "larger": larger})
