"""Numerical ground rules that every loop of the library shares.

`anchor` and `hoist` are what makes a loop survive vmap, pmap, shard_map and
explicit sharding; the rest keeps float32 honest.
"""

import math
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce, wraps
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.typing import ArrayLike

PyTree = Any

#: Kernel products, Gram matrices and Krylov products ask for full precision:
#: the TPU default and TF32 on GPUs keep only about three digits.
HIGHEST = lax.Precision.HIGHEST


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in full precision, whatever the default of the device is."""
    return jnp.matmul(a, b, precision=HIGHEST)


def is_array(leaf: Any) -> bool:
    """Whether a leaf carries numbers that may be traced (a jax or numpy array)."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def numbers_in(tree: PyTree) -> int:
    """How many numbers all leaves hold together; static."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def is_concrete(*trees: PyTree) -> bool:
    """Whether every array leaf can be read on this host right now."""
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.core.Tracer):
            return False
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return False
    return True


def strong(leaf: ArrayLike) -> jax.Array:
    """The leaf as an array without weak type, so that loop carries keep one type."""
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    return lax.convert_element_type(array, array.dtype)


def floating(x: ArrayLike) -> jax.Array:
    """The array without weak type; integers and truth values are read as floats."""
    array = strong(x)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(
        jnp.result_type(float))


def real_dtype(dtype: Any) -> np.dtype:
    """The dtype of the absolute value: float32 for complex64, else the dtype itself."""
    return np.dtype(jnp.finfo(dtype).dtype)


def accumulation_dtype(dtype: Any) -> np.dtype:
    """The real dtype in which norms of `dtype` are accumulated: at least float32."""
    real = real_dtype(dtype)
    return real if real.itemsize >= 4 else np.dtype(np.float32)


def machine_epsilon(tree: PyTree) -> float:
    """The largest machine epsilon among the floating leaves of a tree; float32's if it is empty."""
    return max((float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree)),
               default=float(jnp.finfo(jnp.float32).eps))


def _touch(leaf: Any) -> jax.Array:
    """A boolean scalar that has the leaf's device type; its value is irrelevant."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return lax.reduce_or(lax.ne(leaf, leaf), axes=tuple(range(leaf.ndim)))


def placed(*trees: PyTree) -> bool:
    """Whether types say on which devices arrays are: under a mesh, or of an array that has one."""
    return not jax.sharding.get_abstract_mesh().empty or any(
        not jax.typeof(leaf).sharding.mesh.empty
        for leaf in jax.tree.leaves(trees) if is_array(leaf))


def anchor(tree: PyTree, like: PyTree) -> PyTree:
    """Return `tree` unchanged in value, but typed as if computed from `like`.

    A loop whose initial carry is a constant is rejected by `shard_map` (the
    carry must vary over the mesh axes that the inputs vary over) and by a
    vmapped loop over an explicitly sharded batch. A select whose two branches
    are the leaf itself and whose predicate is computed from the inputs gives
    the leaf their type; XLA then removes both the select and the predicate.
    Without any mesh there is no such type, and nothing to do.
    """
    leaves = [leaf for leaf in jax.tree.leaves(like) if is_array(leaf)]
    if not leaves:
        return tree
    predicate = None
    if placed(tree, leaves):
        predicate = reduce(operator.or_, map(_touch, leaves))

    def retype(leaf: Any) -> Any:
        leaf = leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else strong(leaf)
        return leaf if predicate is None else lax.select(predicate, leaf, leaf)

    return jax.tree.map(retype, tree)


def _unset_mesh(*trees: PyTree) -> AbstractMesh | None:
    """The explicit mesh over which some of the arrays are laid out, unless one is set."""
    if jax.sharding.get_abstract_mesh().empty:
        for leaf in jax.tree.leaves(trees):
            mesh = jax.typeof(leaf).sharding.mesh if is_array(leaf) else None
            if mesh is not None and AxisType.Explicit in mesh.axis_types:
                return mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    return None


def mesh_of(*trees: PyTree) -> AbstractContextManager:
    """A context with the explicit mesh over which the arrays are laid out, unless one is set.

    Without `jax.set_mesh` most functions of `jax.numpy` refuse an explicitly sharded batch as
    soon as a constant meets it.
    """
    mesh = _unset_mesh(trees)
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)


def on_own_mesh(function: Callable) -> Callable:
    """A public function, run in the context of `mesh_of` its arguments.

    Under jit, for outside it no operation finds its devices by an abstract mesh alone.
    """

    @wraps(function)
    def run(*args: Any, **keywords: Any) -> Any:
        mesh = _unset_mesh(args, keywords)
        if mesh is None:
            return function(*args, **keywords)

        @eqx.filter_jit
        def on_mesh(args: tuple, keywords: dict) -> Any:
            with jax.sharding.use_abstract_mesh(mesh):
                return function(*args, **keywords)

        return on_mesh(args, keywords)

    return run


def pin(tree: PyTree, carried: Any) -> PyTree:
    """`tree`, made to depend on a changing part of a loop's carry.

    XLA moves what does not change out of a loop, also out of one that may run no round at
    all: the work is then done where it was not needed.
    """
    return lax.optimization_barrier((tree, carried))[0]


def if_needed(
    needed: jax.Array, function: Callable, operands: tuple, like: Any, otherwise: Any = None
) -> Any:
    """`function(*operands)` where needed, else `otherwise` or zeros: a loop of at most one round.

    A conditional would do, but JAX rejects one around user code under vmap inside a
    checked shard_map.
    """
    if otherwise is None:
        otherwise = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *operands))
    like = (needed, operands, like)
    return lax.while_loop(
        lambda state: state[0],
        lambda state: anchor((jnp.bool_(False), function(*pin(operands, state[0]))), like),
        anchor((needed, otherwise), like))[1]


def hoist(function: Callable, *example: PyTree) -> tuple[Callable, list, Any]:
    """Turn every constant that `function` closes over into an explicit operand.

    Traces the function once on `example` and returns `(pure, constants,
    output_shapes)` with `pure(constants, *example) == function(*example)`.
    Unlike `jax.closure_convert` this finds integers as well as floats. The
    constants go in as they are: the trace already fixed their device types.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    structure, jaxpr = jax.tree.structure(shapes), without_constants(closed)

    def pure(constants: list, *operands: PyTree) -> PyTree:
        run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, constants))
        # What does not depend on any operand comes as a plain number.
        out = [leaf if is_array(leaf) else jnp.asarray(leaf, shape.dtype) for leaf, shape in zip(
            run(*jax.tree.leaves(operands)), jax.tree.leaves(shapes), strict=True)]
        return jax.tree.unflatten(structure, out)

    return pure, list(closed.consts), shapes


