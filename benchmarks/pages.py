"""Write what was measured into the README and docs/: `python benchmarks/pages.py`.

From results/*.json alone: docs/benchmarks.md whole, the marked blocks of README.md and
docs/scaling.md.
"""

from pathlib import Path

from harness import RESULTS, load, table
from pages_families import bilevel, bilevel_peers, diffusion, few_steps, optim
from pages_gpu import gpu
from pages_operators import games, programs, projections, sparse_models, splittings
from pages_problems import fits, roots, unseen_transport
from pages_transport import applied_transport, balanced_layers

ROOT = Path(__file__).resolve().parent.parent


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


def choosing() -> str:
    data = load("auto")
    halves = {"tune": "tuned on", "report": "not seen", "benchmark": "the five problems above"}

    def cells(numbers: dict, count: int) -> list[str]:
        ratios = [numbers[key] for key in ("median", "ninth decile", "worst")]
        shown = ["unsolved" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        return [*shown, f"{numbers['beyond']} of {count}", str(numbers["unsolved"])]

    rows = [[f"{solver}, {halves[half]}",
             *cells(numbers, sum(r["half"] == half for r in data["rows"]))]
            for half in halves for solver, numbers in data["summary"][half].items()]
    return (
        "**Evaluations over those of the best solver, on sixty maps** (`benchmarks/auto.py`; ten "
        "kinds from `maps.py`, 2 to 500 unknowns, until the true error is 1e-5 or what float32 "
        "holds; at most 20,000 evaluations)\n\n"
        + table(["", "median", "ninth decile", "worst", f"beyond {data['allowed']}", "unsolved"],
                rows)
        + "\nThe rule of `choosing.py`, \"auto\", begins with Anderson acceleration and may change "
        "to\nover-relaxation. Tuned on half of the maps, it is not within 1.3 of the best on all "
        "of the others,\nand no better than `anderson()` in the median or at worst. So it is no "
        "solver of the library: take\n`anderson()`, and where a map answers with slopes below -1 "
        "`anderson(mixing=0.5)` or `damped()`.\n")


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


def prompts() -> str:
    rows = [[r["call"], r["library"], f"{r['first s']:.2f} s", f"{r['next ms']:.2f} ms"]
            for r in load("prompt")["rows"]]
    return ("**Calls from a prompt** (`benchmarks/prompt.py`; outside of any jit, with maps, rules "
            "and numbers made anew)\n\n" + table(["", "", "first", "next"], rows))


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
    # What has not been run whole yet has no block.
    problems = [block() for names, block in (
        (["roots"], roots), (["fits"], fits), (["transport_auto"], unseen_transport),
        (["programs", "linear_programs"], programs), (["sparse_models"], sparse_models),
        (["games"], games), (["projections"], projections), (["splittings"], splittings),
        (["transport_applied"], applied_transport), (["balanced_layers"], balanced_layers))
        if all((RESULTS / f"{name}.json").exists() for name in names)]
    blocks = [fixed_points(), choosing(), *problems, gradients(), training(), lanes(), transport(),
              diffusion(), few_steps(), bilevel(), optim(), compiling(), prompts(), audit()]
    pictures = "\n".join(f"![{n}](../benchmarks/results/{n}.png)" for n in PLOTS)
    (ROOT / "docs" / "benchmarks.md").write_text(
        "# Benchmarks\n\nWritten by `benchmarks/pages.py` from `benchmarks/results/`. Two CPU "
        "cores, float32, every peer in the\nsame run, as ratios where they are comparable; "
        "compile times include tracing.\n\n" + "\n".join(blocks) + "\n" + pictures + "\n")
    replace(ROOT / "README.md", "measured", headlines())
    for name, block in zip(("throughput", "model", "larger"), scaling(), strict=True):
        replace(ROOT / "docs" / "scaling.md", name, block)
    replace(ROOT / "docs" / "scaling.md", "gpu", gpu())


if __name__ == "__main__":
    main()
