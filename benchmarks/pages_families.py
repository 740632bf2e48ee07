"""Blocks of docs/benchmarks.md on samplers, bilevel methods and optimisers."""

from harness import load, table


def diffusion() -> str:
    data = load("diffusion")
    rounds = {(r["T"], r["problem"], r["sampler"], r["method"]): r for r in data["full_window"]}
    columns = sorted({key[1:3] for key in rounds})
    methods = list(dict.fromkeys(key[3] for key in rounds))
    lengths = sorted({key[0] for key in rounds})

    def cell(*key: object) -> str:
        row = rounds.get(key)  # pyright: ignore
        if row is None or row["mean_rounds"] is None:
            return "-"
        missed = f" ({row['not_reached']} not)" if row["not_reached"] else ""
        return f"{row['mean_rounds']:.1f}{missed}"

    window = [[f"{r['window']:,}", r["method"], f"{r['mean_rounds']:.1f}",
               f"{r['mean_evaluations']:,.0f}"] for r in data["sliding_window"]]
    workers = [[r["problem"], r["method"], f"{r['mean_rounds']:.1f}", f"{r['mean_error']:.1e}",
                f"{r['max_error']:.1e}"] for r in data["eight_workers"]]
    return (
        "**Parallel sampling, rounds of batched model calls** to within 1e-3 of the loop of 100 "
        "steps, mean over 16 seeds (`benchmarks/diffusion.py`; a jvp round is two calls deep; "
        "MLP is a network trained on digits)\n\n"
        + table(["", *(" ".join(c) for c in columns)],
                [[m, *(cell(100, *c, m) for c in columns)] for m in methods])
        + "\n**The same by the number of steps**, SDE\n\n"
        + table(["", *(f"T = {n:,}" for n in lengths)],
                [[f"{bed}, {m}", *(cell(n, bed, "SDE", m) for n in lengths)]
                 for bed in ("GMM64", "HARD64", "DIG", "MLP")
                 for m in ("secant", "Picard", "ParaTAA")])
        + "\n**1,000 steps of DDPM on GMM64 through a sliding window**, tolerance 0.1\n\n"
        + table(["window", "", "rounds", "model calls"], window)
        + "\n**Eight model calls at a time**, DDIM, 50 steps\n\n"
        + table(["", "", "rounds", "mean error", "largest"], workers))


def few_steps() -> str:
    data = load("few_steps")
    spacing = {(r["steps"], r["spacing"]): r for r in data["steps_of_digits"]}
    names = list(dict.fromkeys(key[1] for key in spacing))
    counts = sorted({key[0] for key in spacing})
    runs = [[r["optimiser"], str(r["window"]), f"{r['tolerance']:.0e}", str(r["rounds"]),
             f"{r['steps_over_rounds']:.1f}", f"{r['loss']:.4f} ({r['loop_loss']:.4f})"]
            for r in load("recurrence")["optimisers"]]
    policies = "; ".join(f"{r['policy']}: error {r['error']:.3f}, {r['mode switches']} switches"
                         for r in data["policies"])
    return (
        "**Few steps on the digits' density**, error against 2,000 steps, Euler / iPNDM "
        "(`benchmarks/few_steps.py`)\n\n"
        + table(["", *(f"{n} steps" for n in counts)], [[name, *(
            f"{spacing[n, name]['Euler']:.3f} / {spacing[n, name]['iPNDM']:.3f}" for n in counts)]
            for name in names])
        + f"\nPolicies on two moving modes, 100 against 3 and 5 calls a tick: {policies}.\n\n"
        "**400 optimiser steps of a digits network in parallel** (`benchmarks/recurrence.py`; loss "
        "in brackets: the loop's)\n\n"
        + table(["", "window", "tolerance", "rounds", "steps / rounds", "loss"], runs))


def bilevel_peers(rows: dict, names: list[str]) -> str:
    return "; ".join(
        f"{n}: " + ", ".join(
            f"{library} {rows[n, f'implicit, {library}']['seconds per step'] * 1e3:.2g} ms"
            for library in ("jaxiter", "jaxopt", "optimistix")) for n in names)


