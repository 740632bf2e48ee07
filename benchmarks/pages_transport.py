"""The blocks of what transport is applied to, for pages.py."""

from harness import load, table


def applied_transport() -> str:
    data = load("transport_applied")

    def rows(part: str) -> list[list[str]]:
        own = {(row["n"], row["epsilon"]): row["seconds"] for row in data[part]
               if row["method"] in ("jaxiter", "jaxiter, matrix")}
        return [[f"{row['n']:,}, {row['epsilon']}", row["method"], str(row["steps"]),
                 f"{row['error_float64']:.1e}" + ("" if row["met"] else " (not met)"),
                 f"{1e3 * row['seconds']:.1f}",
                 f"{row['seconds'] / own[row['n'], row['epsilon']]:.2f}"] for row in data[part]]

    names = ["n, epsilon", "", "steps", "error", "ms", "over the first"]
    return (
        "**Barycentres of three histograms** (`benchmarks/transport_applied.py`; l1 error to 1e-5 "
        "of float64; POT in float64)\n\n" + table(names, rows("barycentre"))
        + "\n**Gromov-Wasserstein plans** (an l1 change of 2e-4 by one exact outer step)\n\n"
        + table(names, rows("gromov"))
        + "\n![transport_applied](../benchmarks/results/transport_applied.png)\n")


def balanced_layers() -> str:
    data = load("balanced_layers")
    attention = [[row["part"], str(row["half_steps"]), f"{row['times_softmax_a_half_step']:.2f}"]
                 for row in data["attention"]["rows"]]
    routing = [[f"{row['tokens']:,} x {row['experts']}, {row['k']}, {row['scores']}",
                f"{row['greedy_overload']:.2f}", str(row["plain_steps"]),
                str(row["anderson_steps"])] for row in data["routing"]["rows"]]
    codes = [[str(row["seed"]), row["codebook"], f"{row['nearest']:.3f}",
              f"{row['balanced']:.3f}"] for row in data["quantisation"]["rows"]]
    return (
        "**Balanced layers** (`benchmarks/balanced_layers.py`)\n\n"
        + table(["attention", "half-steps", "a half-step over softmax"], attention) + "\n"
        + table(["tokens x experts, k, scores", "overload of top k", "steps to 5 percent",
                 "with Anderson"], routing) + "\n"
        + table(["draw", "codebook", "codes in use, nearest", "balanced"], codes))
