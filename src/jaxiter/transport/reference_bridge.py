"""Schroedinger bridges through snapshots, with a reference drift that is refined until it fits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.known import check_count, check_finite, check_positive, known
from jaxiter.linear.factor import solve as solve_linear
from jaxiter.numerics import (
    HIGHEST,
    anchor,
    floating,
    on_own_mesh,
    product,
    stop_gradient,
    strong,
)
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, most_severe, reports
from jaxiter.stop import tolerance
from jaxiter.transport.sinkhorn import sinkhorn


@reports
class RefinedReference(NamedTuple):
    """What `refine_reference` has found; M intervals between M + 1 snapshots of up to n points.

    Attributes:
      theta: parameters of the drift, as those given.
      plans: of each interval `[M, n, n]`: who becomes whom. Rows and columns of points that a
        smaller snapshot does not have are 0.
      paths: `[M, n, substeps + 1, D]`, one path of the bridge from each point to a partner that is
        drawn from the plan.
      inner: the most severe status of the Sinkhorn solves of all intervals, at theta.
      solve: the Solution of theta.
    """

    theta: Any
    plans: jax.Array
    paths: jax.Array
    inner: jax.Array
    solve: Solution


class Snapshots(NamedTuple):
    """Both ends of each interval, `[M, n, D]` and weights `[M, n]`, and when it is.

    Attributes:
      x: points at its beginning.
      y: points at its end.
      a: weights of x; 0 for points that are not there.
      b: weights of y.
      start: times `[M]`.
      size: lengths of a substep `[M]`.
      noise: `[M, n, n, substeps, D]`, of the path of each pair.
    """

    x: jax.Array
    y: jax.Array
    a: jax.Array
    b: jax.Array
    start: jax.Array
    size: jax.Array
    noise: jax.Array


class Chain(NamedTuple):
    """The reference from one point on, linearised along its mean path, with k = substeps.

    Attributes:
      mean: `[k + 1, D]`.
      gains: `[k + 1, D, D]`, how much of a correction of the end each time takes.
      response: to the noise of each substep, the end being held, `[k + 1, k, D, D]`.
      precision: the inverse of the covariance of the end `[D, D]`.
    """

    mean: jax.Array
    gains: jax.Array
    response: jax.Array
    precision: jax.Array


@reused
@on_own_mesh
def refine_reference(
    snapshots: jax.Array | Sequence[jax.Array], times: Any, drift: Callable, theta: Any, *,
    sigma: Any, substeps: int = 10, key: jax.Array | None = None,
    **options: Unpack[SolveOptions],
) -> RefinedReference:
    """Fit a drift to snapshots by bridges that take the fitted drift for their reference.

    The reference is `dX = b(theta, X, t) dt + sigma dW`. One round, which is one step of a fixed
    point in theta:

        P_i <- Sinkhorn at epsilon 1 of the cost `-log p_theta(x_(i+1) | x_i)`, each interval
        X   <- paths of the reference, conditioned to have the ends of every pair of points
        theta <- argmin sum P_i |dX / dt - b(theta, X, t)|^2

    The transition density is that of Euler's scheme, linearised along the mean path of each point:
    exact for linear drifts, up to the substep. The last line is a closed form where b is linear in
    theta, else one step of Gauss and Newton. The noise of the paths is the same in every round, so
    the map has a fixed point. A start of drift 0 makes the first round the bridges of Brownian
    motion; `max_steps=0` returns those.

    Args:
      snapshots: `[M + 1, n, D]`, or a list of arrays `[n_i, D]`: samples, unpaired;
        integers are read as floats.
      times: `[M + 1]`, ascending.
      drift: `b(theta, x, t) -> [D]` for one point `[D]`.
      theta: a pytree of parameters to begin with.
      sigma: volatility: the reference gains `sigma^2 dt` of variance; positive, may be traced.
      substeps: of each interval, static. Memory is M n^2 substeps D numbers for every parameter.
      key: of the noise; default `jax.random.key(0)`.
      **options: those of `fixed_point`; by default 100 steps and a tolerance of 1e-4, for the plans
        within are solved to theirs of 1e-5 (float32).

    Returns:
      A `RefinedReference`. Derivatives of theta are implicit, those of the solves within as well.
      Parameters that the paths do not determine are NaN, and the status NONFINITE.

    Raises:
      ValueError: fewer than two snapshots, times that do not ascend or are not as many, snapshots
        of several dimensions; for concrete input sigma <= 0 or points that are not finite, under
        jit BAD_INPUT.

    Reference: Shen, Berlinghieri and Broderick, "Multi-marginal Schroedinger bridges with iterative
    reference refinement", 2024; conditioned paths by Hoffman and Ribak, "Constrained realizations
    of Gaussian fields", 1991.

    >>> import jax.numpy as jnp
    >>> x = jnp.linspace(-1.0, 1.0, 9)[:, None]
    >>> out = refine_reference([x, x + 1], [0.0, 1.0], lambda v, x, t: v, jnp.zeros(1), sigma=0.3,
    ...                        substeps=2)
    >>> out.theta.round(2).tolist(), bool(out.converged)  # all move by 1
    ([1.0], True)
    """
    chosen = choose("refine_reference", options, {}, max_steps=100,
                    stop=tolerance(rtol=1e-4, atol=1e-6))
    check_count(substeps=substeps)
    check_positive(sigma=sigma)
    data = _prepared(snapshots, times, substeps, key)
    sigma = jnp.asarray(sigma, data.x.dtype)
    theta = jax.tree.map(strong, theta)
    problem = Problem(
        step=partial(_round, drift),
        memory=lambda theta, data, sigma: jnp.zeros_like(data.b),
        valid=lambda theta, data, sigma: (sigma > 0) & trees.finite(data) & jnp.all(data.size > 0))
    solve = fixed_point(problem, theta, data, sigma, **chosen._asdict())
    warm = stop_gradient(solve.state.answer.memory)
    chains, plans, _, inner = _bridges(drift, solve.value, warm, data, sigma)
    choose_key = jax.random.fold_in(jax.random.key(0) if key is None else key, 1)
    paths = jax.vmap(_drawn)(
        jax.random.split(choose_key, len(plans)), chains, plans, data.y, data.noise)
    return RefinedReference(solve.value, plans, paths, most_severe(*inner), solve)


def _prepared(snapshots: Any, times: Any, substeps: int, key: jax.Array | None) -> Snapshots:
    if len(snapshots) < 2:
        raise ValueError(f"needs at least two snapshots, got {len(snapshots)}.")
    shapes = [np.shape(points) for points in snapshots]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] or 0 in shape for shape in shapes):
        raise ValueError(f"snapshots must be arrays [n_i, D] of one D, got shapes {shapes}.")
    if np.shape(times) != (len(snapshots),):
        raise ValueError(f"times must be one for each of {len(snapshots)} snapshots, got shape "
                         f"{np.shape(times)}.")
    known(_check_times, times)
    check_finite(**{f"snapshot {k}": points for k, points in enumerate(snapshots)})
    count, dimension = max(shape[0] for shape in shapes), shapes[0][1]
    points = [floating(points) for points in snapshots]
    dtype = jnp.result_type(*points)
    # Points of weight 0 fill up smaller snapshots.
    full = jnp.stack([jnp.concatenate([
        part.astype(dtype), jnp.broadcast_to(part[:1].astype(dtype), (count - len(part), dimension))
    ]) for part in points])
    weights = jnp.asarray(np.stack([
        np.where(np.arange(count) < n, 1 / n, 0) for n, _ in shapes]), dtype)
    times = jnp.asarray(times, dtype)
    intervals = len(points) - 1
    noise = jax.random.normal(jax.random.key(0) if key is None else key,
                              (intervals, count, count, substeps, dimension), dtype)
    return Snapshots(full[:-1], full[1:], weights[:-1], weights[1:], times[:-1],
                     jnp.diff(times) / substeps, noise)


def _check_times(times: Any) -> None:
    if not np.all(np.diff(np.asarray(times, float)) > 0):
        raise ValueError(f"times must ascend, got {np.asarray(times).tolist()}; sort the snapshots "
                         "by time.")


def _chain(
    drift: Callable, theta: Any, x: jax.Array, start: jax.Array, size: jax.Array, substeps: int,
    sigma: jax.Array,
) -> Chain:
    """The reference from x on, by Euler's scheme."""
    identity = anchor(jnp.eye(len(x), dtype=x.dtype), (x, theta))
    means, free = [x], [jnp.zeros((substeps, *identity.shape), x.dtype)]
    for k in range(substeps):
        t = start + k * size
        slope = identity + size * jax.jacfwd(drift, argnums=1)(theta, means[-1], t)
        means.append(means[-1] + size * drift(theta, means[-1], t))
        free.append(product(slope, free[-1]).at[k].set(sigma * jnp.sqrt(size) * identity))
    free = jnp.stack(free)
    with_end = jnp.einsum("kmde,mfe->kdf", free, free[-1], precision=HIGHEST)  # covariances
    precision = solve_linear(with_end[-1], identity)
    gains = product(with_end, precision)
    response = free - jnp.einsum("kde,mef->kmdf", gains, free[-1], precision=HIGHEST)
    return Chain(jnp.stack(means), gains, response, precision)


