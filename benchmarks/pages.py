"""Write what was measured into the README and docs/: `python benchmarks/pages.py`.

From results/*.json alone: docs/benchmarks.md whole, the marked blocks of README.md and
docs/scaling.md.
"""

from pathlib import Path

from harness import load
from pages_gpu import gpu

ROOT = Path(__file__).resolve().parent.parent


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def fixed_points() -> str:
    data = load("fixed_point")
    rows = {(r["problem"], r["method"]): r for r in data["rows"]}
    overhead = {(r["map"], r["method"]): r["ratio"] for r in data["overhead"]}
    problems = ["breast_cancer", "DEQ", "value iteration 0.99", "value iteration 0.999", "rotation"]
    methods = ["jaxiter picard", "jaxiter halpern adaptive", "jaxiter anderson(5)",
               "jaxiter anderson(10)", "jaxiter anderson(20)", "jaxopt FixedPointIteration",
               "jaxopt Anderson(5)", "jaxopt Anderson(10)", "jaxopt Anderson(10), ridge 1e-10",
               "optimistix FixedPointIteration"]

    def cell(problem: str, method: str) -> str:
        row = rows[problem, method]
        status = "" if row["status"] == "CONVERGED" else f" ({row['status']})"
        return f"{row['evaluations']:,}{status}"

    discs = rows["infeasible discs", "jaxiter picard"]["evaluations"]
    return (
        "**Evaluations to tolerance** (`benchmarks/fixed_point.py`; status where it is not "
        "CONVERGED)\n\n"
        + table(["", *problems], [[m, *(cell(p, m) for p in problems)] for m in methods])
        + f"\nOn two disjoint discs `no_fixed_point()` says after {discs} evaluations that "
        "Douglas-Rachford has no fixed point; the peers spend all 2,000.\n\n"
        "**Cost per evaluation over a hand-written `lax.while_loop`** (same script, 200 "
        "evaluations)\n\n"
        + table(["", "DEQ layer, 64 x 256", "memory-bound map, 1e6"],
                [[m, f"{overhead['DEQ', m]:.2f}", f"{overhead['memory-bound, 1e6', m]:.2f}"]
                 for m in ("jaxiter picard", "jaxiter anderson(5)", "jaxopt Anderson(5)")]))


def gradients() -> str:
    data = load("adjoint")
    rows = [[r["method"], f"{r['relative_error']:.1e}", f"{r['backward_over_forward']:.2f}",
             f"{r['forward_compile_s']:.2f} s", f"{r['gradient_compile_s']:.2f} s"]
            for r in data["layer"]]
    worst = {r["method"]: r["relative_error"] for r in data["conditioning"] if r["q"] == 0.9999}
    return (
        "**Gradient of the DEQ layer** (`benchmarks/adjoint.py`; error against float64 "
        "unrolling)\n\n"
        + table(["", "relative error", "backward / forward", "compile forward",
                 "compile gradient"], rows)
        + "\nOn a linear map of norm 0.9999 in float32 the relative gradient error is "
        f"{worst['jaxiter implicit']:.1e}; jaxopt's default gives "
        f"{worst['jaxopt implicit (default)']:.4f}, silently.\n")


def lanes() -> str:
    data = load("lanes")
    row = next(r for r in data["rows"] if r["method"] == "128 lanes, refill 16")
    return (f"**Lanes** (`benchmarks/lanes.py`, 2,048 problems, one core): {row['speedup']:.1f} "
            f"times faster than vmap with the defaults; the ideal is {data['ideal']:.1f}.\n")


def transport_times(data: dict) -> str:
    solved = {(r["problem"], r["epsilon/mean"], r["method"]): r for r in data["to_tolerance"]}
    problems = sorted({(r["problem"], r["epsilon/mean"]) for r in data["to_tolerance"]},
                      key=lambda p: (p[0], -p[1]))

    def seconds(problem: tuple, method: str) -> str:
        row = solved[*problem, method]
        good = row["status"] in ("CONVERGED", "converged")
        return f"{row['seconds'] * 1e3:.1f}" if good else f"({row['seconds'] * 1e3:.0f})"

    methods = ("jaxiter auto", "jaxiter kernel", "jaxiter newton", "ott log", "ott kernel",
               "POT stabilized, float64", "POT emd (exact)")
    rows = [[f"{p[0]} {p[1]}", *(seconds(p, m) for m in methods)] for p in problems]
    return ("**Sinkhorn, milliseconds to a marginal error of 1e-4** (`benchmarks/transport.py`), "
            "epsilon as a share of the mean cost; in brackets: not converged in 4,000 iterations "
            "(POT: 2,000)\n\n" + table(["", *methods], rows))


