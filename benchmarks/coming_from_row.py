"""The rows of docs/coming_from.md, how one is compared, and peers where they are installed."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parent.parent / "docs" / "coming_from.md"


def cells(section: str) -> list[list[str]]:
    """The table of a section of the page, row by row, without its head."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines() if line.startswith("| ")][1:]


def optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def answer(out: Any, n: Any) -> Any:
    """The answer within what a call of ours returns."""
    for name in ("value", "x"):
        out = getattr(out, name, out)
    return out


class Row(NamedTuple):
    """How one row of the page is compared.

    Attributes:
      package: which has to be installed.
      peer: `peer(n)`, the answer of their call.
      by: the name by which both are differentiated too; None where one cannot.
      read: `read(out, n)`, what of the result of our call that answer is.
      within: the relative difference that is accepted; more where our call names a tolerance
        that is looser than the default of float64.
      derivative_only: the answer is given, and only its gradient is computed.
    """

    package: str
    peer: Callable
    by: str | None = None
    read: Callable = answer
    within: float = 1e-6
    derivative_only: bool = False
