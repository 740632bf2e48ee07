"""How one row of docs/coming_from.md is compared, and peers where they are installed."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


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
