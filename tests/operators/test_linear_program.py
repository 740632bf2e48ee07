"""Linear programs by products alone, against HiGHS: answers, multipliers, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import linprog
from tests.linear_programs import in_bad_units, solvable

import jaxiter as ji
from jaxiter import Status
from jaxiter.linear import normal_cg
from jaxiter.operators import PrimalDual, linear_program
from jaxiter.operators.programs.checks import canonical
from jaxiter.operators.programs.hybrid_gradient import hybrid_gradient
from jaxiter.operators.programs.scaling import scaling
from jaxiter.testing import collectives

N, EQUAL, UNEQUAL = 8, 3, 4


def general(seed):
    """A program with rows of both kinds and bounds of all kinds, solvable and not degenerate."""
    rng = np.random.default_rng(seed)
    a, g = rng.normal(size=(EQUAL, N)), rng.normal(size=(UNEQUAL, N))
    lower, upper = np.full(N, -np.inf), np.full(N, np.inf)
    lower[2:5], upper[4:7] = 0, 1
    x = np.where(lower == 0, rng.uniform(0.2, 0.8, size=N), rng.normal(size=N))
    x[5] = 0.5
    # As many constraints hold as there are unknowns: 3 bounds, 3 equalities, 2 inequalities.
    x[2:4], x[6] = 0, 1
    y, z = rng.normal(size=EQUAL), rng.uniform(0.2, 1, size=UNEQUAL) * (np.arange(UNEQUAL) < 2)
    h = g @ x + np.where(z > 0, 0, rng.uniform(0.2, 1, size=UNEQUAL))
    cost = np.where(x == lower, 1, np.where(x == upper, -1, 0)) * rng.uniform(0.2, 1, size=N)
    c = cost - a.T @ y - g.T @ z
    return dict(c=c, A=a, b=a @ x, G=g, h=h, lower=lower, upper=upper)


def highs(data):
    """The answer of HiGHS, with multipliers in our signs."""
    bounds = list(zip(*(np.where(np.isfinite(data[k]), data[k], None)
                        for k in ("lower", "upper")), strict=True))
    return linprog(data["c"], A_ub=data["G"], b_ub=np.minimum(data["h"], 1e20), A_eq=data["A"],
                   b_eq=data["b"], bounds=bounds)


@functools.partial(jax.jit, static_argnames="rtol")
def solve(data, rtol=1e-5):
    data = dict(data)
    return linear_program(data.pop("c"), stop=ji.tolerance(rtol=rtol, atol=0), **data)


def single(data):
    return {key: jnp.asarray(value, jnp.float32) for key, value in data.items()}


def varied():
    """The same shapes: plain, rows of zeros, a column of zeros, a row that is none, bad units."""
    rows = general(1)
    rows["A"][0], rows["b"][0], rows["G"][3], rows["h"][3] = 0, 0, 0, 1
    rows["lower"], rows["upper"] = np.maximum(rows["lower"], -2), np.minimum(rows["upper"], 2)
    column = general(2)
    column["A"][:, 6], column["G"][:, 6] = 0, 0
    column["c"][6] = -1
    unused = general(4)
    unused["h"][3] = np.inf
    return {"plain": general(0), "rows": rows, "column": column, "unused": unused,
            "units": in_units(general(3), *UNITS)}


UNITS = tuple(10 ** np.random.default_rng(0).uniform(-2, 2, size=k) for k in (N, EQUAL, UNEQUAL))


def in_units(data, x, y, z):
    return dict(c=data["c"] * x, A=y[:, None] * data["A"] * x, b=y * data["b"],
                G=z[:, None] * data["G"] * x, h=z * data["h"], lower=data["lower"] / x,
                upper=data["upper"] / x)


@pytest.mark.parametrize("name", varied())
def test_answers_and_multipliers_are_highs(name):
    data = varied()[name]
    out, best = solve(single(data)), highs(data)
    assert out.converged, out.message()
    assert np.all(out.x >= single(data)["lower"]) and np.all(out.x <= single(data)["upper"])
    x, y, z = UNITS if name == "units" else np.ones(3)
    for ours, exact in (
            (out.objective, best.fun), (out.x * x, best.x * x),
            (-out.equality_dual / y, best.eqlin.marginals / y),
            (-out.inequality_dual / z, best.ineqlin.marginals / z),
            (out.reduced_cost / x, (best.lower.marginals + best.upper.marginals) / x)):
        np.testing.assert_allclose(ours, exact, atol=1e-3 * max(1, np.abs(exact).max()))


@pytest.mark.slow
def test_blocks_may_be_missing_sparse_or_functions():
    data = single(general(0))
    whole = solve(data)
    sparse = dict(data, A=BCOO.fromdense(data["A"]), G=BCSR.fromdense(data["G"]))
    out = solve(sparse)
    assert out.converged and abs(int(out.solve.steps) - int(whole.solve.steps)) <= 20
    np.testing.assert_allclose(out.x, whole.x, atol=1e-4)
    pairs = {key: (lambda x, k=key: data[k] @ x, lambda y, k=key: data[k].T @ y) for key in "AG"}
    out = jax.jit(lambda b, h: linear_program(
        data["c"], A=pairs["A"], b=b, G=pairs["G"], h=h, lower=data["lower"],
        upper=data["upper"], stop=ji.tolerance(rtol=1e-5, atol=0)))(data["b"], data["h"])
    assert out.converged
    np.testing.assert_allclose(out.x, whole.x, atol=2e-4)
    # Bounds alone, however far away; rows of one kind alone.
    c = jnp.array([1.0, -2.0, 0.0])
    out = linear_program(c, lower=-1e3, upper=jnp.array([1.0, 1e4, 1.0]))
    assert out.converged
    np.testing.assert_allclose(out.x[:2], [-1e3, 1e4])
    assert out.equality_dual.shape == out.inequality_dual.shape == (0,)
    np.testing.assert_allclose(out.reduced_cost, [1, -2, 0])
    out = linear_program(c, A=jnp.ones((1, 3)), b=jnp.ones(1), lower=0.0)
    np.testing.assert_allclose(out.x, [0, 1, 0], atol=1e-3)


@pytest.mark.slow
def test_batches_are_loops_and_keep_to_themselves():
    """By vmap and in refilled lanes; a program that is infeasible changes no other."""
    data = [single(general(seed)) for seed in range(4)]
    data[2]["b"] = data[2]["b"].at[0].add(10).at[1].set(0)
    data[2]["A"] = data[2]["A"].at[1].set(data[2]["A"][0])
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    many = jax.jit(jax.vmap(functools.partial(solve, rtol=1e-4)))(batch)
    assert many.status.tolist() == [1, 1, Status.PRIMAL_INFEASIBLE, 1]
    programs = jax.jit(jax.vmap(lambda d: canonical(None, *(d[k] for k in (
        "c", "A", "b", "G", "h", "lower", "upper")))))(batch)
    starts = PrimalDual(*(jnp.zeros((4, k)) for k in (N, EQUAL, UNEQUAL)))
    many_lanes = ji.solve_many(
        hybrid_gradient(), starts, programs, jax.jit(jax.vmap(scaling))(programs), lanes=2,
        solver=ji.halpern(), max_steps=20_000, stop=ji.tolerance(rtol=1e-4, atol=0))
    assert many_lanes.status.tolist() == many.status.tolist()
    for row in (0, 1, 3):
        one = solve(data[row], rtol=1e-4)
        assert abs(int(one.solve.steps) - int(many.solve.steps[row])) <= 20
        np.testing.assert_allclose(many.x[row], one.x, atol=1e-3)


def test_float32_says_where_it_ends():
    """A tolerance below its rounding is PRECISION_FLOOR, with the best point that was seen."""
    a, b, c, x = solvable(20, 40, 1)
    a, b, c = (jnp.asarray(v, jnp.float32) for v in (a, b, c))
    out = linear_program(c, A=a, b=b, lower=0.0, stop=ji.tolerance(rtol=1e-9, atol=0))
    assert out.status == Status.PRECISION_FLOOR and out.solve.steps < 2000, out.message()
    assert out.solve.merit < 1e-5
    np.testing.assert_allclose(out.x, x, atol=1e-4 * np.abs(x).max())


def test_bad_units_cost_nothing():
    """Steps and answers of a program in units over twelve decades are those in its own."""
    a, b, c, x = solvable(20, 40, 1)
    bad = in_bad_units(a, b, c, 0)
    run = jax.jit(lambda a, b, c: linear_program(c, A=a, b=b, lower=0.0))
    plain, out = (run(*(jnp.asarray(v, jnp.float32) for v in data)) for data in ((a, b, c), bad))
    assert plain.converged and out.converged
    assert int(out.solve.steps) <= 3 * int(plain.solve.steps)
    np.testing.assert_allclose(out.objective, c @ x, rtol=3e-4)


def test_a_warm_start_is_short():
    data = single(general(0))
    first = solve(data)
    again = linear_program(data["c"], **{k: v for k, v in data.items() if k != "c"},
                           x0=first, stop=ji.tolerance(rtol=1e-4, atol=0))
    assert again.converged and again.solve.steps <= 20 < first.solve.steps


SLOPES = ("c", "A", "b", "G", "h", "lower", "upper")


@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.slow), True])
def test_derivatives_are_those_of_highs(wide):
    """Of x, multipliers and objective, with respect to everything, along one direction."""
    data, rng = general(0), np.random.default_rng(7)
    ways = {key: rng.normal(size=data[key].shape) for key in SLOPES}
    weights = rng.normal(size=N), rng.normal(size=EQUAL)

    def read(data):
        out = highs(data)
        return np.array([weights[0] @ out.x, -weights[1] @ out.eqlin.marginals, out.fun])

    step = 1e-6
    ends = [read({key: data[key] + sign * step * ways[key] for key in SLOPES}) for sign in (1, -1)]
    exact = (ends[0] - ends[1]) / (2 * step)
    with jax.enable_x64(wide):
        kind = jnp.float64 if wide else jnp.float32
        arrays, along = ({key: jnp.asarray(np.where(np.isfinite(data[key]), tree[key], 0)
                                           if tree is ways else tree[key], kind)
                          for key in SLOPES} for tree in (data, ways))

        def ours(arrays):
            out = solve.__wrapped__(arrays, 1e-9 if wide else 1e-6)
            return jnp.stack([jnp.dot(jnp.asarray(weights[0], kind), out.x),
                              jnp.dot(jnp.asarray(weights[1], kind), out.equality_dual),
                              out.objective])

        _, forward = jax.jit(lambda a: jax.jvp(ours, (a,), (along,)))(arrays)
        reverse = jax.jit(jax.jacrev(ours))(arrays)
    np.testing.assert_allclose(forward, exact, atol=1e-5 if wide else 2e-3)
    back = sum(np.tensordot(reverse[key], along[key], np.ndim(along[key])) for key in SLOPES)
    np.testing.assert_allclose(back, exact, atol=1e-5 if wide else 2e-3)


def test_where_the_answer_is_not_unique_derivatives_are_not_a_number():
    """Those of least norm on request, forward."""
    def point(b, adjoint=None):
        return linear_program(jnp.ones(2), A=jnp.array([[1.0, 1.0]]), b=b, lower=0.0,
                              x0=jnp.array([0.6, 0.4]), adjoint=adjoint).x

    b = jnp.array([1.0])
    assert np.isnan(jax.jit(lambda b: jax.jvp(point, (b,), (b,))[1])(b)).all()
    least = jax.jit(lambda b: jax.jvp(
        lambda b: point(b, ji.implicit(normal_cg())), (b,), (b,))[1])(b)
    np.testing.assert_allclose(least, [0.5, 0.5], atol=1e-3)


def test_rows_over_devices_meet_twice_a_step():
    """The product with the transpose, and one sum of lengths; the rest when it is looked at."""
    a, b, c, _ = (np.asarray(v, np.float32) for v in solvable(64, 96, 0))
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    spread = [jax.device_put(v, NamedSharding(mesh, s)) for v, s in (
        (a, P("rows", None)), (b, P("rows")), (c, P()))]

    def run(a, b, c):
        program = canonical(None, c, a, b, lower=0.0)
        point = PrimalDual(*map(jnp.zeros_like, (c, b, program.h)))
        return program, point, scaling(program)

    def solved(program, point, units):
        return ji.fixed_point(
            hybrid_gradient(20), point, program, units, check_every=20, max_steps=20_000,
            solver=optax.chain(optax.scale(2.0), ji.halpern()),
            stop=ji.tolerance(rtol=1e-4, atol=0))

    operands = jax.jit(run)(*spread)
    program = jax.jit(solved).lower(*operands).compile()
    assert collectives(program).looped == {"all-reduce": 2}
    assert collectives(program).branched.keys() == {"all-reduce"}
    out = jax.jit(lambda a, b, c: linear_program(c, A=a, b=b, lower=0.0))(a, b, c)
    assert out.converged
    assert abs(int(program(*operands).steps) - int(out.solve.steps)) <= 60
    np.testing.assert_allclose(c @ np.asarray(program(*operands).value.x), out.objective, rtol=2e-3)


def test_bad_input():
    c, rows = jnp.ones(2), jnp.ones((1, 2))
    for match, given in {
        "A was given without b": {"A": rows}, "lower > upper": {"lower": 1.0, "upper": 0.0},
        "shape": {"A": rows, "b": jnp.ones(2)}, "method must": {"method": "simplex"},
        "x0 must": {"x0": jnp.ones(3)}, "NaN": {"G": rows, "h": jnp.array([jnp.nan])},
    }.items():
        with pytest.raises(ValueError, match=match):
            linear_program(c, **given)
    with pytest.raises(TypeError, match="transpose"):
        linear_program(c, A=lambda x: x, b=c)
    run = jax.jit(lambda low: linear_program(c, lower=low, upper=1.0))
    assert run(jnp.float32(0)).converged
    assert run(jnp.float32(2)).status == run(jnp.float32(jnp.nan)).status == Status.BAD_INPUT


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interior_method_takes_linear_programs(seed):
    """To seven digits in a dozen steps, multipliers too, against HiGHS."""
    rng = np.random.default_rng(seed)
    G, h, c = rng.normal(size=(30, 5)), np.abs(rng.normal(size=30)) + 0.1, rng.normal(size=5)
    exact = linprog(c, A_ub=G, b_ub=h, bounds=(None, None))
    out = linear_program(
        *(jnp.asarray(v, jnp.float32) for v in (c,)), G=jnp.asarray(G, jnp.float32),
        h=jnp.asarray(h, jnp.float32), method="interior")
    assert bool(out.converged) and int(out.solve.steps) < 15
    np.testing.assert_allclose(out.x, exact.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.inequality_dual, -exact.ineqlin.marginals, rtol=1e-4, atol=1e-5)
