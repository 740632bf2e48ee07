"""Checks that every solver and every adjoint must pass, for use in anybody's test suite.

`SOLVER_CHECKS` and `ADJOINT_CHECKS` map names to functions; parametrise your
tests over them, or call `check_solver(solver)` to run all.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.adjoint import Adjoint, unrolled
from jaxiter.driver import fixed_point
from jaxiter.lanes import solve_many
from jaxiter.monitor import record
from jaxiter.solution import Solution, Status
from jaxiter.stop import never, tolerance
from jaxiter.testing.problems import ReferenceProblem, reference_problems

Solver = optax.GradientTransformation
STEPS = 400


def _solve(reference: ReferenceProblem, solver: Solver, **keywords: Any) -> Solution:
    keywords = {"max_steps": STEPS, **keywords}
    return jax.jit(lambda x0, args: fixed_point(
        reference.problem, x0, *args, solver=solver, **keywords))(reference.x0, reference.args)


def assert_equal(a: Any, b: Any) -> None:
    """All leaves are equal, NaN with NaN."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """All leaves are as near as that, relatively or absolutely."""
    def compare(x: Any, y: Any) -> None:
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, a, b)


def solves_reference_problems(solver: Solver) -> None:
    """Every contraction is solved to its known answer, with CONVERGED."""
    for reference in reference_problems().values():
        if reference.contracts and reference.answer is not None:
            solution = _solve(reference, solver)
            assert solution.converged, f"{reference.name}: {solution.message()}"
            assert_close(solution.value, reference.answer, 3e-3)


def residual_is_honest(solver: Solver) -> None:
    """`residual` is the norm of T(value) - value, and CONVERGED keeps its promise."""
    for name in ("symmetric", "pytree", "rotation"):
        reference = reference_problems()[name]
        solution = _solve(reference, solver, max_steps=7)
        image = jax.jit(reference.map)(solution.value, *reference.args)
        gaps = jax.tree.map(lambda t, x: np.asarray(t, np.float64) - np.asarray(x, np.float64),
                            image, solution.value)
        true = np.sqrt(sum(np.sum(gap**2) for gap in jax.tree.leaves(gaps)))
        size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(image)))
        np.testing.assert_allclose(solution.residual, true, rtol=1e-6, atol=4e-7 * size)


def statuses_are_true(solver: Solver) -> None:
    """NaN, divergence, no steps and a map without fixed point get their own status."""
    one = jnp.ones(2)

    def nan_beyond(x: jax.Array) -> jax.Array:
        return jnp.where(x > 3, jnp.nan, x + 1)

    def run(step: Any, x0: Any = one, **keywords: Any) -> Solution:
        return jax.jit(lambda x: fixed_point(step, x, solver=solver, **keywords))(x0)

    broken = run(nan_beyond)
    assert broken.status in (Status.NONFINITE, Status.MAX_STEPS), broken.message()
    assert np.all(np.isfinite(broken.value)) and not broken.converged
    assert run(lambda x: x - 1.0, max_steps=60).status != Status.CONVERGED
    assert run(lambda x: 0.5 * x, max_steps=0).status == Status.MAX_STEPS
    assert run(lambda x: 0.5 * x, one * jnp.nan).status == Status.BAD_INPUT
    solved = run(lambda x: 0.5 * x + 0.5)
    assert solved.status == Status.CONVERGED and solved.steps == 1


def eager_is_jit(solver: Solver) -> None:
    """Steps and answer do not depend on jit."""
    reference = reference_problems()["cosine"]
    eager = fixed_point(reference.problem, reference.x0, *reference.args, solver=solver)
    jitted = _solve(reference, solver)
    assert abs(int(eager.steps) - int(jitted.steps)) <= 1
    assert_close(eager.value, jitted.value, 1e-5)


def vmap_is_loop(solver: Solver) -> None:
    """A batch gives every problem's own steps, status and answer; one bad lane stays alone."""
    scales = jnp.array([0.3, 0.9, 1.1, jnp.nan])

    def one(a: jax.Array) -> Solution:
        return fixed_point(lambda x, a: jnp.cos(a * x), jnp.full(2, 0.5), a, solver=solver)

    batch = jax.jit(jax.vmap(one))(scales)
    singles = [jax.jit(one)(a) for a in scales]
    for i, single in enumerate(singles):
        assert batch.status[i] == single.status
        if i < 3:  # the counts of a broken lane carry no meaning
            assert abs(int(batch.steps[i]) - int(single.steps)) <= 1
        assert_close(batch.value[i], single.value, 1e-5)


