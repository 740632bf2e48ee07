"""Citations are read off the docstrings: all of them parse, and a call names what it used."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxiter as ji
from jaxiter import citation

SOURCES = sorted(Path(inspect.getfile(ji)).parent.rglob("*.py"))
PARAGRAPH = re.compile(r"\b(?:Reference|Source)s?:\s(.*?)(?:\n\s*\n|\"\"\")", re.S | re.M)


@pytest.mark.parametrize("path", [p for p in SOURCES if PARAGRAPH.search(p.read_text())],
                         ids=lambda p: p.stem)
def test_every_reference_is_a_work_with_a_title(path):
    for paragraph in PARAGRAPH.findall(path.read_text()):
        years = re.findall(r"\b(?:19|20)\d\d\b", paragraph)
        entries = citation._entries(f"Source: {paragraph}")
        assert len(entries) == len(years) > 0, paragraph
        assert all(re.match(r"@(misc|article)\{[a-z]+\d{4}[a-z]+,\n", entry) for entry in entries)


def keys(capsys, function, *args):
    ji.cite(function, *args)
    return set(re.findall(r"@\w+\{(\w+),", capsys.readouterr().out))


def test_a_call_names_what_it_used(capsys):
    solver = ji.anderson()  # made before, used in the call

    def solve(theta):
        return ji.fixed_point(lambda x, t: jnp.cos(t * x), 1.0, theta, solver=solver).value

    forward = keys(capsys, jax.jit(solve), 1.0)
    assert "walker2011anderson" in forward and "vorst1992bi" not in forward
    assert keys(capsys, jax.grad(solve), 1.0) - forward == {
        "vorst1992bi", "jiranek2010adaptive", "eisenstat1983variational"}  # and what rescues it
    transport = keys(capsys, lambda c: ji.transport.sinkhorn(
        c, epsilon=0.1, method="newton").f, jnp.ones((3, 3)))
    assert {"cuturi2013sinkhorn", "tang2024accelerating"} <= transport
    assert keys(capsys, lambda x: x + 1, 1.0) == set()
