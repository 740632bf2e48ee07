"""Stop rules, fed one measurement after the other by hand: which status, and after how many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.stop import (
    StepInfo,
    accepts,
    check_tolerances,
    default_tolerances,
    first_case,
    never,
)


def told(rule, merits, scale=1.0, floor=1e-7, finite=True):
    """The statuses that a rule says to these merits, up to the first one that ends the solve."""
    def info(step, merit):
        x = jnp.float32(merit)
        return StepInfo(jnp.int32(step), x, x, x, jnp.float32(scale), jnp.float32(floor),
                        jnp.bool_(finite), x, x)

    state, statuses = rule.init(info(0, np.inf)), []
    for step, merit in enumerate(merits, 1):
        status, state = rule.update(info(step, merit), state)
        statuses.append(int(status))
        if statuses[-1] != Status.RUNNING:
            break
    return statuses


def test_tolerance_is_a_sum_of_both():
    rule = ji.tolerance(rtol=1e-2, atol=1e-1)
    assert told(rule, [1.2, 1.11, 1.09], scale=100.0) == [0, 0, Status.CONVERGED]
    assert told(ji.tolerance(rtol=0, atol=1e-3), [2e-3, 1e-3]) == [0, Status.CONVERGED]


def test_the_default_atol_is_in_units_of_the_start():
    assert told(ji.tolerance(), [1e-17, 1e-18], scale=1e-12, floor=1e-19)[-1] == Status.CONVERGED
    assert told(ji.tolerance(), [1e-9], scale=1e-12, floor=1e-19) == [Status.RUNNING]
    assert told(ji.tolerance(atol=1e-6), [1e-9], scale=1e-12, floor=1e-19) == [Status.CONVERGED]


def test_what_rounding_allows():
    rule = ji.tolerance(rtol=1e-9, atol=0)
    # Met, but below what one epsilon of the scale can resolve.
    assert told(rule, [0.0]) == [Status.PRECISION_FLOOR]
    # At the floor without a fall: five steps after the first.
    assert told(rule, [1.0] + [5e-8] * 9) == [0] * 6 + [Status.PRECISION_FLOOR]
    assert told(rule, [1.0, 5e-8, 4e-8, 3e-8, 2e-8, 1.5e-8, 1.2e-8, 1.1e-8]) == [0] * 8


def test_divergence_is_patient_and_nan_is_not():
    high = [1.0] + [1e4] * 30
    assert told(ji.tolerance(), high) == [0] * 20 + [Status.DIVERGED]
    assert told(ji.divergence(factor=10, patience=3), high) == [0] * 3 + [Status.DIVERGED]
    assert told(ji.tolerance(), [1.0, 1e4, 1.0] + [1e4] * 18) == [0] * 21
    assert told(ji.tolerance(), [1.0], finite=False) == [Status.NONFINITE]
    assert told(ji.tolerance(), [np.nan]) == [Status.RUNNING]
    assert told(ji.tolerance(rtol=1.0), [1.0], scale=np.inf) == [Status.RUNNING]


def test_stagnation_counts_from_the_last_fall():
    rule = ji.stagnation(patience=4, factor=0.9)
    assert told(rule, [1.0, 0.95, 0.94, 0.93, 0.8, 0.79, 0.78, 0.77, 0.76]) == (
        [0] * 8 + [Status.STAGNATED])


def test_combinations():
    near, stuck = ji.tolerance(rtol=0, atol=0.5), ji.stagnation(2)
    merits = [1.0, 1.0, 1.0, 0.4, 0.4, 0.4]
    assert told(ji.any_of(near, stuck), merits) == [0, 0, Status.STAGNATED]
    assert told(ji.all_of(near, stuck), merits) == [0] * 5 + [Status.STAGNATED]
    assert told(ji.any_of(never(), near), merits) == [0] * 3 + [Status.CONVERGED]
    assert told(never(), merits) == [0] * 6
    with pytest.raises(ValueError, match="at least one"):
        ji.any_of()


def test_a_last_look_from_outside():
    x = jnp.ones(2)
    assert accepts(ji.tolerance(rtol=1e-2, atol=0), x, x, jnp.float32(0.9), 100)
    assert not accepts(ji.tolerance(rtol=1e-2, atol=0), x, x, jnp.float32(1.1), 100)
    assert not accepts(ji.stagnation(), x, x, jnp.float32(0), 1)


def test_cases_and_defaults():
    yes, no = jnp.bool_(True), jnp.bool_(False)
    assert first_case((no, 3), (yes, 2), (yes, 1)) == 2
    assert first_case((np.bool_(False), 3), (no, 2)) == Status.RUNNING
    assert default_tolerances(jnp.float32(0)) == (1e-5, 1e-6)
    assert default_tolerances((jnp.float32(0), jnp.bfloat16(0))) == (1e-2, 1e-3)
    for rtol, atol in ((-1.0, None), (None, np.nan), (0.0, 0.0)):
        with pytest.raises(ValueError):
            check_tolerances(rtol, atol)
    check_tolerances(0.0, None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_steady_drift_never_converges(dtype):
    """The scale grows with every step, and with it what a relative tolerance allows."""
    one = jnp.ones(2, dtype)
    out = jax.jit(lambda x: ji.fixed_point(lambda x: x + one, x, max_steps=200_000))(0 * one)
    assert out.status in (Status.MAX_STEPS, Status.PRECISION_FLOOR), out.message()


def test_a_far_fixed_point_is_no_drift():
    """Tiny starts, whose scale doubles many times on the way, and a jump onto the answer."""
    q = jnp.array([0.0, 0.5, 0.99, 0.999])
    out = jax.jit(jax.vmap(lambda q: ji.fixed_point(
        lambda x: q * x + (1 - q), jnp.full(2, 1e-3), max_steps=20_000)))(q)
    assert np.all(out.converged)
    assert ji.fixed_point(lambda x: 0 * x + 2, jnp.array([1e-8])).converged
    jump = ji.fixed_point(lambda x: 0.9 * x + 1, jnp.full(3, 1e-4), solver=ji.anderson())
    assert jump.converged and jump.steps < 8
