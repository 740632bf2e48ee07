"""Plots from the JSON results: `python benchmarks/plots.py` writes results/*.png."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from harness import RESULTS, load  # noqa: E402

INK, ACCENT, GREY = "#33415c", "#d1495b", "#a0a8b5"


def finish(figure: plt.Figure, name: str) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)


def fixed_point() -> None:
    data = load("fixed_point")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), constrained_layout=True)
    for i, (name, curve) in enumerate(data["curves"].items()):
        left.loglog(curve["evaluations"], curve["residual"], lw=2, label=name, color=f"C{i}")
    left.set(title="breast_cancer gradient map", xlabel="evaluations", ylabel="residual")
    left.legend(frameon=False)
    problems = ["breast_cancer", "DEQ", "value iteration 0.99", "value iteration 0.999", "rotation"]
    methods = ["jaxiter picard", "jaxiter anderson(10)", "jaxopt Anderson(10)",
               "jaxopt Anderson(10), ridge 1e-10"]
    rows = {(r["problem"], r["method"]): r for r in data["rows"]}
    for i, method in enumerate(methods):
        picked = [rows[problem, method] for problem in problems]
        bars = right.bar(np.arange(len(problems)) + 0.2 * (i - 1.5),
                         [r["evaluations"] for r in picked], 0.19, label=method,
                         color=(GREY, ACCENT, INK, "#7d8fb3")[i])
        for bar, r in zip(bars, picked, strict=True):
            if r["status"] != "CONVERGED":
                bar.set_hatch("///")
                bar.set_edgecolor("white")
    right.set_yscale("log")
    right.set_xticks(np.arange(len(problems)), problems, fontsize=8)
    right.set(title="evaluations to tolerance (hatched: not converged)", ylabel="evaluations")
    right.legend(frameon=False, fontsize=8)
    finish(figure, "fixed_point")


def lanes() -> None:
    data = load("lanes")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    left.plot(data["steps"], color=INK, lw=2)
    left.set(title="steps of 2,048 problems", xlabel="problem, sorted", ylabel="steps",
             yscale="log")
    names = [r["method"] for r in data["rows"]]
    right.barh(names, [r["speedup"] for r in data["rows"]], color=ACCENT)
    right.axvline(data["ideal"], color=INK, ls="--", label="ideal")
    right.invert_yaxis()
    right.set(title="speed-up over vmap")
    right.legend(frameon=False)
    finish(figure, "lanes")


def adjoint() -> None:
    data = load("adjoint")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    rows = data["layer"]
    left.barh([r["method"] for r in rows], [r["gradient_ms"] for r in rows], color=INK)
    left.barh([r["method"] for r in rows], [r["forward_ms"] for r in rows], color=GREY)
    left.invert_yaxis()
    left.set(title="DEQ layer: forward (grey) and forward + backward", xlabel="milliseconds")
    for i, method in enumerate(dict.fromkeys(r["method"] for r in data["conditioning"])):
        points = [r for r in data["conditioning"] if r["method"] == method]
        right.loglog([1 - r["q"] for r in points], [r["relative_error"] for r in points], "o-",
                     label=method, color=(ACCENT, GREY, INK)[i])
    right.set(title="float32 gradient error near the edge", xlabel="1 - q", ylabel="relative error")
    right.legend(frameon=False)
    finish(figure, "adjoint")


def transport() -> None:
    data = load("transport")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), constrained_layout=True)
    colours = {"jaxiter auto": ACCENT, "jaxiter kernel": "#e8929d", "jaxiter newton": "#7a1f2b",
               "ott log": INK, "ott kernel": GREY}
    for name in ("jaxiter kernel", "ott log", "ott kernel"):
        rows = [r for r in data["per_iteration"] if r["method"] == name]
        left.loglog([r["n"] for r in rows], [r["reads"] for r in rows], "o-", label=name,
                    color=colours[name])
    left.axhline(2, color="k", lw=0.8, ls=":")
    left.set(title="one iteration in reads of the kernel (limit: 2)", xlabel="n", ylabel="reads")
    left.legend(frameon=False)
    solved = [r for r in data["to_tolerance"] if r["method"] in colours]
    names = list(dict.fromkeys(f"{r['problem']} {r['epsilon/mean']}" for r in solved))
    for i, (method, colour) in enumerate(colours.items()):
        rows = [r for r in solved if r["method"] == method]
        bars = right.bar(np.arange(len(names)) + 0.17 * (i - 2), [r["seconds"] for r in rows],
                         0.16, color=colour, label=method)
        for bar, r in zip(bars, rows, strict=True):
            if r["status"] not in ("CONVERGED", "converged"):
                bar.set_hatch("///")
                bar.set_edgecolor("white")
    right.set_yscale("log")
    right.set_xticks(np.arange(len(names)), names, fontsize=7, rotation=35, ha="right")
    right.set(title="seconds to a marginal error of 1e-4 (hatched: not converged)")
    right.legend(frameon=False, fontsize=8)
    finish(figure, "transport")


def transport_applied() -> None:
    data = load("transport_applied")
    figure, axes = plt.subplots(2, 2, figsize=(14, 8), constrained_layout=True)
    colours = {"POT": "#7d8fb3", "POT barycenter": "#7d8fb3", "POT convolutional": "#c3cbdc",
               "POT, warm starts": "#c3cbdc", "OTT log": INK, "OTT kernel": GREY}
    for (left, right), part, own, tolerance in zip(
            axes, ("barycentre", "gromov"), (("jaxiter, matrix", "jaxiter, grid"),
                                             ("jaxiter", "jaxiter, Anderson")), (1e-5, 2e-4),
            strict=True):
        found = {(r["n"], r["epsilon"], r["method"]): r for r in data[part]}
        problems = list(dict.fromkeys(key[:2] for key in found))
        methods = list(dict.fromkeys(key[2] for key in found))
        for i, method in enumerate(methods):
            rows = [found[*problem, method] for problem in problems]
            ratios = [r["seconds"] / found[*problem, own[0]]["seconds"]
                      for problem, r in zip(problems, rows, strict=True)]
            for axis, heights in ((left, ratios), (right, [r["error_float64"] for r in rows])):
                bars = axis.bar(
                    np.arange(len(problems)) + 0.15 * (i - 2.5), heights, 0.14, label=method,
                    color=colours.get(method, ACCENT if method == own[0] else "#e8929d"))
                for bar, r in zip(bars, rows, strict=True):
                    if not r["met"]:
                        bar.set_hatch("///")
                        bar.set_edgecolor("white")
        for axis, line in ((left, 1), (right, tolerance)):
            axis.axhline(line, color="k", lw=0.8, ls=":")
            axis.set_yscale("log")
            axis.set_xticks(np.arange(len(problems)), [f"{n:,}, {e}" for n, e in problems])
            axis.set(xlabel="n, epsilon")
        left.set(title=f"{part}: time over that of {own[0]} (hatched: error not met)")
        right.set(title=f"{part}: error recomputed in float64 (dotted: wanted)")
        right.set_ylim(top=10)  # what diverges leaves the picture
        right.legend(frameon=False, fontsize=8, loc="upper left")
    finish(figure, "transport_applied")


def diffusion() -> None:
    data = load("diffusion")
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), constrained_layout=True)
    rows = {(r["T"], r["problem"], r["sampler"], r["method"]): r["mean_rounds"]
            for r in data["full_window"]}
    methods = ("secant", "secant + jvp", "ParaSolver's start", "Picard", "ParaTAA",
               "exponential Picard")
    colours = (ACCENT, "#e8929d", "#7d8fb3", INK, GREY, "#d8dbe0")
    beds = ("GMM64", "HARD64", "DIG", "MLP")
    for i, (method, colour) in enumerate(zip(methods, colours, strict=True)):
        axes[0].bar(np.arange(4) + 0.14 * (i - 2.5),
                    [rows[100, bed, "SDE", method] or np.nan for bed in beds], 0.13,
                    color=colour, label=method)
    axes[0].set_xticks(np.arange(4), beds)
    axes[0].set(title="rounds for 100 DDPM steps", ylabel="rounds")
    lengths = sorted({key[0] for key in rows})
    for method, colour in (("secant", ACCENT), ("Picard", INK), ("ParaTAA", GREY)):
        for bed, style in (("GMM64", "o-"), ("MLP", "s--")):
            axes[1].semilogx(lengths, [rows[n, bed, "SDE", method] for n in lengths], style,
                             color=colour, label=f"{method}, {bed}")
    axes[1].set(title="rounds by the number of DDPM steps", xlabel="steps", ylim=(0, None))
    for method, colour in (("secant", ACCENT), ("picard", INK)):
        found = [r for r in data["sliding_window"] if r["method"] == method]
        axes[2].loglog([r["window"] for r in found], [r["mean_rounds"] for r in found], "o-",
                       color=colour, label=method)
    axes[2].set(title="1,000 steps through a sliding window", xlabel="window", ylabel="rounds")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    finish(figure, "diffusion")


def recurrence() -> None:
    data = load("recurrence")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    cases = list(dict.fromkeys((r["d"], r["T"], r["scale"]) for r in data["networks"]))
    names = list(dict.fromkeys(r["method"] for r in data["networks"]))
    found = {(r["d"], r["T"], r["scale"], r["method"]): r for r in data["networks"]}
    for i, name in enumerate(names):
        rows = [found.get((*case, name)) for case in cases]
        bars = left.bar(np.arange(len(cases)) + 0.16 * (i - 2),
                        [r["rounds"] if r else np.nan for r in rows], 0.15, color=f"C{i}",
                        label=name)
        for bar, r in zip(bars, rows, strict=True):
            if r and r["status"] != "CONVERGED":
                bar.set_hatch("///")
                bar.set_edgecolor("white")
    left.set_xticks(np.arange(len(cases)), [f"d {d}, T {t:,}, x {s:g}" for d, t, s in cases],
                    fontsize=7)
    left.set(title="GRU: rounds to 1e-5 (hatched: not converged)", ylabel="rounds")
    for i, name in enumerate(dict.fromkeys(r["optimiser"] for r in data["optimisers"])):
        for tolerance, style in ((1e-6, "o--"), (1e-3, "o-")):
            rows = [r for r in data["optimisers"]
                    if r["optimiser"] == name and r["tolerance"] == tolerance]
            right.plot([r["window"] for r in rows], [r["steps_over_rounds"] for r in rows], style,
                       color=(ACCENT, INK)[i], label=f"{name}, tolerance {tolerance:g}")
    right.set(title="parallel_optimize: steps per round", xlabel="window", ylim=(0, None))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    finish(figure, "recurrence")


def few_steps() -> None:
    data = load("few_steps")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), constrained_layout=True)
    names = list(dict.fromkeys(r["spacing"] for r in data["steps_of_digits"]))
    for i, name in enumerate(names):
        rows = [r for r in data["steps_of_digits"] if r["spacing"] == name]
        axes[0].semilogy([r["steps"] for r in rows], [r["iPNDM"] for r in rows], "o-",
                         color=f"C{i}", label=name)
    axes[0].set(title="rows of the schedule, iPNDM on digits", xlabel="steps", ylabel="error")
    for name, colour in (("Euler", GREY), ("AB2", INK), ("learnt", ACCENT)):
        axes[1].semilogy([r["steps"] for r in data["searched_solver"]],
                         [r[name] for r in data["searched_solver"]], "o-", color=colour, label=name)
    axes[1].set(title="learnt flow solver, unseen starts", xlabel="steps")
    for name, colour in (("ddim", GREY), ("accelerated_ddim", ACCENT)):
        axes[2].loglog([r["model calls"] for r in data["accelerated"]],
                       [r[name] for r in data["accelerated"]], "o-", color=colour, label=name)
    axes[2].set(title="accelerated DDIM, GMM64", xlabel="model calls")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    finish(figure, "few_steps")


def bilevel() -> None:
    data = load("bilevel")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), constrained_layout=True)
    curves = data["selection"]["problems"]["breast_cancer"]["curves"]
    for i, (name, curve) in enumerate(curves.items()):
        left.loglog(curve["calls"], curve["squares"], label=name, color=f"C{i % 10}",
                    ls="-" if i < 10 else "--")
    left.set(title="penalties on breast_cancer", xlabel="calls",
             ylabel="squared hypergradient")
    for i, (name, curve) in enumerate(data["cleaning"]["curves"].items()):
        right.semilogx(curve["calls"], curve["area"], label=name, color=f"C{i}")
    right.axhline(0.95, color=GREY, ls=":")
    right.set(title="hyper-cleaning of digits, half the labels random", xlabel="calls",
              ylabel="AUC of sigmoid(x)", ylim=(0.8, 1))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8, ncols=2)
    finish(figure, "bilevel")


def optim() -> None:
    data = load("optim")
    figure, axes = plt.subplots(2, 2, figsize=(13, 8.5), constrained_layout=True)
    rows = sorted(data["digits"], key=lambda r: -r["loss"])
    colours = [GREY if r["optimiser"].startswith("optax") else ACCENT for r in rows]
    axes[0, 0].barh([r["optimiser"] for r in rows], [r["loss"] for r in rows], color=colours)
    axes[0, 0].set(title="digits, 200 steps: full training loss (grey: optax's own)", xscale="log")
    axes[0, 0].tick_params(labelsize=8)
    for axis, key, title in (
            (axes[0, 1], "condition 1000", "quadratic, condition 1,000: f / f0"),
            (axes[1, 0], "parameter-free", "no L, no distance: f, condition 1e5")):
        for name, curve in data["controlled"][key].items():
            axis.semilogy(np.maximum(curve, 1e-12), label=name)
        axis.set(title=title, xlabel="steps")
        axis.legend(frameon=False, fontsize=8)
    sent = data["compression"]
    right = axes[1, 1]
    for r in sent:
        right.semilogx(r["bytes per step"], r["loss"], "o", ms=9, label=r["method"])
    right.set(title="bytes sent per step and device, 300 steps on digits", xlabel="bytes",
              ylabel="full training loss", ylim=(0, None))
    right.legend(frameon=False, fontsize=8)
    finish(figure, "optim")


if __name__ == "__main__":
    fixed_point()
    lanes()
    adjoint()
    transport()
    transport_applied()
    diffusion()
    recurrence()
    few_steps()
    bilevel()
    optim()
