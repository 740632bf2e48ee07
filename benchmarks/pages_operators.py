"""The blocks of programs, sparse models, games and projections for pages.py."""

from harness import load, table


def number(value: float, digits: str = ".1e") -> str:
    return format(value, digits)


def programs() -> str:
    data, linear = load("programs"), load("linear_programs")
    batch = [[row["method"], f"{row['milliseconds']:.1f}", f"{row['over_qpax']:.2f}",
              number(row["worst_error"]), number(row["median_error"]),
              str(row.get("most_steps", ""))] for row in data["batch"]]
    sizes = [[f"{row['n']}, {row['m']}, {row['units']:g}", number(row["worst_error"]),
              number(row["median_error"]), f"{row['converged']} and {row['floor']} of 32",
              str(row["most_steps"])] for row in data["sizes"]]
    many, slopes = data["many"], data["gradients"]
    ratios = linear["solved"]["median ratios"]
    single, proved = linear["single"]["rows"], linear["proved"]
    reached = sum(row["status"] == "CONVERGED" for row in single)

    def kind(name: str) -> str:
        row = proved[name]
        said = ", ".join(f"{count} {status}" for status, count in row["statuses"].items())
        return f"{name}: {said} ({row['steps'][0]} to {row['steps'][1]} steps)"

    return (
        "**64 quadratic programs at once** (`benchmarks/programs.py`; n = 30, 40 inequalities, "
        "float32, errors against Clarabel in float64)\n\n"
        + table(["", "ms", "over qpax", "worst error", "median", "most steps"], batch)
        + "\n**Quadratic programs that chose nothing** (\"interior\", 32 each)\n\n"
        + table(["n, m, units", "worst error", "median", "converged, at the floor", "most steps"],
                sizes)
        + f"\n{many['count']:,} programs, {many['infeasible']} infeasible: lanes are "
        f"{many['lanes_over_vmap']:.2f} times as fast as vmap (mean steps "
        f"{many['mean_steps']:.1f}, most {many['most_steps']}); falsely converged "
        f"{many['falsely_converged']}, unsolved {many['unsolved']}, the others "
        f"{'bitwise' if many['others_bitwise_equal'] else 'NOT bitwise'} as without them. "
        f"Gradients against differences of Clarabel: median error "
        f"{number(slopes['median_error'])}, worst {number(slopes['worst_error'])}.\n\n"
        "**Linear programs by products** (`benchmarks/linear_programs.py`; 50 x 100 to 200 x 400, "
        "float64, 1e-6, medians at MPAX's own recomputed error)\n\n"
        f"Iterations {ratios['iterations']:.2f} of r2HPDHG's, "
        f"{ratios['iterations of the better peer']:.2f} of the better of MPAX's two; seconds "
        f"{ratios['seconds']:.3f}; over HiGHS {ratios['seconds of HiGHS']:.2f}. float32: "
        f"{reached} of {len(single)} to 1e-4, recomputed errors to "
        f"{number(max(row['error'] for row in single))}. Certificates, 20 x 40, float32: "
        + "; ".join(kind(name) for name in proved) + ".\n")


