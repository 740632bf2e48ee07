"""Monitors watch, and change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji


def half(x):
    return 0.5 * x + 1.0


def test_record_rows_and_resume():
    trace = ji.record(capacity=6, every=2, value=True)
    sol = ji.fixed_point(half, jnp.zeros(1), monitor=trace, max_steps=9)
    np.testing.assert_allclose(sol.trace["merit"][:5], [1, 0.25, 1 / 16, 1 / 64, 1 / 256])
    assert np.isnan(sol.trace["merit"][5])
    np.testing.assert_allclose(sol.trace["value"][:3, 0], [0, 1.5, 1.875])
    part = ji.fixed_point(half, jnp.zeros(1), monitor=trace, max_steps=4)
    whole = ji.fixed_point(half, jnp.zeros(1), monitor=trace, max_steps=9, resume=part.state)
    np.testing.assert_array_equal(whole.trace["merit"], sol.trace["merit"])


def test_full_record_drops_the_rest():
    sol = ji.fixed_point(half, jnp.zeros(1), monitor=ji.record(capacity=2))
    np.testing.assert_allclose(sol.trace["merit"], [1, 0.5])


def test_callback_sees_active_lanes_only():
    """L16: a callback in a vmapped loop would fire for finished lanes too."""
    seen = []
    watch = ji.callback(lambda entry: seen.append((entry["step"], float(entry["value"][0]))))
    batch = jax.jit(jax.vmap(lambda x: ji.fixed_point(half, x, monitor=watch)))(
        jnp.array([[2.0], [0.0]]))
    jax.effects_barrier()
    jax.block_until_ready(batch)
    assert len(seen) == int(jnp.sum(batch.steps))
    assert batch.steps[0] == 1


def test_printer_and_progress(capsys):
    jax.block_until_ready(ji.fixed_point(half, jnp.zeros(1), monitor=ji.printer(5)).value)
    jax.effects_barrier()
    out = capsys.readouterr().out
    assert "step        1" in out and "merit 1.000e+00" in out
    sol = ji.fixed_point(half, jnp.zeros(1), monitor=ji.progress(total=20, every=2), max_steps=20)
    jax.block_until_ready(sol.value)
    jax.effects_barrier()
    assert sol.converged and "solve" in capsys.readouterr().err


@pytest.mark.parametrize("every", [0, -1])
def test_intervals_are_checked(every):
    with pytest.raises(ValueError, match=str(every)):
        ji.callback(print, every=every)


def test_a_bar_that_cannot_be_is_not_drawn(capsys):
    for wrong in ({"every": 0}, {"total": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            ji.progress(**wrong)
    assert not capsys.readouterr().err
