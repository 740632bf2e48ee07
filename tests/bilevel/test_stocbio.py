"""stocBiO and its relatives: closed forms, series that diverge."""

import jax
import optax
import pytest

from jaxiter import Batches
from jaxiter.bilevel import ift_neumann, mrbo, run, stocbio, ttsa
from tests.bilevel.problems import INNER, OUTER, RATES, START, closed_form


def test_growth_reports_a_diverging_series():
    method, none = stocbio(OUTER, INNER, neumann_rate=1.2, **RATES), Batches(None)  # L = 2
    state = jax.jit(lambda key: method.step(method.init(START, none, none), key, none, none))(
        jax.random.key(0))
    assert float(state.growth) > 1


@pytest.mark.parametrize("make, steps, accuracy, calls", [
    (lambda: stocbio(OUTER, INNER, neumann_rate=0.4, terms=40, **RATES), 1500, 1e-3,
     (10, 1, 40)),
    (lambda: ift_neumann(OUTER, INNER, neumann_rate=0.4, terms=40, inner_steps=5, **RATES), 1500,
     1e-3, (5, 1, 40)),
    (lambda: ttsa(OUTER, INNER, neumann_rate=0.4, inner_optimizer=optax.sgd(0.3), terms=30,
                  outer_optimizer=optax.sgd(lambda k: 0.03 / (1 + k / 300))), 12_000, 0.1,
     None),
    (lambda: mrbo(OUTER, INNER, neumann_rate=0.4, terms=40, **RATES), 1500, 1e-3, (2, 2, 80)),
], ids=["stocbio", "ift_neumann", "ttsa", "mrbo"])
def test_closed_form(make, steps, accuracy, calls):
    closed_form(make(), steps, accuracy, calls)


def test_calls_of_a_random_number_of_products():
    """The account draws what the step draws."""
    method = ttsa(OUTER, INNER, neumann_rate=0.4, terms=30, **RATES)
    key = jax.random.key(3)

    @jax.jit
    def both():
        keys = [jax.random.split(jax.random.fold_in(key, k), 3)[1] for k in range(5)]
        drawn = [jax.random.randint(jax.random.fold_in(key, 30), (), 0, 30) + 1 for key in keys]
        return run(method, *START, key=key, max_steps=5).solve.calls["products"], drawn

    products, drawn = both()
    assert int(products) == sum(int(n) for n in drawn) and len({int(n) for n in drawn}) > 1


def test_bad_input():
    with pytest.raises(ValueError, match="neumann_rate must be positive"):
        stocbio(OUTER, INNER, neumann_rate=0.0, **RATES)
