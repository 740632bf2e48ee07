"""The property and gradient matrix: all of it with the slow tests, a small part by default."""

import re
from pathlib import Path

import pytest

from jaxiter.testing import matrix

FAST = {"fixed_point", "projection_sparse_simplex"}
#: Some twenty seconds of compilation each for all checks, which `docs/properties.py` runs; their
#: own tests have derivatives and batches, and here are devices.
LONG = {
    "barycentre", "barycentre, debiased", "free_support_barycentre", "gromov_wasserstein",
    "partial_transport", "entropic_map, barycentric_map", "monge_gap", "multimarginal_sinkhorn",
    "sinkhorn_attention, tolerance", "class_transport", "worst_case_prox"}


@pytest.mark.parametrize("case", [
    case if case in FAST else pytest.param(case, marks=pytest.mark.slow)
    for case in matrix.CASES if case not in LONG])
def test_row(case):
    row = matrix.check(case)
    assert all(passed in (True, None) for passed in row.values()), row


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(LONG))
def test_long_row_over_devices(case):
    assert matrix.check(case, "shard_map") == {"shard_map": True}


def test_the_page_shows_every_row_green():
    page = (Path(__file__).parent.parent / "docs" / "properties.md").read_text()
    table = re.search(r"\| +\|.*?\n\n", page, re.S).group(0)
    green = {case: {name: None if (case, name) in matrix.EXCEPTIONS else True
                    for name in matrix.CHECKS} for case in matrix.CASES}
    assert table.strip() == matrix.table(green).strip()
