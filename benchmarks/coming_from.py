"""What jaxopt, optimistix, scipy, MPAX and qpax answer to the calls that the docs translate.

`python benchmarks/coming_from.py` evaluates every row of the first four tables of
docs/coming_from.md on the problems that the page defines, in float64, and writes
results/coming_from.json: the relative difference of the answers and, where both sides
differentiate, of the gradients. tests/test_coming_from.py runs the same rows.

Our side is the page's own text; the peers' are in coming_from_peers.py and coming_from_jaxopt.py.
"""

import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from coming_from_peers import PEERS  # noqa: E402
from coming_from_row import PAGE, Row, cells  # noqa: E402

PACKAGES = ("jaxopt", "optimistix", "scipy", "mpax", "qpax")


def rows() -> dict[str, list[tuple[str, str]]]:
    """By table, its rows: what it is called there, and our call."""
    return {section: [(theirs, re.fullmatch("`(.*)`", ours)[1]) for theirs, ours in cells(section)]
            for section in PEERS}


def preamble() -> dict[str, Any]:
    """The names that the page defines."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
    return names


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference of two trees, each leaf relative to its largest entry.

    Raises:
      ValueError: shapes that differ; answers of zero, which compare nothing.
    """
    found = []
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        one, other = np.asarray(one, float), np.asarray(other, float)
        if one.shape != other.shape or not np.any(other):
            raise ValueError(f"cannot compare {one} with {other}.")
        found.append(np.max(np.abs(one - other)) / np.max(np.abs(other)))
    return float(np.max(found))  # NaN, where there is one


def slope(call: Any, names: dict[str, Any], by: str) -> jax.Array:
    """The gradient of some linear function of the answer with respect to one of the names."""
    def loss(at: jax.Array) -> jax.Array:
        out = call(names | {by: at})
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return jax.grad(loss)(names[by])


def compare(text: str, row: Row) -> dict[str, float]:
    """The differences of one row, of the answer and of the gradient."""
    def ours(names: dict[str, Any]) -> Any:
        return row.read(eval(text, dict(names)), SimpleNamespace(**names))

    def theirs(names: dict[str, Any]) -> Any:
        return row.peer(SimpleNamespace(**names))

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = preamble()
        found = {} if row.derivative_only else {"answer": relative(ours(names), theirs(names))}
        if row.by is not None:
            found["gradient"] = relative(*(slope(call, names, row.by) for call in (ours, theirs)))
    return found


def table(packages: tuple[str, ...] = PACKAGES) -> list[dict[str, Any]]:
    """Every row of these packages, with its differences."""
    found = []
    for section, calls in rows().items():
        for theirs, ours in calls:
            row = PEERS[section][theirs]
            if row.package in packages:
                found.append({"table": section, "theirs": theirs, "within": row.within}
                             | compare(ours, row))
    return found


def largest(found: list[dict[str, Any]]) -> float:
    """The largest difference of all rows."""
    return float(np.max(
        [row[part] for row in found for part in ("answer", "gradient") if part in row]))


if __name__ == "__main__":
    from harness import save

    found = table()
    for row in found:
        print(row)
    save("coming_from", {"largest": largest(found), "rows": found, "peers": {
        name: version(name) for name in (*PACKAGES, "lineax")}})
