"""Few-step samplers and what is built on them: `python benchmarks/few_steps.py [part ...]`.

Errors are root mean squares to 2,000 Euler steps, on starts that no search has seen; every figure
is a ratio of errors or of model calls, so the machine does not matter.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harness import run_parts, show
from jaxiter.diffusion import (
    Denoiser,
    accelerated_ddim,
    cosine_schedule,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    euler_solver,
    flow_matching_schedule,
    ghvb,
    guided,
    heavy_ball,
    integrate,
    invert_flow,
    ipndm,
    karras_schedule,
    linear_beta_schedule,
    log_snr_schedule,
    make_schedule,
    optimal_steps,
    picard_consistency_loss,
    picard_iterates,
    receding_horizon,
    sample,
    search_orders,
    search_solver,
    uniinv,
    vp_schedule,
)
from jaxiter.solvers import anderson, guard
from jaxiter.testing.diffusion import (
    Mixture,
    digits,
    gmm64,
    mixture_denoiser,
    mixture_values,
    ring2,
)

LARGEST, SMALLEST = 20.0, 0.02


def rms(a: Any, b: Any) -> float:
    return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


def run(sampler: Any, model: Denoiser, x: Any) -> Any:
    return jax.jit(jax.vmap(lambda x: sample(sampler, model, x)))(x)


def steps_of_digits() -> list[dict]:
    """Chosen rows against usual spacings on the digits' density, variance-exploding."""
    model = Denoiser(lambda x, q: mixture_values(digits(), x, 1.0, q)[0])
    x = LARGEST * jax.random.normal(jax.random.key(0), (192, 64))
    exact = run(ddim(karras_schedule(2000, sigma_max=LARGEST, sigma_min=SMALLEST)), model, x)[64:]
    fine = karras_schedule(60, sigma_max=LARGEST, sigma_min=SMALLEST)
    rows = []
    for count in (4, 6, 10):
        geometric = np.append(np.geomspace(LARGEST, SMALLEST, count), 0.0)
        even = np.linspace(LARGEST, 0, count + 1)
        schedules = {
            "uniform": make_schedule(np.ones(count + 1), even, even),
            "log-SNR": make_schedule(np.ones(count + 1), geometric, geometric),
            "Karras": karras_schedule(count, sigma_max=LARGEST, sigma_min=SMALLEST),
            "optimal_steps": optimal_steps(fine, model, x[:64], count).schedule,
            "optimal_steps, deviation": optimal_steps(
                fine, model, x[:64], count, cost="deviation").schedule}
        for name, schedule in schedules.items():
            rows.append({"steps": count, "spacing": name,
                         "Euler": rms(run(ddim(schedule), model, x[64:]), exact),
                         "iPNDM": rms(run(ipndm(schedule), model, x[64:]), exact)})
    show(rows)
    return rows


def by_lam(mixture: Mixture) -> Denoiser:
    def fn(x: Any, lam: Any) -> Any:
        alpha, sigma = 1 / jnp.sqrt(1 + jnp.exp(-2 * lam)), 1 / jnp.sqrt(1 + jnp.exp(2 * lam))
        return mixture_values(mixture, x, alpha, sigma)[0]
    return Denoiser(fn)


def searched_orders() -> list[dict]:
    """GMM64, six steps, on 1,000 starts that the search has not seen."""
    model, fine = by_lam(gmm64()), log_snr_schedule(60, start=-4.5, end=4.5)
    x = jax.random.normal(jax.random.key(0), (1128, 64))
    exact = run(ddim(log_snr_schedule(2000, start=-4.5, end=4.5)), model, x)
    found = search_orders(fine, model, x[:128], exact[:128], 6, population=128, max_steps=20)
    plain = log_snr_schedule(6, start=-4.5, end=4.5)
    rows = [{"solver": name, "error": rms(run(s, model, x[128:]), exact[128:])} for name, s in {
        "DDIM": ddim(plain), "DPM-Solver++(2M)": dpm_solver_pp_2m(plain, lower_order_final=False),
        "iPNDM": ipndm(plain), "search_orders": found.sampler}.items()]
    show(rows)
    return rows


def searched_solver() -> list[dict]:
    """Learnt flow solvers of an eight-dimensional mixture against Euler and Adams-Bashforth 2."""
    mix = Mixture(np.random.default_rng(0).normal(size=(6, 8)), 0.25)

    def velocity(x: Any, t: Any) -> Any:
        eps, x0 = mixture_values(mix, x, t, 1 - t)
        return x0 - eps

    x = jax.random.normal(jax.random.key(0), (768, 8))
    end = jax.jit(jax.vmap(lambda x, s: integrate(s, velocity, x)[-1], (0, None)))
    exact, rows = end(x[256:], euler_solver(2000)), []
    for count in (5, 8, 10):
        adams = euler_solver(count)
        adams = adams._replace(weights=jnp.diag(jnp.full(count - 1, -0.5), -1))
        learnt, _ = search_solver(velocity, x[:256], count)
        rows.append({"steps": count} | {name: rms(end(x[256:], s), exact) for name, s in (
            ("Euler", euler_solver(count)), ("AB2", adams), ("learnt", learnt))})
    show(rows)
    return rows


