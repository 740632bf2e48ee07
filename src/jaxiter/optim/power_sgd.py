"""PowerSGD: gradients averaged over devices as low-rank products, with error feedback.

Source: Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient compression for
distributed optimization", 2019.
"""

from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter.known import check_positive
from jaxiter.optim.transform import check_sizes, next_count, transformation

PyTree = Any


class PowerSgdState(NamedTuple):
    """Steps made, and two trees like the parameters: q `[columns, rank]`, equal on all devices;
    error: what this device has not sent yet, as matrices. Both `[0, 0]` where not compressed.
    """

    count: jax.Array
    q: PyTree
    error: PyTree


def power_sgd(
    axis_name: str | None, rank: int = 2, min_compression: float = 2.0, start_step: int = 0,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Chain it first, on gradients that are not reduced; it returns their low-rank mean.

    Per leaf, as a matrix M of gradient plus unsent error, with the last q: `P = mean(M q)`,
    orthonormalised, `q = mean(M^T P)`, the result `P q^T`, the error `M - P q^T`. One step is three
    collectives in all, whatever the number of leaves: all P, all q, all other leaves.

    Momentum comes after: `optax.chain(power_sgd("data"), optax.trace(0.9), ...)`; `MultiSteps`
    goes outside. Under shard_map the error differs per device and everything else is equal:
    see `power_sgd_specs`. Under pmap replicate the state.

    Args:
      axis_name: of the mesh or pmap axis; None: one device, for tests.
      rank: at least min(sides) reproduces the mean exactly. Static.
      min_compression: leaves that shrink by less are averaged as they are, as are vectors. Static.
      start_step: steps of plain averaging first. Static.
      key: of q's start; the same on every device.

    Raises:
      ValueError: rank below 1, an axis that is not bound.

    >>> import jax, jax.numpy as jnp
    >>> optimizer = power_sgd(None, rank=1, min_compression=0.0)
    >>> g = {"w": jnp.ones((4, 3))}
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> bool(jnp.allclose(update["w"], 1.0))
    True
    """
    check_positive(rank=rank)
    check_sizes("power_sgd", rank=rank)
    if not isinstance(min_compression, int | float) or not isinstance(start_step, int):
        raise ValueError("power_sgd: min_compression and start_step cannot be traced; with "
                         "optax.inject_hyperparams name them in static_args.")
    if start_step < 0:
        raise ValueError(f"start_step must not be negative, got {start_step}.")

    mean = partial(_mean, axis_name)

    def init(params: PyTree) -> PowerSgdState:
        start = jax.random.key(0) if key is None else key
        leaves, structure = jax.tree.flatten(params)
        q, error = [], []
        for i, leaf in enumerate(leaves):
            n, k = _matrix(leaf.shape, rank, min_compression)
            q.append(jax.random.normal(
                jax.random.fold_in(start, i), (k, min(rank, n, k)), leaf.dtype))
            error.append(jnp.zeros((n, k), leaf.dtype))
        return PowerSgdState(jnp.int32(0), structure.unflatten(q), structure.unflatten(error))

    def compress(matrices: list, q: list) -> tuple[list, list, list]:
        p = mean([m @ b for m, b in zip(matrices, q, strict=True)])
        p = [_orthonormal(part) for part in p]
        q = mean([m.conj().T @ part for m, part in zip(matrices, p, strict=True)])
        low = [part @ b.conj().T for part, b in zip(p, q, strict=True)]
        return low, q, [m - part for m, part in zip(matrices, low, strict=True)]

    def plainly(matrices: list, q: list) -> tuple[list, list, list]:
        return mean(matrices), q, [m - m for m in matrices]

    def update(
        g: PyTree, state: PowerSgdState, params: PyTree, **_: Any
    ) -> tuple[PyTree, PowerSgdState]:
        del params
        leaves, structure = jax.tree.flatten(g)
        old_q, old_error = structure.flatten_up_to(state.q), structure.flatten_up_to(state.error)
        chosen = [i for i, b in enumerate(old_q) if b.size]
        rest = [i for i in range(len(leaves)) if i not in chosen]
        matrices = [leaves[i].reshape(old_error[i].shape) + old_error[i] for i in chosen]
        q = [old_q[i] for i in chosen]
        if start_step and chosen:
            low, q, left = lax.cond(state.count >= start_step, compress, plainly, matrices, q)
        else:
            low, q, left = compress(matrices, q) if chosen else ([], [], [])
        out = dict(zip(rest, mean([leaves[i] for i in rest]), strict=True))
        out |= dict(zip(chosen, low, strict=True))
        updates = [out[i].reshape(leaf.shape) for i, leaf in enumerate(leaves)]
        for i, b, error in zip(chosen, q, left, strict=True):
            old_q[i], old_error[i] = b, error
        return structure.unflatten(updates), PowerSgdState(
            next_count(state.count), structure.unflatten(old_q), structure.unflatten(old_error))

    return transformation("power_sgd", init, update, gather=True)


def power_sgd_specs(state: PyTree, axis_name: str) -> PyTree:
    """Partition specs for a shard_map that carries an optimiser state with `power_sgd` in it.

    Errors have a leading device axis: add it with `jnp.stack` at the start, and take and give
    `error[0]` inside. All else is replicated.
    """
    spec = jax.sharding.PartitionSpec

    def one(node: Any) -> Any:
        if isinstance(node, PowerSgdState):
            errors = jax.tree.map(lambda _: spec(axis_name), node.error)
            return node._replace(count=spec(), q=jax.tree.map(lambda _: spec(), node.q),
                                 error=errors)
        return spec()

    return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, PowerSgdState))


def _mean(axis_name: str | None, parts: list[jax.Array]) -> list[jax.Array]:
    """Means over the axis, by one collective for all, or one for each dtype."""
    if axis_name is None:
        return parts
    out = list(parts)
    for kind in sorted({part.dtype for part in parts}, key=str):
        chosen = [i for i, part in enumerate(parts) if part.dtype == kind]
        flat = jnp.concatenate([parts[i].ravel() for i in chosen])
        try:
            flat = lax.pmean(flat, axis_name)
        except NameError as error:
            raise ValueError(
                f"power_sgd: no axis {axis_name!r} here; call update inside shard_map or pmap "
                "with that axis, or pass axis_name=None.") from error
        ends = list(accumulate(parts[i].size for i in chosen))[:-1]
        for i, piece in zip(chosen, jnp.split(flat, ends), strict=True):
            out[i] = piece.reshape(parts[i].shape)
    return out


def _matrix(shape: tuple[int, ...], rank: int, min_compression: float) -> tuple[int, int]:
    """The two sides of a leaf as a matrix, or zeros where compression does not pay."""
    if len(shape) < 2 or 0 in shape:
        return 0, 0
    n, k = shape[0], 1
    for side in shape[1:]:
        k *= side
    low = min(rank, n, k)
    return (n, k) if n * k >= min_compression * low * (n + k) else (0, 0)


def _orthonormal(p: jax.Array) -> jax.Array:
    """Gram-Schmidt, twice for float32; a zero column stays (nearly) zero."""
    columns: list[jax.Array] = []
    for i in range(p.shape[1]):
        column = p[:, i]
        for _ in range(2):
            for other in columns:
                column = column - jnp.vdot(other, column) * other
            column = column / (jnp.linalg.norm(column) + 1e-16).astype(column.dtype)
        columns.append(column)
    return jnp.stack(columns, axis=1)
