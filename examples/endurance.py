"""A long solve that survives SIGKILL: `python examples/endurance.py [kills]`.

A worker iterates a slow map, 200 steps per program call, and saves the solver's state after each
call. The parent kills it at random moments and starts it again; the answer must be, bit for bit,
that of a worker that nobody killed. Any saver of pytrees will do; here it is
numpy, with a rename so that a kill while writing leaves the last good file. With orbax:
`ocp.StandardCheckpointer().save(path, state)` and `.restore(path, state)`.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, CHUNK = 20_000, 200


def work(folder: Path) -> None:
    """Resume from the folder's checkpoint, if any, and iterate to the end."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxiter as ji

    matrix = jax.random.normal(jax.random.key(0), (200, 200))
    matrix = 0.9999 * matrix / jnp.linalg.norm(matrix, 2)
    never = ji.tolerance(rtol=0, atol=1e-30)

    def step(x):
        return jnp.tanh(matrix @ x) + 1e-3

    def advance(state, limit):
        return ji.fixed_point(step, jnp.zeros(200), solver=ji.halpern(), stop=never,
                              max_steps=limit, resume=state).state

    first = jax.jit(lambda: ji.fixed_point(step, jnp.zeros(200), solver=ji.halpern(), stop=never,
                                           max_steps=CHUNK).state)
    follow = jax.jit(advance)
    file = folder / "state.npz"
    if file.exists():
        like = jax.eval_shape(first)
        with np.load(file) as saved:
            state = jax.tree.unflatten(jax.tree.structure(like),
                                       [saved[f"a{i}"] for i in range(len(saved.files))])
    else:
        state = first()
    done = int(state.step)
    while done < STEPS:
        done += CHUNK
        state = follow(state, done)
        np.savez(folder / "new.npz", **{f"a{i}": leaf for i, leaf in enumerate(
            jax.tree.leaves(state))})
        os.replace(folder / "new.npz", file)
        time.sleep(0.02)  # so that there is something to kill
    np.save(folder / "answer.npy", np.asarray(state.x))


def start(folder: Path) -> subprocess.Popen:
    """A worker on this folder."""
    return subprocess.Popen([sys.executable, __file__, "--work", str(folder)])


def trial(root: Path, name: str, kills: int) -> bytes:
    """The answer's bytes after so many kills at random moments."""
    folder = root / name
    folder.mkdir()
    for _ in range(kills):
        process = start(folder)
        while not (folder / "state.npz").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 3.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder).wait() == 0
    return (folder / "answer.npy").read_bytes()


def main() -> None:
    """Kill, resume, compare."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = trial(root, "whole", 0)
        equal = sum(trial(root, f"killed{i}", 1) == whole for i in range(count))
    print(f"{equal} of {count} killed solves resumed to the same bits")
    if equal < count:
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
    else:
        main()
