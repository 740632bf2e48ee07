"""`python -m jaxiter`: five solves on real data, one table, one picture.

(a) logistic regression on breast_cancer, Picard beside Anderson;
(b) Sinkhorn between two handwritten digits, and the gradient image of its cost;
(c) the weight decay of a digit classifier tuned by implicit gradients;
(d) 1,000 problems of uneven difficulty, by vmap and by refilled lanes;
(e) handwritten digits from a small diffusion model, its 100 steps solved in parallel.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxiter as ji


class Row(NamedTuple):
    """One line of the table."""

    problem: str
    method: str
    evaluations: int
    seconds: float
    residual: float
    status: str


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """Compile, run once more, and return the result with the seconds of the second run."""
    compiled = jax.jit(function).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(*args))
    return out, time.perf_counter() - start


def row(problem: str, method: str, solution: ji.Solution, seconds: float) -> Row:
    """A table line from a solution or a batch of them."""
    worst = np.max(solution.status)  # CONVERGED is the smallest code of an ended solve
    return Row(problem, method, int(np.sum(solution.steps)), seconds,
               float(np.max(solution.residual)), ji.Status.name(worst))


def logistic_map(features: np.ndarray, labels: np.ndarray, decay: float) -> tuple[Callable, Any]:
    """The gradient map of regularised logistic regression with step 1/L, and its start.

    features: `[n, d]`; labels: `[n]` of +-1.
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.float32)
    step = 1 / (np.linalg.norm(features, 2) ** 2 / (4 * len(features)) + decay)

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-y * (x @ w))) + 0.5 * decay * jnp.sum(w**2)

    return lambda w: w - step * jax.grad(loss)(w), jnp.zeros(features.shape[1], jnp.float32)


