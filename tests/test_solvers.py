"""Solvers against closed forms, proved bounds, scipy's GMRES and measured targets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
from sklearn.datasets import load_breast_cancer

import jaxiter as ji
from jaxiter import Status
from jaxiter.__main__ import logistic_map
from jaxiter.stop import never


def orbit(step, x0, solver, steps):
    """Residual norms of the first steps."""
    trace = ji.record(capacity=steps)
    sol = jax.jit(lambda x: ji.fixed_point(
        step, x, solver=solver, stop=never(), max_steps=steps, monitor=trace))(x0)
    return np.asarray(sol.trace["merit"], np.float64), sol


def rotation(angles, centre):
    c, s = np.cos(angles), np.sin(angles)

    def step(x):
        y = (x - centre).reshape(-1, 2)
        turned = jnp.stack([c * y[:, 0] - s * y[:, 1], s * y[:, 0] + c * y[:, 1]], axis=1)
        return turned.reshape(-1) + centre

    return step


@pytest.fixture
def blocks(x64):
    """P-ROT: ten planar rotations around a random centre."""
    centre = np.random.default_rng(0).normal(size=20)
    return rotation(np.linspace(0.1, np.pi - 0.1, 10), centre), jnp.zeros(20), centre


def test_anderson_is_gmres_on_linear_maps(x64):
    rng = np.random.default_rng(1)
    n = 12
    m = rng.normal(size=(n, n)) / 5
    c = rng.normal(size=n)
    residuals, _ = orbit(lambda x: jnp.asarray(m) @ x + c, jnp.zeros(n),
                         ji.anderson(n, period=1, safeguard=None, ridge=0.0, weight_cap=1e12), 8)
    a = np.eye(n) - m
    for k in (2, 4, 6):
        x, _ = scipy.sparse.linalg.gmres(a, c, restart=k, maxiter=1, rtol=1e-14, atol=0)
        # Anderson's next residual is that of T applied to the GMRES point.
        np.testing.assert_allclose(residuals[k + 1], np.linalg.norm(m @ (c - a @ x)), rtol=1e-7)


def test_anderson_finishes_a_rotation_in_its_dimension(blocks):
    step, x0, centre = blocks
    r0 = np.linalg.norm(step(x0) - x0)
    stop = ji.tolerance(rtol=0, atol=1e-8 * r0)
    sol = ji.fixed_point(step, x0, solver=ji.anderson(20, 1, None, weight_cap=1e12), stop=stop)
    assert sol.converged and sol.steps <= 23
    np.testing.assert_allclose(sol.value, centre, atol=1e-6)
    robust = jax.jit(lambda x: ji.fixed_point(
        step, x, solver=ji.anderson(), stop=stop, max_steps=2000))(x0)
    assert robust.converged and robust.steps <= 600


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_anderson_does_not_see_the_scale(scale):
    """An absolute ridge would: the default of two widely used implementations."""
    a = np.linspace(0.5, 0.99, 8).astype(np.float32)

    def steps(s):
        return int(ji.fixed_point(lambda x: a * x + s, jnp.zeros(8), solver=ji.anderson(5),
                                  stop=ji.tolerance(rtol=1e-5, atol=0)).steps)

    assert steps(np.float32(scale)) == pytest.approx(steps(np.float32(1)), abs=2)


def test_rank_one_history_stays_finite_in_float32():
    """L19: a relative ridge of 1e-10 gives NaN here."""
    sol = ji.fixed_point(lambda x: 0.9 * x + 0.1, jnp.zeros(4), solver=ji.anderson(10, 1))
    assert sol.converged
    constant = ji.fixed_point(lambda x: 0 * x + 3.0, jnp.zeros(4), solver=ji.anderson(10, 1))
    assert constant.converged and constant.steps == 2


def test_type_one_and_complex_and_mixing():
    m = np.array([[0.5, 0.4], [-0.4, 0.5]], np.float32)
    for solver in (ji.anderson(4, kind=1), ji.anderson(4, mixing=0.5)):
        sol = ji.fixed_point(lambda x: m @ x + 1, jnp.zeros(2), solver=solver)
        np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(2) - m, np.ones(2)), rtol=1e-3)
    factors = jnp.array([0.5 + 0.45j, 0.3 - 0.6j, -0.7j], jnp.complex64)
    sol = ji.fixed_point(lambda z: factors * z + 1j, jnp.zeros(3, jnp.complex64),
                         solver=ji.anderson(4))
    assert sol.converged and sol.steps < 15
    np.testing.assert_allclose(sol.value, 1j / (1 - factors), rtol=1e-3)


@pytest.fixture(scope="module")
def cancer():
    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    return features, 2.0 * labels - 1


def optimum(features, labels):
    """The regularised logistic optimum by damped Newton in float64 numpy."""
    w = np.zeros(features.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(labels * (features @ w)))
        gradient = -features.T @ (labels * p) / len(labels) + 1e-3 * w
        hessian = (features.T * (p * (1 - p))) @ features / len(labels) + 1e-3 * np.eye(w.size)
        w = w - np.linalg.solve(hessian, gradient)
    assert np.linalg.norm(gradient) < 1e-12
    return w


@pytest.mark.parametrize("memory", [5, 10, 20])
def test_breast_cancer_target(cancer, memory):
    step, start = logistic_map(*cancer, 1e-3)
    sol = jax.jit(lambda w: ji.fixed_point(
        step, w, solver=ji.anderson(memory), stop=ji.tolerance(rtol=0, atol=1e-5),
        max_steps=20_000))(start)
    assert sol.converged and sol.steps <= 150
    best = optimum(*cancer)
    assert np.linalg.norm(sol.value - best) <= 1e-2 * np.linalg.norm(best)


def test_breast_cancer_in_float64(cancer, x64):
    features, labels = cancer
    step = 1 / (np.linalg.norm(features, 2) ** 2 / (4 * len(features)) + 1e-3)

    def loss(w):
        return jnp.mean(jax.nn.softplus(-labels * (features @ w))) + 5e-4 * jnp.sum(w**2)

    sol = jax.jit(lambda w: ji.fixed_point(
        lambda w: w - step * jax.grad(loss)(w), w, solver=ji.anderson(),
        stop=ji.tolerance(rtol=0, atol=1e-11), max_steps=2000))(jnp.zeros(30))
    best = optimum(features, labels)
    assert sol.converged and np.linalg.norm(sol.value - best) <= 1e-6 * np.linalg.norm(best)


def test_halpern_bound_and_picard_on_a_rotation(blocks):
    step, x0, centre = blocks
    distance = np.linalg.norm(x0 - centre)
    k = np.arange(200)
    residuals, _ = orbit(step, x0, ji.halpern(), 200)
    assert np.all(residuals <= 2 * distance / (k + 1) * (1 + 1e-9))
    adaptive, _ = orbit(step, x0, ji.halpern(weights="adaptive"), 200)
    assert np.all(adaptive <= 2 * distance / (k + 1) * (1 + 1e-9))
    picard = ji.fixed_point(step, x0, max_steps=300)
    assert picard.status == Status.MAX_STEPS
    for restart in ("adaptive", 1 / np.e):
        sol = jax.jit(lambda x, r=restart: ji.fixed_point(
            step, x, solver=ji.halpern(r), max_steps=2000,
            stop=ji.tolerance(rtol=0, atol=1e-8)))(x0)
        assert sol.converged and sol.steps < 1000


def test_halpern_first_steps_by_hand():
    """lam_k = 1/(k+2): x1 = (x0 + T x0)/2, x2 = (x0 + 2 T x1)/3."""
    _, sol = orbit(lambda x: -x, jnp.array([1.0]), ji.halpern(), 3)
    # x0 = 1, T x0 = -1: x1 = 0, T x1 = 0: x2 = 1/3.
    np.testing.assert_allclose(sol.value, 1 / 3, rtol=1e-6)


def test_contractive_halpern_bound_is_attained(x64):
    q = 0.9
    residuals, _ = orbit(lambda x: -q * x, jnp.array([1.0]), ji.halpern(contraction=q), 30)
    gamma = 1 / q
    bound = np.array([(1 + q) / sum(gamma**i for i in range(n + 1)) for n in range(30)])
    np.testing.assert_allclose(residuals[::2], bound[::2], rtol=1e-9)
    assert np.all(residuals <= bound * (1 + 1e-9))


def test_halpern_limit_is_the_nearest_fixed_point():
    direction = np.array([0.6, 0.8], np.float32)

    def project(x):
        return direction * (direction @ x)

    sol = ji.fixed_point(project, jnp.array([2.0, 0.0]), solver=ji.halpern("adaptive"))
    np.testing.assert_allclose(sol.value, 1.2 * direction, atol=1e-3)


def test_krasnoselskii_mann_bound(x64):
    """Worst case of the class: rotation by 1/sqrt(n), and the proved rate."""
    n, gamma = 100, 0.5
    step = rotation(np.array([1 / np.sqrt(n)]), np.zeros(2))
    residuals, _ = orbit(step, jnp.array([1.0, 0.0]), ji.damped(gamma), n + 1)
    tau = (1 / (n + 1)) * (n / (n + 1)) ** n / (4 * gamma * (1 - gamma))
    assert residuals[n] ** 2 / 4 <= tau
    np.testing.assert_allclose(residuals[n], 0.0882, rtol=1e-2)


def douglas_rachford(x):
    """For the discs of radius 1 at (0, 0) and 1.5 at (4, 1)."""

    def project(y, centre, radius):
        away = y - centre
        return centre + away * jnp.minimum(1.0, radius / jnp.linalg.norm(away))

    first = project(x, jnp.zeros(2, x.dtype), 1.0)
    return x + project(2 * first - x, jnp.asarray([4.0, 1.0], x.dtype), 1.5) - first


GAP = np.hypot(4, 1) - 2.5


@pytest.mark.parametrize("solver", [ji.picard(), ji.damped(0.5), ji.halpern()])
def test_no_fixed_point_is_certified(solver):
    rule = ji.any_of(ji.tolerance(), ji.no_fixed_point())
    sol = jax.jit(lambda x: ji.fixed_point(
        douglas_rachford, x, solver=solver, stop=rule, max_steps=5000))(jnp.array([0.3, 2.0]))
    assert sol.status == Status.NO_FIXED_POINT, sol.message()
    np.testing.assert_allclose(np.linalg.norm(sol.displacement), GAP, atol=1e-3)
    assert GAP == pytest.approx(1.6231056, abs=1e-7)


@pytest.mark.parametrize("q", [0.9, 0.999, 0.99999])
def test_slow_contractions_are_not_called_infeasible(q):
    rule = ji.any_of(ji.tolerance(rtol=0, atol=1e-9), ji.no_fixed_point())
    for solver in (ji.picard(), ji.halpern(), ji.damped(0.5)):
        sol = jax.jit(lambda x, s=solver: ji.fixed_point(
            lambda x: q * x, x, solver=s, stop=rule, max_steps=3000))(jnp.ones(2))
        assert sol.status != Status.NO_FIXED_POINT
    centre = np.zeros(2, np.float32)
    spin = jax.jit(lambda x: ji.fixed_point(
        rotation(np.array([0.01], np.float32), centre), x, solver=ji.halpern(), stop=rule,
        max_steps=3000))(jnp.ones(2))
    assert spin.status != Status.NO_FIXED_POINT


def test_halpern_displacement_rate(x64):
    """Squared error O(log k / k^2): the fitted exponent of the error is near -1 or faster."""
    _, exact = orbit(douglas_rachford, jnp.array([0.3, 2.0]), ji.picard(), 3000)
    limit = np.asarray(exact.displacement)
    errors = []
    for k in (100, 200, 400, 800, 1600):
        _, sol = orbit(douglas_rachford, jnp.array([0.3, 2.0]), ji.halpern(), k)
        errors.append(np.sum((np.asarray(sol.displacement) - limit) ** 2))
    slope = np.polyfit(np.log([100, 200, 400, 800, 1600]), np.log(errors), 1)[0]
    assert slope <= -1.8


def test_guard_and_restart_wrap_anything():
    def step(x):
        return 0.95 * x + 0.05

    wild = optax.chain(ji.picard(), optax.scale(50.0))
    assert not ji.fixed_point(step, jnp.zeros(2), solver=wild, max_steps=200).converged
    solvers = {"picard": ji.picard(), "guard": ji.guard(wild, 1.0),
               "restart": ji.restarted(ji.inertial(0.9), increase=1.0)}
    steps = {name: int(ji.fixed_point(step, jnp.zeros(2), solver=solver).steps)
             for name, solver in solvers.items()}
    # Every accelerated step is rejected: one wasted evaluation for each good one.
    assert steps["guard"] <= 2 * steps["picard"] and steps["restart"] < steps["picard"]
    state = ji.guard(wild, 1.0).init(jnp.zeros(2))
    assert state.solver.rejected == 0



def hard_maps():
    """P-VI(.99), P-DEQS(.99), P-BRATU(3.5), P-JACOBI of the shared protocol, in float64."""
    rng = np.random.default_rng(0)
    p = np.zeros((100, 4, 100))
    for s in range(100):
        for a in range(4):
            successors = rng.choice(100, 5, replace=False)
            p[s, a, successors] = rng.dirichlet(np.ones(5))
    r = rng.uniform(size=(100, 4))
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    w = q @ np.diag(np.linspace(-0.99, 0.99, 64)) @ q.T
    b = 0.1 * rng.normal(size=64)
    n = 100
    inverse = np.linalg.inv((2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) * (n + 1) ** 2)
    j = 50
    neighbours = 0.5 * (np.eye(j, k=1) + np.eye(j, k=-1))
    return {
        "VI": (lambda v: jnp.max(r + 0.99 * jnp.asarray(p) @ v, axis=1), np.zeros(100)),
        "DEQS": (lambda z: jnp.tanh(jnp.asarray(w) @ z + b), np.zeros(64)),
        "BRATU": (lambda u: jnp.asarray(inverse) @ (3.5 * jnp.exp(u)), np.zeros(n)),
        "JACOBI": (lambda x: jnp.asarray(neighbours) @ x + 0.5 / 51**2, np.zeros(j)),
    }


@pytest.mark.parametrize("name,limit", [("VI", 60), ("DEQS", 80), ("BRATU", 38), ("JACOBI", 350)])
def test_measured_counts(name, limit, x64):
    """1.5 times the counts measured independently (40, 53, 25, 231) to 1e-8 relative."""
    step, x0 = hard_maps()[name]
    r0 = float(np.linalg.norm(step(x0) - x0))
    sol = jax.jit(lambda x: ji.fixed_point(
        step, x, solver=ji.anderson(), stop=ji.tolerance(rtol=0, atol=1e-8 * r0)))(jnp.asarray(x0))
    assert sol.converged and sol.steps <= limit, sol.message()


def test_no_solution_is_never_converged(x64):
    """Bratu beyond its critical parameter, and a translation."""
    step, x0 = hard_maps()["BRATU"]
    for solver in (ji.picard(), ji.anderson(), ji.halpern()):
        beyond = jax.jit(lambda x, s=solver: ji.fixed_point(
            lambda u: step(u) * 3.6 / 3.5, x, solver=s, max_steps=400))(jnp.asarray(x0))
        assert not beyond.converged
        assert not ji.fixed_point(lambda x: x - 1, jnp.zeros(2), solver=solver).converged


def test_overrelaxation_reaches_the_rate_of_its_theory():
    """Eigenvalues in [0, s]: the rate falls from s to omega - 1; Sinkhorn takes a quarter."""
    s = 0.99
    spectrum = jnp.linspace(0.0, s, 40)

    def contraction(x):
        return spectrum * x + (1 - spectrum)

    def steps(solver):
        out = jax.jit(lambda: ji.fixed_point(
            contraction, jnp.zeros(40), solver=solver, max_steps=5000,
            stop=ji.tolerance(rtol=0, atol=1e-4)))()
        assert out.converged
        return int(out.steps)

    omega = 2 / (1 + np.sqrt(1 - s))
    plain, relaxed = steps(ji.picard()), steps(ji.overrelaxed())
    ideal = np.log(1e-4) / np.log(omega - 1)
    assert relaxed < 60 + 2.5 * ideal < plain / 2

    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(200, 2)), rng.uniform(size=(200, 2))
    cost = jnp.asarray(((x[:, None] - y[None]) ** 2).sum(-1), jnp.float32)
    keywords = {"epsilon": 0.01 * float(cost.mean()), "method": "kernel", "max_steps": 4000}
    slow, fast = (jax.jit(lambda c, s=s: ji.transport.sinkhorn(c, solver=s, **keywords).solve)(cost)
                  for s in (ji.picard(), ji.overrelaxed()))
    assert fast.converged and int(fast.steps) < int(slow.steps) / 4


def test_overrelaxation_returns_to_its_best_point():
    """A negative eigenvalue makes momentum diverge; the safeguard goes back and stays finite."""
    spectrum = jnp.array([0.995, -0.9])
    out = ji.fixed_point(lambda x: spectrum * x + 1, jnp.zeros(2), solver=ji.overrelaxed(),
                         max_steps=6000)
    assert np.all(np.isfinite(out.value)) and out.status != Status.DIVERGED


PIECEWISE = 500


def piecewise_contractions(count=PIECEWISE, n=6, seed=0):
    """Random piecewise-linear maps that contract by q, in the l2 or the l-infinity norm."""
    rng = np.random.default_rng(seed)
    kinds, matrices, offsets = [], [], []
    for _ in range(count):
        kind, q = rng.integers(3), rng.choice([0.5, 0.9, 0.99, 0.995])
        if kind == 0:  # Bellman: rows of a stochastic matrix, times the discount
            a = rng.dirichlet(np.full(n, rng.choice([0.05, 1.0])), size=(3, n)) * q
        elif kind == 1:  # rows of l1 norm q, minima of maxima
            a = rng.normal(size=(3, n, n))
            a *= q / np.abs(a).sum(2, keepdims=True)
        else:  # orthogonal, absolute value, q times orthogonal
            a = np.stack([np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(3)])
            a[1] *= q
        kinds.append(kind), matrices.append(a)
        offsets.append(rng.normal(size=(3, n)) * 10 ** rng.uniform(-1, 1))
    return np.array(kinds), np.stack(matrices), np.stack(offsets), rng.normal(size=(count, n))


def piecewise(x, kind, a, b):
    z = jnp.einsum("aij,j->ai", a, x, precision="highest") + b
    folded = a[1] @ jnp.abs(a[0] @ x + b[0]) + b[1]
    return jnp.where(kind == 0, jnp.max(z, 0), jnp.where(
        kind == 1, jnp.minimum(jnp.maximum(z[0], z[1]), z[2]), folded))


def check_contractions_converge(memory, period, kind, dtype):
    kinds, a, b, x0 = piecewise_contractions()
    args = jnp.asarray(kinds), *(jnp.asarray(part, dtype) for part in (a, b))
    starts = jnp.asarray(x0, dtype)
    solver = ji.anderson(memory, period, kind=kind)

    @jax.jit
    def solve(starts, *args):
        return ji.solve_many(piecewise, starts, *args, solver=solver, max_steps=40_000)

    out = solve(starts, *args)
    assert np.all((out.status == Status.CONVERGED) | (out.status == Status.PRECISION_FLOOR))
    assert np.mean(out.converged) > 0.98, np.unique(np.asarray(out.status), return_counts=True)
    return np.asarray(out.steps)


@pytest.mark.parametrize("memory, period, kind", [(5, 2, 2), (30, 1, 1)])
def test_guarded_anderson_solves_every_contraction(memory, period, kind):
    check_contractions_converge(memory, period, kind, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("period", [1, 2, 3, 4])
@pytest.mark.parametrize("memory", [1, 2, 10, 30])
def test_guarded_anderson_of_every_shape_solves_every_contraction(memory, period, kind, x64):
    check_contractions_converge(memory, period, kind, jnp.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_anderson_on_a_patient_worker(dtype, x64):
    """McCall's model at discount 0.9999, where acceleration alone ran in circles."""
    q, wages = 0.9999, jnp.linspace(10, 60, 31).astype(dtype)

    def step(v):
        return jnp.maximum(wages / (1 - q), 25 + q * jnp.mean(v))

    for solver in (ji.anderson(20, 1), ji.anderson()):
        out = jax.jit(lambda s=solver: ji.fixed_point(step, wages / (1 - q), solver=s))()
        assert out.converged and out.steps < 200, out.message()


def test_mixing_damps_every_step_of_anderson():
    """Eight coupled logits of slope 160: an undamped step jumps from corner to corner."""
    coupling = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)) / 8, jnp.float32)

    def step(x):
        return jax.nn.sigmoid(160 * (0.5 - (x + 0.3 * coupling @ x) / 1.3))

    @jax.jit
    def solve(mixing):
        return ji.fixed_point(step, jnp.zeros(8), solver=ji.anderson(mixing=mixing))

    assert solve(0.05).converged and solve(0.02).converged
    first = ji.fixed_point(step, jnp.zeros(8), solver=ji.anderson(mixing=0.25, safeguard=None),
                           max_steps=2)
    np.testing.assert_allclose(first.value, 0.25 * step(jnp.zeros(8)), rtol=1e-6)


def test_no_message_recommends_what_was_used():
    for solver in (ji.picard(), ji.anderson()):
        out = ji.fixed_point(lambda x: 0.99 * x + 1, jnp.zeros(2), solver=solver, max_steps=2)
        assert out.status == Status.MAX_STEPS and "anderson" not in out.message()
