"""Costs of many marginals that are sums over the edges of a tree, and messages along them.

All potentials here are "ab": `P = (a_1 x ... x a_K) exp((sum_k f_k - C) / epsilon)`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.numerics import product, stop_gradient
from jaxiter.transport.cost_tensor import Potentials, inner, scaled
from jaxiter.transport.iteration import LARGEST_ENTRY, LARGEST_LOG_SCALING, LOST
from jaxiter.transport.result import with_weights


class CostTree(eqx.Module):
    """A cost that is a sum over the edges of a tree of marginals, `sum_e C_e(x_i, x_j)`.

    Attributes:
      costs: one matrix `[n_i, n_j]` for each edge; +inf forbids a pair.
      edges: pairs (i, j) of marginals, static; default the chain (0, 1), (1, 2), ...

    Raises:
      ValueError: edges that do not join marginals 0, ..., K - 1 to one tree, and matrices that
        disagree on how many points a marginal has.

    >>> import jax.numpy as jnp
    >>> CostTree([jnp.zeros((2, 3)), jnp.zeros((2, 4))], [(0, 1), (0, 2)]).shape
    (2, 3, 4)
    """

    costs: tuple
    edges: tuple = eqx.field(static=True)

    def __init__(self, costs: Sequence[Any], edges: Sequence[tuple[int, int]] | None = None):
        if edges is None:
            edges = [(k, k + 1) for k in range(len(costs))]
        self.costs = tuple(costs)
        self.edges = tuple((int(i), int(j)) for i, j in edges)
        _check_tree(self.costs, self.edges)

    @property
    def count(self) -> int:
        """The number of marginals."""
        return len(self.edges) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Points of each marginal."""
        return tuple(np.shape(self.between(k, self.neighbours(k)[0]))[0]
                     for k in range(self.count))

    @property
    def dtype(self) -> Any:
        """That of the costs together."""
        return jnp.result_type(*self.costs)

    def tensor(self) -> jax.Array:
        """The cost of all tuples."""
        total = jnp.zeros([1] * self.count, self.dtype)
        for (i, j), cost in zip(self.edges, self.costs, strict=True):
            ordered = cost if i < j else cost.T
            total += ordered.reshape([
                n if k in (i, j) else 1 for k, n in enumerate(self.shape)])
        return total

    def sound(self) -> jax.Array:
        """Whether nothing is NaN or -inf."""
        return jnp.all(jnp.stack([jnp.all(cost > -jnp.inf) for cost in self.costs]))

    def neighbours(self, k: int) -> list[int]:
        """The marginals that share an edge with k."""
        return [j if i == k else i for i, j in self.edges if k in (i, j)]

    def between(self, i: int, j: int) -> jax.Array:
        """The cost of the edge of i and j, `[n_i, n_j]`."""
        if (i, j) in self.edges:
            return self.costs[self.edges.index((i, j))]
        return self.costs[self.edges.index((j, i))].T

    def order(self) -> list[tuple[int, int]]:
        """The edges as (parent, child), away from marginal 0, each branch to its end."""
        out, stack = [], [(0, k) for k in reversed(self.neighbours(0))]
        while stack:
            parent, child = stack.pop()
            out.append((parent, child))
            stack += [(child, k) for k in reversed(self.neighbours(child)) if k != parent]
        return out

    def absorbed(self, f: Potentials, weights: Potentials, epsilon: Any) -> "dict":
        """The kernels of all edges at these potentials, by `"parent-child"`.

        One exponential an entry. Column by column the largest share of mass is 1, so what f_0 is
        made of loses nothing to underflow; what is lost in rows the marginal errors show.
        """
        said, kernels = {}, {}
        for parent, child in reversed(self.order()):
            at = stop_gradient(self.towards(child, parent, said, f))
            reduced = at[:, None] - stop_gradient(self.between(child, parent))
            mass = with_weights(jnp.zeros_like(at), stop_gradient(weights[child]), epsilon)
            # Taken apart, or XLA computes it anew for every entry.
            peak = jnp.max(reduced + lax.optimization_barrier(stop_gradient(mass))[:, None], 0)
            peak = jnp.where(jnp.isfinite(peak), peak, 0)
            # The references are constants: they cancel in every message.
            exponent = (at[:, None] - peak) / epsilon + scaled(
                self.between(child, parent), epsilon)
            matrix = jnp.exp(jnp.minimum(exponent, LARGEST_ENTRY))
            kernels[f"{parent}-{child}"] = EdgeKernel(matrix, at, -peak)
            said[child, parent] = self.message(
                child, parent, said, f, weights, epsilon, kernels)
        return kernels

    def towards(self, i: int, j: int, said: dict, f: Sequence[jax.Array]) -> jax.Array:
        """f_i and the messages of all of i's neighbours but j."""
        return sum((said[k, i] for k in self.neighbours(i) if k != j), start=f[i])

    def message(
        self, i: int, j: int, said: dict, f: Sequence[jax.Array], weights: Potentials,
        epsilon: Any, kernels: dict,
    ) -> jax.Array:
        """What all tuples on i's side say to j, `epsilon log sum exp` of `[n_j]`."""
        upward = f"{j}-{i}" in kernels
        matrix, child, parent = kernels[f"{j}-{i}" if upward else f"{i}-{j}"]
        near, far = (child, parent) if upward else (parent, child)
        log_scaling = (self.towards(i, j, said, f) - near) / epsilon
        scaled = weights[i] * jnp.exp(jnp.minimum(log_scaling, LARGEST_LOG_SCALING))
        sums = product(scaled, matrix) if upward else product(matrix, scaled)
        return epsilon * jnp.log(jnp.maximum(sums, LOST)) - far

    def upward(self, f: Sequence[jax.Array], *rest: Any) -> dict:
        """The messages towards marginal 0, from the leaves on; f_0 is not asked."""
        said: dict = {}
        for parent, child in reversed(self.order()):
            said[child, parent] = self.message(child, parent, said, f, *rest)
        return said

    def first(self, f: Sequence[jax.Array], *rest: Any) -> jax.Array:
        """The f_0 for which marginal 0 is met, given the others."""
        return -_heard(self, 0, self.upward(f, *rest))

    def sweep(self, f: Potentials, *rest: Any) -> Potentials:
        """Every potential but the first updated, one after the other, branch by branch."""
        said, order, fresh = self.upward(f, *rest), self.order(), list(f)
        parents = {child: parent for parent, child in order}
        for place, (parent, child) in enumerate(order):
            done = order[place - 1][1]
            while place and done != parent:  # back from a branch: what it says now
                above = parents[done]
                said[done, above] = self.message(done, above, said, fresh, *rest)
                done = above
            said[parent, child] = self.message(parent, child, said, fresh, *rest)
            fresh[child] = -_heard(self, child, said)
        return tuple(fresh)

    def both_ways(self, f: Potentials, *rest: Any) -> dict:
        """All messages, towards marginal 0 and away from it."""
        said = self.upward(f, *rest)
        for parent, child in self.order():
            said[parent, child] = self.message(parent, child, said, f, *rest)
        return said

    def log_marginals(
        self, f: Potentials, weights: Potentials, epsilon: Any, kernels: dict
    ) -> tuple[Potentials, jax.Array]:
        """The logarithms of the marginals of P, each divided by its a_k.

        And whether float range was left on the way, by scalings that were clipped.
        """
        said = self.both_ways(f, weights, epsilon, kernels)
        logs = tuple((f[k] + _heard(self, k, said)) / epsilon for k in range(self.count))
        drift = [self.towards(i, j, said, f) - near
                 for parent, child in self.order()
                 for i, j, near in (
                     (child, parent, kernels[f"{parent}-{child}"].child),
                     (parent, child, kernels[f"{parent}-{child}"].parent))]
        peak = jnp.max(jnp.stack([jnp.max(part) for part in drift]))
        return logs, peak > LARGEST_LOG_SCALING * epsilon

    def pair_plans(
        self, f: Potentials, weights: Potentials, epsilon: Any, kernels: dict
    ) -> Potentials:
        """The marginal plan of each edge."""
        said, plans = self.both_ways(f, weights, epsilon, kernels), []
        for i, j in self.edges:
            left, right = self.towards(i, j, said, f), self.towards(j, i, said, f)
            log_plan = (left[:, None] + right) / epsilon + scaled(self.between(i, j), epsilon)
            # Beyond the range only where a weight is 0: so it stays, and not inf * 0.
            entries = jnp.exp(jnp.minimum(log_plan, 0.99 * np.log(jnp.finfo(log_plan.dtype).max)))
            plans.append(entries * weights[i][:, None] * weights[j])
        return tuple(plans)

    def total(self, *operands: Any) -> jax.Array:
        """`<C, P>`."""
        return sum((inner(cost, plan) for cost, plan in zip(
            self.costs, self.pair_plans(*operands), strict=True)),
            start=jnp.zeros((), self.dtype))


