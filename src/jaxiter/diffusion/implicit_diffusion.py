"""Optimisation through sampling in one loop: the sampler and its parameters move together.

To minimise a functional of the law that a sampler with parameters theta ends in, a nested method
samples to the end for every step of theta. Here every step of theta goes with one step of all
particles.

Source: Marion et al., "Implicit diffusion: efficient optimization through stochastic sampling",
2024; the queue's delayed adjoint follows its description.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, combine, evaluate, tabulate
from jaxiter.known import check_positive
from jaxiter.solution import Status, reports

PyTree = Any


@reports
class LangevinState(NamedTuple):
    """Particles `[n, ...]`, parameters, the optimizer's state, a status.

    RUNNING, for nothing here measures an end; NONFINITE from the first step on whose particles,
    reward or slope were not finite: the state is that before it and stands still.
    """

    particles: jax.Array
    theta: PyTree
    opt_state: PyTree
    status: jax.Array


def implicit_diffusion(
    energy: Callable, reward: Callable, *, step_size: float, optimizer: Any,
    reference: jax.Array | None = None, weight: float = 0.0,
) -> tuple[Callable, Callable]:
    """Minimise `-E[reward(x)] + weight KL(reference || pi)` over theta, `pi ~ exp(-energy)`.

    One Langevin step of all particles, then one step of theta along
    `cov(reward(x), grad_theta energy) + weight (mean_ref - mean_x) grad_theta energy`.

    Args:
      energy: `(x, theta) -> scalar` of one particle. reward: `(x) -> scalar`; may jump.
      step_size: of Langevin, gamma. optimizer: of theta, an optax transformation, much slower.
      reference: samples `[m, ...]` to stay near, with weight.

    Returns:
      `init(particles, theta) -> LangevinState` and `step(state, key) -> LangevinState`. The status
      is RUNNING until something is not finite, NONFINITE ever after; never CONVERGED.

    Raises:
      ValueError: step_size not positive, fewer than two particles, weight without reference.

    >>> import jax, jax.numpy as jnp, optax
    >>> init, step = implicit_diffusion(
    ...     lambda x, theta: jnp.sum((x - theta) ** 2) / 2, lambda x: -jnp.sum((x - 1.0) ** 2),
    ...     step_size=0.1, optimizer=optax.sgd(0.02))
    >>> state = init(jax.random.normal(jax.random.key(0), (256, 2)), jnp.zeros(2))
    >>> state, _ = jax.lax.scan(lambda s, k: (step(s, k), None), state,
    ...                         jax.random.split(jax.random.key(1), 300))
    >>> bool(jnp.linalg.norm(state.theta - 1.0) < 0.3)
    True
    """
    check_positive(step_size=step_size)
    if weight and reference is None:
        raise ValueError(f"weight={weight} needs reference samples.")

    def init(particles: jax.Array, theta: PyTree) -> LangevinState:
        if len(particles) < 2:
            raise ValueError(f"a covariance needs at least 2 particles, got {len(particles)}.")
        return LangevinState(particles, theta, optimizer.init(theta), jnp.int32(Status.RUNNING))

    def step(state: LangevinState, key: jax.Array) -> LangevinState:
        noise = jax.random.normal(key, state.particles.shape, state.particles.dtype)
        force = jax.vmap(jax.grad(energy), (0, None))(state.particles, state.theta)
        particles = state.particles - step_size * force + (2 * step_size) ** 0.5 * noise
        rewards = jax.vmap(reward)(particles).astype(particles.dtype)
        share = (rewards - jnp.mean(rewards)) / (len(particles) - 1) - weight / len(particles)

        def potential(theta: PyTree) -> jax.Array:
            energies = jax.vmap(energy, (0, None))
            total = jnp.sum(share * energies(particles, theta))
            if reference is not None:
                total += weight * jnp.mean(energies(reference, theta))
            return total

        return _moved(optimizer, state, jax.grad(potential)(state.theta), particles=particles)

    return init, step


@reports
class QueueState(NamedTuple):
    """2 R batches in flight, R going down the rows and R adjoints coming back.

    path: states before every row, `[2 R, R, n, ...]`, a ring over the time of birth. x: the states
    of the R forward batches by age. adjoint, slope: of the R backward ones by age.
    finished: the batch that ended last. status: RUNNING; NONFINITE once a batch or its slope
    was not finite: from then on theta, opt_state and finished stand still.
    """

    theta: PyTree
    opt_state: PyTree
    path: jax.Array
    x: jax.Array
    adjoint: jax.Array
    slope: PyTree
    finished: jax.Array
    time: jax.Array
    status: jax.Array


def implicit_denoising(
    sampler: Sampler, denoiser: Callable[[PyTree], Denoiser], loss: Callable, *, optimizer: Any,
    particles: int, shape: tuple[int, ...], key: jax.Array,
) -> tuple[Callable, Callable]:
    """Minimise `loss(samples)` over the denoiser's parameters with a queue of batches.

    Each step advances R batches by one row each, in one batched call; the batch that ends starts
    its adjoint, and R adjoints go back by one row each along their stored paths, in another. The
    slope that theta follows is 2 R steps old: its rate should be O(1 / R). Memory: 2 R^2 batches.

    Args:
      sampler: R rows that reach back by one, such as `ddpm(schedule)` or `ddim(schedule)`.
      denoiser: `theta -> Denoiser`. loss: `samples [n, ...] -> scalar`.
      optimizer: of theta, an optax transformation. particles, shape: n and the shape of one.
      key: of all noise; the noise of a row on the way back is that of the way down.

    Returns:
      `init(theta) -> QueueState` and `step(state) -> QueueState`. theta stands still for the first
      2 R steps, while the queue fills. The status is RUNNING or NONFINITE, never CONVERGED.

    Raises:
      ValueError: a sampler that reaches back by more than one row.
    """
    if sampler.state.shape[1] != 1 or sampler.model.shape[1] != 1:
        raise ValueError("the queue needs a sampler whose rows use the last state only, such as "
                         "ddpm or ddim.")
    rows = sampler.rows
    table = tabulate(sampler, jnp.zeros(shape), None, jnp.zeros((rows, *shape)))
    batch = (particles, *shape)
    ages = jnp.arange(rows)

    def one(theta: PyTree, x: jax.Array, row: SamplerTable) -> jax.Array:
        model = denoiser(theta)

        def single(x: jax.Array, z: jax.Array) -> jax.Array:
            at = row._replace(z=z)
            return combine(at, x[None], evaluate(sampler, model, x, at)[None])

        return jax.vmap(single)(x, row.z)

    def noises(birth: jax.Array, row: jax.Array) -> jax.Array:
        """Row -1 is the start of a batch."""
        inner = jax.random.fold_in(jax.random.fold_in(key, birth), row + 1)
        return jax.random.normal(inner, batch, table.z.dtype)

    def init(theta: PyTree) -> QueueState:
        path = jnp.zeros((2 * rows, rows, *batch), table.z.dtype)
        slope = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), theta)
        return QueueState(theta, optimizer.init(theta), path, path[0], path[0], slope, path[0, 0],
                          jnp.int32(0), jnp.int32(Status.RUNNING))

    def step(state: QueueState) -> QueueState:
        theta, time = state.theta, state.time
        x = trees.before(state.x, noises(time, jnp.int32(-1)))
        births = time - ages
        path = state.path.at[births % (2 * rows), ages].set(x)
        down = table._replace(z=jax.vmap(noises)(births, ages))
        x = jax.vmap(one, (None, 0, 0))(theta, x, down)
        # On the way back an age of R + j stands at row R - 1 - j.
        births, back = time - rows - ages, rows - 1 - ages
        at = trees.at(table, back)._replace(z=jax.vmap(noises)(births, back))

        def pull(x: jax.Array, row: SamplerTable, g: jax.Array) -> tuple:
            return jax.vjp(lambda theta, x: one(theta, x, row), theta, x)[1](g)

        extra, adjoint = jax.vmap(pull)(path[births % (2 * rows), back], at, state.adjoint)
        slope = trees.add(state.slope, extra)
        # Before a queue of R - 1 steps the oldest batch was never born.
        moved = _moved(optimizer, state, trees.at(slope, -1), time >= 2 * rows - 1,
                       finished=jnp.where(time >= rows - 1, x[-1], 0))
        # The batch that ended in this step enters the way back in the next.
        adjoint = trees.before(adjoint, jax.grad(loss)(x[-1]))
        return moved._replace(
            path=path, x=x, adjoint=adjoint, slope=trees.before(slope), time=time + 1)

    return init, step


def _moved(
    optimizer: Any, state: Any, slope: PyTree, ready: Any = True, **fields: jax.Array
) -> Any:
    """The state with these fields, and theta by a step of the optimizer where it is ready.

    From the first time on that something is not finite, both stand still.
    """
    updates, opt_state = optimizer.update(slope, state.opt_state, state.theta)
    theta = optax.apply_updates(state.theta, updates)
    sound = trees.finite(fields) & (trees.finite((slope, theta)) | ~jnp.bool_(ready))
    status = jnp.where(sound, state.status, jnp.int32(Status.NONFINITE))
    running = status == Status.RUNNING
    old = {name: getattr(state, name) for name in fields}
    theta, opt_state = trees.where(
        running & ready, (theta, opt_state), (state.theta, state.opt_state))
    return state._replace(theta=theta, opt_state=opt_state, status=status,
                          **trees.where(running, fields, old))
