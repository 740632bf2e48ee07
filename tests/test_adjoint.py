"""Derivatives from three sides: implicit, unrolled, finite differences; and honest failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter import Status, linear
from jaxiter.testing import reference_problems

REGULAR = [n for n, p in reference_problems().items() if p.regular and p.args]


def directional(reference, adjoint, stop, seed):
    """Derivative of a scalar loss along a random direction, and the loss itself."""
    rng = np.random.default_rng(seed)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype),
                             reference.args)

    def loss(args):
        value = ji.fixed_point(reference.problem, reference.x0, *args, adjoint=adjoint, stop=stop,
                               solver=ji.anderson(6), max_steps=3000).value
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(value))

    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(reference.args)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    return sum(jnp.vdot(g, d) for g, d in pairs), value, direction


@pytest.mark.parametrize("name", REGULAR)
def test_implicit_is_finite_difference(name):
    """1e-6 relative in float64, 1e-3 in float32, against float64 differences."""
    single = reference_problems(jnp.float32)[name]
    ours32, _, _ = directional(single, ji.implicit(), ji.tolerance(), 3)
    with jax.enable_x64(True):
        double = reference_problems(jnp.float64)[name]
        stop = ji.tolerance(rtol=0, atol=1e-13)
        ours64, value, direction = directional(double, ji.implicit(), stop, 3)
        h = 1e-6
        shifted = [value(jax.tree.map(lambda a, d, s=s: a + s * h * d, double.args, direction))
                   for s in (1, -1)]
        difference = (shifted[0] - shifted[1]) / (2 * h)
    np.testing.assert_allclose(ours64, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours32, difference, rtol=1e-3, atol=1e-4)


def coupled(a):
    w = jnp.array([[0.3, 0.4], [-0.2, 0.5]], a.dtype)
    return ji.fixed_point(lambda x: jnp.tanh(w @ x * a[0] + a), jnp.zeros(2, a.dtype),
                          stop=ji.tolerance(rtol=0, atol=1e-13)).value


def unrolled_twin(a):
    w = jnp.array([[0.3, 0.4], [-0.2, 0.5]], a.dtype)
    x = jnp.zeros(2, a.dtype)
    for _ in range(60):
        x = jnp.tanh(w @ x * a[0] + a)
    return x


@pytest.mark.slow
def test_every_order_of_differentiation(x64):
    a = jnp.array([0.5, -0.3])

    def f(a):
        return jnp.sum(coupled(a) ** 2)

    def g(a):
        return jnp.sum(unrolled_twin(a) ** 2)

    for transform in (jax.grad, jax.jacfwd, jax.hessian, lambda h: jax.jacfwd(jax.jacfwd(h)),
                      lambda h: jax.jacrev(jax.jacrev(h)), lambda h: jax.jacrev(jax.jacfwd(h))):
        np.testing.assert_allclose(jax.jit(transform(f))(a), transform(g)(a), atol=1e-9)
    batch = jnp.stack([a, 2 * a])
    np.testing.assert_allclose(jax.vmap(jax.hessian(f))(batch)[1], jax.hessian(g)(2 * a), atol=1e-9)
    # <w, J v> = <J^T w, v>
    _, forward = jax.jvp(coupled, (a,), (jnp.array([1.0, 2.0]),))
    _, pull = jax.vjp(coupled, a)
    w = jnp.array([-1.0, 0.5])
    np.testing.assert_allclose(w @ forward, pull(w)[0] @ jnp.array([1.0, 2.0]), rtol=1e-9)


@pytest.mark.parametrize("solve", [linear.bicgstab(), linear.gmres(), linear.normal_cg(),
                                   linear.dense()])
def test_badly_conditioned_in_float32(solve):
    """q = 0.9999: within 1e-3, or NaN; never a silent wrong number as elsewhere."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    for q in (0.9, 0.99, 0.9999):
        m = basis @ np.diag(np.linspace(-q, q, 60)) @ basis.T
        w = rng.normal(size=60)
        exact = np.linalg.solve(np.eye(60) - m.T, w)
        single = jnp.asarray(m, jnp.float32)

        def loss(c, single=single, w=w):
            start = jnp.asarray(np.linalg.solve(np.eye(60) - np.asarray(single, np.float64),
                                                np.ones(60)), jnp.float32)
            sol = ji.fixed_point(lambda x, c: single @ x + c, start, c, max_steps=5,
                                 adjoint=ji.implicit(solve))
            return jnp.asarray(w, jnp.float32) @ sol.value

        gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.ones(60)))
        error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
        assert error < (1e-3 if q < 0.999 else 2e-2) or np.all(np.isnan(gradient))


def test_singular_adjoint_gives_nan_and_a_report():
    def step(x, a):  # every point of a line is fixed
        return jnp.stack([0.5 * (x[0] + x[1]) + a, 0.5 * (x[0] + x[1]) - a])

    x0 = jnp.array([1.0, 3.0])
    gradient = jax.grad(lambda a: ji.fixed_point(step, x0, a, max_steps=50).value @ jnp.array(
        [1.0, 0.5]))(0.0)
    assert np.isnan(gradient)
    report = ji.adjoint_report(step, ji.fixed_point(step, x0, 0.0), 0.0,
                               cotangent=jnp.array([1.0, 0.5]))
    assert report.status != Status.CONVERGED and report.residual > 1e-2
    assert "singular" in str(ji.diagnose(step, x0, 0.0))


