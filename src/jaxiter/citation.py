"""BibTeX of the methods that a call uses, read off the docstrings of the functions that ran."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax

PACKAGE = Path(__file__).parent
#: `Authors, "Title" (name), venue, year`, as docstrings write it; a word and a colon may precede.
ENTRY = re.compile(
    r'(?:[^;"]*: )?(?P<authors>[^;":]+), "(?P<title>[^"]+)"(?: \([^)]*\))?'
    r'(?:, (?P<venue>[^;"]+?))?, (?P<year>\d{4})')


def cite(function: Callable, *args: Any, **keywords: Any) -> None:
    """Print BibTeX for the methods that `function(*args, **keywords)` uses.

    The call is traced, not computed: solvers, adjoints, stages that run by default and, if the
    call differentiates, the linear solver of the backward pass are all found. Functions that
    were jitted inside and have already been traced are not looked into.

    Args:
      function: any function of arrays, jitted or not. *args, **keywords: what to call it with.

    Raises:
      TypeError: a solver or another object instead of a function that uses it.

    >>> import jax.numpy as jnp, jaxiter
    >>> jaxiter.cite(lambda x: jaxiter.fixed_point(jnp.cos, x, solver=jaxiter.damped(0.5)), 1.0)
    @article{krasnoselskii1955two,
      author = {Krasnoselskii},
      title = {{Two remarks on the method of successive approximations}},
      journal = {Uspekhi Mat. Nauk 10},
      year = {1955}
    }
    <BLANKLINE>
    @article{mann1953mean,
      author = {Mann},
      title = {{Mean value methods in iteration}},
      journal = {Proc. Amer. Math. Soc. 4},
      year = {1953}
    }
    """
    if not callable(function):
        raise TypeError("cite traces a call: give it a function and its arguments, such as "
                        f"cite(solve, x0), got {type(function).__name__}.")
    entries = [entry for doc in _used(function, args, keywords) for entry in _entries(doc)]
    print("\n\n".join(dict.fromkeys(entries)) or "no published method was used")


def _used(function: Callable, args: tuple, keywords: dict) -> list[str]:
    """Docstrings of the library's functions, and of their modules, that ran during the trace."""
    ran: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, value: Any) -> None:
        code = frame.f_code
        if event != "return" or not code.co_filename.startswith(str(PACKAGE)):
            return
        if not code.co_flags & inspect.CO_OPTIMIZED:
            return  # the body of a class or a module
        name, nested, _ = code.co_qualname.partition(".")
        # To make a solver is not to use it: the functions that it leaves behind run under its
        # name, also where it was made before.
        parts = value if isinstance(value, tuple) else (value,)
        if nested or not any(callable(part) for part in parts):
            ran[frame.f_globals["__name__"], name] = None

    previous = sys.getprofile()
    # A jitted function that was traced before would not run again: what it wraps does.
    function = function.__wrapped__ if hasattr(function, "lower") else function
    sys.setprofile(note)
    try:
        jax.eval_shape(function, *args, **keywords)
    finally:
        sys.setprofile(previous)
    docs = []
    for module, name in ran:
        owner = sys.modules[module]
        docs += [getattr(owner, name, None).__doc__ or "", owner.__doc__ or ""]
    return docs


def _entries(doc: str) -> list[str]:
    """BibTeX of the works in the paragraphs that start with Reference or Source."""
    found = []
    for paragraph in re.findall(r"(?:Reference|Source)s?:\s(.*?)(?:\n\s*\n|\Z)", doc, re.S):
        for match in ENTRY.finditer(re.sub(r"\s+", " ", paragraph)):
            authors, title, venue, year = match.group("authors", "title", "venue", "year")
            names = re.split(r", | and ", authors.strip().replace(" et al.", ", others"))
            word = re.sub(r"\W.*", "", title).lower()
            family = re.sub(r"\W", "", names[0].split()[-1]).lower()
            lines = [f"  author = {{{' and '.join(names)}}}", f"  title = {{{{{title}}}}}",
                     *([f"  journal = {{{venue}}}"] if venue else []), f"  year = {{{year}}}"]
            kind = "article" if venue else "misc"
            found.append(f"@{kind}{{{family}{year}{word},\n" + ",\n".join(lines) + "\n}")
    return found
