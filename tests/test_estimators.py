"""Estimators of a mean over data: recursions against numpy, and what a newcomer writes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter import Batches, Status, iterate_many, trees
from jaxiter.bilevel import run, single_loop
from jaxiter.estimators import (
    Drawn,
    Estimator,
    Oracle,
    msvr,
    page,
    plain,
    saga,
    sarah,
    storm,
)
from jaxiter.process import latest
from jaxiter.testing import check_process
from tests.bilevel.problems import B1

rng = np.random.default_rng(0)
ROWS = rng.normal(size=(21, 4))
POINTS = rng.normal(size=(30, 4))
KEYS = jax.random.split(jax.random.key(1), 30)


def value(x, rows):
    """A mean over rows that is not linear in the point; numpy and jax alike."""
    return ((rows @ x)[:, None] ** 2 * rows).mean(0)


def oracle(size=4, data=None):
    rows = jnp.asarray(ROWS, jnp.float32) if data is None else data
    return Oracle((value,), (Batches(rows, size),), (jnp.zeros(4),))


def estimates(estimator, given):
    """Along the points, and what each of them cost."""
    @jax.jit
    def along(points):
        def once(memory, inputs):
            point, key = inputs
            spent = jnp.asarray(estimator.calls(given, memory, key)[0])
            out, memory = estimator.update(given, point, memory, key)
            return memory, (out, spent)

        return jax.lax.scan(once, estimator.init(given, points[0]), (points, KEYS))[1]

    return [np.asarray(part) for part in along(jnp.asarray(POINTS, jnp.float32))]


def by_hand(follow):
    """`follow(k, now, last, kept, batch)` in float64 on the batches that were drawn."""
    given, kept, out = oracle(), np.zeros(4), []
    for k, key in enumerate(KEYS):
        (rows,) = given.draw(key)
        rows = np.asarray(rows, float)
        kept = follow(k, value(POINTS[k], rows), value(POINTS[max(k - 1, 0)], rows), kept)
        out.append(kept)
    return np.array(out)


def refreshed(due):
    return by_hand(lambda k, now, last, kept: value(POINTS[k], ROWS) if due(k)
                   else kept + now - last)


@pytest.mark.parametrize("estimator, follow", [
    (plain(), lambda k, now, last, kept: now),
    (storm(0.3), lambda k, now, last, kept: now if k == 0 else now + 0.7 * (kept - last)),
    (storm(lambda k: 1.0 / (k + 1).astype(jnp.float32)),
     lambda k, now, last, kept: now + (1 - 1 / (k + 1)) * (kept - last)),
    (msvr(0.4, 0.8), lambda k, now, last, kept: now if k == 0 else
     0.6 * kept + 0.4 * now + 0.8 * (now - last)),
], ids=["plain", "storm", "falling", "msvr"])
def test_recursions(estimator, follow):
    ours, spent = estimates(estimator, oracle())
    np.testing.assert_allclose(ours, by_hand(follow), rtol=2e-3, atol=2e-3)
    assert np.all(spent == (1 if estimator == plain() else 2))


def test_recursions_that_refresh():
    """SARAH every floor(21 / 4) = 5 steps, PAGE at random; a refresh costs ceil(21 / 4) batches."""
    ours, spent = estimates(sarah(1.0), oracle())
    np.testing.assert_allclose(ours, refreshed(lambda k: k % 5 == 0), rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(spent, [6 if k % 5 == 0 else 2 for k in range(30)])
    ours, spent = estimates(page(0.3), oracle())
    np.testing.assert_allclose(ours, refreshed(lambda k: spent[k] == 6), rtol=2e-3, atol=2e-3)
    assert spent[0] == 6 and 3 <= np.sum(spent == 6) <= 18


def test_tables_are_unbiased_and_lose_their_noise():
    """SAGA in float64: the mean over all blocks is the full value; at a fixed point it is exact."""
    given = oracle()
    table = saga().init(given, jnp.zeros(4))
    for k in range(12):
        _, table = saga().update(given, jnp.asarray(POINTS[k], jnp.float32), table, KEYS[k])
    here = jnp.asarray(POINTS[20], jnp.float32)
    looks = jax.vmap(lambda key: saga().update(given, here, table, key)[0])(
        jax.random.split(jax.random.key(3), 4000))
    np.testing.assert_allclose(looks.mean(0), value(POINTS[20], ROWS), atol=0.1)
    memory = jax.lax.fori_loop(0, 60, lambda k, memory: saga().update(
        given, here, memory, jax.random.fold_in(KEYS[0], k))[1], table)
    settled, _ = saga().update(given, here, memory, KEYS[1])
    np.testing.assert_allclose(settled, value(POINTS[20], ROWS), rtol=1e-4, atol=1e-5)


def test_parts_of_different_data():
    """Keys, blocks and calls are each part's own; combine is taken of their values."""
    given = Oracle((value, lambda x, rows: rows.mean(0)),
                   (Batches(jnp.asarray(ROWS, jnp.float32)), Batches(jnp.ones((6, 4)), 2)),
                   (jnp.zeros(4), jnp.zeros(4)), trees.subtract)
    point = jnp.asarray(POINTS[0], jnp.float32)
    for estimator in (plain(), storm(), sarah()):
        out, _ = estimator.update(given, point, estimator.init(given, point), KEYS[0])
        np.testing.assert_allclose(out, value(POINTS[0], ROWS) - 1, rtol=1e-4)
    # A table begins with zeros: all rows of the first part, a third of the second's change.
    out, tables = saga().update(given, point, saga().init(given, point), KEYS[0])
    np.testing.assert_allclose(out, value(POINTS[0], ROWS) - 1, rtol=1e-4)
    assert [table.rows.shape for table in tables] == [(1, 4), (3, 4)]
    np.testing.assert_allclose(tables[1].mean, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("estimator", [saga(), sarah(), page()])
def test_all_rows_need_data(estimator):
    """Where there are none to go through, or only draws, the error says what to take instead."""
    for data in (Batches(None), Batches(None, 4), Drawn(lambda key: None)):
        given = Oracle((value,), (data,), (jnp.zeros(4),))
        with pytest.raises(ValueError, match=r"there are no data.*plain\(\) or storm\(\)"):
            estimator.init(given, jnp.zeros(4))


def test_bad_numbers():
    for make in (lambda: storm(0.0), lambda: msvr(1.5), lambda: page(0.0), lambda: sarah(-1.0)):
        with pytest.raises(ValueError, match="must be"):
            make()
    assert storm(0.3) == storm(0.3) != storm(0.4)


class Anchored(NamedTuple):
    anchor: tuple
    full: tuple
    age: jax.Array


def svrg(epoch):
    """What a newcomer writes: full values at an anchor, corrected by the change on a batch."""
    def init(oracle, point):
        return Anchored(point, trees.zeros_like(oracle.combine(*oracle.like)), jnp.int32(epoch))

    def update(oracle, point, memory, key):
        anchor, full = jax.lax.cond(
            memory.age == epoch,
            lambda: (point, oracle.at(point, oracle.all_rows("svrg()"))),
            lambda: (memory.anchor, memory.full))
        batches = oracle.draw(key)
        change = trees.subtract(oracle.at(point, batches), oracle.at(anchor, batches))
        return trees.add(full, change), Anchored(
            anchor, full, jnp.where(memory.age == epoch, 1, memory.age + 1))

    def calls(oracle, memory, key):
        return tuple(jnp.where(memory.age == epoch, -(-data.rows // data.size), 0) + 2
                     for data in oracle.data)

    return Estimator(init, update, calls)


def test_a_newcomers_svrg_has_status_resume_and_lanes():
    noise = rng.normal(size=(20, 10))
    data = jnp.asarray(noise - noise.mean(0), jnp.float32)
    method = single_loop(
        lambda x, y, b: B1.outer(x, y) + y @ b.mean(0),
        lambda x, y, b: B1.inner(x, y) + y @ b.mean(0), estimator=svrg(10),
        inner_optimizer=optax.sgd(0.3), outer_optimizer=optax.sgd(0.05))
    start, key = (jnp.asarray(B1.x, jnp.float32), jnp.zeros(10)), jax.random.key(0)

    @jax.jit
    def solve(rows, steps, resume=None):
        return run(method, *start, rows, rows, key=key, batch_size=4, max_steps=steps,
                   resume=resume)

    whole = solve(data, jnp.int32(3000))
    np.testing.assert_allclose(whole.state.x, B1.optimum, atol=1e-3)
    assert whole.status == Status.MAX_STEPS
    assert int(whole.solve.calls["products"]) == 3000 * 2 + 300 * 5
    parts = solve(data, jnp.int32(3000), solve(data, jnp.int32(100)).solve.state)
    for ours, theirs in zip(*map(jax.tree.leaves, (parts.state, whole.state)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    broken = solve(data.at[3].set(jnp.nan), jnp.int32(50))
    assert broken.status == Status.NONFINITE
    np.testing.assert_array_equal(broken.state.x, start[0])
    lanes = jax.jit(lambda keys: latest(iterate_many(
        method, (jnp.stack([start[0]] * 3), jnp.zeros((3, 10))), Batches(data, 4),
        Batches(data, 4), key=keys, in_axes=None, lanes=2, max_steps=3000)).x)(
            jnp.stack([key, *jax.random.split(key)]))
    np.testing.assert_allclose(lanes[0], whole.state.x, rtol=1e-5)
    np.testing.assert_allclose(lanes, np.stack([B1.optimum] * 3), atol=1e-3)


@pytest.mark.slow  # the default run has that of SOBA, in test_process.py
@pytest.mark.parametrize("estimator", [saga(), sarah(), page(0.3)], ids=["saga", "sarah", "page"])
def test_conformance(estimator):
    """Of objectives without arrays of their own: see the limits in docs/methods.md."""
    method = single_loop(
        lambda x, y, b: jnp.sum((y - b.mean(0)) ** 2) + 0.1 * jnp.sum(x**2),
        lambda x, y, b: jnp.sum((y - jnp.sum(x) - b.mean(0)) ** 2), estimator=estimator,
        inner_optimizer=optax.sgd(0.1), outer_optimizer=optax.sgd(0.05))
    data = Batches(jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), 3)
    check_process(method, (jnp.zeros(2), jnp.zeros(3)), data, data, key=jax.random.key(0))