def test_on_unconverged():
    def value(adjoint, steps):
        return jax.grad(lambda a: ji.fixed_point(
            lambda x, a: 0.9 * x + a, jnp.zeros(()), a, adjoint=adjoint,
            max_steps=steps).value)(1.0)

    strict = ji.implicit(on_unconverged="nan")
    assert np.isnan(value(strict, 3)) and value(strict, 500) == pytest.approx(10, rel=1e-4)
    assert value(ji.implicit(), 3) == pytest.approx(10, rel=1e-4)
    # of the truncated loop itself: 1 + 0.9 (x2 was measured at the third evaluation)
    assert value(ji.unrolled(), 3) == pytest.approx(1.9, rel=1e-5)


def test_truncated_adjoints_have_their_known_bias():
    q = 0.8
    for terms in (1, 3, 7):
        for adjoint in (ji.neumann(terms), ji.one_step(terms)):
            g = jax.grad(lambda a, ad=adjoint: ji.fixed_point(
                lambda x, a: q * x + a, jnp.zeros(()), a, adjoint=ad).value)(1.0)
            assert g == pytest.approx((1 - q**terms) / (1 - q), rel=1e-4)
    frozen = jax.grad(lambda a: ji.fixed_point(
        lambda x, a: q * x + a, jnp.zeros(()), a, adjoint=ji.frozen()).value)(1.0)
    assert frozen == 0


@pytest.mark.parametrize("solver", [ji.anderson(3), ji.halpern(), ji.inertial(0.3)])
def test_unrolled_is_the_derivative_of_the_truncated_solve(solver, x64):
    def f(a, x0):
        return jnp.sum(ji.fixed_point(lambda x: jnp.cos(a * x), x0, solver=solver, max_steps=6,
                                      adjoint=ji.unrolled(4)).value)

    a, x0, h = 0.8, jnp.array([0.1, 0.9]), 1e-6
    ga, gx = jax.jit(jax.grad(f, argnums=(0, 1)))(a, x0)
    np.testing.assert_allclose(ga, (f(a + h, x0) - f(a - h, x0)) / (2 * h), rtol=1e-5)
    e = jnp.array([h, 0.0])
    np.testing.assert_allclose(gx[0], (f(a, x0 + e) - f(a, x0 - e)) / (2 * h), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_hessian_and_transpose_of_a_coupled_map(x64):
    """The fast twin of the test of every order."""
    a = jnp.array([0.5, -0.3])
    ours, twin = (jax.jit(jax.hessian(lambda a, f=f: jnp.sum(f(a) ** 2)))(a)
                  for f in (coupled, unrolled_twin))
    np.testing.assert_allclose(ours, twin, atol=1e-9)


def test_attach_implicit_to_scipy():
    def equations(x, a):
        return jnp.stack([x[0] ** 2 + x[1] - a[0], x[1] - a[1] * x[0]])

    def solve(a):
        host = np.asarray(jax.lax.stop_gradient(a), np.float64)
        root = scipy.optimize.fsolve(lambda x: np.asarray(equations(x, host)), [1.0, 1.0])
        return ji.attach_implicit(equations, jnp.asarray(root, jnp.float32), a)

    a = jnp.array([3.0, 0.5])
    x = scipy.optimize.fsolve(lambda x: [x[0] ** 2 + x[1] - 3, x[1] - 0.5 * x[0]], [1, 1])
    jacobian = np.array([[2 * x[0], 1], [-0.5, 1]])
    expected = np.linalg.solve(jacobian, np.array([[1, 0], [0, x[0]]]))

    def columns(a):
        root = jnp.asarray(x, jnp.float32)
        return ji.attach_implicit(equations, root, a)

    np.testing.assert_allclose(jax.jacobian(columns)(a), expected, rtol=1e-4)
    np.testing.assert_allclose(solve(a), x, rtol=1e-5)
    with pytest.raises(TypeError, match="equations"):
        ji.attach_implicit(lambda x: x[:1], jnp.ones(2))


def test_no_square_array_anywhere():
    """The default never forms an n x n matrix, forward or backward."""
    n = 977

    def loss(a):
        return jnp.sum(ji.fixed_point(lambda x, a: 0.5 * jnp.cos(a * x), jnp.zeros(n), a,
                                      solver=ji.anderson(5)).value)

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones(n)))
    assert f"[{n}]" in text and f"{n},{n}" not in text


def test_gradient_compiles_at_most_three_maps():
    traces = 0

    def step(x, a):
        nonlocal traces
        traces += 1
        return 0.5 * jnp.cos(a * x)

    jax.jit(jax.grad(lambda a: ji.fixed_point(step, jnp.zeros(()), a).value))(0.5)
    assert traces <= 3


def test_the_residual_of_an_unrolled_solve_has_a_derivative():
    def residual(a):
        return ji.fixed_point(lambda x, a: 0.5 * x + a, jnp.array(0.0), a, max_steps=3,
                              adjoint=ji.unrolled()).residual

    slope = jax.jit(jax.vmap(jax.grad(residual)))(jnp.array([3.0, -3.0, 0.0]))
    np.testing.assert_allclose(slope, [0.25, -0.25, 0.0])


@pytest.mark.parametrize("choices", [
    {}, {"on_unconverged": "nan"}, {"mode": "vjp", "on_unconverged": "nan"},
    {"rows": True, "on_failure": ji.one_step()}], ids=str)
def test_a_compiled_solve_can_be_differentiated_later(choices):
    """What the derivative reads must not belong to the trace that ended."""
    f = jax.jit(lambda a: jnp.sum(ji.fixed_point(
        lambda x, a: 0.5 * x + a, jnp.zeros((2, 1)), a, adjoint=ji.implicit(**choices)).value))
    assert float(jax.grad(f)(1.0)) == pytest.approx(4, rel=1e-4)
