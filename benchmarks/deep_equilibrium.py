"""Training deep equilibrium models on digits through solves that fail: who survives, how well.

A cell of 64 units, 10 epochs of batches of 128, adam 1e-3, Anderson with memory 5, five seeds; a
tanh cell, of which some samples lose their contraction, and one with layer normalisation; float32
and bfloat16. `python benchmarks/deep_equilibrium.py` writes results/deep_equilibrium.json.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxiter as ji
from harness import save, show

WIDTH, BATCH, EPOCHS, SEEDS, LIMIT = 64, 128, 10, 5, 100


def tanh_cell(z: Any, p: Any, x: Any) -> Any:
    return jnp.tanh(z @ p["w"] + x @ p["u"])


def normalised_cell(z: Any, p: Any, x: Any) -> Any:
    """The tanh of a layer norm, which computes in float32 as usual."""
    h = (z @ p["w"] + x @ p["u"]).astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    return jnp.tanh(h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-5)).astype(z.dtype)


CELLS = {"tanh": tanh_cell, "layer norm": normalised_cell}


def ours(adjoint: Callable) -> Callable:
    """Solve by anderson(5); `adjoint(probe)` counts its failures."""
    def solve(cell: Callable, z: Any, p: Any, x: Any, probe: Any) -> Any:
        return ji.fixed_point(cell, z, p, x, solver=ji.anderson(5), adjoint=adjoint(probe),
                              max_steps=LIMIT).value

    return solve


def peer(cell: Callable, z: Any, p: Any, x: Any, probe: Any) -> Any:
    """jaxopt's Anderson with the same memory and its default adjoint."""
    del probe
    solver = jaxopt.AndersonAcceleration(cell, history_size=5, maxiter=LIMIT, tol=1e-4)
    return solver.run(z, p, x).params


METHODS = {
    "implicit()": ours(lambda probe: ji.implicit(failures=probe)),
    "implicit(rows=True, on_failure=one_step())": ours(
        lambda probe: ji.implicit(rows=True, on_failure=ji.one_step(), failures=probe)),
    "one_step()": ours(lambda probe: ji.one_step()),
    "jaxopt": peer,
}


def parameters(key: Any, dtype: Any) -> dict:
    shapes = {"w": (WIDTH, WIDTH), "u": (64, WIDTH), "o": (WIDTH, 10)}
    keys = jax.random.split(key, len(shapes))
    return {name: (jax.random.normal(k, shape) / 8).astype(dtype)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def trainer(solve: Callable, cell: Callable) -> tuple[Callable, Callable]:
    """One compiled training step, and the compiled accuracy."""
    optimizer = optax.adam(1e-3)

    def scores(p: Any, x: Any, probe: Any) -> Any:
        return solve(cell, jnp.zeros((len(x), WIDTH), x.dtype), p, x, probe) @ p["o"]

    def loss(p: Any, probe: Any, x: Any, y: Any) -> Any:
        logits = scores(p, x, probe).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(p: Any, state: Any, x: Any, y: Any) -> tuple:
        gradient, failed = jax.grad(loss, (0, 1))(p, 0.0, x, y)
        updates, state = optimizer.update(gradient, state, p)
        return optax.apply_updates(p, updates), state, failed

    @jax.jit
    def accuracy(p: Any, x: Any, y: Any) -> Any:
        return jnp.mean(jnp.argmax(scores(p, x, 0.0), 1) == y)

    return step, accuracy


def run(step: Callable, accuracy: Callable, seed: int, dtype: Any, data: tuple) -> dict:
    """Accuracy on unseen digits, failed adjoint solves, and whether weights became NaN."""
    train_x, test_x, train_y, test_y = data
    p = parameters(jax.random.key(seed), dtype)
    state, failed = optax.adam(1e-3).init(p), 0.0
    order = np.random.default_rng(seed)
    began, steps = time.perf_counter(), 0
    for _ in range(EPOCHS):
        shuffled = order.permutation(len(train_x))
        for first in range(0, len(train_x) - BATCH + 1, BATCH):
            batch = shuffled[first:first + BATCH]
            p, state, count = step(p, state, jnp.asarray(train_x[batch], dtype), train_y[batch])
            failed, steps = failed + float(count), steps + 1
    seconds = (time.perf_counter() - began) / steps
    alive = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(p))
    return {"accuracy": float(accuracy(p, jnp.asarray(test_x, dtype), test_y)) if alive else 0.0,
            "failed": failed, "alive": alive, "seconds": seconds}


def main() -> None:
    digits = load_digits()
    data = train_test_split(digits.data / 16, digits.target.astype(np.int32), test_size=0.2,
                            random_state=0)
    rows = []
    for cell_name, cell in CELLS.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            for name, solve in METHODS.items():
                row: dict = {"cell": cell_name, "dtype": jnp.dtype(dtype).name, "method": name}
                try:
                    step, accuracy = trainer(solve, cell)
                    runs = [run(step, accuracy, seed, dtype, data) for seed in range(SEEDS)]
                except (TypeError, ValueError, NotImplementedError) as error:
                    print(row, type(error).__name__)
                    rows.append(row | {"raises": type(error).__name__})
                    continue
                rows.append(row | {
                    "accuracy": float(np.mean([r["accuracy"] for r in runs])),
                    "least": min(r["accuracy"] for r in runs),
                    "dead": sum(not r["alive"] for r in runs),
                    "failed adjoints": float(np.mean([r["failed"] for r in runs])),
                    "ms a step": 1e3 * min(r["seconds"] for r in runs)})
                print(rows[-1], flush=True)
    show([row for row in rows if "raises" not in row])
    save("deep_equilibrium", {"rows": rows, "seeds": SEEDS, "epochs": EPOCHS})


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # jaxopt's deprecations
    main()