def transport() -> str:
    data = load("transport")
    names = ("jaxiter kernel", "ott log", "ott kernel")
    cost = {(r["n"], r["method"]): r for r in data["per_iteration"]}
    sizes = sorted({r["n"] for r in data["per_iteration"]})
    iteration = [[name, *(f"{cost[n, name]['reads']:.1f}" if (n, name) in cost else "-"
                          for n in sizes)] for name in names]
    newton = [[r["problem"], f"{r['sinkhorn_iterations']:,}", str(r["newton_steps"]),
               f"{r['newton_passes']:,}", f"{r['ratio_of_passes']:.1f}"] for r in data["newton"]]
    gradient = [[str(r["epsilon/mean"]), r["method"],
                 f"{r['relative_error']:.1e}" if isinstance(r["relative_error"], float)
                 else r["relative_error"], f"{r['gradient_over_forward']:.2f}"]
                for r in data["gradients"]]
    batch = data["batches"][0]
    memory = load("transport_memory")["memory"][0]
    return (
        "**Sinkhorn, one iteration in reads of the kernel** (`benchmarks/transport.py`; a read "
        "is the time of `K @ v`)\n\n"
        + table(["", *(f"n = {n:,}" for n in sizes)], iteration)
        + "\n" + transport_times(data)
        + "\n**Newton, passes over the matrix to 1e-8** (float64, epsilon = max C / 1200)\n\n"
        + table(["", "Sinkhorn iterations", "Newton steps", "passes", "Sinkhorn / Newton passes"],
                newton)
        + "\n**Gradient of `<W, P>` by the cost in float32**\n\n"
        + table(["epsilon / mean", "", "relative error", "value and gradient / value"], gradient)
        + f"\nvmap over 64 equal problems of n = 200 costs {batch['vmap_over_loop']:.2f} of a loop "
        f"over them; on uneven ones lanes are {batch['vmap_over_lanes']:.1f} times faster than "
        f"vmap, and 64 histograms on one kernel {batch['vmap_over_histograms']:.1f} times. POT's "
        f"batched Sinkhorn takes {batch['pot_batch_over_vmap']:.1f} times as long as our vmap. "
        f"100,000 x 100,000 points in 3 d: {memory['peak_resident_gb']:.2f} GB resident.\n")


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


def audit() -> str:
    data = load("audit")
    total, graph = data["total"], data["in the graph"]
    return (f"**Truth audit** (`benchmarks/audit.py`): {total['solves']:,} random and degenerate "
            f"problems, each answer judged in float64 by numpy; {total['converged']:,} say "
            f"CONVERGED, {total['false']} of them contradicted by their own answer; "
            f"gradients that are a wrong number: {total['silent']}, that are none although their "
            f"problem is well conditioned: {total['lost']}; not solved although they had to be: "
            f"{total['unsolved']}; estimates of an error believed before the slowest direction "
            f"showed: {total['early']}. "
            f"{graph['functions']} front functions on {graph['thetas']} odd inputs each, value and "
            f"gradient: {len(graph['raised'])} raise inside the graph.\n")


def training() -> str:
    data = load("deep_equilibrium")
    rows = []
    for r in data["rows"]:
        name = f"{r['cell']}, {r['dtype']}"
        if "raises" in r:
            rows.append([name, r["method"], f"raises {r['raises']}", "-", "-", "-"])
            continue
        rows.append([name, r["method"], f"{r['accuracy']:.3f}", f"{r['least']:.3f}",
                     f"{r['dead']} of {data['seeds']}", f"{r['ms a step']:.1f}"])
    return ("**Training through solves that fail** (`benchmarks/deep_equilibrium.py`): deep "
            f"equilibrium models on digits, {data['epochs']} epochs, {data['seeds']} seeds; "
            "accuracy on unseen digits\n\n"
            + table(["", "adjoint", "mean", "least", "dead", "ms a step"], rows))