def lanes_are_vmap(solver: Solver) -> None:
    """Refilled lanes give the statuses and answers of vmap."""
    rates = jnp.linspace(0.1, 0.9, 7)

    def step(x: jax.Array, q: jax.Array) -> jax.Array:
        return q * x + 1 - q

    starts = jnp.zeros((7, 2))
    lanes = jax.jit(lambda q: solve_many(
        step, starts, q, solver=solver, lanes=3, refill_every=4))(rates)
    batch = jax.jit(jax.vmap(lambda x, q: fixed_point(step, x, q, solver=solver)))(starts, rates)
    assert_equal(lanes.status, batch.status)
    assert np.all(np.abs(np.asarray(lanes.steps - batch.steps)) <= 1)
    assert_close(lanes.value, batch.value, 1e-5)


def resume_is_bitwise(solver: Solver) -> None:
    """Five steps and then to the end is the same as going to the end."""
    reference = reference_problems()["non-normal"]

    def solve(limit: Any, state: Any = None) -> Solution:
        return fixed_point(reference.problem, reference.x0, *reference.args, solver=solver,
                           stop=never(), max_steps=limit, resume=state)

    whole = jax.jit(solve)(12)
    part = jax.jit(solve)(5)
    assert_equal(jax.jit(solve)(12, part.state), whole)


def monitors_change_nothing(solver: Solver) -> None:
    """Recording leaves value and steps alone, and the last recorded merit is the solution's."""
    reference = reference_problems()["symmetric"]
    plain = _solve(reference, solver)
    watched = _solve(reference, solver, monitor=record(STEPS))
    assert plain.steps == watched.steps
    assert_close(plain.value, watched.value, 1e-6)
    assert np.sum(~np.isnan(watched.trace["merit"])) == watched.steps


def keeps_dtype_and_structure(solver: Solver) -> None:
    """Mixed shapes, an empty subtree, bfloat16 and complex leaves stay what they are."""
    reference = reference_problems()["pytree"]
    solution = _solve(reference, solver)
    assert jax.tree.structure(solution.value) == jax.tree.structure(reference.x0)
    for dtype in (jnp.bfloat16, jnp.complex64):
        target = jnp.asarray([1.0, -2.0], dtype)
        factor = jnp.asarray(0.5, dtype)
        out = jax.jit(lambda x, t=target, f=factor: fixed_point(
            lambda y: f * y + f * t, x, solver=solver))(jnp.zeros(2, dtype))
        assert out.value.dtype == dtype and out.residual.dtype == jnp.float32
        assert out.status in (Status.CONVERGED, Status.PRECISION_FLOOR), out.message()
        assert_close(np.asarray(out.value, np.complex64), np.asarray(target, np.complex64), 5e-2)


