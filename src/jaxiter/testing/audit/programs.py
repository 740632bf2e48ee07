"""Linear and quadratic programs: optimality, certificates and derivatives, by numpy in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.operators import ProgramResult, linear_program, quadratic_program
from jaxiter.solution import Status
from jaxiter.testing.audit.drawn_programs import (
    SOLVABLE,
    Drawn,
    Program,
    Units,
    drawn_programs,
    in_units,
    inverse,
)
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    lengths,
    name,
    verdict,
    wrong_gradients,
)

#: The relative errors that CONVERGED promises of a method, by dtype.
PROMISED = {"interior": {"float32": 1e-6, "float64": 1e-9},
            "admm": {"float32": 1e-5, "float64": 1e-8},
            "halpern": {"float32": 1e-4, "float64": 1e-6}}
#: Steps of a solve; an error of so many times what is promised is still believed, for the units
#: of a method are not those of the judge; a ray may fall so far short of a proof, by its value.
MOST = {"interior": 50, "admm": 3000, "halpern": 20_000}
ROOM, SHORT = 10, 1e-2
#: Derivatives are judged where the system that they solve has at most this condition.
CONDITION = 1e3


@cache
def _program(front: str, method: str) -> Callable:
    def one(q: jax.Array, h: jax.Array, p: Program, weights: jax.Array) -> tuple:
        rows: dict[str, Any] = p._replace(h=h)._asdict()
        del rows["Q"], rows["q"]
        rows |= {"method": method, "max_steps": MOST[method]}
        if front == "linear_program":
            out = linear_program(q, **rows)
        else:
            out = quadratic_program(p.Q, q, **rows)
        return jnp.sum(weights * out.x), out._replace(solve=out.status)

    def both(p: Program, weights: jax.Array) -> tuple:
        return jax.value_and_grad(one, argnums=(0, 1), has_aux=True)(p.q, p.h, p, weights)

    return jax.jit(jax.vmap(both))


def kkt_errors(
    p: Program, x: np.ndarray, y: np.ndarray, z: np.ndarray, digit: float = 0.0
) -> np.ndarray:
    """The largest relative error `[count]` of rows, gradient and gap, beside their terms.

    digit: relative rounding of products. A gradient towards a bound counts as explained by it or
    not, whichever says less; one that is rounding, as none.
    """
    sides = np.isfinite(p.h)
    h = np.where(sides, p.h, 0)
    equal, unequal = apply(p.A, x), apply(p.G, x)
    terms = [apply(p.Q, x), p.q, apply(np.swapaxes(p.A, 1, 2), y),
             apply(np.swapaxes(p.G, 1, 2), z)]
    slope = sum(terms[1:], terms[0])
    dual_unit = np.stack([lengths(term) for term in terms]).max(0)
    parts = [x * terms[0], x * p.q, y * p.b, z * np.maximum(np.abs(h), np.abs(unequal))]
    gap_unit = sum((np.abs(part).sum(1) for part in parts), np.zeros(len(x)))
    bound = np.where(slope > 0, p.lower, p.upper)
    room = np.where(np.isfinite(bound), np.abs(x - bound), np.inf)
    held = room * dual_unit[:, None] <= gap_unit[:, None]
    held |= room == 0
    # What rounding of the terms of products may make of the gradient, and of the rows.
    pulls = _spread((p.Q, x), (np.swapaxes(p.A, 1, 2), y), (np.swapaxes(p.G, 1, 2), z))
    held &= np.abs(slope) > digit * sum(pulls)
    cost = np.where(held, slope, 0)
    bound = np.where(held, bound, 0)
    gap_unit += np.abs(cost * bound).sum(1)
    gap = (z * np.where(sides, h - unequal, 0)).sum(1) + (y * (p.b - equal)).sum(1)
    gap += (cost * (np.where(held, x, 0) - bound)).sum(1)
    primal = np.concatenate([equal - p.b, np.where(sides, np.maximum(unequal - h, 0), 0),
                             np.maximum(p.lower - x, 0), np.maximum(x - p.upper, 0)], 1)
    primal_unit = np.stack([lengths(np.concatenate(pair, 1)) for pair in (
        (p.b, h), (equal, unequal))]).max(0)
    dual = np.concatenate([slope - cost, np.minimum(z, 0), np.where(sides, 0, z)], 1)
    noise = [digit * sum(map(lengths, terms)) for terms in (_spread((p.A, x), (p.G, x)), pulls)]
    parts = ((lengths(primal) - noise[0], primal_unit), (lengths(dual) - noise[1], dual_unit),
             (np.abs(gap), gap_unit))
    return np.stack([np.where(part <= 0, 0, part / unit) for part, unit in parts]).max(0)


def _spread(*pairs: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The sums of the sizes of all terms of products."""
    return [apply(np.abs(matrix), np.abs(v)) for matrix, v in pairs]