def sparse_models() -> str:
    data = load("sparse_models")
    lasso = [[row["solver"], str(row["steps"]), row["status"], number(row["relative excess"]),
              f"{row['ms']:.2f}", f"{row['over_default']:.2f}"] for row in data["lasso"]["rows"]]
    path = [[row["method"], f"{row['ms']:.2f}", f"{row['over_sklearn']:.2f}",
             number(row["worst excess"])] for row in data["path"]["rows"]]
    unseen = [[name, f"{row['median']:.1f}", f"{row['least']:.1f}", str(row["unsolved"])]
              for name, row in data["unseen"]["picard_at_1/L_over"].items()]
    convex = [[row["penalty"], str(row["rho"]), f"{row['accelerated_nonconvex']:.0f}",
               f"{row['Ghadimi-Lan over']:.2f}", f"{row['gradient over']:.2f}"]
              for row in data["nonconvex"]]
    return (
        "**A lasso** (`benchmarks/sparse_models.py`; 100 x 200, float32)\n\n"
        + table(["", "steps", "status", "excess", "ms", "over the default"], lasso)
        + f"\nDerivative in the penalty: error {number(data['lasso']['derivative_error'])} against "
        "the closed form.\n\n"
        f"**{data['path']['penalties']} penalties**\n\n"
        + table(["", "ms", "over `lasso_path`", "worst excess"], path)
        + f"\n**{len(data['unseen']['rows'])} lassos and logistic lassos that chose nothing** "
        "(steps of Picard at 1 / L over those of each)\n\n"
        + table(["", "median", "least", "unsolved"], unseen)
        + "\n**SCAD and MCP** (gradients, medians of ten seeds)\n\n"
        + table(["", "correlation", "`accelerated_nonconvex`", "Ghadimi-Lan over it",
                 "proximal gradient over it"], convex))


def games() -> str:
    data = load("games")
    rows = [[row["game"], row["half"], str(row["default"]), number(row["exploitability"]),
             number(row["error of the value"]), f"{1e3 * row['seconds']:.1f}",
             f"{1e3 * row['HiGHS, seconds']:.1f}"] for row in data["matrix"]["rows"]]
    large = data["matrix"]["random_100"]
    turns = [[row["method"], *(number(row[k]) for k in ("10", "100", "1000", "10000"))]
             for row in data["rates"]["turns"]]
    sums = [[row["method"].replace("|", "\\|"), *(number(row[k]) for k in ("10", "100", "1000"))]
            for row in data["sums"]["policeman"]]
    names = [name for name in data["sums"]["crossover"][0] if name not in (
        "rows", "average over full")]
    cross = [[str(row["rows"]), *("-" if row[name] is None else f"{row[name]:,}"
                                  for name in names)] for row in data["sums"]["crossover"]]
    return (
        "**Twenty matrix games** (`benchmarks/games.py`; float32; gap over the largest payoff, the "
        "value against HiGHS)\n\n"
        + table(["", "", "steps", "gap", "error of the value", "ms", "HiGHS, ms"], rows)
        + f"\nOf {len(large['steps'])} random games of 100 x 100 {large['converged']} converge, in "
        f"{large['median']:.0f} steps in the median, {min(large['steps'])} to "
        f"{max(large['steps']):,}.\n\n"
        "**Last points on 20 turns, singular values 1e-3 to 1** (residual after so many steps)\n\n"
        + table(["", "10", "100", "1,000", "10,000"], turns)
        + "\n**A game of 100 components** (residual after so many epochs)\n\n"
        + table(["", "10", "100", "1,000"], sums)
        + "\n**Components evaluated to a hundredth of the residual** (least squares)\n\n"
        + table(["rows", *names], cross))


def splittings() -> str:
    data = load("splittings")["units"]
    units = [key for key in data[0] if key[0].isdigit()]
    rows = [[row["problem"], row["solver"], row["steps by"].replace("|K|", "norm(K)"),
             *(f"{row[c][0]:,.0f}, {number(row[c][1], '.0e')}" for c in units),
             str(row["unsolved"]), str(row["false"])] for row in data]
    return ("**`primal_dual` where the objective is multiplied by c** (`benchmarks/splittings.py`; "
            "float32, eight seeds each; median steps and worst relative error)\n\n"
            + table(["", "solver", "steps", *(f"c = {c}" for c in units),
                     "unsolved of 40", "CONVERGED, 1 % off"], rows))


def projections() -> str:
    data = load("projections")
    rows = [[row["what"], f"{1e3 * row['warm']:.2f}", f"{row['of a sort']:.2f}"]
            for row in data["seconds"]]
    return ("**Projections onto simplices, (256, 1000)** (`benchmarks/projections.py`; float32)\n\n"
            + table(["", "ms", "of a sort"], rows))
