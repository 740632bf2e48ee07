"""Newton's methods and bracketed roots: systems of the literature, honest statuses, derivatives."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import root as reference

import jaxiter as ji
from jaxiter import Status

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from roots_problems import MGH, badly_scaled, solved  # noqa: E402

FEW = ("2 Freudenstein and Roth", "3 Powell badly scaled", "7 helical valley")


@pytest.mark.parametrize("name", FEW)
def test_systems_from_far_and_in_other_units(name, x64):
    """One program a system; scipy's hybr is stuck at the minimum of Freudenstein and Roth."""
    system = MGH[name]

    def run(x0):
        return ji.root(lambda x: system.f(jnp, x), x0)

    starts = jnp.asarray(np.stack([system.start, 10 * system.start]))
    out = jax.jit(jax.vmap(run))(starts)
    assert np.all(out.converged), out.message()
    assert all(solved(system, x) for x in out.value)


def test_other_units(x64):
    system = badly_scaled(MGH["14 Wood"], 1e3)
    out = jax.jit(lambda x: ji.root(lambda x: system.f(jnp, x), x))(jnp.asarray(system.start))
    assert out.converged and solved(system, out.value)


@pytest.mark.parametrize("name, factor, spread", [
    ("1 Rosenbrock", 1, 1e6), ("27 Brown almost linear", 100, 1)])
def test_one_equation_that_outweighs_the_others_is_no_proof(name, factor, spread):
    """A tiny step lowers |F| to a third there, of equations that are as far from 0 as before."""
    system = badly_scaled(MGH[name], spread) if spread > 1 else MGH[name]
    x0 = jnp.asarray(factor * system.start, jnp.float32)
    out = jax.jit(lambda x: ji.root(lambda x: system.f(jnp, x), x, method="anderson"))(x0)
    assert not out.converged or solved(system, out.value, 1e-3)


@pytest.mark.parametrize("method", ["hybrid", "krylov"])
def test_a_system_and_its_derivatives(method):
    rng = np.random.default_rng(0)
    a, b = np.eye(6) + 0.3 * rng.normal(size=(6, 6)) / 6, rng.normal(size=6)

    def equations(x, p, np=np):
        return a @ x + 0.3 * np.sin(x) - p * b

    def solve(p):
        out = ji.root(lambda x, p: equations(x, p, jnp).astype(x.dtype), jnp.zeros(6), p,
                      method=method)
        return jnp.sum(out.value**2), out

    (value, out), slope = jax.jit(jax.value_and_grad(solve, has_aux=True))(1.5)
    exact = [reference(equations, np.zeros(6), args=(p,), tol=1e-12).x for p in (1.5, 1.501, 1.499)]
    np.testing.assert_allclose(out.value, exact[0], rtol=1e-4, atol=1e-5)
    squares = [np.sum(x**2) for x in exact]
    np.testing.assert_allclose(slope, (squares[1] - squares[2]) / 2e-3, rtol=1e-3)
    assert out.converged
    np.testing.assert_allclose(out.residual, np.linalg.norm(out.displacement), rtol=1e-5)
    second = jax.jit(jax.grad(jax.grad(lambda p: solve(p)[0])))(1.5)
    np.testing.assert_allclose(
        second, (squares[1] - 2 * squares[0] + squares[2]) / 1e-6, rtol=2e-2)


@pytest.mark.parametrize("method", ["hybrid", "krylov"])
def test_what_has_no_root_is_never_solved(method):
    """One program: x^2 + 1, exp(x), 1/x, a cosine far out, and F that is no number at x0."""
    branches = [lambda x: x * x + 1, jnp.exp, lambda x: 1 / x, lambda x: jnp.cos(x) + 1.5,
                lambda x: jnp.sqrt(x)]
    out = jax.jit(jax.vmap(lambda k, x: ji.root(
        lambda x, k: jax.lax.switch(k, branches, x), x, k, method=method)))(
        jnp.arange(5), jnp.array([1.0, 0, 1, 3e5, -1]))
    assert not np.any(out.converged), out.message()
    assert out.status[1:3].tolist() == [Status.DIVERGED] * 2
    assert out.status[4] == Status.NONFINITE and out.value[4] == -1


