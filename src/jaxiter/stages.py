"""`in_stages`: one solve after the other, on one budget of steps, each from what the last gave."""

from collections.abc import Callable
from functools import partial, reduce
from operator import and_, or_
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import frozen, split
from jaxiter.driver import attached, finish
from jaxiter.implicit import as_adjoint, nan_derivative_unless
from jaxiter.loop import first_step, init, run
from jaxiter.method import Method, make_method
from jaxiter.monitor import Monitor, seeing
from jaxiter.numerics import (
    anchor,
    hoist,
    if_needed,
    is_array,
    on_own_mesh,
    stop_gradient,
    strong,
)
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem, as_point
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status

PyTree = Any

#: A stage that ends so is the last one, whatever comes next on the list.
FAILURES = (Status.NONFINITE, Status.BAD_INPUT, Status.DIVERGED, Status.LINEAR_FAILURE)
#: What `each` may say of a stage.
OWN = ("args", "stop", "monitor", "max_steps")


class Spent(NamedTuple):
    """What the stages so far have used, and what the monitor has seen of them."""

    steps: jax.Array
    calls: PyTree
    trace: PyTree


class _Rules(NamedTuple):
    """What stays the same in all stages: the method, and the functions between two of them."""

    method: Method
    options: Options
    update: Callable
    each: Callable | None
    restore: Callable

    def own(self, args: tuple) -> dict:
        """What the stage at these args says for itself, its problem's args always."""
        own = {} if self.each is None else self.each(*args)
        if not isinstance(own, dict) or not set(own) <= set(OWN):
            raise TypeError(f"each must return a dict with keys out of {OWN}, got {own!r}.")
        return {"args": args, **own}

    def stage(self, args: tuple) -> tuple[Method, dict]:
        """The method of the stage at these args, and all that it has of its own."""
        own = self.own(args)
        rules = {name: own[name] for name in ("stop", "monitor") if name in own}
        return make_method(self.method.problem, self.options._replace(**rules)), own


class _Carry(NamedTuple):
    """Where the stages stand: what the next one starts from, how the last one ended.

    `moving` are the leaves of args that `update` changes, `solved` those of the last stage;
    `given` whether its numbers are those that the caller gave.
    """

    x0: PyTree
    moving: PyTree
    solved: PyTree
    solution: Solution
    memory: PyTree
    given: jax.Array
    done: jax.Array


def failed(solution: Solution) -> jax.Array:
    """Whether a stage ended so that no other can go on from it."""
    nonfinite, *others = FAILURES
    return reduce(or_, (solution.status == code for code in others), solution.status == nonfinite)


def ended(solution: Solution, max_steps: Any) -> jax.Array:
    """Whether no stage can follow: the last one failed, or the steps are spent."""
    return failed(solution) | (solution.steps >= max_steps)


def onward(monitor: Monitor | None, spent: Spent) -> Monitor | None:
    """The monitor going on where earlier stages left it."""
    later = seeing(monitor, lambda info: info._replace(step=info.step + spent.steps))
    return None if later is None else later._replace(init=lambda info: spent.trace)


def counted(solution: Solution, spent: Spent) -> Solution:
    """A stage's solution, with the steps and calls of those before it."""
    return solution._replace(steps=spent.steps + solution.steps,
                             calls=jax.tree.map(jnp.add, spent.calls, solution.calls))


def follow(
    previous: Solution, solve: Callable[[Solution, jax.Array, Monitor | None], Solution],
    needed: jax.Array, *, max_steps: Any, monitor: Monitor | None = None, like: PyTree = (),
) -> Solution:
    """`solve(previous, max_steps, monitor)`, a stage of another kind, on the steps that are left.

    Only where it is needed; elsewhere the previous solution, whose structure the other must have.
    No derivatives pass. `like`: what `solve` closes over.
    """
    left = jnp.asarray(max_steps, jnp.int32) - previous.steps
    needed = needed & (left > 0)

    def run(previous: Solution, left: jax.Array) -> Solution:
        spent = Spent(previous.steps, previous.calls, previous.trace)
        return counted(solve(previous, left, onward(monitor, spent)), spent)

    later = if_needed(needed, run, (previous, left), like)
    return trees.where(needed, later, previous)


