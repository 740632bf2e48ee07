"""Every call that the migration page recommends is valid as it stands."""

import re
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "coming_from.md").read_text()
NAMES = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
SECTIONS = PAGE.split("\n## ")
ROWS = [(section.splitlines()[0], row.split("|")[2].strip().strip("`"))
        for section in SECTIONS
        if section.startswith(("jaxopt", "optimistix", "scipy", "MPAX", "OTT", "POT"))
        for row in section.splitlines() if row.startswith("| `")]


@pytest.fixture(scope="module")
def namespace():
    names = {}
    exec(NAMES, names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("call", dict.fromkeys(call for _, call in ROWS))
def test_call(call, namespace):
    """Traced, not run: names, arguments and shapes; the suites of the families run them."""
    def run():
        return [leaf for leaf in jax.tree.leaves(eval(call, namespace))
                if isinstance(leaf, jax.Array)]

    assert jax.eval_shape(run) or "optax.chain" in call


def test_every_section_has_rows():
    assert {section for section, _ in ROWS} == {
        "jaxopt", "optimistix", "scipy.optimize", "MPAX, qpax, HiGHS", "OTT-JAX", "POT"}


def test_the_scaling_page_runs(capsys):
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "scaling.md").read_text(), re.S):
        exec(compile(block, "scaling.md", "exec"), {})
    assert "CONVERGED" in capsys.readouterr().out


def test_the_page_of_statuses_knows_all_of_them_and_runs():
    from jaxiter.solution import PRECEDENCE, Status

    page = (DOCS / "statuses.md").read_text()
    names = [Status.name(code) for code in PRECEDENCE]
    assert sorted(re.findall(r"^\| ([A-Z_]+) \|", page, re.M)) == sorted(names)
    order = page[page.index("the last of this list wins: "):]
    assert re.findall(r"[A-Z_]{4,}", order.split(".\n")[0]) == names
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "statuses.md", "exec"), {})
