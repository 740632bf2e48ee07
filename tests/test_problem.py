"""What a problem says of itself: promotion, measures, equations and named errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import Problem, Status, trees
from jaxiter.problem import (
    as_point,
    as_problem,
    evaluate,
    image_and_residual,
    measure,
    root_equations,
)


def norms(problem, x, output):
    image, residual = image_and_residual(problem, x, output)
    return tuple(trees.norms(x, image, residual))


def test_the_default_measure():
    x, image = jnp.array([3.0, 4.0]), jnp.array([3.0, 0.0])
    seen = measure(Problem(step=jnp.cos), x, image, norms(Problem(step=jnp.cos), x, image),
                   None, (), ())
    assert seen.residual_norm == seen.merit == 4 and seen.scale == 5 and seen.image_norm == 3
    np.testing.assert_allclose(seen.floor, 20 * 2.0**-23)
    assert seen.certificate == Status.RUNNING


def test_functions_get_points_then_cache_then_memory_then_args():
    calls = {}

    def noting(name, value):
        def function(*operands):
            calls[name] = [float(jnp.ravel(o)[0]) for o in operands]
            return value
        return function

    problem = Problem(
        step=noting("step", (jnp.array([9.0]), jnp.array(8.0))), cache=noting("cache", 2.0),
        memory=noting("memory", 3.0), merit=noting("merit", 0.5), scale=noting("scale", 7),
        floor=noting("floor", 0.25), certify=noting("certify", Status.NO_FIXED_POINT),
        equations=noting("equations", jnp.zeros(1)))
    x, cache, memory, args = jnp.array([1.0]), jnp.array(2.0), jnp.array(3.0), (jnp.array(4.0),)
    output, new, _ = evaluate(problem, x, cache, memory, args, False)
    seen = measure(problem, x, output, norms(problem, x, output), cache, memory, args)
    assert (float(seen.merit), float(seen.scale), float(seen.floor)) == (0.5, 7.0, 0.25)
    assert seen.scale.dtype == jnp.float32 and seen.certificate == Status.NO_FIXED_POINT
    assert new == 8
    root_equations(problem)(x, memory, *args)
    assert calls["step"] == calls["floor"] == calls["equations"] == [1, 2, 3, 4]
    assert calls["merit"] == calls["scale"] == calls["certify"] == [1, 9, 2, 3, 4]
    assert calls["cache"] == [1, 3, 4]


def test_a_residual_keeps_digits_that_an_image_loses():
    tiny = jnp.float32(1e-10)
    by_step, by_residual = Problem(step=lambda x: x + tiny), Problem(residual=lambda x: tiny)
    x = jnp.float32(1)
    for problem, exact in ((by_step, 0), (by_residual, tiny)):
        output = evaluate(problem, x, None, (), (), False)[0]
        image, residual = image_and_residual(problem, x, output)
        assert image == 1 and residual == exact and root_equations(problem)(x, ()) == exact


def test_errors_say_what_was_given():
    with pytest.raises(TypeError, match="exactly one of step and residual"):
        as_problem(Problem(step=jnp.cos, residual=jnp.cos))
    with pytest.raises(TypeError, match="got int"):
        as_problem(3)
    with pytest.raises(TypeError, match="has_aux=True must return"):
        evaluate(as_problem(jnp.cos), jnp.ones(2), None, (), (), True)
    with pytest.raises(TypeError, match=r"The map must keep.*\[3\]"):
        evaluate(as_problem(lambda x: jnp.ones(3)), jnp.ones(2), None, (), (), False)
    with pytest.raises(TypeError, match="memory returned by the map"):
        evaluate(Problem(step=lambda x, m: (x, jnp.ones(2)), memory=lambda x: 0.0), jnp.ones(2),
                 None, jnp.zeros(()), (), False)


def test_points():
    assert as_point({"a": 1.0})["a"].dtype == jnp.float32
    with pytest.raises(ValueError, match="no array leaves"):
        as_point({})
    with pytest.raises(TypeError, match=r"\['n'\] has dtype int32"):
        as_point({"n": jnp.int32(1)})
    with pytest.raises(TypeError, match=r"\['f'\] is function"):
        as_point({"f": lambda: 0})
    with pytest.raises(ValueError, match="NaN or infinity"):
        as_point(jnp.array([jnp.inf]))
