"""What all transformations here share: which leaves they see, in which precision, named errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.numerics import accumulation_dtype

PyTree = Any


def transformation(
    name: str, init: Callable, update: Callable, needs: tuple[str, ...] = (),
    like_updates: tuple[str, ...] = (), widen: bool = True, gather: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from `init(params)` and `update(updates, state, params, **extra)`.

    Both see floating-point leaves only, at least float32: in half precision squares under- and
    overflow, and averages stop moving. Updates return in the dtypes of the gradients. Other
    leaves (integers, None) go through unchanged; no gradient (None) for a float is a zero one.
    The state has one structure for every tree, with trees like the parameters in it, so that
    `optax.tree.map_params` and an empty tree work, and shares no buffers, so that it can be
    donated.

    Args:
      name: for errors. needs: which of "params" and of the extra arguments must be given.
      like_updates: extra arguments that are trees like the updates.
      widen: False leaves half precision as it is. gather: leaves that are explicitly sharded are
        collected before and spread after, for what multiplies whole matrices.
    """
    def see(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        leaf = _gathered(leaf) if gather else leaf
        return _wide(leaf) if widen else leaf

    def start(params: PyTree) -> PyTree:
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return jax.eval_shape(start, params)
        return trees.unshared(init(_chosen(params, params, see)), params)

    def step(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        known = updates if params is None else params
        if not any(_is_float(leaf) for leaf in jax.tree.leaves(known)):
            return updates, state
        for need in needs:
            if (params if need == "params" else extra.get(need)) is None:
                what = {"params": "the parameters", "value": "the current loss"}.get(need, need)
                raise ValueError(f"{name} needs {what}: call update(grads, state, params, "
                                 f"{need}={need}).")
        extra |= {key: _chosen(extra[key], known, see) for key in like_updates
                  if extra.get(key) is not None}
        at = None if params is None else _chosen(params, known, see)
        new, state = update(_chosen(updates, known, see), state, at, **extra)
        return _merged(updates, new), state

    return optax.GradientTransformationExtraArgs(start, step)


def _chosen(tree: PyTree, known: PyTree, see: Callable) -> PyTree:
    """What a method sees of the tree: where `known` has a float; elsewhere None."""
    def leaf(like: Any, leaf: Any) -> Any:
        if not _is_float(like):
            return None
        # No gradient, or the one that jax gives to integers, is a zero one.
        return see(leaf) if _is_float(leaf) else jnp.zeros_like(see(like))

    return jax.tree.map(leaf, known, tree)


def _merged(updates: PyTree, new: PyTree) -> PyTree:
    """The new updates in the dtypes and places of the old ones, which stay where none is new."""
    def leaf(old: Any, new: Any) -> Any:
        if not _is_float(old) or new is None:
            return old
        old = jnp.asarray(old)
        new = new.astype(old.dtype)
        given, seen = jax.typeof(old).sharding, jax.typeof(new).sharding
        return jax.sharding.reshard(new, given) if seen.spec != given.spec else new

    return jax.tree.map(leaf, updates, new, is_leaf=lambda leaf: leaf is None)


def _is_float(leaf: Any) -> bool:
    """Whether a leaf is a real or complex number (None, integers and jax's float0 are not)."""
    if leaf is None:
        return False
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype
    return jnp.issubdtype(dtype, jnp.inexact)


def _wide(leaf: jax.Array) -> jax.Array:
    """At least float32; the very same array where it is."""
    if jnp.iscomplexobj(leaf) or leaf.dtype == accumulation_dtype(leaf.dtype):
        return leaf
    return leaf.astype(accumulation_dtype(leaf.dtype))


def _gathered(leaf: jax.Array) -> jax.Array:
    """The leaf on every device, where its type says that it is spread over them."""
    sharding = jax.typeof(leaf).sharding
    if all(axis is None for axis in sharding.spec):
        return leaf
    return jax.sharding.reshard(leaf, jax.sharding.NamedSharding(sharding.mesh, jax.P()))


def scalars(tree: PyTree, *numbers: Any) -> list[jax.Array]:
    """Numbers, perhaps traced ones of another dtype, in the dtype of the tree's norm."""
    kind = trees.norm_dtype(tree)
    return [jnp.asarray(number).astype(kind) for number in numbers]


def moving_average(decay: Any, old: PyTree, new: PyTree) -> PyTree:
    """`decay old + (1 - decay) new`; a traced decay keeps the dtypes of old."""
    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        kept, added = (jnp.asarray(share).astype(old.dtype) for share in (decay, 1 - decay))
        return kept * old + added * new

    return jax.tree.map(leaf, old, new)


def check_sizes(name: str, **sizes: Any) -> None:
    """Refuses sizes that are no integers of at least 1: shapes depend on them.

    Raises:
      ValueError: naming the size, and what `optax.inject_hyperparams` needs to know.
    """
    for size, value in sizes.items():
        if not isinstance(value, int):
            raise ValueError(f"{name}: {size} decides shapes and cannot be traced, got {value}; "
                             f"with optax.inject_hyperparams name it in static_args.")
        if value < 1:
            raise ValueError(f"{size} must be at least 1, got {value}.")


def next_count(count: jax.Array) -> jax.Array:
    """count + 1, without overflow."""
    return jnp.asarray(optax.safe_increment(count))


def rate_at(learning_rate: Any, count: jax.Array) -> Any:
    """A learning rate, or a schedule's value."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def evaluation_params(state: Any, params: PyTree) -> PyTree:
    """The parameters to evaluate a model at: an average, for methods whose params are a probe.

    Args:
      state: of an optimiser with exactly one two-point method in it, however wrapped: a field
        `average` marks it. params: what training holds.

    Returns:
      The averaged parameters, in the structure and dtypes of params.

    Raises:
      ValueError: no such method, or more than one.

    >>> import jax.numpy as jnp
    >>> from jaxiter.optim import a_dog
    >>> params = jnp.ones(2)
    >>> evaluation_params(a_dog().init(params), params).tolist()
    [1.0, 1.0]
    """
    found = []

    def visit(node: Any) -> bool:
        if hasattr(node, "average"):
            found.append(node.average)
            return True
        return False

    jax.tree.leaves(state, is_leaf=visit)
    if len(found) != 1:
        raise ValueError(f"the state holds {len(found)} averages; evaluation_params needs one "
                         "two-point method such as a_dog or u_dog.")
    # Leaves that the method does not see have nothing in the average.
    return jax.tree.map(lambda leaf, mean: mean.astype(leaf.dtype) if jax.tree.leaves(mean)
                        else leaf, jax.tree.map(jnp.asarray, params), found[0])
