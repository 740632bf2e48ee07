"""The best way to hang a load: `python examples/membranes.py [cells]`.

A given mass of membrane is to carry a pressure across a square frame: how thick should it be where?
In the convexified model of Foeppl displacements u in the plane and w across it solve

    max  integral of f w    where    e(u) + grad w (x) grad w / 2 <= I,    u = w = 0 on the frame,

a 3 x 3 matrix that is to be positive semidefinite on every triangle,

    [[I - e(u), -grad w / sqrt 2], [-grad w' / sqrt 2, 1]],

and its multipliers are the stress, whose trace is the mass. So a conic program, by the primal-dual
hybrid gradient with the projection onto that cone (Bolbotowski, "Optimal design of plane elastic
membranes using the convexified Foeppl's model", 2023). A strip that is held at its two ends is a
cable, of which the answer is known: sqrt(1/6) under a pressure of 1.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from jaxiter.operators import primal_dual, projection_psd


def strain(v: jax.Array, cells: int) -> jax.Array:
    """`[2, a, b, 3, 3]`: what is added to I on both triangles of every cell; linear.

    v: (u_1, u_2, w) at the nodes, `[a + 1, b + 1, 3]`.
    """
    down, right = cells * jnp.diff(v, axis=0), cells * jnp.diff(v, axis=1)
    slopes = jnp.stack([jnp.stack([down[:, :-1], down[:, 1:]]),
                        jnp.stack([right[:-1], right[1:]])], -1)  # [2, a, b, 3, 2]
    plane, across = slopes[..., :2, :], slopes[..., 2, :] / 2**0.5
    e = (plane + jnp.swapaxes(plane, -1, -2)) / 2
    side = jnp.concatenate([across, 0 * across[..., :1]], -1)[..., None, :]
    return -jnp.concatenate([jnp.concatenate([e, across[..., None]], -1), side], -2)


def solve(free: np.ndarray, cells: int) -> ji.SplitResult:
    """Displacements of free nodes `[a + 1, b + 1]` under a pressure of 1, and the stress.

    Nodes carry a load of 1 each, not 1 / cells^2: both sides are then of one size.
    """
    push = jnp.asarray(np.stack([0 * free, 0 * free, free], -1), jnp.float32)
    held = jnp.asarray(free, jnp.float32)[..., None]

    def load(v: jax.Array, step: jax.Array) -> jax.Array:
        return held * (v + step * push)

    def cone(v: jax.Array, step: jax.Array) -> jax.Array:
        return projection_psd(v + jnp.eye(3)) - jnp.eye(3)

    split = primal_dual(load, cone, lambda v: strain(v, cells))
    return jax.jit(lambda start: ji.solve_splitting(
        split, start, solver=ji.anderson(10), max_steps=4000,
        stop=ji.tolerance(rtol=3e-5, atol=0)))(jnp.zeros_like(push))


def report(name: str, out: ji.SplitResult, cells: int, unit: float) -> tuple[float, np.ndarray]:
    """The value of displacements that obey the constraints, and the mass of every cell."""
    matrices = np.asarray(strain(out.value, cells), float)
    across = matrices[..., :2, 2]
    worst = np.linalg.eigvalsh(-matrices[..., :2, :2] + across[..., :, None] * across[..., None, :])
    value = float(np.sum(out.value[..., 2])) / worst.max() ** 0.5 / unit
    mass = -np.trace(np.asarray(out.dual, float), axis1=-2, axis2=-1).sum(0) / unit
    print(f"{name}: {value:.5f} proved, {mass.sum():.5f} by the stress; {out.message()}")
    return value, mass


def main() -> None:
    """The cable, then the square."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    free = np.zeros((cells + 1, 2))
    free[1:-1] = 1
    report("cable", solve(free, cells), cells, 2 * cells)
    print(f"in closed form {(1 / 6) ** 0.5:.5f}, {(1 / 6 * (1 - 1 / cells**2)) ** 0.5:.5f} in "
          f"{cells} pieces\n")
    free = np.zeros((cells + 1, cells + 1))
    free[1:-1, 1:-1] = 1
    _, mass = report("square", solve(free, cells), cells, cells**2)
    print("mass, from none to the most:")
    for row in mass / mass.max():
        print("".join(2 * " .:-=+*#%@"[min(int(10 * share), 9)] for share in row))


if __name__ == "__main__":
    main()
