"""The blocks of roots, fits and unseen transport problems for pages.py."""

from harness import load, table


def roots() -> str:
    data = load("roots")
    solved = [[row["method"], row["dtype"], f"{row['solved']} of {row['cases']}",
               str(row["claimed"]), str(row["false"])] for row in data.get("solved", [])]
    times = [[row["system"], row["method"], f"{row['compiled us']:.0f}", f"{row['prompt us']:.0f}"]
             for row in data["times"]]
    brackets = [[row["family"], str(row["converged"]), f"{row['largest ulp']:.1f}",
                 f"{row['mean steps']:.1f}", str(row["most steps"]), f"{1e3 * row['seconds']:.1f}"]
                for row in data["brackets"]]
    systems = "" if not solved else (
        "**Systems of equations** (`benchmarks/roots.py`; More, Garbow and Hillstrom from 1, 10 "
        "and 100 times their starts and in other units, judged by numpy in float64; hybrid's "
        "limits were set on these systems)\n\n"
        + table(["", "dtype", "solved", "claimed", "claimed falsely"], solved) + "\n")
    return (
        systems + "**Small systems** (microseconds of a warm call, float32)\n\n"
        + table(["", "", "compiled", "from a prompt"], times)
        + "\n**10,000 equations in one call of `bracketed_root`** (float32)\n\n"
        + table(["", "converged", "largest error, ulp", "mean steps", "most", "ms"], brackets))


def fits() -> str:
    data = load("fits")
    names = ["jaxiter", "scipy lm", "scipy trf", "optimistix", "jaxopt"]
    strd = [[row["set"], row["level"], *(
        ", ".join(f"{digits:.1f} ({steps})" for digits, steps in row[name]) for name in names)]
        for row in data["strd"]]
    decays = [[row["method"], f"{row['seconds']:.2f}", f"{row['over_optimistix']:.2f}",
               f"{row['compile']:.1f}", str(row["unsolved"]), str(row["floor"]),
               f"{row['mean_steps']:.1f}", str(row["most_steps"])]
              for row in data["decays"]["rows"]]
    return (
        "**Fits of NIST's reference data, float64** (`benchmarks/fits.py`; correct digits of the "
        "worst parameter and evaluations, from both starts)\n\n"
        + table(["", "level", *names], strd)
        + f"\n**{data['decays']['count']:,} decays, float32, one core** (100 steps at most)\n\n"
        + table(["", "seconds", "over optimistix", "compile s", "unsolved",
                 "at the precision floor", "mean steps", "most"], decays))


def unseen_transport() -> str:
    data = load("transport_auto")
    found = data["summary"]
    parts, peer, exact = (found[name] for name in (
        "auto over best part", "best entropic peer over auto", "emd over auto"))

    def least(row: dict, words: tuple[str, ...]) -> str:
        times = {name: row["seconds"][name] for name in row["seconds"]
                 if name.startswith(words) and row["error"][name] <= 2e-4}
        if not times:
            return "none"
        best = min(times, key=times.__getitem__)
        return f"{1e3 * times[best]:.1f} ({best})"

    rows = [[f"{row['kind']}, {row['n']}", str(row["epsilon"]),
             f"{1e3 * row['seconds']['auto']:.1f}", least(row, ("kernel", "newton")),
             least(row, ("OTT", "POT s", "POT l")), least(row, ("POT emd",))]
            for row in data["rows"]]
    return (
        f"**{found['problems']} transport problems that chose nothing here** "
        "(`benchmarks/transport_auto.py`; ms to an l1 error of 1e-4, taken again in float64; "
        "epsilon in mean costs; OTT's kernel with momentum and adaptive momentum everywhere; up to "
        "700 points also OTT's log domain with momentum, Anderson and a schedule, and POT)\n\n"
        + table(["", "epsilon", "`sinkhorn`", "best of its parts", "best entropic peer",
                 "exact, POT emd"], rows)
        + f"\nThe default takes {parts['median']:.2f} times its best part in the median, "
        f"{parts['worst']:.2f} at worst, above 1.3 on {parts['beyond 1.3']}. The best entropic "
        f"peer takes {peer['median']:.1f} times as long in the median, {peer['worst']:.2f} at "
        f"worst; it is ahead on {peer['behind']}, and on {peer['no peer solved']} none gets there. "
        f"The exact solver takes {exact['median']:.1f} times as long in the median and "
        f"{exact['worst']:.2f} at worst: where epsilon is small and n moderate it wins by nature.\n"
    )