def _path(chain: Chain, end: jax.Array, noise: jax.Array) -> jax.Array:
    """The path `[k + 1, D]` of the reference for this noise, corrected to end at `end`."""
    return (chain.mean + product(chain.gains, end - chain.mean[-1])
            + jnp.einsum("kmde,me->kd", chain.response, noise, precision=HIGHEST))


def _bridges(
    drift: Callable, theta: Any, warm: jax.Array, data: Snapshots, sigma: jax.Array
) -> tuple[Chain, jax.Array, jax.Array, jax.Array]:
    """Reference chains `[M, n, ...]`, plans, potentials g and statuses of all intervals."""
    substeps = data.noise.shape[-2]

    def one(warm: jax.Array, data: Snapshots) -> tuple:
        chains = jax.vmap(lambda x: _chain(
            drift, theta, x, data.start, data.size, substeps, sigma))(data.x)
        gaps = data.y[None] - chains.mean[:, -1][:, None]
        # Their determinants differ from row to row by constants, which no plan sees.
        cost = jnp.einsum("ijd,ide,ije->ij", gaps, chains.precision, gaps, precision=HIGHEST) / 2
        out = sinkhorn(cost, data.a, data.b, epsilon=1.0, method="log", init=warm)
        return chains, out.plan(), jnp.where(jnp.isfinite(out.g), out.g, 0), out.status

    return jax.vmap(one)(warm, data)


