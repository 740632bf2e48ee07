"""`check_splitting`: what every splitting must pass, for use in anybody's test suite."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxiter import trees
from jaxiter.adjoint import split
from jaxiter.lanes import over_mesh, solve_many
from jaxiter.monitor import record
from jaxiter.numerics import machine_epsilon
from jaxiter.problem import as_problem, build_cache, evaluate, image_and_residual
from jaxiter.solution import Status
from jaxiter.splitting import SplitResult, Splitting, solve_splitting
from jaxiter.stop import default_tolerances
from jaxiter.testing.conformance import assert_equal
from jaxiter.testing.fronts import broken, rows

PyTree = Any


class _Runs:
    """One splitting, its data, and the programs that several checks share."""

    def __init__(self, splitting: Splitting, x0: PyTree, args: tuple, options: dict):
        self.splitting, self.options = splitting, options
        self.x0 = jax.tree.map(jnp.asarray, x0)
        self.arrays, self.restore = split(jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float | np.ndarray) else leaf,
            args))
        # Two roads to one answer: where one ends a step earlier, they differ by its residual.
        self.tolerance = 100 * default_tolerances(self.x0)[0]
        self.compiled = jax.jit(self.solve)

    def solve(self, x0: PyTree, arrays: tuple, limit: Any = None, state: Any = None,
              **options: Any) -> SplitResult:
        if limit is not None:
            options["max_steps"] = limit
        return solve_splitting(self.splitting, x0, *self.restore(arrays), resume=state,
                               **{**self.options, **options})

    @cached_property
    def limit(self) -> jax.Array:
        return jnp.int32(self.options.get("max_steps", 1000))

    @cached_property
    def single(self) -> SplitResult:
        return self.compiled(self.x0, self.arrays, self.limit)

    @cached_property
    def batch(self) -> tuple[PyTree, tuple]:
        """Four problems: two starts, the answer as a start, and NaN for all data."""
        starts = [self.x0, trees.axpy(0.5, trees.probe_like(self.x0), self.x0),
                  self.single.value, self.x0]
        data = [self.arrays] * 3 + [broken(self.arrays)]
        return rows(*starts), rows(*data)

    @cached_property
    def loop(self) -> SplitResult:
        """The batch, one problem after the other."""
        return rows(*(self.compiled(*jax.tree.map(lambda leaf, i=i: leaf[i], self.batch),
                                    self.limit) for i in range(4)))

    def lanes(self, x0s: PyTree, arrays: tuple) -> SplitResult:
        """The batch by refilled lanes."""
        starts = jax.vmap(lambda x0, arrays: self.splitting.start(x0, *self.restore(arrays)))(
            x0s, arrays)
        solution = solve_many(self.splitting.problem, starts, *self.restore(arrays), lanes=2,
                              refill_every=4, **self.options)
        return jax.vmap(lambda solution, arrays: self.splitting.result(
            solution, *self.restore(arrays)))(solution, arrays)

    def agrees(self, batch: SplitResult, name: str) -> None:
        """Statuses, steps and answers are those of the loop."""
        loop = self.loop
        np.testing.assert_array_equal(batch.status, loop.status, err_msg=name)
        few = 1 + 0.02 * np.asarray(loop.solve.steps[:3])  # sums in another order
        assert np.all(np.abs(np.asarray(batch.solve.steps - loop.solve.steps))[:3] <= few), name
        for ours, theirs in zip(jax.tree.leaves((batch.value, batch.dual)),
                                jax.tree.leaves((loop.value, loop.dual)), strict=True):
            self.close(ours[:3], theirs[:3], name)

    def close(self, ours: PyTree, theirs: PyTree, name: str) -> None:
        def compare(a: Any, b: Any) -> None:
            size = max(1.0, float(np.max(np.abs(np.asarray(b)), initial=0)))
            np.testing.assert_allclose(a, b, rtol=0, atol=self.tolerance * size, err_msg=name)

        jax.tree.map(compare, ours, theirs)


def residual_is_honest(runs: _Runs) -> None:
    """It converges, and `residual` is the norm of T(s) - s at the governing point."""
    result = runs.single
    assert result.converged, result.message()
    problem, s = as_problem(runs.splitting.problem), result.solve.value
    memory = result.solve.state.answer.memory

    def displaced(s: PyTree, arrays: tuple) -> PyTree:
        args = runs.restore(arrays)
        cache = build_cache(problem, s, memory, args)
        return image_and_residual(problem, s, evaluate(problem, s, cache, memory, args, False)[0])

    image, residual = jax.jit(displaced)(s, runs.arrays)
    true = np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, np.complex128)) ** 2)
                       for leaf in jax.tree.leaves(residual)))
    rounding = 8 * machine_epsilon(s) * float(trees.norm(image))
    np.testing.assert_allclose(result.solve.residual, true, rtol=1e-4, atol=rounding)


def extract_is_consistent(runs: _Runs) -> None:
    """What extract makes of the governing point is the answer, in the structure of x0."""
    result, args = runs.single, runs.restore(runs.arrays)
    trees.check_same_structure(runs.x0, result.value, "value")
    again = jax.jit(lambda solution, arrays: runs.splitting.result(
        solution, *runs.restore(arrays)))(result.solve, runs.arrays)
    runs.close((again.value, again.dual), (result.value, result.dual), "extract")
    problem = as_problem(runs.splitting.problem)
    if problem.memory is None and problem.cache is None:  # else it wants them too
        runs.close(runs.splitting.extract(result.solve.value, *args),
                   (result.value, result.dual), "extract, eager")


def eager_is_jit(runs: _Runs) -> None:
    """Steps and answer do not depend on jit."""
    eager, jitted = runs.solve(runs.x0, runs.arrays, runs.limit), runs.single
    assert abs(int(eager.solve.steps) - int(jitted.solve.steps)) <= (
        1 + 0.02 * int(jitted.solve.steps))
    runs.close((eager.value, eager.dual), (jitted.value, jitted.dual), "eager")


def vmap_is_loop(runs: _Runs) -> None:
    """A batch gives every problem's own answer, also while a monitor records, which changes none.

    Data of NaN have a status, and stay alone with it.
    """
    if any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(runs.arrays)):
        assert runs.loop.status[3] not in (Status.CONVERGED, Status.RUNNING), runs.loop.message()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(runs.loop.solve.value))
    watch = record(32)
    batch = jax.jit(jax.vmap(lambda x0, arrays: runs.solve(x0, arrays, monitor=watch)))(
        *runs.batch)
    runs.agrees(batch, "vmap, recorded")
    seen = np.minimum(np.asarray(batch.solve.steps[:3]), 32)
    np.testing.assert_array_equal(
        np.sum(~np.isnan(batch.solve.trace["merit"]), axis=1)[:3], seen)


def chunked_is_whole(runs: _Runs) -> None:
    """Three steps and then to the end is the same as going to the end, bit for bit."""
    part = runs.compiled(runs.x0, runs.arrays, jnp.int32(3))
    assert part.solve.steps <= 3
    whole = runs.compiled(runs.x0, runs.arrays, runs.limit, part.solve.state)
    assert_equal(whole, runs.single)


def lanes_and_shards_are_loop(runs: _Runs) -> None:
    """In lanes under shard_map over two devices, where there are two."""
    devices = jax.devices()[:2]
    mesh = Mesh(np.array(devices), ("problems",), axis_types=(AxisType.Auto,))
    runs.agrees(jax.jit(over_mesh(runs.lanes, mesh, "problems"))(*runs.batch),
                "lanes under shard_map")


def gradients_are_differences(runs: _Runs) -> None:
    """Slopes along a change of scale of every leaf of args are those of differences, under pmap."""
    moving, still = eqx.partition(runs.arrays, lambda leaf: jnp.issubdtype(
        leaf.dtype, jnp.inexact))
    leaves, treedef = jax.tree.flatten(moving)
    # Scales keep what data may have to be: symmetric, sparse, positive.
    weights = 0.6 + 0.8 * np.cos(np.arange(len(leaves)))
    direction = jax.tree.unflatten(treedef, [
        (w * leaf).astype(leaf.dtype) for w, leaf in zip(weights.tolist(), leaves, strict=True)])

    def measured(value: PyTree) -> jax.Array:
        return trees.dot(trees.probe_like(runs.x0), value).real

    def end(x0: PyTree, moving: tuple) -> tuple[jax.Array, jax.Array]:
        def loss(moving: tuple) -> jax.Array:
            return measured(runs.solve(x0, eqx.combine(moving, still), runs.limit).value)

        value, gradient = jax.value_and_grad(loss)(moving)
        return value, trees.dot(jax.tree.map(jnp.conj, gradient), direction).real

    h = 2 * machine_epsilon(runs.x0) ** (1 / 3)
    ends = rows(*((runs.x0, trees.axpy(sign * h, direction, moving)) for sign in (1, -1)))
    count = min(len(jax.devices()), 2)
    program = jax.pmap(end, devices=jax.devices()[:count])
    pairs = [jax.tree.map(lambda leaf, i=i: leaf[i:i + count], ends) for i in range(0, 2, count)]
    values, slopes = (np.concatenate(parts) for parts in zip(
        *(jax.device_get(program(*pair)) for pair in pairs), strict=True))
    difference = (values[0] - values[1]) / (2 * h)
    size = max(np.abs(values).max(), abs(difference))
    # The mean of both slopes is that in the middle, up to what differences leave out as well.
    np.testing.assert_allclose(slopes.mean(), difference, rtol=0, atol=1e-2 * size)
    np.testing.assert_allclose(
        values.mean(), measured(runs.single.value), rtol=0, atol=1e-2 * size, err_msg="pmap")


CHECKS: tuple[Callable, ...] = (
    residual_is_honest, extract_is_consistent, eager_is_jit, vmap_is_loop, chunked_is_whole,
    lanes_and_shards_are_loop, gradients_are_differences,
)


def check_splitting(splitting: Splitting, x0: PyTree, *args: PyTree, **options: Any) -> None:
    """Run every check of a splitting on one problem that has a solution, about eight compiles.

    Honest residual of the governing point and an extract that agrees with it; eager = jit; vmap =
    loop = lanes; chunked = whole, bit for bit; NaN data have a status; monitors change nothing;
    pmap and shard_map; implicit derivatives = differences.

    Args:
      splitting, x0, *args: as in `solve_splitting`. All floats of args become NaN in one check,
        and are scaled by a few per mille in another.
      **options: of `solve_splitting`; with a solver that converges well within max_steps.

    Raises:
      AssertionError: from the first check that fails.

    >>> from jaxiter.operators import douglas_rachford
    >>> check_splitting(douglas_rachford(...), x0, data)  # doctest: +SKIP
    """
    runs = _Runs(splitting, x0, args, options)
    for check in CHECKS:
        check(runs)