def accelerated() -> list[dict]:
    """At equal model calls: accelerated DDIM with T / 2 steps against DDIM with T, medians."""
    model, rows = by_lam(gmm64()), []
    x = jax.random.normal(jax.random.key(0), (256, 64))

    def schedule(steps: int) -> Any:
        abar = np.exp(-(1e-3 + 8 * np.linspace(1, 0, steps + 1) ** 2))
        return make_schedule(np.sqrt(abar), np.sqrt(1 - abar), 0.5 * np.log(abar / (1 - abar)))

    def typical(sampler: Any) -> float:  # the median: single samples change their mode
        miss = jnp.sqrt(jnp.mean((run(sampler, model, x) - exact) ** 2, axis=1))
        return float(jnp.median(miss))

    exact = run(accelerated_ddim(schedule(2000)), model, x)
    for calls in (50, 100, 200):
        rows.append({"model calls": calls,
                     "ddim": typical(ddim(schedule(calls))),
                     "accelerated_ddim": typical(accelerated_ddim(schedule(calls // 2)))})
    show(rows)
    return rows


def told(mixture: Mixture, schedule: Any) -> Any:
    """eps of a mixture at the times of a schedule."""
    return mixture_denoiser(mixture, schedule).fn


def strong_guidance() -> list[dict]:
    """Samples that diverge under guidance of weight 7.5 towards one component of GMM64."""
    mix = gmm64()
    one = Mixture(mix.means[:1], mix.std)
    rows = []
    x = jax.random.normal(jax.random.key(0), (512, 64))
    for steps in (10, 15, 20):
        schedule = vp_schedule(steps)
        model = Denoiser(guided(told(one, schedule), told(mix, schedule), 7.5))
        for name, sampler in {"ddim": ddim(schedule), "ipndm(4)": ipndm(schedule),
                              "ghvb(3.5)": ghvb(schedule, 3.5), "ghvb(1.5)": ghvb(schedule, 1.5),
                              "heavy_ball(4, 0.5)": heavy_ball(schedule, 4, 0.5)}.items():
            out = jnp.max(jnp.abs(run(sampler, model, x)), axis=1)
            rows.append({"steps": steps, "sampler": name,
                         "diverged": float(jnp.mean(out > 3)), "largest": float(out.max())})
    show(rows)
    return rows


def inversion() -> list[dict]:
    """Error of flow(z) against y after so many evaluations of a ten-step flow, 50 targets."""
    mix = Mixture(np.random.default_rng(0).normal(size=(6, 8)), 0.25)
    sampler = ddim(flow_matching_schedule(10))

    def velocity(x: Any, t: Any) -> Any:
        eps, x0 = mixture_values(mix, x, t, 1 - t)
        return x0 - eps

    def flow(z: Any) -> Any:
        return sample(sampler, Denoiser(velocity, "velocity"), z)

    forward = jax.jit(jax.vmap(flow))
    y = forward(jax.random.normal(jax.random.key(0), (50, 8)))
    start = jax.jit(jax.vmap(lambda y: uniinv(velocity, y)))(y)
    rows = [{"method": "uniinv alone", "evaluations": 0, "error": rms(forward(start), y)}]
    for name, solver in (("plain", None), ("guard(anderson(3))", guard(anderson(3)))):
        for sweeps in (1, 10, 30):
            z = jax.jit(jax.vmap(lambda y, z, k=sweeps, s=solver: invert_flow(
                flow, y, z, step_size=0.1, max_steps=k, solver=s).value))(y, start)
            rows.append({"method": name, "evaluations": sweeps, "error": rms(forward(z), y)})
    show(rows)
    return rows


def policies(ticks: int = 60) -> list[dict]:
    """Two moving sine modes, chunks of eight: warm starts against full DDPM at every tick."""
    schedule = cosine_schedule(100)
    row = jnp.arange(8, dtype=jnp.float32)
    time, tables = schedule.time[::-1], [t[::-1] for t in schedule[:2]]

    def policy(k: Any) -> Denoiser:
        middle = jnp.sin(0.15 * (k + row))[:, None]

        def fn(x: Any, t: Any) -> Any:
            alpha, sigma = (jnp.interp(t, jnp.asarray(time, x.dtype), jnp.asarray(c, x.dtype))
                            for c in tables)
            modes = jnp.stack([middle + 1.5, middle - 1.5])
            v = alpha**2 * 0.05**2 + sigma**2
            w = jax.nn.softmax(-jnp.sum((x - alpha * modes) ** 2, (1, 2)) / (2 * v))
            return sigma / v * (x - alpha * jnp.tensordot(w, modes, 1))
        return Denoiser(fn)

    times = jnp.arange(ticks, dtype=jnp.float32)

    def judge(chunks: np.ndarray) -> tuple[float, int]:
        middle = np.sin(0.15 * (np.arange(ticks)[:, None] + np.arange(8)))
        side = np.sign(chunks[:, 0, 0] - middle[:, 0])
        return (float(np.abs(chunks[:, :, 0] - middle - 1.5 * side[:, None]).mean()),
                int(np.sum(side[1:] != side[:-1])))

    each = jax.jit(jax.vmap(lambda k, x, key: sample(ddpm(schedule), policy(k), x, key)))
    full = each(times, jax.random.normal(jax.random.key(2), (ticks, 8, 1)),
                jax.random.split(jax.random.key(3), ticks))
    rows = [("full DDPM", 100, np.asarray(full))]
    for steps in ((2, 1, 0), (4, 3, 2, 1, 0)):
        chunks = jax.jit(lambda x, key, s=steps: receding_horizon(
            policy, schedule, times, x, key, steps=s))(
                jax.random.normal(jax.random.key(0), (8, 1)), jax.random.key(1))
        rows.append((f"warm, {len(steps)} steps", len(steps), np.asarray(chunks)))
    rows = [{"policy": name, "calls per tick": calls, "error": judge(c)[0],
             "mode switches": judge(c)[1]} for name, calls, c in rows]
    show(rows)
    return rows


def picard_consistency(steps: int = 50, rounds: int = 12) -> list[dict]:
    """RING2, a 128-wide network: distance to the fixed point after k rounds, base and tuned."""
    schedule = linear_beta_schedule(steps)
    sampler = ddim(schedule)

    def model(p: Any) -> Denoiser:
        def fn(x: Any, t: Any) -> Any:
            phases = t / 1000 * jnp.arange(1.0, 5.0) * jnp.pi
            h = jnp.concatenate([x, jnp.sin(phases), jnp.cos(phases)])
            for w, b in p[:-1]:
                h = jax.nn.silu(h @ w + b)
            return h @ p[-1][0] + p[-1][1]
        return Denoiser(fn)

    rng, sizes = np.random.default_rng(0), [10, 128, 128, 128, 2]
    start = [(jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32), jnp.zeros(b))
             for a, b in zip(sizes, sizes[1:], strict=False)]

    def fit(params: Any, loss: Any, updates: int, rate: float) -> Any:
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, updates))

        def update(carry: Any, key: Any) -> Any:
            moves, state = optimizer.update(jax.grad(loss)(carry[0], key), carry[1])
            return (optax.apply_updates(carry[0], moves), state), None

        keys = jax.random.split(jax.random.key(5), updates)
        return jax.jit(lambda p: jax.lax.scan(update, (p, optimizer.init(p)), keys)[0][0])(params)

    times, alpha, sigma = (jnp.asarray(t[:-1], jnp.float32)
                           for t in (schedule.time, schedule.alpha, schedule.sigma))

    def denoising(p: Any, key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        row = jax.random.randint(a, (256,), 0, steps)
        x0 = jnp.asarray(ring2().means, jnp.float32)[jax.random.randint(b, (256,), 0, 8)]
        eps, jitter = jax.random.normal(c, (2, 256, 2))
        x = alpha[row, None] * (x0 + 0.1 * jitter) + sigma[row, None] * eps
        return jnp.mean((jax.vmap(model(p).fn)(x, times[row]) - eps) ** 2)

    base = fit(start, denoising, 4000, 2e-3)
    paths = jax.jit(jax.vmap(lambda x: picard_iterates(sampler, model(base), x, max_steps=rounds)))
    train = paths(jax.random.normal(jax.random.key(1), (500, 2)))

    def consistency(p: Any, key: Any) -> Any:
        a, b = jax.random.split(key)
        chosen = train[jax.random.randint(a, (16,), 0, 500)]
        k = jax.random.randint(b, (), 0, 6)
        return jnp.mean(jax.vmap(
            lambda path: picard_consistency_loss(sampler, model(p), path, k))(chosen))

    tuned = fit(base, consistency, 3000, 3e-4)
    unseen = jax.random.normal(jax.random.key(2), (200, 2))
    ends = paths(unseen)[:, -1, -1]
    run = jax.jit(jax.vmap(lambda x, p: picard_iterates(
        sampler, model(p), x, max_steps=rounds)[:, -1], (0, None)))
    errors = {name: jnp.sqrt(jnp.mean((run(unseen, p) - ends[:, None]) ** 2, axis=(0, 2)))
              for name, p in (("base", base), ("tuned", tuned))}
    rows = [{"rounds": k} | {name: float(e[k]) for name, e in errors.items()} for k in range(1, 9)]
    show(rows)
    return rows


if __name__ == "__main__":
    parts = (steps_of_digits, searched_orders, searched_solver, accelerated, strong_guidance,
             inversion, policies, picard_consistency)
    run_parts("few_steps", {part.__name__: part for part in parts})
