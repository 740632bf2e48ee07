"""SRBA: closed forms and a published squared hypergradient; its calls count the refreshes."""

import optax
import pytest

from jaxiter.bilevel import srba
from jaxiter.testing.bilevel import Selection
from tests.bilevel.problems import INNER, OUTER, RATES, closed_form, selection


def test_closed_form():
    closed_form(srba(OUTER, INNER, **RATES), 3000, 1e-3)


def test_regularisation_selection():
    """B3: published 1.2e-6."""
    selection(srba(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(0.3),
                   outer_optimizer=optax.sgd(0.3 / 0.03)), 9, 1.2e-6)


def test_bad_input():
    for keywords in ({"period": 0.0}, {"radius": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            srba(OUTER, INNER, **RATES, **keywords)