def map_appears_once(solver: Solver) -> None:
    """The compiled forward holds one copy of the map, traced at most three times."""
    traces = 0

    def step(x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return 0.5 * jnp.arctan(x) + 1.0

    text = jax.jit(lambda x: fixed_point(step, x, solver=solver).value).lower(
        jnp.zeros(3)).as_text()
    assert traces <= 3, f"traced {traces} times"
    assert text.count("atan") <= 2, "the map is compiled more than once"  # call and name


def traces_abstractly(solver: Solver) -> None:
    """Init works on shapes alone, and its state keeps its types through update."""
    shapes = {"a": jax.ShapeDtypeStruct((3,), jnp.float32),
              "b": jax.ShapeDtypeStruct((), jnp.float32)}
    state = jax.eval_shape(solver.init, shapes)
    residual, after = jax.eval_shape(lambda r, s, x: solver.update(r, s, x), shapes, state, shapes)
    same = jax.tree.map(lambda p, q: (p.shape, p.dtype) == (q.shape, q.dtype), state, after)
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(residual) == jax.tree.structure(shapes)


def chains_with_optax(solver: Solver) -> None:
    """Inside `optax.chain` with clipping and a traced scale it still solves."""
    reference = reference_problems()["symmetric"]

    def solve(factor: jax.Array) -> Solution:
        chained = optax.chain(
            solver, optax.clip_by_global_norm(1e3),
            optax.stateless(lambda u, _: jax.tree.map(lambda leaf: factor * leaf, u)))
        return fixed_point(reference.problem, reference.x0, *reference.args, solver=chained,
                           max_steps=STEPS)

    batch = jax.jit(jax.vmap(solve))(jnp.array([1.0, 0.7]))
    assert np.all(batch.converged), batch.message()
    assert_close(batch.value[1], reference.answer, 3e-3)


SOLVER_CHECKS = {check.__name__: check for check in (
    solves_reference_problems, residual_is_honest, statuses_are_true, eager_is_jit, vmap_is_loop,
    lanes_are_vmap, resume_is_bitwise, monitors_change_nothing, keeps_dtype_and_structure,
    map_appears_once, traces_abstractly, chains_with_optax,
)}


def check_solver(solver: Solver) -> None:
    """Run every solver check.

    Raises:
      AssertionError: from the first check that fails.

    >>> import jaxiter
    >>> check_solver(jaxiter.picard())  # doctest: +SKIP
    """
    for check in SOLVER_CHECKS.values():
        check(solver)


def _loss(reference: ReferenceProblem, adjoint: Adjoint, args: tuple, **keywords: Any) -> jax.Array:
    solution = fixed_point(
        reference.problem, reference.x0, *args, adjoint=adjoint, max_steps=STEPS,
        stop=tolerance(rtol=0, atol=3e-7), **keywords)
    return sum((jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(solution.value)), jnp.zeros(()))


def _gradient(reference: ReferenceProblem, adjoint: Adjoint) -> tuple:
    return jax.jit(jax.grad(lambda args: _loss(reference, adjoint, args)))(reference.args)


@cache
def _unrolled_gradients() -> dict:
    """By name, of every regular contraction; the same for every adjoint that is checked."""
    return {name: _gradient(reference, unrolled())
            for name, reference in reference_problems().items()
            if reference.regular and reference.contracts and reference.args}


def gradients_agree_with_unrolling(adjoint: Adjoint, tolerance: float = 2e-3) -> None:
    """On every regular contraction the gradient is that of the unrolled loop."""
    for name, gradient in _unrolled_gradients().items():
        assert_close(_gradient(reference_problems()[name], adjoint), gradient, tolerance)


def value_is_untouched(adjoint: Adjoint) -> None:
    """Attaching derivatives does not change the value."""
    reference = reference_problems()["cosine"]
    solution = _solve(reference, fixed_picard(), adjoint=adjoint)
    image = reference.map(solution.value, *reference.args)
    np.testing.assert_allclose(
        np.linalg.norm(image - solution.value), solution.residual, rtol=1e-2, atol=1e-7)


def fixed_picard() -> Solver:
    """The plain solver that adjoint checks use."""
    return optax.with_extra_args_support(optax.identity())


def closures_are_hoisted(adjoint: Adjoint) -> None:
    """Gradients reach floats that the map closes over; closed-over integers do no harm."""

    def loss(a: jax.Array, order: jax.Array) -> jax.Array:
        def step(x: jax.Array) -> jax.Array:
            return 0.5 * jnp.cos(a * x)[order]

        return jnp.sum(fixed_point(step, jnp.zeros(3), adjoint=adjoint, max_steps=60).value)

    scale, order = jnp.array([0.5, 0.7, 0.9]), jnp.array([2, 0, 1])
    gradient = jax.jit(jax.grad(loss))(scale, order)
    steps = 1e-2 * np.eye(3, dtype=np.float32)
    value = jax.jit(loss)
    differences = [(value(scale + h, order) - value(scale - h, order)) / 2e-2 for h in steps]
    assert_close(gradient, np.array(differences), 5e-3)


def works_under_vmap_remat_and_scan(adjoint: Adjoint) -> None:
    """Vmap, remat and scan around a gradient all give the gradient."""

    def loss(a: jax.Array) -> jax.Array:
        return fixed_point(lambda x, a: 0.5 * jnp.cos(a * x), jnp.zeros(()), a, adjoint=adjoint,
                           max_steps=60).value

    scales = jnp.array([0.5, 0.9])
    expected = jnp.stack([jax.grad(loss)(a) for a in scales])
    assert_close(jax.jit(jax.vmap(jax.grad(loss)))(scales), expected, 1e-4)
    assert_close(jax.jit(jax.vmap(jax.grad(jax.remat(loss))))(scales), expected, 1e-4)
    total = jax.jit(jax.grad(lambda s: jax.lax.scan(
        lambda c, a: (c + loss(a), None), jnp.zeros(()), s)[0]))(scales)
    assert_close(total, expected, 1e-4)


ADJOINT_CHECKS = {check.__name__: check for check in (
    gradients_agree_with_unrolling, value_is_untouched, closures_are_hoisted,
    works_under_vmap_remat_and_scan,
)}


def check_adjoint(adjoint: Adjoint) -> None:
    """Run every adjoint check; the adjoint must be exact (not a truncated series).

    Raises:
      AssertionError: from the first check that fails.
    """
    for check in ADJOINT_CHECKS.values():
        check(adjoint)