@pytest.mark.parametrize("method", ["hybrid", "krylov"])
def test_singular_jacobians(method):
    """Zero at x0; singular everywhere with solutions; singular at the root."""
    def f(x, k):
        line = jnp.stack([x[0] + x[1] - 2, 2 * x[0] + 2 * x[1] - 4])
        return jax.lax.switch(k, [lambda: x * x - 2, lambda: line, lambda: x * x], )

    out = jax.jit(jax.vmap(lambda k, x: ji.root(f, x, k, method=method)))(
        jnp.arange(3), jnp.array([[0.0, 0], [0, 0], [1, 2]]))
    assert out.status[0] == Status.CONVERGED and out.status[2] == Status.CONVERGED
    np.testing.assert_allclose(np.abs(out.value[0]), np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(np.sum(out.value[1]), 2, rtol=1e-5)
    assert np.abs(out.value[2]).max() < 1e-5


@pytest.mark.slow
def test_trees_lanes_and_choices():
    """F of another tree than x; lanes are vmap; a solver is a solver; F without forward mode."""
    def f(x, c):
        return jnp.concatenate([x["a"] ** 2 - c, x["b"].reshape(-1) ** 3 - c])

    start = {"a": jnp.ones((7, 2)), "b": jnp.ones((7, 1, 2))}
    c = jnp.linspace(0.5, 40, 7)
    many = ji.root_many(f, start, c, lanes=2)
    batch = jax.jit(jax.vmap(lambda x, c: ji.root(f, x, c)))(start, c)
    assert np.all(many.converged)
    np.testing.assert_array_equal(many.steps, batch.steps)
    np.testing.assert_allclose(many.value["b"][:, 0, 0], np.cbrt(c), rtol=1e-5)
    np.testing.assert_allclose(many.residual, batch.residual, atol=1e-5)

    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, t: (2 * x * t,))
    adjoint = ji.implicit(mode="vjp")
    out = ji.root(lambda x: square(x) - 2, jnp.ones(2), adjoint=adjoint)
    np.testing.assert_allclose(out.value, np.sqrt(2), rtol=1e-5)
    with pytest.raises(ValueError, match="takes no solver beside method='hybrid'"):
        ji.root(jnp.sin, 1.0, method="hybrid", solver=ji.anderson())
    with pytest.raises(ValueError, match="hybrid, krylov, anderson, got 'broyden'"):
        ji.root(jnp.sin, 1.0, method="broyden")
    with pytest.raises(ValueError, match="real unknowns"):
        ji.root(lambda x: x, jnp.ones(2, complex), method="hybrid")


