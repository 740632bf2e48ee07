"""Projective splitting of many operators, some of them at a time, drawn at random."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.implicit import as_adjoint, attach_implicit
from jaxiter.known import check_positive, check_share, known
from jaxiter.numerics import anchor, on_own_mesh, safe_divide, stop_gradient, strong
from jaxiter.operators.variational_inequality import default_adjoint
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.process import NO_SOLVER, Process, iterate
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.spectral import largest_eigenvalue

PyTree = Any

#: The power iteration ends at most 0.9 per cent short, of the square.
MARGIN = 1.01


@reports
class ProjectiveResult(NamedTuple):
    """What `projective_splitting` has found.

    Attributes:
      value: the last point of the graph of A, like x0, with derivatives.
      dual: `v_i` in `B_i(L_i x)`, stacked, with derivatives.
      solve: the untouched `Solution` of `iterate`; its value is the whole state.
    """

    value: PyTree
    dual: PyTree
    solve: Solution


class Graphs(NamedTuple):
    """The point and the duals that move, and points (a, a*), (b_i, b_i*) of the graphs.

    All in units of x, in which the stacked maps have norm 1. `merit`: how far (a, b*) is from
    solving the system, exactly, from the first step on.
    """

    x: PyTree
    v: PyTree
    a: PyTree
    a_dual: PyTree
    b: PyTree
    b_dual: PyTree
    merit: jax.Array
    count: jax.Array


class _Units(NamedTuple):
    """The norm of the stacked maps, and the steps of A, of the blocks, of these in units of x."""

    norm: jax.Array
    a: jax.Array
    b: jax.Array
    own: jax.Array


class _System(NamedTuple):
    """The system in units of x: `forward(x)`, its transpose, both resolvents."""

    forward: Callable
    pull: Callable
    near: Callable
    blocks_near: Callable


@reused
@on_own_mesh
def projective_splitting(
    resolvent: Callable, block_resolvent: Callable, matvec: Callable, x0: PyTree, blocks: PyTree,
    *args: PyTree, key: jax.Array, probability: Any = 1.0, relaxation: Any = 1.0,
    step: Any = None, **options: Unpack[SolveOptions],
) -> ProjectiveResult:
    """Find x with `0 in A x + sum_i L_i' B_i(L_i x)`, activating blocks at random.

        active:    a = J_A(x - g sum_i L_i' v_i),    b_i = J_Bi(L_i x + mu v_i)
        s = a* + sum_i L_i' b_i*,    t_i = b_i - L_i a,    tau = |s|^2 + sum |t_i|^2
        theta = lam max(<x - a, s> + sum <v_i - b_i*, t_i>, 0) / tau
        x <- x - theta s,    v_i <- v_i - theta t_i

    where (a, a*) and (b_i, b_i*) stay points of the graphs of A and B_i while they are not
    activated; the first step activates all. Any steps g, mu converge. The merit,
    `g |s| + |t| / |L|`, is exact for the points that are kept, whatever their age.

    Args:
      resolvent: `resolvent(v, step, *args)` of A, as a proximal map.
      block_resolvent: `block_resolvent(v, step, block, *args)` of one B_i.
      matvec: `matvec(x, block)`, the linear L_i, an array.
      x0: start. blocks: the data of the B_i and L_i, leaves `[K, ...]`.
      key: a random key.
      probability: with which each block is active in a step, in (0, 1]; a scalar or `[K]`. A always
        is.
      relaxation: lam, a number in (0, 2), or `(values, probabilities)`, drawn in every step, with
        `E[lam (2 - lam)] >= 0`: some may exceed 2.
      step: g; default `1 / (|L| sqrt(K))`; mu is `g |L|^2 sqrt(K)`. To be given in the units of x
        over those of A x; a good one saves most of the steps.
      **options: those of `iterate`, and an adjoint, of the system that x and the duals solve: dense
        up to 256 unknowns, GMRES above.

    Returns:
      A `ProjectiveResult`.

    Raises:
      ValueError: a probability outside (0, 1], a relaxation of negative `E[lam (2 - lam)]`,
        blocks of different counts. Traced ones end without CONVERGED.

    Reference: Combettes and Madariaga, "Asymptotic analysis of stochastic splitting methods for
    multivariate monotone inclusions", 2025; Combettes and Eckstein, "Asynchronous block-iterative
    primal-dual decomposition methods for monotone inclusions", Math. Program. 168, 2018.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1
    >>> out = projective_splitting(  # |x|_1 + sum_i (x - b_i)^2 / 2
    ...     lambda v, step: prox_l1(v, step), lambda v, step, b: (v + step * b) / (1 + step),
    ...     lambda x, b: x, jnp.zeros(1), jnp.array([[2.0], [4.0]]), key=jax.random.key(0),
    ...     probability=0.5)
    >>> round(float(out.value[0]), 3), bool(out.converged)
    (2.5, True)
    """
    chosen = choose("projective_splitting", options, NO_SOLVER)
    count = _count(blocks)
    check_share(probability=probability)
    values, chances = _relaxations(relaxation)
    check_positive(**({} if step is None else {"step": step}))
    x0 = as_point(x0)
    units = stop_gradient(_units(matvec, count, step, x0, blocks))
    system = partial(_system, resolvent, block_resolvent, matvec)
    solution = iterate(
        _process(system, matvec, count), x0, blocks, units, jnp.asarray(probability), values,
        chances, *args, key=key, **chosen._replace(adjoint=frozen())._asdict())

    def equations(pair: tuple, blocks: PyTree, *args: PyTree) -> tuple:
        x, v = pair
        forward, pull, near, blocks_near = system(x, blocks, units, args)
        image = forward(x)
        return (trees.subtract(near(trees.subtract(x, pull(v))), x),
                trees.subtract(blocks_near(trees.axpy(units.own, v, image)), image))

    pair = stop_gradient((solution.value.a, solution.value.b_dual))
    adjoint = default_adjoint(pair) if chosen.adjoint is None else as_adjoint(chosen.adjoint)
    value, dual = attach_implicit(equations, pair, blocks, *args, adjoint=adjoint)
    return ProjectiveResult(value, trees.scale(1 / (units.a * units.norm), dual), solution)


def _count(blocks: PyTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(blocks)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or counts == {0}:
        raise ValueError("blocks must be a tree of arrays whose leading axes have one length, at "
                         f"least 1, got shapes {shapes}.")
    return counts.pop()


def _relaxations(relaxation: Any) -> tuple[jax.Array, jax.Array]:
    pair = relaxation if isinstance(relaxation, tuple) else ((relaxation,), (1.0,))
    if len(pair) != 2:
        raise ValueError("relaxation must be a number or (values, probabilities), got "
                         f"{relaxation}.")
    known(_check_relaxation, *pair)
    values, chances = (jnp.stack([strong(float(x) if isinstance(x, int) else x) for x in part])
                       if isinstance(part, tuple | list) else strong(part) for part in pair)
    return values, chances


def _check_relaxation(values: Any, chances: Any) -> None:
    values, chances = np.asarray(values, float), np.asarray(chances, float)
    if values.shape != chances.shape or np.any(chances < 0) or abs(chances.sum() - 1) > 1e-5:
        raise ValueError(f"relaxations need as many probabilities, of sum 1, got {chances}.")
    mean = float(np.sum(chances * values * (2 - values)))
    if not (np.all(values > 0) and mean >= 0):
        raise ValueError("relaxation violates lam > 0 and E[lam (2 - lam)] >= 0: the mean is "
                         f"{mean:.3g} for {values} with probabilities {chances}.")


def _maps(matvec: Callable, x: PyTree, blocks: PyTree) -> tuple[Callable, Callable]:
    """`x -> (L_i x)`, stacked, and its transpose."""
    def forward(x: PyTree) -> PyTree:
        return jax.vmap(matvec, in_axes=(None, 0))(x, blocks)

    def pull(v: PyTree) -> PyTree:
        # Over a mesh both must vary as their product does.
        at = anchor(x, (x, v, blocks))
        return jax.linear_transpose(forward, at)(anchor(v, (at, blocks)))[0]

    return forward, pull


def _units(matvec: Callable, count: int, step: Any, x: PyTree, blocks: PyTree) -> _Units:
    forward, pull = _maps(matvec, x, blocks)
    square = largest_eigenvalue(lambda x: pull(forward(x)), x).value
    norm = MARGIN * jnp.sqrt(jnp.abs(square))
    norm = jnp.where(norm == 0, 1, norm)
    own = jnp.full_like(norm, count**0.5)
    size = 1 / (norm * own) if step is None else jnp.asarray(step, norm.dtype)
    return _Units(norm, size, size * norm**2 * own, own)


def _system(
    resolvent: Callable, block_resolvent: Callable, matvec: Callable, x: PyTree, blocks: PyTree,
    units: _Units, args: tuple,
) -> _System:
    forward, pull = _maps(matvec, x, blocks)

    def blocks_near(v: PyTree) -> PyTree:
        near = jax.vmap(lambda v, block: block_resolvent(v, units.b, block, *args))
        return trees.scale(1 / units.norm, near(trees.scale(units.norm, v), blocks))

    return _System(
        lambda x: trees.scale(1 / units.norm, forward(x)),
        lambda v: trees.scale(1 / units.norm, pull(v)),
        lambda v: resolvent(v, units.a, *args), blocks_near)


def _process(system: Callable, matvec: Callable, count: int) -> Process:
    def init(x: PyTree, blocks: PyTree, *rest: PyTree) -> Graphs:
        image = jax.eval_shape(jax.vmap(matvec, in_axes=(None, 0)), x, blocks)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), image)
        zero, nothing = trees.zeros_like(x), jnp.zeros((), trees.norm_dtype(x))
        return Graphs(x, none, zero, zero, none, none, nothing, jnp.int32(0))

    def step(
        state: Graphs, key: jax.Array, blocks: PyTree, units: _Units, probability: jax.Array,
        values: jax.Array, chances: jax.Array, *args: PyTree,
    ) -> Graphs:
        x, v = state.x, state.v
        forward, pull, near, blocks_near = system(x, blocks, units, args)
        draw, other = jax.random.split(key)
        # All at first; a probability that makes no sense activates none ever after.
        active = (state.count == 0) | jax.random.bernoulli(draw, probability, (count,))
        lam = jnp.dot(values, _one_hot(other, chances, values.dtype))

        back = trees.subtract(x, pull(v))
        a = near(back)
        a_dual = trees.subtract(back, a)
        image = forward(x)
        b = _select(active, blocks_near(trees.axpy(units.own, v, image)), state.b)
        b_dual = _select(active, trees.axpy(1 / units.own, trees.subtract(image, b), v),
                         state.b_dual)

        s = trees.add(a_dual, pull(b_dual))
        t = trees.subtract(b, forward(a))
        square = trees.squared_norm((s, t))
        # Not <x, s> - <a, a*> and so on: differences of small numbers keep their digits.
        ahead = trees.dot((trees.subtract(x, a), trees.subtract(v, b_dual)), (s, t))
        theta = lam.astype(square.dtype) * safe_divide(jnp.maximum(ahead, 0), square)
        return Graphs(trees.axpy(-theta, s, x), trees.axpy(-theta, t, v), a, a_dual, b, b_dual,
                      jnp.sqrt(square), state.count + 1)

    return Process(init, step, merit=lambda state, *args: jnp.where(
        state.count == 0, jnp.inf, state.merit))


def _one_hot(key: jax.Array, chances: jax.Array, kind: Any) -> jax.Array:
    return jax.nn.one_hot(jax.random.choice(key, chances.size, p=chances), chances.size, dtype=kind)


def _select(active: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The blocks that are active, the others as they were."""
    return jax.tree.map(lambda n, o: jnp.where(
        active.reshape(active.shape + (1,) * (n.ndim - 1)), n, o), new, old)