@reused
@on_own_mesh
def in_stages(
    problem: Problem | Callable,
    x0: PyTree,
    *args: PyTree,
    update: Callable,
    each: Callable | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Solve `x = T(x, *args)` for one args after the other: continuation, penalties, multipliers.

        x = fixed_point(T, x0, *args);  x0, args, done = update(x, *args);  until done

    Args:
      problem, x0, *args: the first stage, as in `fixed_point`.
      update: `update(solution, *args) -> (x0, args, done)`, asked after every stage: where the
        next one starts, its args (a tuple), and a bool scalar, whether there is none. The solution
        counts the steps of all stages. Leaves of args that it hands back untouched cost nothing.
      each: `each(*args) -> dict`, what a stage has of its own: its `stop` or `monitor` (the same
        rule with other numbers), its `max_steps`, and `args`, what its problem gets in place
        of args.
      **options: those of `fixed_point`, of every stage; `max_steps` of all of them together. A
        monitor counts on from stage to stage and has one trace. No `resume`: start again from
        `value` and `*aux`. No `unrolled()`.

    Derivatives are those of the problem's equations at the numbers that were given (counters,
    which are integers, may move). They are NaN where the last stage had other numbers, never
    silently wrong: there use `attach_implicit` with the equations of the whole (the KKT system,
    say).

    Returns:
      The last stage's `Solution`, with `steps`, `calls` and `trace` of all. `aux` is the args that
      `update` returned last (multipliers), without derivatives. The status is that of the last
      stage, and MAX_STEPS where the steps ran out before `done`. NONFINITE, BAD_INPUT, DIVERGED
      and LINEAR_FAILURE end all stages at once.

    Raises:
      TypeError: `update` changes a tree, shape or dtype (names the leaf), or `done` is no bool.
      ValueError: `resume` or `unrolled()`; else as `fixed_point`.

    Minimise `|x - c|^2` with `sum(x) = 1`: gradient steps, then a step of the multiplier.

    >>> import jax.numpy as jnp, jaxiter
    >>> def descend(x, c, m):
    ...     return x - 0.2 * (x - c + m + jnp.sum(x) - 1)
    >>> def update(solution, c, m):
    ...     violation = jnp.sum(solution.value) - 1
    ...     return solution.value, (c, m + violation), jnp.abs(violation) < 1e-4
    >>> out = jaxiter.in_stages(descend, jnp.zeros(2), jnp.array([1.0, 2.0]), jnp.array(0.0),
    ...                         update=update)
    >>> out.value.round(3).tolist(), round(float(out.aux[1]), 3), bool(out.converged)
    ([0.0, 1.0], 1.0, True)
    """
    chosen = choose("in_stages", options, {
        "resume": "a state is that of one stage; start again from the solution's value and *aux"})
    adjoint, max_steps = as_adjoint(chosen.adjoint), chosen.max_steps
    if adjoint.differentiates_loop:
        raise ValueError("in_stages cannot unroll a number of stages that is not known ahead; use "
                         "implicit(), or call fixed_point once per stage.")
    method = make_method(problem, chosen)
    x0 = as_point(x0)
    arrays, restore = split(args)
    rules = _Rules(method, chosen, update, each, restore)
    end, last, following = _run(rules, x0, arrays, jnp.asarray(max_steps, jnp.int32))

    out = end.solution
    finished = end.done | failed(out)
    out = out._replace(status=jnp.where(finished, out.status, jnp.int32(Status.MAX_STEPS)))
    # Equal numbers, of which those that were given have derivatives; counters of the last stage.
    at = jax.tree.map(lambda new, old: old if _continuous(old) else new, last, arrays)
    value = attached(method, adjoint, out, end.memory, at,
                     lambda arrays: rules.own(restore(arrays))["args"])
    if jax.tree.leaves(end.moving):
        value = nan_derivative_unless(end.given, value)
    return out._replace(value=value, aux=restore(following))


def _continuous(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _run(
    rules: _Rules, x0: PyTree, arrays: tuple, max_steps: jax.Array
) -> tuple[_Carry, tuple, tuple]:
    """The end, the args of the last stage and those after it, cut off from every derivative."""
    moves = arrays

    def probe(given: tuple) -> tuple:
        """A stage of one step: finds what is closed over, and which leaves of args move."""
        nonlocal moves
        args = rules.restore(given[1])
        method, own = rules.stage(args)
        out = finish(method, first_step(method, given[0], own["args"]), 1)
        new = _updated(rules.update, out, given[0], args)
        moves = jax.tree.map(lambda old, leaf: leaf is not old, given[1], new[1])
        return new

    given = (x0, arrays)
    _, constants, _ = hoist(probe, given)
    like = (given, constants, max_steps)
    x0, arrays, max_steps = anchor(stop_gradient((*given, max_steps)), like)

    # Traced on what is typed by all of these, so it holds for whatever the loop makes of it.
    method, own = rules.stage(rules.restore(arrays))
    nothing = init(method, x0, *own["args"])
    spent = Spent(jnp.int32(0), nothing.calls, nothing.monitor)
    moving, spent = anchor(stop_gradient((eqx.filter(arrays, moves), spent)), like)
    pure, constants, shapes = hoist(
        partial(_stage, rules), x0, moving, spent, max_steps, arrays)
    constants = stop_gradient(constants)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # Whatever may lie over an explicit mesh is taken from what does.
    nowhere = blank.solution._replace(value=x0, displacement=x0, trace=spent.trace)
    start = anchor(blank._replace(x0=x0, moving=moving, solved=moving, solution=nowhere,
                                  memory=stop_gradient(nothing.memory)), like)

    def going(now: _Carry) -> jax.Array:
        first = now.solution.status == Status.RUNNING
        return first | ~(now.done | ended(now.solution, max_steps))

    def body(now: _Carry) -> _Carry:
        # Under vmap a lane that has ended comes along, and makes no steps.
        left = jnp.where(going(now), max_steps - now.solution.steps, 0)
        spent = Spent(now.solution.steps, now.solution.calls, now.solution.trace)
        # Typed as what came in: what `update` returns may be a constant.
        return anchor(pure(constants, now.x0, now.moving, spent, left, arrays), now.done)

    # Not packed: in a loop of few rounds that is only more to compile.
    end = lax.while_loop(going, body, start)
    return end, eqx.combine(end.solved, arrays), eqx.combine(end.moving, arrays)


def _stage(
    rules: _Rules, x0: PyTree, moving: PyTree, spent: Spent, left: jax.Array, arrays: tuple
) -> _Carry:
    """One stage and what `update` makes of it; `arrays` are those of the args that were given."""
    args = rules.restore(eqx.combine(moving, arrays))
    method, own = rules.stage(args)
    method = method._replace(monitor=onward(method.monitor, spent))
    most = jnp.minimum(left, jnp.asarray(own.get("max_steps", left), jnp.int32))
    state = anchor(init(method, x0, *own["args"]), (x0, moving, left))
    state = run(method, frozen().loop, state, own["args"], most)
    out = counted(finish(method, state, most), spent)
    following, new, done = _updated(rules.update, out, x0, args)
    new, then = (jax.tree.map(lambda place, leaf: None if place is None else leaf, moving, tree,
                              is_leaf=lambda place: place is None) for tree in (new, arrays))
    same = [jnp.all(now == old) for now, old in zip(
        jax.tree.leaves(moving), jax.tree.leaves(then), strict=True) if _continuous(now)]
    return _Carry(following, new, moving, out._replace(state=None), state.answer.memory,
                  reduce(and_, same, jnp.bool_(True)), done)


def _updated(
    update: Callable, solution: Solution, x0: PyTree, args: tuple
) -> tuple[PyTree, tuple, jax.Array]:
    """What `update` says, checked: the next start, the array leaves of its args, whether done."""
    out = update(solution, *args)
    if not isinstance(out, tuple) or len(out) != 3 or not isinstance(out[1], tuple):
        raise TypeError("update must return (x0, args, done) with args as a tuple.")
    start, done = jax.tree.map(strong, out[0]), jnp.asarray(out[2])
    trees.check_same_structure(x0, start, "The x0 that update returns")
    wanted, seen = jax.tree.structure(args), jax.tree.structure(out[1])
    if wanted != seen:
        raise TypeError("The args that update returns must keep the tree structure: expected "
                        f"{wanted}, got {seen}.")
    if done.shape or done.dtype != bool:
        raise TypeError(f"The done that update returns must be a bool scalar, got {done.dtype} of "
                        f"shape {done.shape}.")
    arrays, _ = split(args)
    new = _arrays(args, out[1])
    new = jax.tree.unflatten(jax.tree.structure(arrays), new)
    trees.check_same_structure(arrays, new, "The args that update returns")
    return start, new, done


def _arrays(args: tuple, new: tuple) -> list:
    """The new values of the leaves of args that are arrays; all others must stay as they are."""
    arrays = []
    for (path, old), leaf in zip(
            jax.tree_util.tree_leaves_with_path(args), jax.tree.leaves(new), strict=True):
        if is_array(old):
            arrays.append(leaf if leaf is old else strong(leaf))
        elif leaf is not old and (is_array(leaf) or leaf != old):
            raise TypeError(f"update changes args at {trees.path_name(path)}, which is "
                            f"{old!r}, no array, and so the same in all stages; pass jnp.asarray.")
    return arrays
