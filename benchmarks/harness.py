"""Honest timings: compile apart, warm runs interleaved over all contenders, medians of ratios."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def environment() -> dict:
    """Hardware and versions of what is installed, for every JSON file."""
    versions = {}
    for name in ("jax", "jaxlib", "optax", "equinox", "jaxopt", "optimistix", "lineax", "ott-jax"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "device": str(jax.devices()[0].device_kind), "cpus": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(),
        "versions": versions,
    }


def compile_all(functions: dict[str, Callable], *args: Any, repeats: int = 3) -> tuple[dict, dict]:
    """Compiled functions and the median seconds of tracing plus compiling each, interleaved."""
    compiled, seconds = {}, {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            jax.clear_caches()
            start = time.perf_counter()
            compiled[name] = jax.jit(lambda *a, f=function: f(*a)).lower(*args).compile()
            seconds[name].append(time.perf_counter() - start)
    return compiled, {name: float(np.median(times)) for name, times in seconds.items()}


def time_all(compiled: dict[str, Callable], *args: Any, repeats: int = 15) -> dict[str, np.ndarray]:
    """Warm seconds `[repeats]` of each function, interleaved so that noise hits all alike."""
    times = {name: [] for name in compiled}
    for function in compiled.values():
        jax.block_until_ready(function(*args))
    for _ in range(repeats):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def save(name: str, content: dict) -> None:
    """Write results/NAME.json with the environment."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **content}, indent=1) + "\n")
    print(f"wrote {path.name}")


def load(name: str) -> dict:
    """Read results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def run_parts(name: str, parts: dict[str, Callable], default: list[str] | None = None) -> None:
    """Run the parts named on the command line, else the default ones, and save each by its name.

    Parts named leave the others' results as they were.
    """
    named = sys.argv[1:]
    known = load(name) if named and (RESULTS / f"{name}.json").exists() else {}
    known.pop("environment", None)
    save(name, known | {part: parts[part]() for part in named or default or parts})


def show(rows: list[dict]) -> None:
    """Print rows as a table."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[f"{r[c]:.4g}" if isinstance(r[c], float) else str(r[c]) for c in columns]
             for r in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"
