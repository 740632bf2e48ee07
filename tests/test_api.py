"""Every public name and signature, as in tests/api.txt; `python tests/test_api.py` rewrites it."""

import importlib
import inspect
import re
import typing
from pathlib import Path

SNAPSHOT = Path(__file__).parent / "api.txt"
MODULES = ("jaxiter", "jaxiter.linear", "jaxiter.operators", "jaxiter.transport",
           "jaxiter.recurrence", "jaxiter.diffusion", "jaxiter.bilevel", "jaxiter.optim",
           "jaxiter.estimators", "jaxiter.testing")


def public_signatures() -> list[str]:
    lines = []
    for path in MODULES:
        module = importlib.import_module(path)
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == path and name[0] != "_"]
        for name in sorted(names):
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            try:
                parameters = inspect.signature(value).parameters.values()
            except (TypeError, ValueError):
                parameters = None
            if typing.get_origin(value):  # an alias, of which Python 3.13 says (*args, **kwargs)
                parameters = None
            if parameters is None or not callable(value):
                lines.append(f"{path}.{name}")
                continue
            shown, starred = [], False
            for p in parameters:
                if p.kind is p.KEYWORD_ONLY and not starred:
                    shown.append("*")
                    starred = True
                starred |= p.kind is p.VAR_POSITIONAL
                prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
                default = "" if p.default is p.empty else "=" + re.sub(
                    r"<(function|class) '?([^ >']+).*?>", r"\2", repr(p.default))
                shown.append(prefix + p.name + default)
            lines.append(f"{path}.{name}({', '.join(shown)})")
    return lines


def test_public_signatures_are_the_recorded_ones():
    """A change here is a change for users: rewrite the file and say so in the changelog."""
    assert public_signatures() == SNAPSHOT.read_text().splitlines()


def test_every_public_name_has_a_reader():
    """docs/names.md lists who needs it; a name that is on no line should not be public."""
    page = (SNAPSHOT.parent.parent / "docs" / "names.md").read_text()
    listed = {f"{module}.{name}" for module, part in re.findall(
        r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.S | re.M) for name in re.findall(r"`(\w+)`", part)}
    assert listed == {line.split("(")[0] for line in SNAPSHOT.read_text().splitlines()}


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_signatures()) + "\n")
