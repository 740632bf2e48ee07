"""A network that proves bounds on knapsacks: `python examples/knapsack_bounds.py [steps]`.

Fill five limited resources with thirty items: max p'x, W x <= h, 0 <= x <= 1. A network reads
(p, W, h) and guesses what each resource is worth; `dual_bound` makes of any guess a value that no
filling exceeds, so the bound itself is the loss, without a single solved knapsack to learn from.
Judged on 100 unseen ones against HiGHS (Tanneau and Van Hentenryck, "Dual Lagrangian learning for
conic optimization", NeurIPS, 2024).
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linprog

from jaxiter.operators import dual_bound

RESOURCES, ITEMS, TRAIN, TEST, BATCH = 5, 30, 2048, 100, 64
WIDTH = 2 * (RESOURCES + ITEMS)


def knapsacks(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values `[count, n]`, weights `[count, m, n]`, capacities `[count, m]`."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 1000, (count, RESOURCES, ITEMS))
    values = weights.mean(1) + 100 * rng.uniform(size=(count, ITEMS))
    return values, weights, 0.25 * weights.sum(2)


def init(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Layers of a network of two hidden ones."""
    sizes = [ITEMS + RESOURCES * ITEMS + RESOURCES, WIDTH, WIDTH, RESOURCES]
    return [(jax.random.normal(key, (a, b)) / a**0.5, jnp.zeros(b)) for key, a, b in zip(
        jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)]


def guess(params: list, values: jax.Array, weights: jax.Array, room: jax.Array) -> jax.Array:
    """What each resource is worth, by one knapsack."""
    x = jnp.concatenate([values / 1000, weights.ravel() / 1000, room / 4000])
    for matrix, shift in params[:-1]:
        x = jax.nn.sigmoid(x @ matrix + shift)
    return jax.nn.softplus(x @ params[-1][0] + params[-1][1])


def upper(params: list, values: jax.Array, weights: jax.Array, room: jax.Array) -> jax.Array:
    """What no filling exceeds: minus the bound of the minimisation of -p'x."""
    return -dual_bound(-values, None, guess(params, values, weights, room),
                       G=weights, h=room, lower=0.0, upper=1.0)


def best(values: np.ndarray, weights: np.ndarray, room: np.ndarray) -> float:
    """The optimum, by HiGHS."""
    return -linprog(-values, A_ub=weights, b_ub=room, bounds=(0, 1)).fun


def gaps(params: list, data: list[jax.Array], optima: np.ndarray) -> np.ndarray:
    """How far above the optimum the bounds are, in per cent."""
    bounds = jax.jit(jax.vmap(upper, in_axes=(None, 0, 0, 0)))(params, *data)
    return 100 * (np.asarray(bounds, float) / optima - 1)


def main() -> None:
    """Train, and compare."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    train = [jnp.asarray(part, jnp.float32) for part in knapsacks(TRAIN, 0)]
    unseen = knapsacks(TEST, 1)
    began = time.perf_counter()
    optima = np.array([best(*one) for one in zip(*unseen, strict=True)])
    each = (time.perf_counter() - began) / TEST
    test = [jnp.asarray(part, jnp.float32) for part in unseen]
    params, optimizer = init(jax.random.key(0)), optax.adam(1e-3)
    print(f"untrained: the mean gap is {gaps(params, test, optima).mean():.0f} per cent")

    def loss(params: list, batch: list[jax.Array]) -> jax.Array:
        bounds = jax.vmap(upper, in_axes=(None, 0, 0, 0))(params, *batch)
        return jnp.mean(bounds) / 1000

    @jax.jit
    def train_step(params: list, state: optax.OptState, key: jax.Array) -> tuple:
        rows = jax.random.randint(key, (BATCH,), 0, TRAIN)
        slope = jax.grad(loss)(params, [part[rows] for part in train])
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    state, key = optimizer.init(params), jax.random.key(1)
    for step in range(steps):
        params, state = train_step(params, state, jax.random.fold_in(key, step))
    gap = gaps(params, test, optima)
    print(f"after {steps} steps: mean {gap.mean():.2f}, largest {gap.max():.2f}, smallest "
          f"{gap.min():.3f} per cent; {np.sum(gap >= 0)} of {TEST} bounds hold")
    many = jax.jit(jax.vmap(upper, in_axes=(None, 0, 0, 0)))
    many(params, *test).block_until_ready()
    began = time.perf_counter()
    many(params, *test).block_until_ready()
    print(f"one bound: {1e6 * (time.perf_counter() - began) / TEST:.1f} us, in a batch of {TEST}; "
          f"one optimum by HiGHS: {1e6 * each:.0f} us")


if __name__ == "__main__":
    main()
