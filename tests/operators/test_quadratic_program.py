"""`quadratic_program`: answers, statuses and derivatives, against numpy in float64 and SLSQP."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from tests.operators.program_cases import Case, active_set, padded, random_case, solution, solved

import jaxiter as ji
from jaxiter import Status
from jaxiter.linear import normal_cg
from jaxiter.operators.programs import quadratic_program, quadratic_program_many
from jaxiter.testing import check_front

#: n, p, m, whether there are bounds, units of x.
SHAPES = [(2, 0, 3, False, 1.0), (30, 0, 40, False, 1.0), (12, 3, 10, True, 1.0),
          (20, 5, 0, True, 1.0), (60, 10, 60, True, 1.0), (12, 3, 10, True, 1e3)]


@partial(jax.jit, static_argnames="method")
def run(program: dict, method: str | None = None, **options: Any) -> Any:
    return quadratic_program(**program, method=method, **options)


def error(found: Any, wanted: np.ndarray) -> float:
    found = np.asarray(found, float)
    size = np.linalg.norm(wanted)
    return float(np.linalg.norm(found - wanted) / (size if size > 0 else 1.0))


@pytest.mark.parametrize("shape", [
    shape if shape in SHAPES[:3] else pytest.param(shape, marks=pytest.mark.slow)
    for shape in SHAPES])
def test_interior_agrees_with_an_active_set_solution(shape: tuple) -> None:
    n, p, m, bounds, scale = shape
    for seed in range(4):
        case = random_case(seed, n, p, m, bounds, scale)
        wanted, out = solved(case), run(case.given())
        assert out.converged, out.message()
        units = np.linalg.norm(case.Q, axis=0) ** 0.5  # of x, where they differ
        assert error(units * out.x, units * wanted.x) < 1e-4
        for found, dual in ((out.equality_dual, wanted.y), (out.inequality_dual, wanted.z)):
            assert error(found, dual) < 1e-3
        assert error(out.reduced_cost / units, wanted.r / units) < 1e-3
        value = wanted.x @ case.Q @ wanted.x / 2 + case.q @ wanted.x
        np.testing.assert_allclose(out.objective, value, rtol=1e-5)
        assert abs(out.gap) < 1e-4 * abs(value)
        assert np.all(out.x >= case.lower.astype(np.float32))
        assert np.all(out.inequality_dual >= 0)


@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_admm_agrees_too(shape: tuple) -> None:
    n, p, m, bounds, scale = shape
    for seed in range(3):
        case = random_case(seed, n, p, m, bounds, scale)
        wanted, out = solved(case), run(case.given(), "admm")
        assert out.converged, out.message()
        assert error(out.x, wanted.x) < 5e-3
        assert error(out.inequality_dual, wanted.z) < 5e-2


@pytest.mark.parametrize("method", ["interior", "admm"])
def test_an_earlier_result_is_a_start(method: str) -> None:
    given = random_case(0, 12, 3, 10).given()
    out = run(given, method)
    again = run(given, method, x0=out)
    assert again.converged and again.solve.steps == 1
    assert run(given, method, x0=out._replace(equality_dual=0 * out.equality_dual)).converged


def test_an_x_alone_is_a_start() -> None:
    given = random_case(0, 12, 3, 10).given()
    assert quadratic_program(**given, x0=run(given).x).converged


def objective_of(answer: Any, weights: tuple) -> Any:
    """A number that x, y and z enter."""
    parts = zip(weights, (answer[0], answer[1], answer[2]), strict=True)
    return sum((w * part).sum() for w, part in parts)


@pytest.mark.parametrize("method", ["interior", "admm"])
def test_derivatives_are_those_of_the_active_set(method: str) -> None:
    case = random_case(3, 10, 2, 8)
    active = active_set(case)
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=k) for k in (10, 2, 8))
    light = tuple(w.astype(np.float32) for w in weights)
    stop = ji.tolerance(rtol=1e-6, atol=0.0)

    @jax.jit
    def gradient(program: dict) -> dict:
        return jax.grad(lambda program: objective_of(quadratic_program(
            **program, method=method, stop=stop), light))(program)

    given = case.given()
    finite = {name: np.where(np.isfinite(value), value, 0) for name, value in given.items()}
    found = gradient(given)
    for name, value in case._asdict().items():
        direction = rng.normal(size=value.shape) * np.isfinite(value)
        if name == "Q":
            direction = direction + direction.T
        ends = [objective_of(solution(case._replace(
            **{name: value + sign * 1e-6 * direction}), active), weights) for sign in (1, -1)]
        wanted = (ends[0] - ends[1]) / 2e-6
        ours = float(np.sum(np.asarray(found[name], float) * direction))
        size = np.linalg.norm(finite[name]) * 1e-3
        assert abs(ours - wanted) < 1e-3 * abs(wanted) + 1e-5 * size, (name, ours, wanted)


@pytest.mark.slow
def test_second_derivatives_of_the_optimal_value() -> None:
    case = random_case(1, 6, 1, 4, bounds=False)
    given = {name: jnp.asarray(value) for name, value in case.given().items()}

    def value(q: jax.Array) -> jax.Array:
        return quadratic_program(**{**given, "q": q}).objective

    slope, bend = jax.jit(lambda q: (jax.grad(value)(q), jax.hessian(value)(q)))(given["q"])
    wanted = solved(case)
    np.testing.assert_allclose(slope, wanted.x, atol=1e-4)
    moved = solution(case._replace(q=case.q + 1e-6 * np.eye(6)[0]), active_set(case)).x
    np.testing.assert_allclose(bend[0], (moved - wanted.x) / 1e-6, atol=1e-3)


def test_multipliers_that_are_not_unique_have_no_derivative() -> None:
    case = random_case(0, 6, 0, 5, bounds=False)
    given = case.given()
    given["G"], given["h"] = (np.concatenate([given[k], given[k]]) for k in ("G", "h"))

    def value(q: jax.Array, **options: Any) -> jax.Array:
        return jnp.sum(quadratic_program(**{**given, "q": q}, **options).x ** 2)

    out = run(given)
    assert out.converged and error(out.x, solved(case).x) < 1e-4
    q = jnp.asarray(given["q"])
    assert np.all(np.isnan(jax.jit(jax.grad(value))(q)))
    least = jax.jit(jax.grad(partial(value, adjoint=ji.implicit(normal_cg()))))(q)
    active, step = active_set(case), 1e-6 * np.eye(6)
    wanted = [(np.sum(solution(case._replace(q=case.q + h), active).x ** 2)
               - np.sum(solution(case._replace(q=case.q - h), active).x ** 2)) / 2e-6 for h in step]
    np.testing.assert_allclose(least, wanted, atol=2e-3)


def hard_cases() -> dict[str, tuple[dict, np.ndarray]]:
    """Programs without strict complements, full rank or curvature, and their x."""
    zero, one = np.zeros((2, 2), np.float32), np.ones(2, np.float32)
    eye, row = np.eye(2, dtype=np.float32), np.ones((1, 2), np.float32)
    half = np.array([0.5, 0.5])
    return {
        "no constraints": ({"Q": eye, "q": -one}, one),
        "equalities twice": ({"Q": eye, "q": 0 * one, "A": np.tile(row, (3, 1)),
                              "b": np.ones(3, np.float32)}, half),
        "a vertex by three rows": ({"Q": eye, "q": -4 * one, "G": np.concatenate([eye, row]),
                                    "h": np.array([1, 1, 2], np.float32)}, one),
        "an inequality twice": ({"Q": eye, "q": -one, "G": np.tile(row, (2, 1)), "h": one}, half),
        "a linear program": ({"Q": zero, "q": np.array([1, 2], np.float32), "A": row, "b": one[:1],
                              "lower": 0.0}, np.array([1.0, 0.0])),
        "held entries": ({"Q": eye, "q": -one, "lower": np.array([0.3, -np.inf], np.float32),
                          "upper": np.array([0.3, np.inf], np.float32)}, np.array([0.3, 1.0])),
        "wide bounds": ({"Q": eye, "q": -one, "lower": -1e4, "upper": 1e4}, one),
        "an infinite right-hand side": ({"Q": eye, "q": -one, "G": np.tile(row, (2, 1)),
                                         "h": np.array([1, np.inf], np.float32)}, half),
        "a flat direction": ({"Q": row.T @ row, "q": -2 * one, "lower": 0.0,
                              "upper": np.array([0.25, 9.0], np.float32), "A": np.array(
                                  [[1.0, -1.0]], np.float32), "b": -one[:1]},
                             np.array([0.25, 1.25])),
        "a bound that is only just active": ({"Q": eye, "q": 0 * one, "lower": 0.0}, 0 * one),
        "large numbers": ({"Q": 1e6 * eye, "q": -1e9 * one, "upper": 500.0}, 500 * one),
        "small numbers": ({"Q": 1e-6 * eye, "q": -1e-9 * one, "upper": 5e-4}, 5e-4 * one),
    }


@pytest.mark.parametrize("name", hard_cases())
@pytest.mark.parametrize("method", ["interior", "admm"])
def test_hard_programs(name: str, method: str) -> None:
    program, wanted = hard_cases()[name]
    out = run(padded(program, 3, 3), method)
    assert out.status in (Status.CONVERGED, Status.PRECISION_FLOOR), out.message()
    atol = 1e-4 if method == "interior" else 2e-3
    np.testing.assert_allclose(out.x, wanted, atol=atol * max(np.abs(wanted).max(), 1e-3))


def infeasible(n: int) -> list[dict]:
    eye, one = np.eye(n, dtype=np.float32), np.ones(n, np.float32)
    row = one[None]
    return [{"Q": eye, "q": one, "G": np.concatenate([row, -row]),
             "h": np.array([-1, -1], np.float32)},
            {"Q": eye, "q": one, "A": np.concatenate([row, row]),
             "b": np.array([1, 1.1], np.float32)},
            {"Q": eye, "q": one, "A": row, "b": one[:1], "lower": 1.0},
            {"Q": 0 * eye, "q": one, "G": np.concatenate([row, -row]), "h": np.array(
                [-1, -1], np.float32)},
            {"Q": 0 * eye, "q": one}, {"Q": 0 * eye, "q": one, "upper": 1.0},
            {"Q": row.T @ row, "q": one - 2 * eye[0]}]


@pytest.mark.parametrize("method", ["interior", "admm"])
def test_what_has_no_answer_never_converges(method: str) -> None:
    for program in infeasible(3):
        out = run(padded(program, 2, 2), method)
        assert out.status not in (Status.CONVERGED, Status.PRECISION_FLOOR), out.message()
        assert np.all(np.isfinite(out.x))


def batch(count: int) -> dict:
    cases = [random_case(seed, 8, 2, 6).given() for seed in range(count)]
    return {name: np.stack([case[name] for case in cases]) for name in cases[0]}


def test_rows_of_a_long_solution_are_judged_beside_their_sides() -> None:
    """x1 and x2 are up to 1e4, their difference about 1: what a row lacks is not beside 1e4."""
    rng = np.random.default_rng(0)
    tilt, far, r = rng.normal(size=64), 10 ** rng.uniform(2, 4, 64), rng.uniform(0.5, 2, 64)

    def run(tilt: jax.Array, far: jax.Array, r: jax.Array) -> tuple:
        out = quadratic_program(
            jnp.array([[1.0, 0, 0], [0, 1, -1], [0, -1, 1]]),
            jnp.stack([tilt, 0.3 * tilt - 1, -0.3 * tilt - 0.5]), A=jnp.stack([r**0, r, -r])[None],
            b=jnp.ones(1), lower=jnp.array([-50.0, -1e5, -1e5]),
            upper=jnp.stack([50 * r**0, far, jnp.inf * r**0]), method="admm", max_steps=3000)
        return out.x, out.converged

    x, good = jax.jit(jax.vmap(run))(*(jnp.asarray(v, jnp.float32) for v in (tilt, far, r)))
    x = np.asarray(x, np.float64)[good]
    lacks = np.abs(x[:, 0] + r[good] * (x[:, 1] - x[:, 2]) - 1)
    room = 2e-6 * (r * far)[good]  # rounding of terms; it was fifteen times as much
    assert good.sum() > 48
    np.testing.assert_array_less(lacks, 2e-5 * (1 + np.abs(x[:, 0])) + room)
    gap = (r + tilt * r - 0.3 * tilt - 0.5) / (r**2 + 1)
    np.testing.assert_array_less(np.abs(x[:, 1] - x[:, 2] - gap[good]), 2e-5 + room)


@pytest.mark.slow
def test_an_infeasible_program_leaves_the_others_alone() -> None:
    programs = batch(64)
    spoilt = {name: value.copy() for name, value in programs.items()}
    spoilt["A"][17, 1], spoilt["b"][17, 1] = spoilt["A"][17, 0], spoilt["b"][17, 0] + 1
    others = np.arange(64) != 17
    many = jax.jit(lambda programs: quadratic_program_many(**programs, lanes=16))
    vmapped = jax.jit(jax.vmap(lambda program: quadratic_program(**program)))
    for front in (vmapped, many):
        plain, out = front(programs), front(spoilt)
        assert plain.converged.all()
        assert out.status[17] not in (Status.CONVERGED, Status.PRECISION_FLOOR)
        for before, after in zip(plain[:6], out[:6], strict=True):
            np.testing.assert_array_equal(before[others], after[others])
    np.testing.assert_allclose(many(programs).x, vmapped(programs).x, atol=1e-5)


@pytest.mark.parametrize("method", [
    "interior", pytest.param("admm", marks=pytest.mark.slow)])
def test_many_share_what_has_no_leading_axis(method: str) -> None:
    case = random_case(0, 8, 2, 6).given()
    q = np.stack([case["q"], 2 * case["q"], -case["q"]])
    shared = {name: value for name, value in case.items() if name != "q"}
    out = quadratic_program_many(**shared, q=q, method=method, lanes=2)
    for row in range(3):
        single = run({**shared, "q": q[row]}, method)
        np.testing.assert_allclose(out.x[row], single.x, atol=2e-3)


def test_a_kept_penalty_factorises_once_for_a_batch() -> None:
    case = random_case(0, 8, 2, 6).given()
    q = jnp.stack([case["q"], 2 * case["q"], -case["q"]])
    front = jax.vmap(lambda q: quadratic_program(
        **{**case, "q": q}, method="admm", penalty=0.3).x)
    text = str(jax.make_jaxpr(front)(q))
    factors = [line for line in text.splitlines() if "= cholesky" in line]
    assert factors and all(":f32[8,8] = " in line for line in factors), factors
    wanted = [run({**case, "q": row}).x for row in np.asarray(q)]
    np.testing.assert_allclose(jax.jit(front)(q), wanted, atol=2e-3)


def test_units_change_nothing() -> None:
    case = random_case(2, 8, 2, 6)
    units = 2.0 ** np.array([0, 7, -5, 3, 0, 10, -10, 1])
    rows = 2.0 ** np.array([3, -9, 0, 1, 6, 0])
    scaled = Case(2**4 * case.Q * units * units[:, None], 2**4 * case.q * units, case.A * units,
                  case.b, rows[:, None] * case.G * units, rows * case.h, case.lower / units,
                  case.upper / units)
    one, other = run(case.given()), run(scaled.given())
    assert abs(int(one.solve.steps) - int(other.solve.steps)) <= 1 and other.converged
    np.testing.assert_allclose(other.x * units, one.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change, words", [
    ({"Q": np.diag([1.0, -1.0])}, "negative eigenvalue -1"),
    ({"Q": np.full((2, 2), np.nan)}, "Q contains NaN"),
    ({"Q": np.eye(3)}, r"Q must have shape \(2, 2\)"),
    ({"q": np.ones((2, 2))}, r"q must have shape \[n\]"),
    ({"A": np.ones((1, 2))}, "A was given without b"),
    ({"h": np.ones(1)}, "h was given without G"),
    ({"A": np.ones((1, 3)), "b": np.ones(1)}, r"A must have shape \(1, 2\)"),
    ({"G": np.ones((2, 2)), "h": np.ones(3)}, r"G must have shape \(3, 2\)"),
    ({"lower": np.array([0.0, 2.0]), "upper": 1.0}, "lower > upper at entry 1"),
    ({"lower": np.ones(3)}, r"lower must have shape \[2\]"),
    ({"upper": np.array([np.nan, 1.0])}, "upper contains NaN"),
    ({"x0": np.ones(3)}, "x0 has shape"),
    ({"method": "simplex"}, "method must be one of"),
    ({"penalty": 1.0}, "penalty is for"),
    ({"solver": ji.anderson()}, "takes no solver"),
    ({"adjoint": ji.unrolled()}, "cannot be unrolled"),
])
def test_bad_input_is_named(change: dict, words: str) -> None:
    program = {"Q": np.eye(2), "q": np.ones(2)} | change
    program = {name: value.astype(np.float32) if isinstance(value, np.ndarray) else value
               for name, value in program.items()}
    with pytest.raises(ValueError, match=words):
        quadratic_program(**program)


def test_two_precisions_are_refused(x64: None) -> None:
    with pytest.raises(TypeError, match="one dtype"):
        quadratic_program(jnp.eye(2), jnp.ones(2, jnp.float32))
    with pytest.raises(TypeError, match="float32"):
        quadratic_program(jnp.eye(2, dtype=jnp.bfloat16), jnp.ones(2, jnp.bfloat16))


def test_bad_input_that_is_traced_is_a_status() -> None:
    eye, one = np.eye(2, dtype=np.float32), np.ones(2, np.float32)
    good = {"Q": eye, "q": one, "lower": -one, "upper": one, "G": eye, "h": one}
    for change in ({"Q": np.diag([1, -1]).astype(np.float32)}, {"q": np.nan * one},
                   {"lower": 2 * one}, {"h": np.nan * one}, {"h": -np.inf * one}):
        for method in ("interior", "admm"):
            program = padded({**good, **change}, 3, 3)
            assert run(program, method).status == Status.BAD_INPUT, change


@pytest.mark.slow
@pytest.mark.parametrize("method", ["interior", "admm"])
def test_it_is_a_front(method: str) -> None:
    case = random_case(0, 5, 1, 4).given()

    def front(Q: Any, q: Any, A: Any, h: Any, **options: Any) -> Any:
        return quadratic_program(Q, q, A=A, b=case["b"], G=case["G"], h=h, lower=-2.0,
                                 upper=2.0, method=method, **options)

    check_front(front, *(jnp.asarray(case[name]) for name in "QqAh"))


def test_double_precision(x64: None) -> None:
    case = random_case(0, 12, 3, 10)
    out = quadratic_program(**case.given(np.float64))
    assert out.converged and error(out.x, solved(case).x) < 1e-8


@pytest.mark.slow
def test_products_alone_with_a_certificate_where_there_is_no_solution():
    """Method "halpern": dense, sparse, infeasible and not convex."""
    Q, q = np.float32([[2, 0.5], [0.5, 1]]), np.float32([-1, -1])
    A, b = np.float32([[1, 1]]), np.float32([0.5])
    exact = quadratic_program(Q, q, A=A, b=b, lower=0.0).x
    solve = jax.jit(lambda Q, b: quadratic_program(
        Q, q, A=np.float32([[1, 1]]), b=b, lower=0.0, method="halpern"))
    out = solve(Q, b)
    assert bool(out.converged)
    np.testing.assert_allclose(out.x, exact, atol=1e-3)
    sparse = quadratic_program(BCOO.fromdense(Q), q, A=BCOO.fromdense(A), b=b, lower=0.0)
    np.testing.assert_allclose(sparse.x, exact, atol=1e-3)
    nowhere = solve(Q, -b)
    assert int(nowhere.solve.status) == ji.Status.PRIMAL_INFEASIBLE
    # y'(A x - b) > 0 for all x >= 0.
    y = nowhere.certificate.equality_dual
    assert float(y[0] * -b[0]) < 0 and float(jnp.min(A.T @ y)) >= 0
    assert int(solve(-Q, b).solve.status) == ji.Status.BAD_INPUT
    with pytest.raises(TypeError, match="halpern"):
        quadratic_program(BCOO.fromdense(Q), q, method="interior")
    with pytest.raises(ValueError, match="admm"):
        quadratic_program(Q, q, method="halpern", penalty=1.0)