def without_constants(closed: jex.core.ClosedJaxpr) -> jex.core.Jaxpr:
    """The jaxpr alone: it does not keep the constants alive, which may be tracers.

    In newer versions of JAX `closed.jaxpr` still has them.
    """
    return jex.core.ClosedJaxpr(closed.jaxpr, [None] * len(closed.consts)).jaxpr


def typed_by(function: Callable, example: tuple, tree: PyTree) -> PyTree:
    """`tree`, anchored to itself, to the example and to all that the function closes over.

    What `hoist` then traces on it stays valid for every value that a loop makes of it.
    """
    return anchor(tree, (tree, example, hoist(function, *example)[1]))


def hoist_typed(
    function: Callable, probe: Callable, *operands: PyTree
) -> tuple[Callable, list, PyTree]:
    """`pure` and `constants` of `hoist(function, *operands)`, and the operands typed for it.

    They are anchored to themselves and to all that `probe(*operands)` closes over: the function
    without its loops. Where no array has a mesh that trace is spared; should one that is closed
    over have one after all, the function's trace does not end, and both are made.
    """
    if not placed(operands):
        try:
            pure, constants, _ = hoist(function, *operands)
            return pure, constants, operands
        except Exception:  # noqa: BLE001, S110, what is wrong with the function is said below
            pass
    operands = typed_by(probe, operands, operands)
    pure, constants, _ = hoist(function, *operands)
    return pure, constants, operands


def stop_gradient(tree: PyTree) -> PyTree:
    """`lax.stop_gradient` on every array leaf; other leaves pass through."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if is_array(leaf) else leaf, tree)


@jax.jit
def safe_divide(numerator: ArrayLike, denominator: ArrayLike) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is 0; gradients stay finite."""
    numerator, denominator = jnp.asarray(numerator), jnp.asarray(denominator)
    dtype = jnp.result_type(numerator, denominator, float)
    numerator, denominator = numerator.astype(dtype), denominator.astype(dtype)
    zero = denominator == 0
    return jnp.where(zero, 0, _quotient(numerator, jnp.where(zero, 1, denominator)))


@jax.custom_jvp
def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_quotient.defjvp
def _quotient_rule(primals: tuple, tangents: tuple) -> tuple:
    """JAX's own rule squares the denominator, which leaves the float range long before it does."""
    quotient, denominator = _quotient(*primals), primals[1]
    return quotient, _quotient(tangents[0] - quotient * tangents[1], denominator)


@jax.jit
def safe_log(x: jax.Array) -> jax.Array:
    """`log(x)`, and -inf where x <= 0, with a zero gradient there instead of NaN; NaN for NaN."""
    none = x <= 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, x)))


def largest_exponent(dtype: Any) -> float:
    """An exponent whose exponential is as large as can be while many of them can be added."""
    limit = math.log(float(jnp.finfo(dtype).max))
    return max(0.9 * limit, limit - 10)


def slightness(weights: jax.Array) -> jax.Array:
    """By how much the logarithm of a weight is below -60: 0 for common weights, else negative.

    A peak of `z + slightness(weights)` is that of z for common weights, and where one of next to
    no weight has it, what carries mass does not underflow beside it. A constant.
    """
    weights = lax.stop_gradient(weights)
    logs = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
    # Taken apart, or XLA computes it anew for every entry.
    return lax.optimization_barrier(jnp.minimum(logs + 60, 0))


def logsumexp(z: jax.Array, axis: int, weights: jax.Array | None = None) -> jax.Array:
    """`log(sum(weights * exp(z)))` along one axis, never overflowing.

    Entries of weight 0 and entries z = -inf contribute nothing; a slice of only
    such entries gives -inf. Gradients stay finite in all these cases. NaN is passed on, but for
    that of an entry of weight 0.
    """
    lifted = lax.stop_gradient(z)
    if weights is not None:
        lifted = jnp.where(weights > 0, lifted + slightness(weights), -jnp.inf)
    peak = jnp.max(lifted, axis=axis, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    # A weight of 0 stays in the sum: its own gradient need not be 0. There alone the exponent
    # may be large, and inf * 0 would be NaN.
    none = z == -jnp.inf
    if weights is not None:
        none |= jnp.isnan(z) & (weights == 0)
    terms = jnp.exp(jnp.minimum(jnp.where(none, peak, z) - peak, largest_exponent(z.dtype)))
    terms = jnp.where(none, 0, terms if weights is None else terms * weights)
    return safe_log(jnp.sum(terms, axis=axis)) + jnp.squeeze(peak, axis)
