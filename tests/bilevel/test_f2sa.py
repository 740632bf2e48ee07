"""F2SA and F3SA: closed forms, bounded runs, digits with wrong labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import f2sa, f3sa, run
from jaxiter.testing.bilevel import Cleaning, hyper_cleaning
from tests.bilevel.problems import B1, INNER, OUTER, closed_form, distances, plain


def test_f2sa_finds_the_closed_form_up_to_its_bias():
    """No noise: x nears the optimum as the penalty grows; float32, 20,000 steps, bounded."""
    method = f2sa(plain(B1.outer), plain(B1.inner), inner_rate=0.4,
                  penalty_rate=0.1, inner_steps=5)
    out, errors = distances(method, 20_000, 2000)
    assert float(errors[-1]) < 0.05 and errors[-1] < errors[2] < errors[0]
    assert int(out.solve.calls["products"]) == 0
    assert int(out.solve.calls["inner"]) == 20_000 * 12


def test_first_order_hyper_cleaning():
    """F2SA with the published settings: accuracy 0.950, detector 0.952 on the source's split."""
    cleaning = hyper_cleaning()
    method = f2sa(Cleaning.outer, Cleaning.inner, inner_rate=1.0, penalty_rate=0.5,
                  outer_factor=1e3, inner_steps=2)
    state = jax.jit(lambda key: run(
        method, jnp.zeros(1000), jnp.zeros((65, 10)), cleaning.train, cleaning.validation,
        key=key, max_steps=3000, batch_size=64))(jax.random.key(0)).state
    assert cleaning.detection(state.x) > 0.94, cleaning.detection(state.x)
    assert cleaning.accuracy(state.y) > 0.93


def test_f3sa_finds_the_closed_form():
    closed_form(f3sa(OUTER, INNER, inner_rate=0.4, penalty_rate=0.1, exponents=(1 / 3, 0.0)),
                20_000, 0.05, (8, 4, 0))


def test_a_hundred_thousand_steps_stay_bounded():
    """F2SA on B1 in float32 with its default schedules: no drift, no overflow."""
    method = f2sa(plain(B1.outer), plain(B1.inner), inner_rate=0.1,
                  penalty_rate=0.1, inner_steps=2)
    _, errors = distances(method, 100_000, 1000)
    assert np.all(np.isfinite(errors)) and errors.max() < 6 and errors[-1] < 0.05


def test_bad_input():
    with pytest.raises(ValueError, match="must be positive"):
        f2sa(OUTER, INNER, inner_rate=0.0, penalty_rate=0.1)
    with pytest.raises(ValueError, match="penalty fall"):
        f2sa(OUTER, INNER, inner_rate=0.1, penalty_rate=0.1, exponents=(0.2, 0.4))