class EdgeKernel(NamedTuple):
    """`exp((child_i + parent_j - C_ij) / epsilon)` for an edge, and the references in it.

    Source: Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport
    problems", 2019.
    """

    matrix: jax.Array
    child: jax.Array
    parent: jax.Array


def _heard(tree: CostTree, k: int, said: dict) -> jax.Array:
    """The sum of the messages to k."""
    return sum((said[j, k] for j in tree.neighbours(k)), start=jnp.zeros((), tree.dtype))


def _check_tree(costs: tuple, edges: tuple) -> None:
    if not edges or len(costs) != len(edges):
        raise ValueError(f"a tree needs one cost matrix for each of its edges, at least one; got "
                         f"{len(costs)} costs and {len(edges)} edges.")
    joined, left = {0}, list(edges)
    while left:
        near = [edge for edge in left if len(joined & set(edge)) == 1]
        if not near or max(map(max, edges)) > len(edges) or min(map(min, edges)) < 0:
            raise ValueError(f"edges {edges} do not join marginals 0, ..., {len(edges)} to one "
                             "tree.")
        joined |= set(near[0])
        left.remove(near[0])
    sizes: dict = {}
    for edge, cost in zip(edges, costs, strict=True):
        if jnp.ndim(cost) != 2:
            raise ValueError(f"the cost of edge {edge} must be a matrix, got shape "
                             f"{np.shape(cost)}.")
        for k, n in zip(edge, np.shape(cost), strict=True):
            if sizes.setdefault(k, n) != n:
                raise ValueError(f"shape mismatch: the cost of edge {edge} has {n} points of "
                                 f"marginal {k}, another {sizes[k]}.")
