"""The table of what OTT and POT call a quantity: every row by value, where both are installed."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "migration.py"


def module():
    spec = importlib.util.spec_from_file_location("migration", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_is_complete():
    rows = module().rows()
    assert len(rows) >= 15 and all(ours for _, ours, _, _ in rows)
    assert sum(ott != "" for _, _, ott, _ in rows) >= 11
    assert sum(pot != "" for *_, pot in rows) >= 11


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_row_has_the_peers_value():
    pytest.importorskip("ott")
    pytest.importorskip("ot")
    for row in module().compare():
        for peer in ("ott", "pot"):
            assert row[peer] is None or row[peer] < 2e-5, row
