"""Optimisers on digits and on controlled problems: `python benchmarks/optim.py [part ...]`.

Digits: an MLP 64-64-64-10, batches of 64, 200 steps, mean full training loss over seeds at the best
rate of a grid; differences below a third are noise. Controlled problems are deterministic.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # for `compression`

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec
from sklearn.datasets import load_digits

import jaxiter as ji
from harness import compile_all, run_parts, time_all
from jaxiter.optim import (
    TURBO_NS_COEFFS,
    a_dog,
    alr,
    cautious,
    evaluation_params,
    grams,
    mars_m,
    nag_gs,
    nag_gs_optimal_alpha,
    opt_amsgrad,
    power_sgd,
    power_sgd_specs,
    record_gradient_norm,
    refine_schedule,
    scale_by_shampoo,
    u_dog,
)

SEEDS, STEPS, BATCH = 3, 200, 64


def data() -> tuple:
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = jnp.asarray(pixels[order] / 16, jnp.float32)
    labels = jnp.asarray(labels[order], jnp.int32)
    return (pixels[:1437], labels[:1437]), (pixels[1437:], labels[1437:])


TRAIN, TEST = data()


def network(key: Any) -> dict:
    sizes = (64, 64, 64, 10)
    return {f"{kind}{i}": (jax.random.normal(jax.random.fold_in(key, i), (m, n)) * (2 / m) ** 0.5
                           if kind == "w" else jnp.zeros(n))
            for i, (m, n) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)) for kind in "wb"}


def logits(p: dict, x: Any) -> Any:
    for i in range(2):
        x = jax.nn.relu(x @ p[f"w{i}"] + p[f"b{i}"])
    return x @ p["w2"] + p["b2"]


def loss(p: dict, rows: tuple) -> Any:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(p, rows[0]), rows[1]))


def by_rank(matrices: Any, rest: Any) -> Any:
    return optax.partition({"matrix": matrices, "rest": rest}, lambda p: jax.tree.map(
        lambda leaf: "matrix" if leaf.ndim == 2 else "rest", p))


def shampoo(rate: Any, power: float, every: int = 10, graft: bool = True) -> Any:
    lengths = optax.scale_by_adam() if graft else None
    return by_rank(optax.chain(scale_by_shampoo(power, every=every, graft=lengths),
                               optax.scale(-rate)), optax.adam(rate))


SMALL, MIDDLE, LARGE = (1e-3, 3e-3, 1e-2, 3e-2), (3e-2, 0.1, 0.3, 1.0), (0.1, 0.3, 1.0, 3.0)
OPTIMISERS: dict[str, tuple[Callable, tuple]] = {
    "optax.sgd": (optax.sgd, MIDDLE),
    "optax.sgd, momentum": (lambda r: optax.sgd(r, momentum=0.9), MIDDLE),
    "optax.adam": (optax.adam, SMALL),
    "optax.amsgrad": (optax.amsgrad, SMALL),
    "optax.lion": (optax.lion, (1e-4, 3e-4, 1e-3, 3e-3)),
    "optax.polyak_sgd": (lambda r: optax.polyak_sgd(max_learning_rate=r), LARGE),
    "optax momo": (optax.contrib.momo, LARGE),
    "optax dog": (lambda r: optax.contrib.dog(1.0, init_step=("heuristic", r)), SMALL),
    "optax muon": (optax.contrib.muon, SMALL),
    "optax schedule-free adamw": (lambda r: optax.contrib.schedule_free_adamw(r), SMALL),
    "cautious adam": (lambda r: cautious(optax.adam(r)), SMALL),
    "cautious lion": (lambda r: cautious(optax.lion(r)), (1e-4, 3e-4, 1e-3, 3e-3)),
    "grams": (grams, SMALL),
    "alr (SMAG)": (lambda r: alr(c=0.5, eta_max=r), MIDDLE),
    "nag_gs": (nag_gs, MIDDLE),
    "a_dog, average": (lambda r: a_dog(r), SMALL),
    "opt_amsgrad": (opt_amsgrad, SMALL),
    "muon, Turbo": (lambda r: optax.contrib.muon(
        r, ns_coeffs=TURBO_NS_COEFFS, ns_steps=4, preconditioning="aol"), SMALL),
    "mars_m": (mars_m, SMALL),
    "Shampoo (power 1/4)": (lambda r: shampoo(r, 0.25), SMALL),
    "Shampoo^2": (lambda r: shampoo(r, 0.5), SMALL),
    "Shampoo^2, roots every step, no graft": (lambda r: shampoo(r, 0.5, 1, False), SMALL),
}


def training(make: Callable, rate: Any, seed: Any) -> Any:
    """Parameters after 200 steps; the average where there is one."""
    key = jax.random.key(seed)
    optimizer = optax.with_extra_args_support(make(rate))

    def step(carry: tuple, key: Any) -> tuple:
        p, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(TRAIN[1]))
        value, g = jax.value_and_grad(loss)(p, (TRAIN[0][rows], TRAIN[1][rows]))
        updates, state = optimizer.update(g, state, p, value=value)
        return (optax.apply_updates(p, updates), state), None

    p = network(key)
    (p, state), _ = jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(key, STEPS))
    return evaluation_params(state, p) if make is OPTIMISERS["a_dog, average"][0] else p


def digits() -> list[dict]:
    rows = []
    for name, (make, grid) in OPTIMISERS.items():
        def score(rate: Any, seed: Any, make: Callable = make) -> tuple:
            p = training(make, rate, seed)
            right = jnp.mean(jnp.argmax(logits(p, TEST[0]), 1) == TEST[1])
            return loss(p, TRAIN), right

        losses, right = jax.jit(jax.vmap(jax.vmap(score, (None, 0)), (0, None)))(
            jnp.asarray(grid), jnp.arange(SEEDS, dtype=jnp.uint32))
        losses = np.where(np.isfinite(losses), losses, np.inf).mean(1)
        best = int(np.argmin(losses))
        rows.append({"optimiser": name, "loss": float(losses[best]),
                     "accuracy": float(right[best].mean()), "rate": grid[best],
                     "edge": best in (0, len(grid) - 1)})
        print(rows[-1], flush=True)
    return rows


def cost() -> list[dict]:
    """200 training steps over Adam's, compiled and interleaved."""
    functions = {}
    for name, (make, grid) in OPTIMISERS.items():
        def train(seed: Any, make: Callable = make, rate: float = grid[1]) -> Any:
            return training(make, rate, seed)

        functions[name] = train
    compiled, seconds = compile_all(functions, jnp.uint32(0), repeats=1)
    times = time_all(compiled, jnp.uint32(0), repeats=41)
    adam = times["optax.adam"]
    rows = [{"optimiser": name, "time / adam": float(np.median(t / adam)),
             "compile / adam": seconds[name] / seconds["optax.adam"]} for name, t in times.items()]
    for row in rows:
        print(row)
    return rows