def proves(p: Program, ray: tuple, infeasible: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether rays exclude every x, or every multiplier, up to `size`, which is `[count]`."""
    x, y, z = ray
    low, high = np.isfinite(p.lower), np.isfinite(p.upper)
    sides = np.isfinite(p.h)
    pull = apply(np.swapaxes(p.A, 1, 2), y) + apply(np.swapaxes(p.G, 1, 2), z)
    bound = np.where(pull > 0, p.lower, p.upper)
    free = ~np.isfinite(bound)
    value = (pull * np.where(free, 0, bound)).sum(1) - (y * p.b).sum(1)
    value -= (z * np.where(sides, p.h, 0)).sum(1)
    loose = lengths(np.where(free, pull, 0)) + lengths(np.minimum(z, 0))
    none = (value > 0) & (loose * size <= SHORT * value) & (z[~sides] == 0).all()
    fall = -(p.q * x).sum(1)
    left = np.concatenate([
        apply(p.A, x), np.where(sides, np.maximum(apply(p.G, x), 0), 0), apply(p.Q, x),
        np.where(low, np.minimum(x, 0), 0), np.where(high, np.maximum(x, 0), 0)], 1)
    endless = (fall > 0) & (lengths(left) * size <= SHORT * fall)
    return np.where(infeasible, none, endless)


def _slopes(drawn: Drawn, p: Program, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `weights'x` by `[q, h]`, and where they are well conditioned."""
    count, n = p.q.shape
    rows = p.b.shape[1]
    exact, condition = np.zeros((count, n + p.h.shape[1])), np.full(count, np.inf)
    for k in range(count):
        active = drawn.active[k]
        unit = np.eye(n)
        matrix = np.concatenate([p.A[k], p.G[k], unit, unit])[active]
        system = np.block([[p.Q[k], matrix.T], [matrix, np.zeros((len(matrix),) * 2)]])
        condition[k] = np.linalg.cond(system)
        out = np.linalg.solve(system, np.r_[weights[k], np.zeros(len(matrix))])
        by_row = np.zeros(active.size)
        by_row[active] = out[n:]
        exact[k] = np.r_[-out[:n], by_row[rows:rows + p.h.shape[1]]]
    return exact, condition < CONDITION


def evened(p: Program) -> Units:
    """Units in which rows and columns have largest entries of about 1, for numbers of any size."""
    count = len(p.q)
    units = Units(*(np.ones((count, size)) for size in (p.b.shape[1], p.h.shape[1],
                                                        p.q.shape[1], 1)))
    for _ in range(20):
        Q, _, A, _, G, *_ = (np.abs(part) for part in in_units(p, units))
        rows = [np.sqrt(part.max(2)) for part in (A, G)]
        columns = np.sqrt(np.concatenate([Q, A, G], 1).max(1))
        fine = [np.where((part > 0) & np.isfinite(part), part, 1) for part in (*rows, columns)]
        units = Units(units.equations / fine[0], units.inequalities / fine[1],
                      units.x * fine[2], units.objective)
    return units


def point_of(out: ProgramResult) -> tuple:
    """x and the multipliers."""
    return out.x, out.equality_dual, out.inequality_dual


def _judged(out: ProgramResult, p: Program, u: Units) -> tuple:
    """Programs as they were given, answers and rays, in units of which those given are u."""
    (x, y, z), ray = exactly(*point_of(out)), exactly(*out.certificate)
    point = (x / u.x, y * u.equations / u.objective, z * u.inequalities / u.objective)
    return (in_units(p, inverse(u)), point,
            (ray[0] / u.x, ray[1] * u.equations, ray[2] * u.inequalities))


def audit_program(
    seed: int, count: int, front: str, method: str, kind: str = "regular",
    dtype: Any = jnp.float32,
) -> Verdict:
    """Programs of one kind, judged by their optimality, certificates and derivatives.

    A status is false where CONVERGED is said of what is not optimal or has no solution, and where
    a certificate is none, or one of a program that has a solution. Solutions that are unique, by
    "halpern" those of even units, and by it that a program is infeasible, are to be found.

    Args:
      front: "linear_program" or "quadratic_program". method: that of the front.
      kind: one of `drawn_programs.KINDS`.
    """
    rng = np.random.default_rng(seed)
    drawn = drawn_programs(rng, count, kind, front == "quadratic_program")
    u, weights = drawn.units, rng.normal(size=drawn.program.q.shape)
    given = Program(*cast(dtype, *in_units(drawn.program, u)))
    (_, out), slope = _program(front, method)(given, *cast(dtype, weights / u.x))
    status = np.asarray(out.solve)
    good = status == Status.CONVERGED
    infeasible, endless = status == Status.PRIMAL_INFEASIBLE, status == Status.DUAL_INFEASIBLE
    with np.errstate(all="ignore"):
        exact = Program(*exactly(*given))
        p, point, ray = _judged(out, exact, inverse(evened(exact)) if kind == "odd" else u)
        # Errors by "halpern" are those in the units that were given.
        judged = exact, exactly(*point_of(out))
        judged, (x, y, z) = judged if method == "halpern" else (p, point)
        limit = ROOM * (PROMISED[method][name(dtype)] + half_ulp(dtype))
        false = good & ~(kkt_errors(judged, x, y, z, 8 * half_ulp(dtype)) <= limit)
        size = np.full(count, 0.0 if kind == "odd" else 3.0)
        false |= (infeasible | endless) & ~proves(p, ray, infeasible, size)
        if kind in SOLVABLE:
            false |= infeasible | endless
        elif kind != "odd":
            false |= good
    wanted = np.ones(count, bool)
    if kind == "regular" or kind == "units" and method != "halpern":
        wanted = good
    elif kind == "infeasible" and method == "halpern":
        wanted = infeasible | endless  # the objective of some falls for ever, too
    silent = lost = np.zeros(count, bool)
    if kind in ("regular", "units"):
        wanted_slope, clear = _slopes(drawn, p, weights)
        by_q, by_h = exactly(*slope)
        found = np.concatenate([by_q * u.objective / u.x, by_h * u.inequalities], 1)
        silent, lost = wrong_gradients(found, wanted_slope, clear & good, 1e-2)
        silent &= clear & good
    return verdict(f"{front}, {method}, {kind}, {name(dtype)}", status, false, silent=silent,
                   lost=lost, unsolved=~wanted, proven=infeasible | endless)