def bilevel() -> str:
    data = load("bilevel")
    problems, selected = data["selection"]["problems"], data["selection"]["rows"]
    names = list(problems)
    rows = {(r["problem"], r["method"]): r for r in selected}
    methods = list(dict.fromkeys(r["method"] for r in selected if r["calls"]))

    def cell(problem: str, method: str) -> list[str]:
        row = rows[problem, method]
        calls = row["calls to level"]
        return [f"{row['final']:.1e}", "-" if calls is None else f"{calls:,.0f}"]

    levels = [f"{problems[n]['level']:.0e}" for n in names]
    head = [h for n, level in zip(names, levels, strict=True) for h in (n, f"calls to {level}")]
    peers = bilevel_peers(rows, names)
    cleaned = [[r["method"], f"{r['best AUC']:.3f}", f"{r['accuracy']:.3f}",
                "-" if r["calls to 0.95"] is None else f"{r['calls to 0.95']:,.0f}",
                f"{r['products']:,.0f}"] for r in data["cleaning"]["rows"]]
    warm = "; ".join(f"rtol {r['rtol']:.0e}: {r['warm']} products for {r['cold']}"
                     for r in data["warm"])
    memory = {(r["method"], r["steps"]): r["bytes"] for r in data["memory"]}
    grown = ", ".join(f"{m} {memory[m, 10] / 1e6:.1f} and {memory[m, 1000] / 1e6:.1f} MB"
                      for m in ("implicit", "F2SA", "unrolled"))
    return (
        "**Bilevel: one penalty per feature**, squared hypergradient at the end "
        "(`benchmarks/bilevel.py`; a call is one sample's gradient or Hessian product)\n\n"
        + table(["", *head], [[m, *(c for n in names for c in cell(n, m))] for m in methods])
        + f"\nGradient descent on F with warm inner solves, per step: {peers}.\n\n"
        "**Hyper-cleaning of digits**, 45 percent of the labels wrong, mean of two splits\n\n"
        + table(["", "best AUC", "accuracy", "calls to AUC 0.95", "products in all"], cleaned)
        + f"\nWarm starts of the adjoint: {warm}. Temporaries after 10 and 1,000 inner steps: "
        f"{grown}.\n")


def optim() -> str:
    data = load("optim")
    cost = {r["optimiser"]: r["time / adam"] for r in data["cost"]}
    rows = [[r["optimiser"], f"{r['loss']:.4f}", f"{r['accuracy']:.3f}", f"{r['rate']:g}",
             f"{cost[r['optimiser']]:.2f}"] for r in sorted(data["digits"],
                                                            key=lambda r: r["loss"])]

    def below(curve: list, level: float = 1e-8) -> str:
        return next((str(k + 1) for k, v in enumerate(curve) if v < level), "-")

    quadratic = ", ".join(f"{name} {below(curve)}"
                          for name, curve in data["controlled"]["condition 1000"].items())
    free = ", ".join(f"{name} {curve[999]:.1e}"
                     for name, curve in data["controlled"]["parameter-free"].items())
    gaps = ", ".join(f"{r['schedule']} {r['gap']:.3f}" for r in data["controlled"]["schedules"])
    sent = [[r["method"], f"{r['bytes per step']:,}", f"{r['loss']:.3f}"]
            for r in data["compression"]]
    return (
        "**Optimisers on digits** (`benchmarks/optim.py`; an MLP, 200 steps, full training loss at "
        "the best rate of a grid, mean of three seeds; differences below a third are noise)\n\n"
        + table(["", "loss", "accuracy", "rate", "time / adam"], rows)
        + f"\nIterations to 1e-8 on a quadratic of condition 1,000: {quadratic}. f after 1,000 "
        f"steps without knowing L: {free}. Last iterate of SGD on noisy labels, gap to the "
        f"optimum by schedule: {gaps}.\n\n**PowerSGD on eight devices**, 300 steps\n\n"
        + table(["", "bytes per step and device", "loss"], sent))