def path(optimizer: Any, gradient: Callable, start: Any, steps: int, measure: Callable) -> Any:
    """`measure(state, x)` after every step."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        value, g = gradient(x)
        updates, state = optimizer.update(g, state, x, value=value)
        x = optax.apply_updates(x, updates)
        return (x, state), measure(state, x)

    return np.asarray(jax.jit(lambda x: jax.lax.scan(
        step, (x, optimizer.init(x)), None, length=steps)[1])(jnp.asarray(start)))


def controlled() -> dict:
    """Quadratics of known condition, a bilinear game, schedules on noisy labels; float64."""
    out = {}
    with jax.enable_x64(True):
        values = np.logspace(-3, 0, 50)

        def kappa(x: Any) -> tuple:
            return jnp.sum(values * x * x) / 2, jnp.asarray(values) * x

        root = np.sqrt(1000)
        tuned = optax.sgd(4 / (1 + 1 / root) ** 2, momentum=((root - 1) / (root + 1)) ** 2)
        out["condition 1000"] = {
            name: path(o, kappa, np.ones(50), 700, lambda s, x: kappa(x)[0] / kappa(
                jnp.ones(50))[0]).tolist()
            for name, o in (("heavy ball, tuned", tuned), ("alr heavy ball", alr("hb")),
                            ("alr mag", alr("mag")),
                            ("optax.polyak_sgd", optax.polyak_sgd(max_learning_rate=np.inf)),
                            ("anderson(5) around descent", optax.chain(
                                optax.sgd(1.0), ji.anderson(5, period=1, safeguard=None))))}
        wide = np.logspace(-5, 0, 100)
        best = np.random.default_rng(0).normal(size=100)

        def free(x: Any) -> tuple:
            return jnp.sum(wide * (x - best) ** 2) / 2, jnp.asarray(wide) * (x - best)

        def value(state: Any, x: Any) -> Any:
            del state
            return free(x)[0]

        def average(state: Any, x: Any) -> Any:
            return free(evaluation_params(state, x))[0]

        out["parameter-free"] = {
            "descent, 1/L": path(optax.sgd(1.0), free, np.zeros(100), 2000, value).tolist(),
            "DoG": path(optax.contrib.dog(1.0, init_step=("heuristic", 1e-6)), free,
                        np.zeros(100), 2000, value).tolist(),
            "A-DoG": path(a_dog(), free, np.zeros(100), 2000, value).tolist(),
            "U-DoG (two gradients a step)": path(u_dog(), free, np.zeros(100), 2000,
                                                 average).tolist()}
        curve = []
        small = np.logspace(-2, 0, 20)
        for scale in (0.1, 0.5, 0.9, 0.95, 1.0, 1.01, 1.05):
            alpha = scale * nag_gs_optimal_alpha(0.01, 1.0, safety=1.0)
            size = path(nag_gs(alpha, mu=0.01, gamma=0.01, constant_gamma=True),
                        lambda x: (0.0, jnp.asarray(small) * x), np.ones(20), 160,
                        lambda s, x: jnp.linalg.norm(x))
            curve.append({"alpha / alpha*": scale,
                          "contraction": float((size[-1] / size[80]) ** (1 / 79))})
        out["nag_gs"] = curve
        turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])

        def game(z: Any) -> tuple:
            return 0.0, z - turn @ z

        def gap(state: Any, z: Any) -> Any:
            del state
            return jnp.linalg.norm(z - turn @ z)

        out["bilinear game"] = {
            "plain": path(optax.scale(-1.0), game, np.ones(2), 1000, gap).tolist(),
            "halpern": path(optax.chain(optax.scale(-1.0), ji.halpern()), game, np.ones(2), 1000,
                            gap).tolist()}
    out["schedules"] = schedules()
    for row in (out["nag_gs"], out["schedules"]):
        print(row)
    return out


def schedules() -> list[dict]:
    """Digits 3 against 8, a tenth of the labels flipped, SGD of batch 1: gap to the optimum."""
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    keep = np.isin(labels, (3, 8))
    x = jnp.asarray(np.c_[pixels[keep] / 16, np.ones(keep.sum())], jnp.float32)
    rng = np.random.default_rng(0)
    signs = np.where(labels[keep] == 3, 1.0, -1.0) * np.where(rng.random(keep.sum()) < 0.1, -1, 1)
    signs = jnp.asarray(signs, jnp.float32)
    steps = 2000

    def full(w: Any) -> Any:
        return jnp.mean(jnp.logaddexp(0.0, -signs * (x @ w)))

    best = float(full(ji.fixed_point(lambda w: w - 1.0 * jax.grad(full)(w), jnp.zeros(65),
                                     solver=ji.anderson(), max_steps=5000).value))

    def last(schedule: Callable, rate: Any, seed: Any, norms: bool = False) -> Any:
        optimizer = optax.chain(record_gradient_norm(steps), optax.scale_by_schedule(
            lambda k: -rate * schedule(k)))

        def step(carry: tuple, key: Any) -> tuple:
            w, state = carry
            i = jax.random.randint(key, (), 0, len(signs))
            g = jax.grad(lambda w: jnp.logaddexp(0.0, -signs[i] * (x[i] @ w)))(w)
            updates, state = optimizer.update(g, state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros(65)
        (w, state), _ = jax.lax.scan(step, (w, optimizer.init(w)),
                                     jax.random.split(jax.random.key(seed), steps))
        return state[0].norms if norms else full(w)

    linear = optax.linear_schedule(1.0, 0.0, steps)
    seeds, rates = jnp.arange(8, dtype=jnp.uint32), jnp.array([0.03, 0.1, 0.3, 1.0, 3.0])
    norms = np.asarray(jax.jit(lambda: jnp.mean(jax.vmap(
        lambda s: last(linear, 0.3, s, norms=True))(seeds), 0))())
    rows = []
    for name, schedule in (("constant", optax.constant_schedule(1.0)),
                           ("cosine", optax.cosine_decay_schedule(1.0, steps)),
                           ("linear", linear), ("refined", refine_schedule(norms))):
        values = jax.jit(jax.vmap(jax.vmap(
            lambda r, s, schedule=schedule: last(schedule, r, s), (None, 0)), (0, None)))(
                rates, seeds)
        means = np.asarray(values).mean(1) - best
        rows.append({"schedule": name, "gap": float(means.min()),
                     "rate": float(rates[int(means.argmin())])})
    return rows


def compression() -> list[dict]:
    """The digits network on 8 devices, 300 steps: bytes of a step against the loss."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec
    params = network(jax.random.key(0))
    rows = []

    def train(optimizer: Any, feedback: bool = True) -> tuple[float, int]:
        state = optimizer.init(params)
        compressed = hasattr(state[0], "error")
        if compressed:
            state = (state[0]._replace(error=jax.tree.map(
                lambda e: jnp.zeros((8, *e.shape)), state[0].error)), *state[1:])
        specs = power_sgd_specs(state, "data")

        def local(p: dict, state: Any, keys: Any) -> tuple:
            def step(carry: tuple, key: Any) -> tuple:
                p, state = carry
                mine = jax.random.fold_in(key, jax.lax.axis_index("data"))
                rows = jax.random.randint(mine, (BATCH // 8,), 0, len(TRAIN[1]))
                g = jax.grad(loss)(p, (TRAIN[0][rows], TRAIN[1][rows]))
                if not compressed:
                    g = jax.lax.pmean(g, "data")
                updates, state = optimizer.update(g, state, p)
                if compressed and not feedback:
                    state = (state[0]._replace(error=jax.tree.map(
                        jnp.zeros_like, state[0].error)), *state[1:])
                return (optax.apply_updates(p, updates), state), None

            if compressed:
                state = (state[0]._replace(error=jax.tree.map(
                    lambda e: e[0], state[0].error)), *state[1:])
            (p, state), _ = jax.lax.scan(step, (p, state), keys)
            return p, jax.tree.leaves(p)[0]

        solve = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec(), specs, spec()),
                                      out_specs=(spec(), spec()), check_vma=False))
        keys = jax.random.split(jax.random.key(1), 300)
        end, _ = solve(params, state, keys)
        leaves = jax.tree.leaves(params)
        sent = 4 * sum(leaf.size for leaf in leaves)
        if compressed:
            sides = zip(leaves, jax.tree.leaves(state[0].q), jax.tree.leaves(state[0].error),
                        strict=True)
            sent = 4 * sum(q.size + e.shape[-2] * q.shape[1] if q.size else leaf.size
                           for leaf, q, e in sides)
        return float(loss(end, TRAIN)), int(sent)

    tail = (optax.trace(0.9), optax.scale(-0.05))
    cases = [("mean", optax.chain(optax.identity(), *tail), True)]
    cases += [(f"power_sgd, rank {r}", optax.chain(power_sgd("data", r), *tail), True)
              for r in (1, 2, 4)]
    cases.append(("power_sgd, rank 1, no error feedback",
                  optax.chain(power_sgd("data", 1), *tail), False))
    for name, optimizer, feedback in cases:
        value, sent = train(optimizer, feedback)
        rows.append({"method": name, "bytes per step": sent, "loss": value})
        print(rows[-1], flush=True)
    return rows


PARTS = {"digits": digits, "cost": cost, "controlled": controlled, "compression": compression}


if __name__ == "__main__":
    run_parts("optim", PARTS)
