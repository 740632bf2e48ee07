"""The page for those who come from elsewhere: each call and its translation have one answer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "coming_from.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("coming_from", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_row_of_the_page_is_compared(script):
    for section, calls in script.rows().items():
        assert sorted(theirs for theirs, _ in calls) == sorted(script.PEERS[section])
    packages = {row.package for rows in script.PEERS.values() for row in rows.values()}
    assert packages == set(script.PACKAGES)


def test_a_comparison_can_fail(script):
    assert script.relative((np.ones(3), 2.0), (np.ones(3), 1.0)) == 1.0
    for ours, theirs in ((np.ones(3), np.zeros(3)), (np.ones((1, 3)), np.ones(3))):
        with pytest.raises(ValueError, match="cannot compare"):
            script.relative(ours, theirs)
    assert np.isnan(script.relative((np.ones(3), np.nan), (np.ones(3), 1.0)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", ["scipy", *(
    pytest.param(peer, marks=pytest.mark.slow)
    for peer in ("jaxopt", "optimistix", "mpax", "qpax"))])
def test_the_answers_are_those_of(package, script):
    pytest.importorskip(package)
    found = script.table((package,))
    assert found
    for row in found:
        for part in {"answer", "gradient"} & set(row):
            assert row[part] <= row["within"], row
