"""`run`: every method has the driver's statuses, resume, records, lanes; NaN is never silent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import Batches, Status, bilevel, iterate_many
from jaxiter.bilevel import run, soba
from jaxiter.estimators import msvr, page, storm
from jaxiter.process import latest
from tests.bilevel.problems import INNER, OUTER, RATES, START

KEY = jax.random.key(5)
ROWS = jax.random.normal(jax.random.key(1), (8, 3))
BROKEN = ROWS.at[6].set(jnp.nan)


def outer(x, y, rows):
    return jnp.sum((y - 1 + 0.1 * rows.mean(0)) ** 2) / 2 + 0.05 * jnp.sum(x**2)


def inner(x, y, rows):
    return jnp.sum((y - jnp.sum(x) - rows.mean(0)) ** 2) / 2


def project(x, y):
    return x, jnp.maximum(y, -5)


OF_X, RATE = {"outer_optimizer": optax.sgd(0.05)}, {"rate": 0.05, "inner_rate": 0.2}
BOTH = {"inner_optimizer": optax.sgd(0.2), **OF_X}
METHODS = {
    "soba": bilevel.soba(outer, inner, **BOTH),
    "saba": bilevel.saba(outer, inner, **BOTH),
    "srba": bilevel.srba(outer, inner, **BOTH),
    "storm": bilevel.single_loop(outer, inner, estimator=storm(0.3), **BOTH),
    "msvr": bilevel.single_loop(outer, inner, estimator=msvr(), **BOTH),
    "page": bilevel.single_loop(outer, inner, estimator=page(0.3), **BOTH),
    "stocbio": bilevel.stocbio(outer, inner, neumann_rate=0.3, inner_steps=2, terms=3, **BOTH),
    "ift_neumann": bilevel.ift_neumann(outer, inner, neumann_rate=0.3, terms=3, **BOTH),
    "ttsa": bilevel.ttsa(outer, inner, neumann_rate=0.3, terms=4, **BOTH),
    "mrbo": bilevel.mrbo(outer, inner, neumann_rate=0.3, terms=3, **BOTH),
    "f2sa": bilevel.f2sa(outer, inner, inner_rate=0.2, penalty_rate=0.1, inner_steps=2),
    "f3sa": bilevel.f3sa(outer, inner, inner_rate=0.2, penalty_rate=0.1),
    "bome": bilevel.bome(outer, inner, inner_steps=2, **RATE),
    "pzobo": bilevel.pzobo(outer, inner, inner_rate=0.2, inner_steps=2, directions=2, **OF_X),
    "proximal_penalty": bilevel.proximal_penalty(outer, inner, inner_steps=2, **RATE),
    "proximal_penalty_single": bilevel.proximal_penalty_single(outer, inner, **RATE),
    "lv_hba": bilevel.lv_hba(outer, inner, lambda x, y: -y - 5, project),
    "sl_bamm": bilevel.sl_bamm(outer, inner),
    "bsvrb_v1": bilevel.bsvrb_v1(outer, inner, blocks=2, curvature=0.5, **RATE),
    "bsvrb_v2": bilevel.bsvrb_v2(outer, inner, blocks=2, **RATE),
    "self_tuning": bilevel.self_tuning(
        outer, inner, lambda phi, x: phi + jnp.sum(x), jnp.zeros(3), **BOTH),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_status(name):
    """NaN in a row of the data ends at the last finite state, and never silently."""
    method, blocks = METHODS[name], name.startswith("bsvrb")

    @jax.jit
    def solve(rows, steps):
        rows, y0 = (rows[:, None], jnp.zeros((8, 3))) if blocks else (rows, jnp.zeros(3))
        return run(method, jnp.zeros(2), y0, rows, rows, key=KEY, batch_size=1, max_steps=steps)

    whole = solve(ROWS, jnp.int32(30))  # one type of number, one program
    assert whole.status == Status.MAX_STEPS and whole.solve.steps == 30
    assert float(jnp.sum(whole.state.x**2)) > 0
    assert int(whole.solve.calls["inner"]) >= 30 <= int(whole.solve.calls["outer"])
    bad = solve(BROKEN, jnp.int32(30))
    assert bad.status == Status.NONFINITE and 1 <= int(bad.solve.steps) < 30
    good = solve(ROWS, bad.solve.steps - 1)
    for ours, theirs in zip(*(jax.tree.leaves(out.state) for out in (bad, good)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_follow_the_steps():
    """Every look has a row, also in parts, after NaN, and beside a monitor; resume is bitwise."""
    def solve(rows, steps, resume=None, **options):
        return run(METHODS["saba"], jnp.zeros(2), jnp.zeros(3), rows, rows, key=KEY, batch_size=2,
                   max_steps=steps, resume=resume, **options)

    tracing = {"check_every": 3, "trace": lambda s: {"x": s.x, "one": jnp.int32(1)}}
    watching = jax.jit(lambda rows: solve(
        rows, 12, monitor=ji.record(4, every=3, value=lambda s: s.x), **tracing))
    whole, bad = watching(ROWS), watching(BROKEN)
    plain = jax.jit(solve)
    np.testing.assert_array_equal(
        whole.trace["x"], [plain(ROWS, steps).state.x for steps in (3, 6, 9, 12)])
    assert whole.trace["one"].tolist() == [1, 1, 1, 1]
    assert whole.calls["products"].tolist() == [3, 6, 9, 12]
    np.testing.assert_array_equal(whole.solve.trace.monitor["value"][1:], whole.trace["x"][:3])
    last = int(bad.solve.steps) // 3 - 1
    assert bad.status == Status.NONFINITE and np.all(np.isnan(bad.trace["x"][last:]))
    np.testing.assert_array_equal(bad.trace["x"][:last], whole.trace["x"][:last])
    assert bad.trace["one"].tolist() == [1] * last + [0] * (4 - last)

    @jax.jit
    def in_parts():
        part = solve(ROWS, 6, **tracing)
        return solve(ROWS, 12, part.solve.state, **tracing)

    parts = in_parts()
    np.testing.assert_array_equal(parts.trace["x"], whole.trace["x"])
    for ours, theirs in zip(*(jax.tree.leaves((out.state, out.calls))
                              for out in (parts, whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_seeds_are_lanes():
    data = Batches(ROWS, 2), Batches(ROWS, 2)

    @jax.jit
    def both(keys):
        lanes = iterate_many(METHODS["saba"], (jnp.zeros((3, 2)), jnp.zeros((3, 3))), *data,
                             key=keys, in_axes=None, lanes=2, max_steps=20, check_every=5)
        batch = jax.vmap(lambda key: run(
            METHODS["saba"], jnp.zeros(2), jnp.zeros(3), ROWS, ROWS, key=key, batch_size=2,
            max_steps=20).state.x)(keys)
        return latest(lanes).x, batch, lanes.calls["products"]

    lanes, batch, products = both(jax.random.split(KEY, 3))
    np.testing.assert_allclose(lanes, batch, rtol=1e-5)
    assert products.tolist() == [20, 20, 20]


def test_a_merit_makes_it_converge():
    """Without one no rule says so."""
    method = soba(OUTER, INNER, **RATES)._replace(merit=lambda state, *data: jnp.linalg.norm(
        jax.grad(INNER, 1)(state.x, state.y, None)))
    out = run(method, *START, key=KEY, max_steps=3000, stop=ji.tolerance(rtol=0, atol=1e-2))
    assert out.converged and out.check() is out and 1 < int(out.solve.steps) < 3000
    assert "CONVERGED" in out.message()


def test_bad_input():
    method, start = METHODS["soba"], (jnp.zeros(2), jnp.zeros(3))
    options = {"key": KEY, "max_steps": 3}
    for call, kind, text in [
        (lambda: run(method, *start, ROWS[:3], ROWS, batch_size=4, **options), ValueError,
         "larger than inner_data, whose leaf of shape .3,"),
        (lambda: run(method, *start, ROWS, ROWS, check_every=2, **options), ValueError,
         "multiple of check_every=2"),
        (lambda: run(method, *start, ROWS, ROWS, solver=ji.anderson(), **options), ValueError,
         "run takes no solver"),
        (lambda: run(method, *start, ROWS, ROWS, key=KEY, max_steps=jnp.int32(3),
                     trace=lambda s: s.x), ValueError, "Python integer"),
        (lambda: run(method, jnp.arange(2), start[1], ROWS, ROWS, **options), TypeError,
         "x0 must be floating point, got int32"),
        (lambda: run(method.step, *start, ROWS, ROWS, **options), TypeError, "expected a Process"),
        (lambda: run(method, *start, ROWS, ROWS, num_steps=3, key=KEY), TypeError, "num_steps"),
        (lambda: run(method, *start, ROWS, ROWS, trace=lambda s: s.x, **options, resume=run(
            method, *start, ROWS, ROWS, **options).solve.state), TypeError, "without trace"),
    ]:
        with pytest.raises(kind, match=text):
            call()


def test_options_are_looked_at():
    """What is no monitor, no state, no count is refused, with trace and without."""
    method, start = METHODS["soba"], (jnp.zeros(2), jnp.zeros(3))
    for name in ("monitor", "resume", "max_steps"):
        for trace in (None, lambda s: s.x):
            with pytest.raises((TypeError, ValueError), match=name):
                run(method, *start, ROWS, ROWS, key=KEY, trace=trace, **{name: object()})


def test_rows_that_do_not_match_are_named():
    """A draw from a shorter leaf would repeat its last row, silently."""
    method = soba(lambda x, y, b: (y - 1) ** 2,
                  lambda x, y, b: jnp.mean((y - x * b[0] - b[1]) ** 2),
                  inner_optimizer=optax.sgd(0.1), outer_optimizer=optax.sgd(0.1))
    for size, data, what in ((2, (jnp.ones(8), jnp.ones(5)), r"got shapes \[\(8,\), \(5,\)\]"),
                             (0, (jnp.ones(8), jnp.ones(8)), "batch_size must be an integer"),
                             (1, (jnp.float32(1), jnp.ones(8)), r"leaf of shape \(\)")):
        with pytest.raises(ValueError, match=what):
            run(method, 0.0, 0.0, data, jnp.ones(8), key=jax.random.key(0), batch_size=size,
                max_steps=2)
