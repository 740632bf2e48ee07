"""Checks that every front function and every process must pass, for use in anybody's test suite.

A front is `front(*operands, max_steps=..., monitor=..., resume=...)` and returns a `Solution`, or a
result with one as its `.solve`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxiter import trees
from jaxiter.monitor import record
from jaxiter.process import Process, iterate, iterate_many, latest
from jaxiter.solution import Solution, Status
from jaxiter.stop import never, tolerance
from jaxiter.testing.conformance import assert_close, assert_equal

PyTree = Any
#: A whole run of a check, and the length of its first part.
STEPS, PART = 12, 5


def solve_of(result: Any) -> Solution:
    """The driver's solution in a result, the first where there are several."""
    if isinstance(result, Solution):
        return result
    return next(field for field in result if isinstance(field, Solution))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def broken(operands: PyTree) -> PyTree:
    """The operands with every floating-point number NaN."""
    return jax.tree.map(lambda leaf: leaf * jnp.nan if _is_float(leaf) else leaf, operands)


def rows(*operands: PyTree) -> PyTree:
    """One problem beside the other: a batch of them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *operands)


def _answer(result: Any) -> tuple:
    solve = solve_of(result)
    return solve.value, solve.steps, solve.status, solve.residual


def speaks_the_dialect(front: Callable, operands: tuple) -> None:
    """Status, converged, message() and check() say the same; eagerly as under jit."""
    result, eager = jax.jit(front)(*operands), front(*operands)
    assert result.status.dtype == np.int32 and result.converged.dtype == np.bool_
    assert Status.name(result.status) in result.message()
    if result.converged:
        assert result.check() is result
    else:
        try:
            result.check()
        except RuntimeError as error:
            assert Status.name(result.status) in str(error)
        else:
            raise AssertionError("check() lets a solve pass that did not converge")
    assert eager.status == result.status
    assert_close(_answer(eager)[0], _answer(result)[0])


def vmap_is_loop(front: Callable, operands: tuple) -> None:
    """A batch gives every problem its own answer; one of NaN has a status, and stays alone."""
    single = jax.jit(front)(*operands)
    batch = jax.jit(jax.vmap(front))(*rows(operands, broken(operands), operands))
    assert int(batch.status[1]) not in (Status.CONVERGED, Status.RUNNING), batch.message()
    for row in (0, 2):
        assert batch.status[row] == single.status
        assert abs(int(solve_of(batch).steps[row]) - int(solve_of(single).steps)) <= 1
        assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], solve_of(batch).value),
               solve_of(single).value)


def devices_change_nothing(front: Callable, operands: tuple) -> None:
    """Two devices under pmap and a checked shard_map give what one gives."""
    single, pair = jax.jit(front)(*operands), rows(operands, operands)
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2],
                         axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("d")

    def values(*operands: PyTree) -> tuple:
        result = front(*operands)
        return solve_of(result).value, result.status

    spread = jax.jit(jax.shard_map(
        jax.vmap(values), mesh=mesh, in_specs=spec, out_specs=spec))(*pair)
    for value, status in (jax.pmap(values)(*pair), spread):
        assert np.all(np.asarray(status) == single.status)
        assert_close(jax.tree.map(lambda leaf: leaf[1], value), solve_of(single).value)


def numbers_never_recompile(front: Callable, operands: tuple) -> None:
    """Another `max_steps`, and other values of the operands, reuse the compiled program."""
    traces = 0

    @jax.jit
    def run(steps: Any, *operands: PyTree) -> jax.Array:
        nonlocal traces
        traces += 1
        return solve_of(front(*operands, max_steps=steps)).steps

    few, more = run(PART, *operands), run(STEPS, *operands)
    run(STEPS, *broken(operands))
    assert traces == 1 and few <= more and few <= PART


def monitors_change_nothing(front: Callable, operands: tuple) -> None:
    """Recording leaves the answer alone, and sees every step."""
    plain = jax.jit(partial(front, max_steps=STEPS))(*operands)
    watched = jax.jit(partial(front, max_steps=STEPS, monitor=record(STEPS)))(*operands)
    assert_close(_answer(plain), _answer(watched), 1e-6)
    seen = np.sum(~np.isnan(solve_of(watched).trace["merit"]))
    assert seen == solve_of(watched).steps, (seen, solve_of(watched).steps)


def resume_is_bitwise(front: Callable, operands: tuple) -> None:
    """A run in two parts is the whole run, bit by bit; another structure is refused."""
    run = jax.jit(lambda steps, state, *operands: solve_of(front(
        *operands, max_steps=steps, stop=never(), resume=state)))
    part = run(PART, None, *operands)
    assert_equal(run(STEPS, part.state, *operands), run(STEPS, None, *operands))
    try:
        front(*operands, resume=part.state._replace(x=(part.state.x, part.state.x)))
    except TypeError as error:
        assert "resume" in str(error)
    else:
        raise AssertionError("a state of another structure is taken for one of this front")


FRONT_CHECKS = {check.__name__: check for check in (
    speaks_the_dialect, vmap_is_loop, devices_change_nothing, numbers_never_recompile,
    monitors_change_nothing, resume_is_bitwise,
)}


def _refuses(front: Callable, operands: tuple, option: str) -> bool:
    """Whether the front says that it takes no such option."""
    try:
        front(*operands, **{option: object()})
    except (TypeError, ValueError) as error:
        return f"takes no {option}" in str(error) or "unexpected keyword" in str(error)
    raise AssertionError(f"{option} is not looked at: any object passes")


def check_front(front: Callable, *operands: PyTree) -> None:
    """Run every check on operands of one problem, but for options that the front refuses.

    Args:
      front: the function; choices without arrays are bound by `functools.partial`.
      *operands: its positional arguments, arrays or trees of them.

    Raises:
      AssertionError: from the first check that fails.
    """
    for name, check in FRONT_CHECKS.items():
        needs = {"monitors_change_nothing": "monitor", "resume_is_bitwise": "resume",
                 "numbers_never_recompile": "max_steps"}.get(name)
        if needs is None or not _refuses(front, operands, needs):
            check(front, operands)


def residual_holds_for_the_last_key(process: Process, x0: PyTree, args: tuple, key: Any) -> None:
    """`step(value, last key) - value` has the norm that is reported, and leads to `latest`."""
    run = iterate(process, x0, *args, key=key, stop=never(), max_steps=PART)
    last = jax.random.fold_in(key, run.steps - 1)
    new = process.step(run.value, last, *args)
    assert_close(new, latest(run))
    moved = jax.tree.map(
        lambda a, b: a - b if _is_float(a) else jnp.zeros(()), new, run.value)
    np.testing.assert_allclose(trees.norm(moved), run.residual, rtol=1e-5, atol=1e-7)


def is_a_plain_loop(process: Process, x0: PyTree, args: tuple, key: Any) -> None:
    """The driver's states are those of a loop written by hand."""
    state = process.init(x0, *args)
    step = jax.jit(process.step)
    for k in range(PART):
        state = step(state, jax.random.fold_in(key, k), *args)
    run = jax.jit(lambda x0, key, *args: latest(iterate(
        process, x0, *args, key=key, stop=never(), max_steps=PART)))(x0, key, *args)
    assert_close(run, state)


