"""PZOBO on a closed form."""

import optax

from jaxiter.bilevel import pzobo
from tests.bilevel.problems import INNER, OUTER, closed_form


def test_closed_form():
    closed_form(pzobo(OUTER, INNER, inner_rate=0.4, inner_steps=40,
                      outer_optimizer=optax.sgd(0.02)), 1000, 0.05, (440, 1, 0))
