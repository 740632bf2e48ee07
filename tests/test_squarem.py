"""SQUAREM against the published cycle in numpy, and EM for Hasselblad's deaths by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.testing.problems import DEATHS, poisson_mixture

START = np.array([0.3, 1.0, 2.5])


def em(x, xp=jnp):
    return poisson_mixture(x, DEATHS, xp)


def published(step, x, count):
    """Where scheme S3 of the paper evaluates the map, its bound grown fourfold where it is met."""
    points, bound = [], 1.0
    while len(points) < count:
        first = step(x)
        second = step(first)
        r, v = first - x, second - 2 * first + x
        alpha = -max(1.0, min(bound, np.linalg.norm(r) / np.linalg.norm(v)))
        bound *= 4 if -alpha == bound else 1
        points += [x, first]
        x = x - 2 * alpha * r + alpha**2 * v
        if alpha < -1:
            points.append(x)
            x = step(x)
    return np.array(points[:count])


def test_points_are_those_of_the_paper(x64):
    out = jax.jit(lambda x: ji.fixed_point(
        em, x, solver=ji.squarem(safeguard=None), max_steps=40,
        stop=ji.tolerance(rtol=0, atol=1e-15), monitor=ji.record(40, value=True)))(START)
    points = published(lambda x: em(x, np), START, 40)
    np.testing.assert_allclose(out.trace["value"], points, rtol=1e-9)


def test_hasselblads_deaths():
    """The maximum of the likelihood as published, in a quarter of EM's steps; in trees the same."""
    def solve(step, start, solver):
        return jax.jit(lambda x: ji.fixed_point(
            step, x, solver=solver, stop=ji.tolerance(rtol=0, atol=3e-6), max_steps=4000))(start)

    plain = solve(em, jnp.asarray(START, jnp.float32), ji.picard())
    fast = solve(em, jnp.asarray(START, jnp.float32), ji.squarem())
    assert fast.converged and plain.converged and int(fast.steps) < int(plain.steps) / 4
    np.testing.assert_allclose(fast.value, [0.3599, 1.2561, 2.6634], rtol=5e-3)

    def on_tree(x):
        image = em(jnp.concatenate([x["weight"][None], x["means"]]))
        return {"weight": image[0], "means": image[1:]}

    start = jnp.asarray(START, jnp.float32)
    tree = solve(on_tree, {"weight": start[0], "means": start[1:]}, ji.squarem())
    assert tree.converged and abs(int(tree.steps) - int(fast.steps)) < 0.3 * int(fast.steps)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e20])
def test_every_scale(scale):
    """Step lengths are ratios: data of any size take the steps that data of 1 take."""
    rates = jnp.linspace(0.5, 0.99, 8)

    def steps(scale):
        out = jax.jit(lambda b: ji.fixed_point(
            lambda x, b: rates * x + b, jnp.zeros(8), b, solver=ji.squarem(),
            stop=ji.tolerance(rtol=1e-5, atol=0)))(jnp.full(8, scale, jnp.float32))
        assert out.converged
        return int(out.steps)

    assert abs(steps(scale) - steps(1.0)) <= 3


def test_a_point_that_is_out_of_bounds_is_given_up():
    """Beyond 1 the map has no value: the guard goes on from T(T(x)), with a smaller bound."""
    def step(x):
        pace = jnp.minimum(0.01 * (1 + 0.1 * x), 0.2 * (0.99 - x))
        return jnp.where(x > 1, jnp.nan, x + pace)

    bare = ji.fixed_point(step, jnp.zeros(2), solver=ji.squarem(safeguard=None), max_steps=3000)
    guarded = ji.fixed_point(step, jnp.zeros(2), solver=ji.squarem(), max_steps=3000)
    plain = ji.fixed_point(step, jnp.zeros(2), max_steps=3000)
    assert bare.status == ji.Status.NONFINITE
    assert guarded.converged and guarded.steps < plain.steps


def test_what_vanishes_or_does_not_end():
    """A constant map ends at once; a translation and a start at the answer are no surprise."""
    constant = ji.fixed_point(lambda x: 0 * x + 3.0, jnp.zeros(4), solver=ji.squarem())
    assert constant.converged and constant.steps == 2
    still = ji.fixed_point(lambda x: x, jnp.ones(4), solver=ji.squarem())
    assert still.converged and still.steps == 1
    assert not ji.fixed_point(lambda x: x + 1, jnp.zeros(2), solver=ji.squarem()).converged
