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
from jaxiter.numerics import on_own_mesh, stop_gradient, strong
from jaxiter.operators.projective_steps import graph_process, system_of, units_of
from jaxiter.operators.variational_inequality import default_adjoint
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.process import NO_SOLVER, iterate
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any

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
    units = stop_gradient(units_of(matvec, count, step, x0, blocks))
    system = partial(system_of, resolvent, block_resolvent, matvec)
    solution = iterate(
        graph_process(system, matvec, count), x0, blocks, units, jnp.asarray(probability), values,
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