def seeds_are_lanes(process: Process, x0: PyTree, args: tuple, key: Any) -> None:
    """Refilled lanes give the runs that vmap gives."""
    keys = jax.random.split(key, 3)
    batch = jax.jit(jax.vmap(lambda key: iterate(
        process, x0, *args, key=key, max_steps=STEPS)))(keys)
    lanes = jax.jit(lambda keys: iterate_many(
        process, rows(x0, x0, x0), *args, key=keys, in_axes=None, lanes=2, refill_every=3,
        max_steps=STEPS))(keys)
    assert_equal((lanes.steps, lanes.status), (batch.steps, batch.status))
    assert_close(lanes.value, batch.value, 1e-6)


def never_converges_without_a_merit(process: Process, x0: PyTree, args: tuple, key: Any) -> None:
    """Whatever the rule."""
    run = iterate(process._replace(merit=None), x0, *args, key=key, max_steps=PART,
                  stop=tolerance(rtol=1e30))
    assert run.status == Status.MAX_STEPS, run.message()


PROCESS_CHECKS = {check.__name__: check for check in (
    residual_holds_for_the_last_key, is_a_plain_loop, seeds_are_lanes,
    never_converges_without_a_merit,
)}


def check_process(process: Process, x0: PyTree, *args: PyTree, key: jax.Array) -> None:
    """Run every process check, and those of `check_front` on `iterate`.

    Raises:
      AssertionError: from the first check that fails.
    """
    for check in PROCESS_CHECKS.values():
        check(process, x0, args, key)

    def front(x0: PyTree, key: jax.Array, *args: PyTree, **options: Any) -> Solution:
        return iterate(process, x0, *args, key=key, **options)

    check_front(front, x0, key, *args)
