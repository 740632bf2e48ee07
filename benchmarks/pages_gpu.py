"""The block of docs/scaling.md on GPUs, from results/gpu_CARD.json of every card measured."""

from harness import RESULTS, load, table


def cards() -> list[dict]:
    return [load(path.stem) for path in sorted(RESULTS.glob("gpu_*.json"))]


def rows_of(data: dict, part: str, columns: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the named columns; a column of this script that the file lacks is `-`."""
    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        whole = isinstance(value, int) and not isinstance(value, bool)
        return f"{value:,}" if whole else str(value)

    return list(columns.values()), [[cell(row.get(key, "-")) for key in columns]
                                    for row in data.get(part, [])]


PARTS = {
    "transport": ("Sinkhorn to a marginal error of 1e-4", {
        "n": "n", "epsilon/mean": "epsilon / mean", "method": "", "ms": "ms", "steps": "steps",
        "error_float64": "true error", "compile_s": "compile s"}),
    "precision": ("Products in the backend's default precision, and a solve beside them", {
        "what": "", "error": "error", "converged": "converged"}),
    "solvers": ("One evaluation over a hand-written loop", {
        "size": "unknowns", "method": "", "us_per_evaluation": "us", "ratio": "ratio",
        "compile_s": "compile s"}),
    "equilibrium": ("A deep equilibrium layer, 512 x 1,024, Anderson to 1e-4", {
        "products": "products", "what": "", "method": "", "ms": "ms", "forward_ms": "forward ms",
        "gradient_ms": "gradient ms", "steps": "steps", "residual": "residual"}),
    "lanes": ("4,096 contractions of 10 to 2,000 steps", {
        "method": "", "ms": "ms", "over_vmap": "over vmap", "ideal": "ideal"}),
    "sampling": ("200 steps of a digits network, loop and rounds", {
        "sampler": "", "rounds": "rounds", "loop_ms": "loop ms", "parallel_ms": "parallel ms",
        "speedup": "speed-up", "rms_difference": "rms difference",
        "batched_over_single_call": "batched call / one call"}),
}


def gpu() -> str:
    """Tables of every card, or that there is none."""
    found = cards()
    if not found:
        return "Not measured: run `python benchmarks/gpu.py` and commit its JSON.\n"
    blocks = []
    for data in found:
        versions = data["environment"]["versions"]
        blocks.append(f"**{data['card']}**, jax {versions['jax']}, `benchmarks/gpu.py`\n")
        for part, (title, columns) in PARTS.items():
            rows = data.get(part) or []
            used = {key: name for key, name in columns.items() if any(key in r for r in rows)}
            blocks.append(f"{title}\n\n{table(*rows_of(data, part, used))}" if rows
                          else f"{title}: not measured.\n")
    return "\n".join(blocks)