def logistic(rows: list[Row], quick: bool) -> dict:
    """(a) Picard beside Anderson on breast_cancer."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    step, start = logistic_map(features, 2.0 * labels - 1, 1e-3)
    stop = ji.tolerance(rtol=0, atol=1e-4 if quick else 1e-5)
    curves = {}
    for name, solver in (("Picard", ji.picard()), ("Anderson", ji.anderson())):
        trace = ji.record(capacity=20_000)

        def solve(w: jax.Array, solver: Any = solver, monitor: Any = None) -> ji.Solution:
            return ji.fixed_point(step, w, solver=solver, stop=stop, max_steps=20_000,
                                  monitor=monitor)

        solution, seconds = timed(solve, start)
        rows.append(row("breast_cancer", name, solution, seconds))
        merits = jax.jit(lambda w, s=solve, t=trace: s(w, monitor=t).trace["merit"])(start)
        curves[name] = np.asarray(merits)[: int(solution.steps)]
    return curves


def digit_weights(image: np.ndarray) -> np.ndarray:
    """An image as weights that sum to 1, `[64]`; the floor keeps every pixel in play."""
    weights = image.ravel() / image.sum()
    return 0.99 * weights + 0.01 / weights.size


def pixel_cost() -> np.ndarray:
    """Squared distances between the pixels of an 8 x 8 image, largest 1: `[64, 64]`."""
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij"), -1).reshape(-1, 2)
    cost = np.sum((grid[:, None] - grid[None]) ** 2, -1)
    return cost / cost.max()


def digits_transport(rows: list[Row], quick: bool) -> dict:
    """(b) The cost of moving a 0 onto a 1, and how it changes with every pixel of the 0."""
    from sklearn.datasets import load_digits

    images = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    zero, one = digit_weights(images[0]), digit_weights(images[1])
    cost, epsilon = pixel_cost(), 0.02

    def problem(a: Any, stop: Any = None) -> Any:
        kind = a.dtype
        return ji.transport.sinkhorn(
            jnp.asarray(cost, kind), a / jnp.sum(a), jnp.asarray(one, kind), epsilon=epsilon,
            stop=stop, max_steps=5000)

    out, seconds = timed(problem, jnp.asarray(zero, jnp.float32))
    rows.append(row("digit 0 to 1", "Sinkhorn", out.solve, seconds))

    with jax.enable_x64(True):  # the check against a finite difference wants its digits
        exact = ji.tolerance(rtol=0, atol=1e-12)
        value = jax.jit(lambda a: problem(a, exact).transport_cost)
        gradient = np.asarray(jax.jit(jax.grad(value))(jnp.asarray(zero)))
        pixel, h = int(np.argmax(zero)), 1e-6
        bump = h * np.eye(64)[pixel]
        difference = float(value(zero + bump) - value(zero - bump)) / (2 * h)
        solve, seconds = timed(lambda a: problem(a, exact).solve, jnp.asarray(zero))
        rows.append(row("", "float64, checked", solve, seconds))
    error = abs(difference - gradient[pixel]) / abs(difference)
    print(f"  gradient at pixel {pixel}: implicit {gradient[pixel]:.8f}, finite difference "
          f"{difference:.8f}, relative error {error:.1e}")
    if error > 1e-4:
        raise SystemExit("the implicit gradient disagrees with the finite difference")
    return {"zero": images[0], "one": images[1], "gradient": gradient.reshape(8, 8),
            "plan": np.asarray(out.plan())}


def tune_decay(rows: list[Row], quick: bool) -> dict:
    """(c) The weight decay of softmax regression on digits, by gradients of the validation loss."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    features, labels = load_digits(return_X_y=True)
    # Few training images, so that too little decay overfits and the optimum is inside.
    split = train_test_split(features / 16.0, labels, random_state=0, train_size=100)
    x, x_val, y, y_val = (jnp.asarray(part) for part in split)
    x, x_val = (jnp.asarray(part, jnp.float32) for part in (x, x_val))
    curvature = float(np.linalg.norm(split[0], 2) ** 2 / (2 * len(split[0])))

    def cross_entropy(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()

    def step(w: jax.Array, decay: jax.Array) -> jax.Array:
        gradient = jax.grad(cross_entropy)(w, x, y) + decay * w
        return w - gradient / (curvature + decay)

    def validation(log_decay: jax.Array, start: jax.Array) -> tuple[jax.Array, ji.Solution]:
        solution = ji.fixed_point(step, start, jnp.exp(log_decay), solver=ji.anderson(),
                                  stop=ji.tolerance(rtol=0, atol=3e-5), max_steps=3000)
        return cross_entropy(solution.value, x_val, y_val), solution

    outer = optax.adam(0.4)
    differentiate = jax.jit(jax.value_and_grad(validation, has_aux=True))
    log_decay, weights = jnp.float32(np.log(0.1)), jnp.zeros((64, 10), jnp.float32)
    state = outer.init(log_decay)
    path, evaluations, solves = [], 0, []
    differentiate(log_decay, weights)  # compile before the clock starts
    start = time.perf_counter()
    for _ in range(12 if quick else 30):
        (loss, solution), gradient = differentiate(log_decay, weights)
        path.append((float(log_decay), float(loss)))
        evaluations += int(solution.steps)
        solves.append(solution)
        weights = solution.value  # a warm start for the next, nearby problem
        update, state = outer.update(gradient, state)
        log_decay = jnp.asarray(optax.apply_updates(log_decay, update))
    seconds = time.perf_counter() - start
    worst = max(solves, key=lambda s: int(s.status))
    line = row("digits, weight decay", f"{len(path)} hypergradients", worst, seconds)
    rows.append(line._replace(evaluations=evaluations))
    print(f"  validation loss {path[0][1]:.4f} -> {path[-1][1]:.4f} at weight decay "
          f"{np.exp(path[-1][0]):.2e}")
    return {"path": np.array(path)}


def uneven(rows: list[Row], quick: bool) -> dict:
    """(d) Value iteration for many discount factors: step counts differ by hundreds."""
    count = 250 if quick else 1000
    rng = np.random.default_rng(0)
    states, actions = 40, 3
    transitions = jnp.asarray(rng.dirichlet(np.full(states, 0.2), (states, actions)), jnp.float32)
    rewards = jnp.asarray(rng.uniform(size=(states, actions)), jnp.float32)
    discounts = jnp.asarray(1 - 10 ** rng.uniform(-2.7, -0.5, count), jnp.float32)
    starts = jnp.zeros((count, states), jnp.float32)

    def bellman(v: jax.Array, discount: jax.Array) -> jax.Array:
        return jnp.max(rewards + discount * transitions @ v, axis=1)

    keywords = {"stop": ji.tolerance(rtol=1e-5, atol=0), "max_steps": 10_000}
    batch, by_vmap = timed(
        jax.vmap(lambda v, q: ji.fixed_point(bellman, v, q, **keywords)), starts, discounts)
    lanes, by_lanes = timed(
        lambda v, q: ji.solve_many(bellman, v, q, **keywords), starts, discounts)
    rows.append(row(f"{count} decision problems", "vmap", batch, by_vmap))
    rows.append(row("", "64 lanes", lanes, by_lanes))
    return {"steps": np.asarray(batch.steps), "vmap": by_vmap, "lanes": by_lanes}


def parallel_sampling(rows: list[Row], quick: bool) -> dict:
    """(e) Sixteen digits: all steps of a learnt diffusion model at once, in a few rounds."""
    from jaxiter.testing.diffusion import network_denoiser, trained_network

    network, _ = trained_network(400 if quick else 4000)
    schedule = ji.diffusion.linear_beta_schedule(100)
    model = network_denoiser(network, ji.diffusion.linear_beta_schedule(1000))
    sampler = ji.diffusion.ddpm(schedule)
    noise = jax.random.normal(jax.random.key(0), (16, 64))
    keys = jax.random.split(jax.random.key(1), 16)
    loop = jax.jit(jax.vmap(lambda x, k: ji.diffusion.sample(sampler, model, x, k)))(noise, keys)
    out, seconds = timed(jax.vmap(
        lambda x, k: ji.diffusion.sample_parallel(sampler, model, x, k)), noise, keys)
    line = row("16 digits, 100 DDPM steps", "parallel rounds", out.solve, seconds)
    rows.append(line._replace(evaluations=int(np.sum(out.solve.calls["model"]))))
    difference = float(jnp.max(jnp.abs(out.value - loop)))
    print(f"  {float(jnp.mean(out.rounds)):.1f} rounds of batched model calls instead of 100 calls "
          f"one by one, largest difference to the loop {difference:.1e}")
    if difference > 0.05:
        raise SystemExit("the parallel samples disagree with the loop")
    return {"images": np.asarray(out.value).reshape(16, 8, 8),
            "rounds": float(jnp.mean(out.rounds))}


def draw(results: list[dict], path: Path) -> None:
    """The picture: a panel for each of the five."""
    logistic, transport, decay, uneven, digits = results
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ink, accent = "#33415c", "#d1495b"
    figure = plt.figure(figsize=(13, 8.5), constrained_layout=True)
    top, bottom = figure.subfigures(2, 1)  # pyright: ignore
    left, right, samples = top.subplots(1, 3, width_ratios=(1, 1, 0.6))
    for (name, curve), colour in zip(logistic.items(), (ink, accent), strict=True):
        left.loglog(np.arange(1, len(curve) + 1), curve, color=colour, lw=2,
                    label=f"{name}: {len(curve):,} evaluations")
    left.set(title="Logistic regression on breast_cancer", xlabel="evaluations of the map",
             ylabel="residual")
    left.legend(frameon=False)
    right.semilogx(np.exp(decay["path"][:, 0]), decay["path"][:, 1], "-", color=ink, lw=1)
    dots = right.scatter(np.exp(decay["path"][:, 0]), decay["path"][:, 1], zorder=3,
                         c=np.arange(len(decay["path"])), cmap="magma")
    figure.colorbar(dots, ax=right, label="outer step")
    right.set(title="Weight decay tuned by implicit gradients", xlabel="weight decay",
              ylabel="validation loss")
    mosaic = np.full((16, 10, 10), -1.0)
    mosaic[:, 1:9, 1:9] = digits["images"]
    mosaic = mosaic.reshape(4, 4, 10, 10).transpose(0, 2, 1, 3).reshape(40, 40)
    samples.imshow(mosaic, cmap="Greys", vmin=-1, vmax=1)
    samples.set_axis_off()
    samples.set_title(f"100 steps in {digits['rounds']:.0f} rounds")
    panels = bottom.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    moved = transport["plan"] / transport["plan"].sum(1, keepdims=True)
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij"), -1).reshape(-1, 2)
    target = moved @ grid
    panels[0].imshow(transport["zero"], cmap="Greys")
    keep = transport["zero"].ravel() > 4
    panels[0].quiver(grid[keep, 1], grid[keep, 0], (target - grid)[keep, 1],
                     (target - grid)[keep, 0], color=accent, angles="xy", scale_units="xy",
                     scale=1, width=0.012)
    panels[0].set_title("A 0, and where its ink goes")
    panels[1].imshow(transport["one"], cmap="Greys")
    panels[1].set_title("The 1 that it becomes")
    size = np.abs(transport["gradient"]).max()
    panels[2].imshow(transport["gradient"], cmap="RdBu_r", vmin=-size, vmax=size)
    panels[2].set_title("Gradient of the cost by pixel")
    for panel in panels[:3]:
        panel.set_axis_off()
    panels[3].bar(np.arange(len(uneven["steps"])), np.sort(uneven["steps"]), width=1.0, color=ink)
    panels[3].set(title=f"Uneven problems: lanes {uneven['vmap'] / uneven['lanes']:.1f} x faster",
                  xlabel="problem, sorted", ylabel="steps")
    for panel in (left, right, panels[3]):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    names = ("problem", "method", "evaluations", "seconds", "residual")
    head = "{:<26}{:<20}{:>12}{:>10}{:>11}  status".format(*names)
    lines = [f"{r.problem:<26}{r.method:<20}{r.evaluations:>12,}{r.seconds:>10.4f}"
             f"{r.residual:>11.1e}  {r.status}" for r in rows]
    return "\n".join([head, "-" * len(head), *lines])


def main(arguments: list[str] | None = None) -> int:
    """Run the tour; the exit code counts the solves that did not converge."""
    parser = argparse.ArgumentParser(prog="python -m jaxiter", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("jaxiter_tour"), metavar="DIR",
                        help="where the picture goes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller problems, a minute cold")
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
        from tqdm import tqdm
    except ImportError as error:
        print(f"The tour needs {error.name}: pip install 'jaxiter[tour]'", file=sys.stderr)
        return 2
    rows: list[Row] = []
    parts = (logistic, digits_transport, tune_decay, uneven, parallel_sampling)
    results = []
    with tqdm(parts, unit="part", file=sys.stderr) as bar:
        for part in bar:
            bar.set_description((part.__doc__ or "").split(".")[0])
            results.append(part(rows, options.quick))
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "tour.png"
    draw(results, picture)
    print("\n" + table(rows) + f"\n\npicture: {picture}")
    failed = [r for r in rows if r.status != "CONVERGED"]
    if failed:
        print(f"{len(failed)} of {len(rows)} solves did not converge", file=sys.stderr)
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
