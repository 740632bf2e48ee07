"""Problems of the kinds on which other libraries test themselves, against numpy and closed forms.

Maps with a neutral or a reflecting coordinate, piecewise-linear ones, inexact inverses, matrices
with eigenvalues on all sides of zero, implicit time steps, complex unknowns, arguments that are
no arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import make_regression
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter import Status, linear

SHIFT = np.array([0.0, np.pi / 2])  # of cos(x) + shift: the second slope at the solution is -1
DOTTIE = 0.7390851332151607
SLOPE = np.array([1 / (1 + np.sin(DOTTIE)), 0.5])


def shifted(start, adjoint, **options):
    def solve(shift):
        return ji.fixed_point(lambda x, t: jnp.cos(x) + t, jnp.asarray(start), shift,
                              adjoint=adjoint, **options).value

    return solve


def test_unrolled_anderson_is_the_derivative_of_what_ran(x64):
    """A coordinate that starts at its solution has no say in the weights: its derivative is off."""
    def slope(steps, adjoint):
        solve = shifted(SHIFT, adjoint, solver=ji.anderson(5), max_steps=steps)
        return jax.jit(lambda t: jax.jvp(solve, (t,), (jnp.ones(2),)))(jnp.asarray(SHIFT))[1]

    short = slope(5, ji.unrolled())
    run = jax.jit(shifted(SHIFT, ji.frozen(), solver=ji.anderson(5), max_steps=5))
    # So small a move that its square is lost beside the ridge: a larger one changes the weights.
    h = np.array([0.0, 1e-9])
    difference = (run(SHIFT + h) - run(SHIFT - h)) / 2e-9
    np.testing.assert_allclose(short[1], difference[1], atol=1e-5)  # right, of the algorithm
    np.testing.assert_allclose(short[1], 0.31, atol=0.01)
    unrolled = slope(12, ji.unrolled())  # and so it stays when the solve has converged
    np.testing.assert_allclose(unrolled[0], SLOPE[0], rtol=1e-6)
    assert 0.01 < abs(unrolled[1] - 0.5) < 0.2
    np.testing.assert_allclose(slope(12, ji.implicit()), SLOPE, rtol=1e-6)


@jax.jit
@jax.vmap
def from_three_starts(start):
    return [ji.fixed_point(lambda x: jnp.cos(x) + jnp.asarray(SHIFT, x.dtype), start,
                           solver=solver, max_steps=300) for solver in (None, ji.anderson(4))]


def test_a_neutral_coordinate():
    """Slope -1: Picard goes round for ever unless it starts there, and must say so."""
    starts = jnp.array([[0.3, np.pi / 4], [0.0, np.pi / 4], [0.0, np.pi / 2]])
    plain, fast = from_three_starts(starts)
    assert plain.status.tolist() == [Status.MAX_STEPS, Status.MAX_STEPS, Status.CONVERGED]
    assert np.all(fast.converged) and np.all(fast.steps <= 12)
    np.testing.assert_allclose(
        fast.value, np.tile([DOTTIE, np.pi / 2], (3, 1)), rtol=2e-5)


def test_a_tree_with_a_flat_and_a_reflecting_leaf():
    """`x^2 sin x` and `x^3` are flat at 0 and have other fixed points; -x is no contraction."""
    start = (jnp.array([0.6, 0.0, -0.1]),
             [jnp.array([[0.7], [0.5]]), jnp.array([[-1.0, 0.0, 2.0, -0.4]]) / 3])

    def step(x):
        return jnp.sin(x[0]) * x[0] ** 2, [x[1][0] ** 3, -x[1][1]]

    out = jax.jit(lambda x: ji.fixed_point(step, x, solver=ji.anderson(3)))(start)
    assert out.converged and out.steps <= 12
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(out.value)) < 1e-5


X, Y = (np.asarray(a, np.float32) for a in make_regression(10, 3, random_state=0))
GRAM = X.T.astype(float) @ X


def ridge(penalty):
    return np.linalg.solve(GRAM + penalty * len(Y) * np.eye(3), X.T.astype(float) @ Y)


@pytest.mark.parametrize("adjoint", [
    None, ji.implicit(linear.cg(), mode="vjp"), ji.neumann(40)])
def test_ridge_regression_by_its_equations(adjoint):
    """Solved elsewhere; the arguments are a record with a name, a function and an integer in it."""
    def equations(w, data):
        return 0.015 * data["sign"](  # a step of descent: T(w) - w, as neumann wants it
            data["x"].T @ (data["x"] @ w - data["y"]) / data["n"] + data["penalty"] * w)

    def solve(penalty):
        data = {"penalty": penalty, "x": X, "y": Y, "n": float(len(Y)), "name": "ridge",
                "sign": jnp.negative, "none": None}
        return ji.attach_implicit(
            equations, jnp.asarray(ridge(5.0), jnp.float32), data, adjoint=adjoint)

    matrix = GRAM + 50 * np.eye(3)
    first = -10 * np.linalg.solve(matrix, ridge(5.0))
    slope = jax.jit(jax.jacrev(solve))(5.0)
    np.testing.assert_allclose(slope, first, rtol=2e-2 if adjoint == ji.neumann(40) else 1e-5)
    if adjoint is None:
        np.testing.assert_allclose(jax.jit(jax.jacfwd(solve))(5.0), first, rtol=1e-5)


def test_lasso_and_its_penalty():
    """A piecewise-linear map: Anderson finds sklearn's answer, the derivative is the support's."""
    x, y = make_regression(100, 20, n_informative=6, noise=5.0, random_state=0)
    step, n = 1 / np.linalg.norm(x, 2) ** 2, len(y)

    def descend(w, penalty):
        z = w - step * (x.T @ (x @ w - y))
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * n * penalty, 0)

    with jax.enable_x64(True):
        def solve(penalty):
            out = ji.fixed_point(descend, jnp.zeros(20), penalty, solver=ji.anderson(15))
            return out.value, out

        (slope, out) = jax.jit(jax.jacobian(solve, has_aux=True))(3.0)
    reference = Lasso(alpha=3.0, fit_intercept=False, tol=1e-12).fit(x, y).coef_
    assert out.converged and out.steps < 60
    np.testing.assert_allclose(out.value, reference, atol=1e-5)
    support = reference != 0
    assert 0 < support.sum() < 20
    exact = np.zeros(20)
    part = x[:, support]
    exact[support] = -n * np.linalg.solve(part.T @ part, np.sign(reference[support]))
    np.testing.assert_allclose(slope, exact, rtol=1e-6, atol=1e-9)


def test_refinement_by_an_inexact_inverse():
    """`x + M^-1 (b - A x)` with the factors of another matrix; derivatives by all of A and b."""
    state = np.random.RandomState(0)
    a = state.rand(20, 20)
    factors = jax.scipy.linalg.lu_factor(jnp.asarray(a + 0.05 * state.randn(20, 20), jnp.float32))
    exact, weights = state.randn(20), state.randn(20)

    def loss(a, b):
        problem = ji.Problem(residual=lambda x: jax.scipy.linalg.lu_solve(factors, b - a @ x))
        out = ji.fixed_point(problem, jnp.zeros(20), solver=ji.anderson())
        return jnp.vdot(jnp.asarray(weights, jnp.float32), out.value), out

    given = jnp.asarray(a, jnp.float32), jnp.asarray(a @ exact, jnp.float32)
    (by_a, by_b), out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*given)
    assert out.converged and out.steps < 30
    np.testing.assert_allclose(out.value, exact, atol=2e-4)
    dual = np.linalg.solve(a.T, weights)
    np.testing.assert_allclose(by_b, dual, atol=1e-4 * np.abs(dual).max())
    np.testing.assert_allclose(by_a, -np.outer(dual, exact), atol=1e-3 * np.abs(dual).max())


SOLVERS = {"bicgstab": linear.bicgstab(), "gmres": linear.gmres(), "short gmres": linear.gmres(5),
           "normal_cg": linear.normal_cg(), "dense": linear.dense()}


@pytest.mark.parametrize("name", SOLVERS)
def test_eigenvalues_on_all_sides_of_zero(name):
    """Unknowns [5, 3], a random matrix of condition 35: right, or it says that it is not."""
    state = np.random.RandomState(0)
    state.randn(30)
    matrix, b = state.randn(15, 15), state.randn(5, 3)
    a = jnp.asarray(matrix, jnp.float32)
    out = jax.jit(lambda b: SOLVERS[name](lambda v: (a @ v.ravel()).reshape(5, 3), b))(
        jnp.asarray(b, jnp.float32))
    exact = np.linalg.solve(matrix, b.ravel()).reshape(5, 3)
    right = np.abs(out.value - exact).max() < 1e-3 * np.abs(exact).max()
    assert bool(out.converged) == right, out.message()
    assert right or name in ("bicgstab", "short gmres")


@pytest.mark.parametrize("name", SOLVERS)
def test_repeated_equations(name):
    """Each row twice: Krylov methods find a solution, normal equations that of least norm."""
    state = np.random.RandomState(0)
    half, b = state.rand(5, 10), state.randn(5)
    a, b = np.concatenate([half, half]), np.concatenate([b, b])
    matrix = jnp.asarray(a, jnp.float32)
    out = jax.jit(lambda b: SOLVERS[name](lambda v: matrix @ v, b))(jnp.asarray(b, jnp.float32))
    if name == "dense":  # has no way to choose one
        assert not out.converged
        return
    assert out.converged, out.message()
    np.testing.assert_allclose(a @ np.asarray(out.value, float), b, atol=1e-4)
    if name == "normal_cg":
        np.testing.assert_allclose(out.value, np.linalg.pinv(a) @ b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["root", "fixed point"])
def test_implicit_midpoint_steps(how, x64):
    """`y = y0 + dt A (y0 + y) / 2`, complex, in a tree; vmapped over A, tangents by A and y0."""
    rng, dtype = np.random.default_rng(0), complex

    def some(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    dt, (a, da), (y0, dy) = 1 / 16, some(2, 4, 7, 7), some(2, 7)

    def midpoint(y, a, y0):
        flat = jnp.concatenate([y["p"].ravel(), y["q"]])
        new = y0 + dt * a @ (y0 + flat) / 2
        return {"p": new[:4].reshape(2, 2), "q": new[4:]}

    def solve(a, y0):
        start = {"p": jnp.zeros((2, 2), dtype), "q": jnp.zeros(3, dtype)}
        stop = ji.tolerance(rtol=1e-12, atol=1e-12)
        if how == "fixed point":
            return ji.fixed_point(midpoint, start, a, y0, stop=stop).value
        return ji.root(lambda y, *args: jax.tree.map(
            jnp.subtract, midpoint(y, *args), y), start, a, y0, stop=stop).value

    value, tangent = jax.jit(jax.vmap(lambda a, da: jax.jvp(solve, (a, y0), (da, dy))))(a, da)
    for i in range(4):
        left, right = np.eye(7) - dt / 2 * a[i], np.eye(7) + dt / 2 * a[i]
        y = np.linalg.solve(left, right @ y0)
        dot = np.linalg.solve(left, dt / 2 * da[i] @ (y0 + y) + right @ dy)
        for out, exact in ((value, y), (tangent, dot)):
            np.testing.assert_allclose(
                np.concatenate([out["p"][i].ravel(), out["q"][i]]), exact, rtol=1e-8, atol=1e-9)


def test_rates_of_very_different_size(x64):
    """Three reactions with rates from 0.04 to 3e7: derivatives by the logarithm of each."""
    rates, y0, dt = np.array([0.04, 3e7, 1e4]), np.array([1.0, 0.5, 0.2]), 1e-8

    def flow(y, k, np=jnp):
        slow, fast, back = k[0] * y[0], k[1] * y[1] ** 2, k[2] * y[1] * y[2]
        return np.stack([back - slow, slow - fast - back, fast])

    def solve(logs):
        return ji.fixed_point(lambda y, k: y0 + dt * flow((y + y0) / 2, k), jnp.asarray(y0),
                              jnp.exp(logs), stop=ji.tolerance(rtol=1e-15, atol=1e-15)).value

    slope = jax.jit(jax.jacobian(solve))(jnp.log(rates))
    y, k = y0, rates
    for _ in range(100):  # a contraction of rate 0.2
        y = y0 + dt * flow((y + y0) / 2, k, np)
    m = (y + y0) / 2
    jac = np.array([[-k[0], k[2] * m[2], k[2] * m[1]],
                    [k[0], -2 * k[1] * m[1] - k[2] * m[2], -k[2] * m[1]], [0, 2 * k[1] * m[1], 0]])
    by_rate = np.array([[-m[0], 0, m[1] * m[2]], [m[0], -m[1] ** 2, -m[1] * m[2]],
                        [0, m[1] ** 2, 0]]) * k
    exact = np.linalg.solve(np.eye(3) - dt / 2 * jac, dt * by_rate)
    scale = np.abs(exact).max(axis=0, keepdims=True)
    np.testing.assert_allclose(slope / scale, exact / scale, atol=1e-7)


def test_one_equation_without_a_root_spoils_the_system():
    def function(y, offset):
        return offset + 0 * y[0], jnp.tanh(y[1] * jnp.array([1.0, 2.0]) - jnp.array([0.5, 0.0]))

    start = jnp.float32(0.5), jnp.array([-0.3, 0.7])
    out = jax.jit(lambda y: ji.root(function, y, 1.0, max_steps=200))(start)
    assert not out.converged and out.residual > 0.9
