"""Linear programs by products alone, against HiGHS: answers, multipliers, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import linprog

import jaxiter as ji
from jaxiter import Status
from jaxiter.linear import normal_cg
from jaxiter.operators import PrimalDual, linear_program
from jaxiter.operators.programs.checks import canonical
from jaxiter.operators.programs.halpern import halpern_problem
from jaxiter.operators.programs.scaling import scaling
from jaxiter.testing import collectives
from jaxiter.testing.fronts import check_front
from tests.linear_programs import in_bad_units, solvable

N, EQUAL, UNEQUAL = 8, 3, 4


def general(seed):
    """A program with rows of both kinds and bounds of all kinds, solvable and not degenerate."""
    rng = np.random.default_rng(seed)
    a, g = rng.normal(size=(EQUAL, N)), rng.normal(size=(UNEQUAL, N))
    lower, upper = np.full(N, -np.inf), np.full(N, np.inf)
    lower[2:5], upper[4:7] = 0, 1
    x = np.clip(rng.normal(size=N), lower, upper)
    y, z = rng.normal(size=EQUAL), rng.uniform(0.2, 1, size=UNEQUAL) * (np.arange(UNEQUAL) < 2)
    h = g @ x + np.where(z > 0, 0, rng.uniform(0.2, 1, size=UNEQUAL))
    cost = np.where(x == lower, 1, np.where(x == upper, -1, 0)) * rng.uniform(0.2, 1, size=N)
    c = cost - a.T @ y - g.T @ z
    return dict(c=c, A=a, b=a @ x, G=g, h=h, lower=lower, upper=upper)


def highs(data):
    """The answer of HiGHS, with multipliers in our signs."""
    bounds = list(zip(*(np.where(np.isfinite(data[k]), data[k], None)
                        for k in ("lower", "upper")), strict=True))
    out = linprog(data["c"], A_ub=data["G"], b_ub=data["h"], A_eq=data["A"], b_eq=data["b"],
                  bounds=bounds)
    return out


@functools.partial(jax.jit, static_argnames="rtol")
def solve(data, rtol=1e-5):
    data = dict(data)
    return linear_program(data.pop("c"), stop=ji.tolerance(rtol=rtol, atol=0), **data)


def single(data):
    return {key: jnp.asarray(value, jnp.float32) for key, value in data.items()}


def varied():
    """The same shapes: plain, a free column, rows of zeros, columns of zeros, bad units."""
    plain = general(0)
    rows = general(1)
    rows["A"][0], rows["b"][0], rows["G"][3], rows["h"][3] = 0, 0, 0, 1
    columns = general(2)
    columns["A"][:, 4], columns["G"][:, 4] = 0, 0
    units = general(3)
    rng = np.random.default_rng(0)
    u, v, w = (10 ** rng.uniform(-2, 2, size=k) for k in (N, EQUAL, UNEQUAL))
    units = dict(c=units["c"] * u, A=v[:, None] * units["A"] * u, b=v * units["b"],
                 G=w[:, None] * units["G"] * u, h=w * units["h"], lower=units["lower"] / u,
                 upper=units["upper"] / u)
    unused = general(4)
    unused["h"][3] = np.inf
    return {"plain": plain, "rows": rows, "columns": columns, "units": units, "unused": unused}


@pytest.mark.parametrize("name", varied())
def test_answers_and_multipliers_are_highs(name):
    data = varied()[name]
    out, best = solve(single(data)), highs(data)
    assert out.converged, out.message()
    assert np.all(out.x >= single(data)["lower"]) and np.all(out.x <= single(data)["upper"])
    size = np.abs(data["c"]) @ np.abs(best.x)
    np.testing.assert_allclose(out.objective, best.fun, atol=1e-4 * size)
    units = np.abs(best.x).max() if name != "units" else np.abs(best.x)
    np.testing.assert_allclose(out.x / units, best.x / units, atol=2e-3)
    if name != "units":
        np.testing.assert_allclose(-out.equality_dual, best.eqlin.marginals, atol=2e-3)
        np.testing.assert_allclose(-out.inequality_dual, best.ineqlin.marginals, atol=2e-3)
        np.testing.assert_allclose(
            out.reduced_cost, best.lower.marginals + best.upper.marginals, atol=2e-3)
