"""Weight matching: permute the hidden units of one network so that it meets another.

Source: Guerrero Pena et al., "Re-basin via implicit Sinkhorn differentiation", 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter.numerics import numbers_in
from jaxiter.reuse import reused
from jaxiter.solvers.residual import trained
from jaxiter.transport.permutations import round_permutation, sinkhorn_layer

PyTree = Any


class MatchedWeights(NamedTuple):
    """Hard permutations and logits by name, the permuted network, losses `[max_steps]`."""

    permutations: dict[str, jax.Array]
    logits: dict[str, jax.Array]
    params: PyTree
    losses: jax.Array


def _axes(params: PyTree, spec: PyTree) -> list[tuple[str, jax.Array, tuple]]:
    """(path, leaf, axis names) of every leaf, checked."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {jax.tree_util.keystr(path): axes for path, axes in
             jax.tree_util.tree_leaves_with_path(spec, is_leaf=lambda s: isinstance(s, tuple))}
    rows = []
    for path, leaf in leaves:
        key = jax.tree_util.keystr(path)
        if key not in names:
            raise ValueError(f"leaf {key} is not covered by the spec.")
        if len(names[key]) != leaf.ndim:
            raise ValueError(f"leaf {key} has {leaf.ndim} axes, its spec {names[key]!r} names "
                             f"{len(names[key])}.")
        rows.append((key, leaf, names[key]))
    return rows


def permutation_sizes(params: PyTree, spec: PyTree) -> dict[str, int]:
    """The length of the axes that each named permutation acts on.

    Raises:
      ValueError: a name on axes of different sizes, a leaf without a spec.
    """
    sizes: dict[str, int] = {}
    for key, leaf, axes in _axes(params, spec):
        for size, name in zip(leaf.shape, axes, strict=True):
            if name is not None and sizes.setdefault(name, size) != size:
                raise ValueError(f"permutation {name!r} acts on axes of different sizes: "
                                 f"{sizes[name]} and {size} (in {key}).")
    return sizes


def permute(params: PyTree, spec: PyTree, permutations: dict[str, jax.Array]) -> PyTree:
    """Multiply every named axis of every leaf by its (possibly relaxed) permutation matrix.

    Args:
      params: a pytree of arrays. spec: the same tree with, for each leaf, a tuple that
        names the permutation of each axis (None: not permuted).
      permutations: matrices `[k, k]` by name.

    >>> import jax.numpy as jnp
    >>> flip = {"h": jnp.array([[0.0, 1.0], [1.0, 0.0]])}
    >>> permute({"b": jnp.array([1.0, 2.0])}, {"b": ("h",)}, flip)["b"].tolist()
    [2.0, 1.0]
    """
    out = []
    for _, leaf, axes in _axes(params, spec):
        for axis, name in enumerate(axes):
            if name is not None:
                leaf = jnp.moveaxis(jnp.tensordot(permutations[name], leaf, (1, axis)), 0, axis)
        out.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), out)


def squared_distance(params: PyTree, target: PyTree) -> jax.Array:
    """Mean squared difference of two parameter trees."""
    gaps = jax.tree.map(lambda p, q: jnp.sum((p - q) ** 2), params, target)
    count = numbers_in(target)
    return jnp.sum(jnp.stack(jax.tree.leaves(gaps))) / count


@reused
def match_weights(
    params: PyTree,
    target: PyTree,
    spec: PyTree,
    *,
    loss: Callable[[PyTree, PyTree], jax.Array] = squared_distance,
    max_steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    tau: Any = 1.0,
) -> MatchedWeights:
    """Permutations that bring `params` close to `target`, by gradients through Sinkhorn.

    Logits start at the identity; each step relaxes them to doubly stochastic matrices,
    whose derivatives are implicit. The answer uses hard assignments of the logits.

    Args:
      params, target: trees of one architecture. spec: as in `permute`.
      loss: `loss(permuted, target) -> scalar`; any differentiable one.
      max_steps: static. optimizer: of the logits; default `optax.adamw(0.1)`.
      tau: temperature of the relaxation.

    >>> import jax.numpy as jnp
    >>> a = {"b": jnp.array([1.0, 2.0, 3.0])}
    >>> out = match_weights(a, {"b": jnp.array([3.0, 1.0, 2.0])}, {"b": ("h",)}, max_steps=30)
    >>> out.params["b"].tolist()
    [3.0, 1.0, 2.0]
    """
    optimizer = optax.adamw(0.1) if optimizer is None else optimizer
    logits = {name: jnp.eye(size) for name, size in permutation_sizes(params, spec).items()}

    def objective(logits: dict[str, jax.Array], _: None) -> jax.Array:
        soft = {name: sinkhorn_layer(x, tau) for name, x in logits.items()}
        return loss(permute(params, spec, soft), target)

    logits, losses = trained(optimizer, objective, logits, length=max_steps)
    hard = {name: round_permutation(x) for name, x in logits.items()}
    return MatchedWeights(hard, logits, permute(params, spec, hard), losses)