def bisected(f, low, high):
    """In float64 by numpy."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = np.where(f(middle) > 0, low, middle), np.where(f(middle) > 0, middle, high)
    return low


def ulps(x, exact):
    return np.max(np.abs(np.asarray(x, float) - exact) / np.spacing(np.abs(exact).astype("f4")))


def test_ten_thousand_equations_of_kepler_and_cubics():
    rng = np.random.default_rng(0)
    e, m = (rng.uniform(0, high, 10000).astype("f4") for high in (0.8, np.pi))
    out = ji.bracketed_root(lambda x, e, m: x - e * jnp.sin(x) - m, 0.0, 4.0, e, m)
    assert np.all(out.converged) and np.max(out.steps) <= 30
    assert ulps(out.value, bisected(lambda x: x - e * np.sin(x) - m.astype(float),
                                    np.zeros(10000), np.full(10000, 4.0))) <= 4
    p = (10 ** rng.uniform(-3, 3, 10000)).astype("f4")
    q = (rng.normal(size=10000) * 10 ** rng.uniform(-3, 3, 10000)).astype("f4")
    bound = 1 + np.abs(q)
    out = ji.bracketed_root(lambda x, p, q: x * (x * x + p) - q, -bound, bound, p, q)
    assert np.all(out.converged) and np.max(out.steps) <= 66
    assert ulps(out.value, bisected(lambda x: x * (x * x + p.astype(float)) - q,
                                    -bound.astype(float), bound.astype(float))) <= 4


def test_brackets_hard_and_bad():
    def root(a):
        return ji.bracketed_root(lambda x, a: x**3 - a, 0.0, 10.0, a).value

    third = jax.jit(jax.vmap(jax.grad(jax.grad(jax.grad(root)))))(jnp.array([1.0, 8.0]))
    np.testing.assert_allclose(third, 10 / 27 * np.array([1.0, 8.0]) ** (-8 / 3), rtol=1e-4)
    step = ji.bracketed_root(lambda x, c: jnp.where(x < c, -1.0, 1.0), 3e38, -3e38,
                             jnp.array([[0.3], [1e-30]]))
    assert step.value.shape == (2, 1) and np.max(step.steps) <= 66
    np.testing.assert_allclose(step.value, [[0.3], [1e-30]], rtol=2e-7)
    with pytest.raises(ValueError, match=r"element 1, bounds 0.0 and 2.0 \(1 of 2"):
        ji.bracketed_root(lambda x, a: x * x + a, 0.0, 2.0, jnp.array([-1.5, 1.0]))
    out = jax.jit(lambda a: ji.bracketed_root(lambda x, a: x * x + a, 0, 2, a))(
        jnp.array([-1.5, 1.0, jnp.nan]))
    assert out.status.tolist() == [Status.CONVERGED, Status.BAD_INPUT, Status.BAD_INPUT]
    assert np.isnan(out.value).tolist() == [False, True, True]


def test_a_pole_between_the_bounds_is_no_root(x64):
    """f changes its sign there by way of infinity; steep roots and jumps between flat bounds do
    not."""
    rng = np.random.default_rng(0)
    c, low, high = (rng.uniform(*ends, 50) for ends in ((-0.5, 0.5), (-1, -0.6), (0.6, 1)))
    c[0] = 0.0

    @jax.jit
    def both(low, high, c):
        pole = ji.bracketed_root(lambda x, c: 1 / (x - c) + 0.5, low, high, c)
        root = ji.bracketed_root(
            lambda x, c: (x - c) / (1e-12 + (x - c) ** 2), low, high, c)
        jump = ji.bracketed_root(lambda x, c: jnp.sign(x - c), low, high, c)
        return pole, root, jump

    for kind in (np.float32, np.float64):
        here = c.astype(kind)
        pole, root, jump = both(low.astype(kind), high.astype(kind), here)
        assert np.all(pole.status == Status.DIVERGED)
        assert root.converged.all() and jump.converged.all()
        for out in (pole, root, jump):
            np.testing.assert_allclose(out.value, here, rtol=0, atol=np.finfo(kind).eps)


def test_bounds_as_lists_and_bounds_that_are_none():
    out = ji.bracketed_root(lambda x: x**2 - 2, [0.0, 1.0], [2.0, 3.0])
    np.testing.assert_allclose(out.value, 2**0.5, rtol=1e-6)
    for bad, error, said in ((jnp.inf, ValueError, "upper contains NaN or infinity"),
                             (1j, TypeError, "upper must be real")):
        with pytest.raises(error, match=said):
            ji.bracketed_root(lambda x: x, -1.0, bad)


def test_no_unknowns_and_no_problems():
    assert ji.root(lambda x: x, jnp.zeros(0)).converged
    with pytest.raises(ValueError, match="x0 has no entries"):
        ji.root(lambda x: x, jnp.zeros(0), method="hybrid")
    none = ji.root_many(lambda x, a: x * x - a, jnp.zeros((0, 2)), jnp.zeros(0))
    assert none.value.shape == (0, 2) and none.status.shape == (0,)
