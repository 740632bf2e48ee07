"""Costs of many marginals as tensors, and sums against them in the log domain.

All potentials here are "ab": `P = (a_1 x ... x a_K) exp((sum_k f_k - C) / epsilon)`.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxiter.numerics import logsumexp

Potentials = tuple[jax.Array, ...]


def along(values: jax.Array, axis: int, count: int) -> jax.Array:
    """A vector as a tensor of `count` axes that varies along one of them."""
    return values.reshape([-1 if k == axis else 1 for k in range(count)])


class CostTensor(eqx.Module):
    """A cost `[n_1, ..., n_K]` of all tuples."""

    cost: jax.Array

    @property
    def count(self) -> int:
        """The number of marginals."""
        return self.cost.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Points of each marginal."""
        return self.cost.shape

    @property
    def dtype(self) -> Any:
        """That of the cost."""
        return self.cost.dtype

    def tensor(self) -> jax.Array:
        """The cost of all tuples."""
        return self.cost

    def sound(self) -> jax.Array:
        """Whether nothing is NaN or -inf."""
        return jnp.all(self.cost > -jnp.inf)

    def absorbed(self, f: Potentials, weights: Potentials, epsilon: Any) -> None:
        """No kernel: a tensor is summed in the log domain."""

    def update(
        self, k: int, f: Sequence[jax.Array], weights: Potentials, epsilon: Any
    ) -> jax.Array:
        """The f_k for which marginal k is met, given the others."""
        others = [None if j == k else part for j, part in enumerate(f)]
        return -epsilon * self._summed(self._exponents(others, epsilon), k, weights)

    def first(
        self, f: Sequence[jax.Array], weights: Potentials, epsilon: Any, kernels: None
    ) -> jax.Array:
        """The f_0 for which marginal 0 is met, given the others."""
        return self.update(0, f, weights, epsilon)

    def sweep(
        self, f: Potentials, weights: Potentials, epsilon: Any, kernels: None
    ) -> Potentials:
        """Every potential but the first updated, one after the other."""
        for k in range(1, self.count):
            f = (*f[:k], self.update(k, f, weights, epsilon), *f[k + 1:])
        return f

    def log_marginals(
        self, f: Potentials, weights: Potentials, epsilon: Any, kernels: None
    ) -> tuple[Potentials, jax.Array]:
        """The logarithms of the marginals of P, each divided by its a_k; never out of range."""
        z = self._exponents(f, epsilon)
        return tuple(self._summed(z, k, weights) for k in range(self.count)), jnp.bool_(False)

    def _exponents(self, f: Sequence[jax.Array | None], epsilon: Any) -> jax.Array:
        """`(sum of f - C) / epsilon` of all tuples; a potential of None is not added."""
        z = scaled(self.cost, epsilon)
        for j, part in enumerate(f):
            if part is not None:
                z += along(part / epsilon, j, self.count)
        return z

    def _summed(self, z: jax.Array, k: int, weights: Potentials) -> jax.Array:
        for j in reversed(range(self.count)):  # the last axis first: that sum alone is large
            if j != k:
                z = logsumexp(z, j, along(weights[j], j, z.ndim))
        return z

    def total(
        self, f: Potentials, weights: Potentials, epsilon: Any, kernels: None
    ) -> jax.Array:
        """`<C, P>`."""
        z = self._exponents(f, epsilon)
        # Between two points without mass nothing bounds the exponent.
        empty = sum((along((a <= 0).astype(jnp.int32), j, self.count)
                     for j, a in enumerate(weights)), start=jnp.int32(0))
        plan = jnp.exp(jnp.where(empty < 2, z, -jnp.inf))
        for j, a in enumerate(weights):
            plan *= along(a, j, self.count)
        return inner(self.cost, plan)


def scaled(cost: jax.Array, epsilon: Any) -> jax.Array:
    """`-C / epsilon`, with derivatives that are finite where C is not."""
    allowed = cost < jnp.inf
    return jnp.where(allowed, -jnp.where(allowed, cost, 0) / epsilon, -jnp.inf)


def inner(cost: jax.Array, plan: jax.Array) -> jax.Array:
    """`<C, P>` where inf * 0 is 0."""
    return jnp.sum(jnp.where(cost < jnp.inf, cost, 0) * plan)