def compiling() -> str:
    data = load("compile_times")
    rows = [[r["family"], r["library"], f"{r['forward s']:.2f} s", f"{r['gradient s']:.2f} s"]
            for r in data["families"]]
    return ("**Seconds to trace and compile** (`benchmarks/compile_times.py`; `import jaxiter` "
            f"takes {data['imports']['ratio']:.2f} times the import of jax, optax and equinox)\n\n"
            + table(["", "", "forward", "value and gradient"], rows))


def scaling() -> tuple[str, str, str]:
    """Tables of docs/scaling.md: throughput, counted against predicted, larger machines."""
    data, runs = load("scaling"), load("throughput")
    throughput = table(["8,192 uneven problems, sorted", "time", "speed-up"],
                       [[r["run"], f"{1e3 * r['seconds']:.0f} ms", f"{r['speedup']:.2f}"]
                        for r in runs["rows"]])
    model = table(
        ["one iteration, n = 1,024", "devices", "Mflop per device", "predicted flops",
         "predicted bytes", "messages"],
        [[r["family"], str(r["devices"]), f"{r['flops'] / 1e6:.1f}",
          f"{r['predicted flops / counted']:.2f}", f"{r['predicted bytes / counted']:.2f}",
          f"{r['messages']} ({r['predicted messages']})"] for r in data["model"]])
    larger = table(
        ["", "machine", "n", "one device", "all", "speed-up", "communication",
         "half the time below n"],
        [[r["family"], r["machine"], f"{r['n']:,}", f"{r['one device us']:,.0f} us",
          f"{r['all us']:,.0f} us", f"{r['speedup']:.1f}", f"{100 * r['communication']:.0f} %",
          f"{r['even from n']:,}"] for r in data["larger"]])
    return throughput, model, larger


def headlines() -> str:
    """The README's block: one line per claim, the tables of the peers, and where the rest is."""
    runs = {r["run"]: r["speedup"] for r in load("throughput")["rows"]}
    rounds = {r["method"]: r["mean_rounds"] for r in load("diffusion")["full_window"]
              if (r["T"], r["problem"], r["sampler"]) == (100, "MLP", "SDE")}
    nested = {(r["problem"], r["method"]): r for r in load("bilevel")["selection"]["rows"]}
    problems = list(dict.fromkeys(name for name, _ in nested))
    return "\n".join([
        fixed_points(), gradients(), lanes(),
        f"**Two devices** (`benchmarks/throughput.py`, 8,192 sorted problems): dealt by difficulty "
        f"{runs['two, dealt']:.2f} times one device; in blocks {runs['two, in blocks']:.2f}.\n",
        transport_times(load("transport")),
        "**A hundred steps of DDPM in parallel** (`benchmarks/diffusion.py`, a network trained on "
        "digits, to 1e-3), rounds of batched calls: "
        + ", ".join(f"{m} {rounds[m]:.1f}" for m in ("secant", "Picard", "ParaTAA")) + ".\n",
        "**A step of implicit gradient descent with warm starts** (`benchmarks/bilevel.py`): "
        f"{bilevel_peers(nested, problems)}.\n",
        audit()])


def replace(path: Path, name: str, block: str) -> None:
    """Put a block between its two marks."""
    text = path.read_text()
    start, end = text.index(f"<!-- {name} -->"), text.index(f"<!-- end {name} -->")
    path.write_text(f"{text[:start]}<!-- {name} -->\n{block}{text[end:]}")


PLOTS = ("fixed_point", "adjoint", "lanes", "transport", "diffusion", "recurrence", "few_steps",
         "bilevel", "optim")


def main() -> None:
    blocks = [fixed_points(), gradients(), training(), lanes(), transport(), diffusion(),
              few_steps(), bilevel(), optim(), compiling(), audit()]
    pictures = "\n".join(f"![{n}](../benchmarks/results/{n}.png)" for n in PLOTS)
    (ROOT / "docs" / "benchmarks.md").write_text(
        "# Benchmarks\n\nWritten by `benchmarks/pages.py` from `benchmarks/results/`. Two CPU "
        "cores, float32, every peer in the\nsame run, as ratios where they are comparable; "
        "compile times include tracing.\n\n" + "\n".join(blocks) + "\n" + pictures + "\n")
    replace(ROOT / "README.md", "measured", headlines())
    for name, block in zip(("throughput", "model", "larger"), scaling(), strict=True):
        replace(ROOT / "docs" / "scaling.md", name, block)
    replace(ROOT / "docs" / "scaling.md", "gpu", gpu(table))


if __name__ == "__main__":
    main()