def _round(
    drift: Callable, theta: Any, warm: jax.Array, data: Snapshots, sigma: jax.Array
) -> tuple[Any, jax.Array]:
    """One round: plans for this drift, then the drift that fits the paths between their pairs."""
    flat, restore = ravel_pytree(theta)
    chains, plans, warm, _ = _bridges(drift, theta, warm, data, sigma)

    def pull(flat: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        return drift(restore(flat), x, t)

    def fit(chain: Chain, plan: jax.Array, end: jax.Array, noise: jax.Array, start: jax.Array,
            size: jax.Array) -> tuple[jax.Array, jax.Array]:
        path = _path(chain, end, noise)
        t = start + size * jnp.arange(len(noise)).astype(size.dtype)
        features = jax.vmap(jax.jacfwd(pull), in_axes=(None, 0, 0))(flat, path[:-1], t)
        rest = jnp.diff(path, axis=0) - size * jax.vmap(
            pull, in_axes=(None, 0, 0))(flat, path[:-1], t)
        normal = jnp.einsum("kdp,kdq->pq", features, features, precision=HIGHEST)
        return plan * size * normal, plan * jnp.einsum(
            "kdp,kd->p", features, rest, precision=HIGHEST)

    pairs = jax.vmap(fit, in_axes=(None, 0, 0, 0, None, None))  # one source, all targets
    sources = jax.vmap(pairs, in_axes=(0, 0, None, 0, None, None))
    normal, right = jax.vmap(sources)(
        chains, plans, data.y, data.noise, data.start, data.size)
    normal, right = jnp.sum(normal, (0, 1, 2)), jnp.sum(right, (0, 1, 2))
    return restore(flat + solve_linear(normal, right[:, None])[:, 0]), warm


def _drawn(
    key: jax.Array, chains: Chain, plan: jax.Array, ends: jax.Array, noise: jax.Array
) -> jax.Array:
    """One conditioned path for each source, `[n, substeps + 1, D]`."""
    logs = jnp.log(jnp.maximum(plan, jnp.finfo(plan.dtype).tiny))
    partner = jax.random.categorical(key, logs, axis=1)
    return jax.vmap(_path)(chains, ends[partner], noise[jnp.arange(len(plan)), partner])
