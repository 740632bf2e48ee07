"""Multimarginal entropic transport: one cost over many marginals, a tensor, a chain or a tree."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.known import check_floating, check_positive, known
from jaxiter.numerics import machine_epsilon, on_own_mesh, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.transport.checks import MAX_STEPS, check_masses, check_signs, mass_agrees
from jaxiter.transport.cost_tensor import CostTensor, Potentials, along
from jaxiter.transport.cost_tree import CostTree
from jaxiter.transport.iteration import REFRESH, weighted
from jaxiter.transport.result import with_weights

#: Tensors of more entries are refused, be they given or asked for.
LARGEST = 2**26


@reports
class MultimarginalResult(NamedTuple):
    """The answer of a multimarginal problem.

    The plan `P(x_1, ..., x_K) = exp((sum_k f_k(x_k) - C(x_1, ..., x_K)) / epsilon)` minimises
    `<C, P> + epsilon KL(P | a_1 x ... x a_K)` among those whose marginals are a_1, ..., a_K.

    Attributes:
      potentials: f_k `[n_k]`, K of them, in units of the cost; all but the first have mean 0
        over the support of their weights. -inf where the weight is 0.
      marginal_error: `sum_k |marginal_k(P) - a_k|_1`.
      transport_cost: `<C, P>`.
      dual_value: the dual objective at the potentials, a lower bound of the objective above.
      solve: the Solution of the potentials `f_k - epsilon log a_k` of all marginals but the first;
        its merit is the marginal error.
      cost: as solved.
      epsilon: as given.
    """

    potentials: Potentials
    marginal_error: jax.Array
    transport_cost: jax.Array
    dual_value: jax.Array
    solve: Solution
    cost: CostTensor | CostTree
    epsilon: jax.Array

    def plan(self) -> jax.Array:
        """The plan as a tensor `[n_1, ..., n_K]`.

        Raises:
          ValueError: one of more than 2**26 entries.
        """
        _check_size(self.cost.shape, self.epsilon.dtype, "pair_plans() has the marginals of a tree")
        total = -self.cost.tensor()
        for k, potential in enumerate(self.potentials):
            total += along(potential, k, self.cost.count)
        return jnp.exp(total / self.epsilon)

    def pair_plans(self) -> Potentials:
        """The marginal plan of every edge of a tree, matrices `[n_i, n_j]`, without the tensor.

        Raises:
          ValueError: where the cost is no tree.
        """
        if not isinstance(self.cost, CostTree):
            raise ValueError("a tensor has no edges; sum plan() over the other axes.")
        # A point without mass has the weight 0, and any potential that is finite.
        ones = tuple(jnp.where(f == -jnp.inf, 0, jnp.ones_like(f)) for f in self.potentials)
        potentials = tuple(jnp.where(f == -jnp.inf, 0, f) for f in self.potentials)
        kernels = self.cost.absorbed(potentials, ones, self.epsilon)
        return self.cost.pair_plans(potentials, ones, self.epsilon, kernels)


@reused
@on_own_mesh
def multimarginal_sinkhorn(
    cost: jax.Array | Sequence[jax.Array] | CostTree,
    marginals: Sequence[jax.Array],
    *,
    epsilon: Any,
    init: Potentials | None = None,
    **options: Unpack[SolveOptions],
) -> MultimarginalResult:
    """Entropic transport between K weight vectors: Sinkhorn's iteration, one marginal at a time.

        f_k <- f_k + epsilon (log a_k - log marginal_k(P)),   k = 1, ..., K

    A step updates all potentials, in the log domain. A tensor costs K passes over its entries; a
    chain or a tree some 3 passes over each of its matrices, by messages along the edges. What one
    potential can give to another, K - 1 constants, is removed from the iterate, so derivatives,
    implicit and of any order, are those of the stated normalisation.

    Args:
      cost: a tensor `[n_1, ..., n_K]` (+inf forbids a tuple), a list of K - 1 matrices
        `[n_k, n_(k+1)]` (a chain), or a `CostTree(matrices, edges)`.
      marginals: weights a_k `[n_k]` of equal mass. Zeros are legal.
      epsilon: regularisation in units of the cost, positive; may be traced.
      init: `potentials` of a previous result.
      **options: those of `fixed_point`; by default 2000 steps, and no solver: `anderson()` helps
        where epsilon is small. `resume` goes on to rounding, not bit by bit: a state keeps no
        kernels, so they are rebuilt where it stopped.

    Returns:
      A `MultimarginalResult`.

    Raises:
      ValueError: fewer than two marginals, shapes, edges that are no tree, a tensor of more than
        2**26 entries; for concrete input negative weights, unequal masses, NaN costs, epsilon <= 0,
        which under jit are BAD_INPUT.

    Reference: Benamou, Carlier, Cuturi, Nenna and Peyre, "Iterative Bregman projections for
    regularized transportation problems", SIAM J. Sci. Comput. 37, 2015; Garcia Trillos, Jacobs and
    Kim, "The multimarginal optimal transport formulation of adversarial multiclass
    classification", 2022.

    >>> import jax.numpy as jnp
    >>> swap = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # the neighbour's opposite
    >>> half = jnp.array([0.5, 0.5])
    >>> out = multimarginal_sinkhorn([swap, swap], [half, half, half], epsilon=0.05)
    >>> out.plan()[0].round(3).tolist(), bool(out.converged)
    ([[0.0, 0.0], [0.5, 0.0]], True)
    """
    chosen = choose("multimarginal_sinkhorn", options, {}, max_steps=MAX_STEPS)
    check_positive(epsilon=epsilon)
    known(_check_weights, tuple(marginals))
    structure = _as_cost(cost)
    dtype = structure.dtype
    weights = tuple(strong(a).astype(dtype) for a in marginals)
    _check_shapes(structure, weights)
    epsilon = strong(epsilon).astype(dtype)
    start = _start(structure, weights, init, epsilon)
    solve = fixed_point(
        _problem(), start, structure, weights, epsilon, **chosen._asdict())
    f, weights, rest = _complete(solve.value, None, structure, weights, epsilon)
    (logs, _), total = structure.log_marginals(f, *rest), structure.total(f, *rest)
    full = tuple(with_weights(part, a, epsilon) for part, a in zip(f, weights, strict=True))
    mass = jnp.sum(weights[0] * jnp.exp(logs[0]))
    whole = prod((jnp.sum(a) for a in weights), start=jnp.ones((), dtype))
    dual = sum((weighted(a, part) for a, part in zip(weights, f, strict=True)),
               start=epsilon * (whole - mass))
    return MultimarginalResult(
        full, _error(logs, weights), total, dual, solve, structure, epsilon)


def _as_cost(cost: Any) -> CostTensor | CostTree:
    if isinstance(cost, list | tuple):
        cost = CostTree(cost)
    if isinstance(cost, CostTree):
        structure = CostTree([strong(part) for part in cost.costs], cost.edges)
        for part in cost.costs:
            known(_check_cost, part)
    else:
        known(_check_cost, cost)
        structure = CostTensor(strong(cost))
        if structure.count < 2:
            raise ValueError(f"cost must have an axis for each of at least two marginals, got "
                             f"shape {structure.shape}.")
        _check_size(structure.shape, structure.dtype, "write the cost as a CostTree of matrices")
    check_floating(cost=structure)
    return structure


def _check_size(shape: tuple[int, ...], dtype: Any, remedy: str) -> None:
    if prod(shape) > LARGEST:
        size = prod(shape) * jnp.dtype(dtype).itemsize
        raise ValueError(f"a tensor of shape {shape} takes {size:,} bytes, more than 2**26 "
                         f"entries; {remedy}.")


def _check_cost(cost: Any) -> None:
    host = np.asarray(cost)
    least = np.min(host) if host.size else np.inf
    if np.isnan(least) or least == -np.inf:
        raise ValueError("cost contains NaN or -inf; only +inf (a forbidden tuple) is allowed.")


def _check_weights(marginals: tuple) -> None:
    for k, a in enumerate(marginals):
        check_signs(f"marginals[{k}]", np.asarray(a))
        if np.sum(np.asarray(a)) == 0:
            raise ValueError(f"marginals[{k}] sums to 0; give it some mass.")
        try:
            check_masses(marginals[0], a, "normalise them")
        except ValueError as error:
            raise ValueError(f"marginals 0 (a) and {k} (b): {error}") from None


def _check_shapes(cost: CostTensor | CostTree, weights: Potentials) -> None:
    shapes = tuple(a.shape for a in weights)
    if shapes != tuple((n,) for n in cost.shape):
        raise ValueError(f"shape mismatch: cost is over {cost.shape}, so marginals must have "
                         f"shapes {tuple((n,) for n in cost.shape)}, got {shapes}.")


def _start(
    cost: CostTensor | CostTree, weights: Potentials, init: Potentials | None, epsilon: jax.Array
) -> Potentials:
    """Potentials "ab" of all marginals but the first."""
    if init is None:
        return tuple(jnp.zeros_like(a) for a in weights[1:])
    if tuple(np.shape(f) for f in init) != tuple((n,) for n in cost.shape):
        raise ValueError("init must be the potentials of a previous result, of shapes "
                         f"{tuple((n,) for n in cost.shape)}, got "
                         f"{tuple(np.shape(f) for f in init)}.")
    return tuple(jnp.where(jnp.isfinite(f), f - with_weights(jnp.zeros_like(a), a, epsilon), 0)
                 for f, a in zip(init[1:], weights[1:], strict=True))


def _of_equal_mass(weights: Potentials) -> Potentials:
    """All rescaled to the mass of the first: what rounding has made unequal has no solution."""
    return tuple(a * (jnp.sum(weights[0]) / jnp.sum(a)) for a in weights)


def _error(logs: Potentials, weights: Potentials) -> jax.Array:
    """The l1 errors of all marginals, `a_k exp(logs_k)` for a_k."""
    return sum((jnp.sum(jnp.where(a > 0, a * jnp.abs(jnp.expm1(log)), 0))
                for a, log in zip(weights, logs, strict=True)), start=jnp.zeros_like(logs[0][0]))


def _centred(f: jax.Array, a: jax.Array) -> jax.Array:
    """f with mean 0 over the support of a."""
    support = (a > 0).astype(f.dtype)
    return f - jnp.sum(jnp.where(a > 0, f, 0)) / jnp.sum(support)


def _kernels(rest: Potentials, cost: Any, weights: Potentials, epsilon: Any) -> Any:
    return cost.absorbed((jnp.zeros_like(weights[0]), *rest), weights, epsilon)


def _complete(
    rest: Potentials, kernels: Any, cost: Any, weights: Potentials, epsilon: Any
) -> tuple[Potentials, Potentials, tuple]:
    """All potentials, the weights of equal mass, and what the sums of a cost take beside f.

    Without kernels those at this very point.
    """
    weights = _of_equal_mass(weights)
    if kernels is None:
        kernels = _kernels(rest, cost, weights, epsilon)
    operands = weights, epsilon, kernels
    first = cost.first((jnp.zeros_like(weights[0]), *rest), *operands)
    return (first, *rest), weights, operands


def _problem() -> Problem:
    """The iteration on potentials "ab", where `P = (a_1 x ... x a_K) exp((sum f - C) / epsilon)`.

    The first potential is a function of the others, and the point holds these alone.
    """

    def cache(rest: Potentials, cost: Any, weights: Any, epsilon: Any) -> Any:
        return _kernels(rest, cost, _of_equal_mass(weights), epsilon)

    def step(rest: Potentials, kernels: Any, *args: Any) -> Potentials:
        f, weights, operands = _complete(rest, kernels, *args)
        f = args[0].sweep(f, *operands)
        return tuple(_centred(part, a) for part, a in zip(f[1:], weights[1:], strict=True))

    def merit(rest: Potentials, image: Any, kernels: Any, *args: Any) -> jax.Array:
        f, weights, operands = _complete(rest, kernels, *args)
        logs, clipped = args[0].log_marginals(f, *operands)
        error = _error(logs, weights)
        return jnp.where(clipped, jnp.maximum(error, jnp.sum(weights[0])), error)

    def floor(rest: Potentials, kernels: Any, cost: Any, weights: Any, epsilon: Any) -> jax.Array:
        # What rounding the potentials alone does to every marginal.
        size = sum((weighted(a, jnp.abs(f)) for f, a in zip(rest, weights[1:], strict=True)),
                   start=epsilon * jnp.sum(weights[0]))
        return 4 * machine_epsilon(epsilon) * size / epsilon

    def valid(rest: Potentials, cost: Any, weights: Any, epsilon: Any) -> jax.Array:
        good = (epsilon > 0) & trees.finite(weights) & cost.sound()
        for a in weights:
            good &= jnp.all(a >= 0) & (jnp.sum(a) > 0) & mass_agrees(weights[0], a, a.dtype)
        return good

    return Problem(
        step=step, merit=merit, floor=floor, valid=valid, cache=cache, refresh=REFRESH,
        scale=lambda rest, image, kernels, cost, weights, epsilon: jnp.sum(weights[0]))
