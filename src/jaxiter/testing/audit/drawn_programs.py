"""Linear and quadratic programs with a known solution or with none, in numpy, one batch a kind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxiter.testing.audit.verdict import SPECIAL, apply

#: Kinds with a solution; kinds without; and one where anything may be.
SOLVABLE = ("regular", "units", "degenerate", "far", "thin")
KINDS = (*SOLVABLE, "infeasible", "unbounded", "odd")
VARIABLES, EQUATIONS, INEQUALITIES = 6, 2, 4


class Program(NamedTuple):
    """`min x'Qx/2 + q'x, A x = b, G x <= h, lower <= x <= upper`, a batch of them."""

    Q: Any
    q: Any
    A: Any
    b: Any
    G: Any
    h: Any
    lower: Any
    upper: Any


class Units(NamedTuple):
    """Factors of rows `[count, p]`, `[count, m]`, of x `[count, n]`, of objective `[count, 1]`."""

    equations: np.ndarray
    inequalities: np.ndarray
    x: np.ndarray
    objective: np.ndarray


class Drawn(NamedTuple):
    """Programs whose rows and columns are about equally long.

    Attributes:
      program: the problems, in float64.
      units: those in which they are to be given.
      active: which rows of `[A, G, lower, upper]` hold with a multiplier, `[count, p + m + 2 n]`.
    """

    program: Program
    units: Units
    active: np.ndarray


def in_units(p: Program, units: Units) -> Program:
    """The same programs in other units."""
    rows, sides, x, objective = units
    back = objective / x
    return Program(
        p.Q * (back / x[:, :1])[:, :, None] * (x[:, :1] / x)[:, None], p.q * back,
        p.A * rows[:, :, None] / x[:, None], p.b * rows,
        p.G * sides[:, :, None] / x[:, None], p.h * sides, p.lower * x, p.upper * x)


def inverse(units: Units) -> Units:
    """The units that lead back."""
    return Units(*(1 / part for part in units))


def drawn_programs(
    rng: np.random.Generator, count: int, kind: str, quadratic: bool = True
) -> Drawn:
    """Programs of one kind, about their solution and multipliers, which are drawn first.

    "regular": a solution that is unique and strictly complementary, numbers about 1. "units": the
    same, with rows and columns in units of 1e-2 to 1e2, objective and size of 1e-6 to 1e6.
    "degenerate": rows twice, rows and columns of zeros, multipliers 0, variables without choice,
    sides that are infinite, a Q of low rank. "infeasible": two rows, or a row and the bounds,
    exclude each other, by 0.01 to 10. "thin": by less than nothing, 1e-5 to 0.1. "unbounded": along
    one or two variables the objective falls and nothing stops them. "far": a bound does, at 10 to
    1e5. "odd": special numbers anywhere.
    """
    n, p, m = VARIABLES, EQUATIONS, INEQUALITIES
    x, y = rng.normal(size=(count, n)), rng.normal(size=(count, p))
    A, G = rng.normal(size=(count, p, n)), rng.normal(size=(count, m, n))
    root = rng.normal(size=(count, n, 2 if kind == "degenerate" else n))
    Q = root @ np.swapaxes(root, 1, 2) / n + (0 if kind == "degenerate" else 0.1) * np.eye(n)
    Q = Q if quadratic else np.zeros_like(Q)
    # As many as make a vertex of a linear program, and one less.
    tight, held = np.arange(m) < 2, np.arange(n) < (1 if quadratic else 2)
    z = np.where(tight, rng.uniform(0.3, 2, (count, m)), 0)
    r = np.where(held, rng.uniform(0.3, 2, (count, n)), 0)
    low = rng.random((count, n)) < 0.5
    ends = np.where(rng.random((2, count, n)) < 0.5, rng.uniform(0.3, 2, (2, count, n)), np.inf)
    lower, upper = np.where(held & low, x, x - ends[0]), np.where(held & ~low, x, x + ends[1])
    r = np.where(low, r, -r)
    h = apply(G, x) + np.where(tight, 0, rng.uniform(0.3, 2, (count, m)))
    q = -(apply(Q, x) + apply(np.swapaxes(A, 1, 2), y) + apply(np.swapaxes(G, 1, 2), z) - r)
    program = Program(Q, q, A, apply(A, x), G, h, lower, upper)
    active = np.concatenate([np.ones((count, p), bool), np.tile(tight, (count, 1)),
                             held & low, held & ~low], 1)
    ones = Units(*(np.ones((count, size)) for size in (p, m, n, 1)))
    change = {"degenerate": _degenerate, "infeasible": _infeasible, "thin": _thin,
              "unbounded": _unbounded, "far": _far, "odd": _odd}.get(kind)
    if change is not None:
        program = change(rng, program, x)
    return Drawn(program, _units(rng, count) if kind == "units" else ones, active)


def _units(rng: np.random.Generator, count: int) -> Units:
    def powers(size: int, most: float) -> np.ndarray:
        return 10.0 ** rng.uniform(-most, most, (count, size))

    n, p, m = VARIABLES, EQUATIONS, INEQUALITIES
    size = powers(1, 6)
    return Units(powers(p, 2) / size, powers(m, 2) / size, powers(n, 2) * size, powers(1, 6))


def _some(rng: np.random.Generator, share: float = 0.4) -> Callable:
    """Replaces leaves by others in a share of the problems."""
    def choose(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        some = rng.random(len(old)) < share
        return np.where(some.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return choose


def _degenerate(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    """What keeps the point feasible; where the multipliers go, it is not the solution any more."""
    choose = _some(rng)
    A, b, G, h, q = (part.copy() for part in (p.A, p.b, p.G, p.h, p.q))
    twice, again = rng.random((2, len(q))) < 0.4
    A[twice, 1], b[twice, 1] = A[twice, 0], b[twice, 0]
    G[again, 1], h[again, 1] = G[again, 0], h[again, 0]
    G = choose(np.where(np.arange(len(G[0]))[:, None] == 2, 0, G), G)
    h = np.where((G == 0).all(2), np.abs(h), h)
    h = choose(np.where(np.arange(h.shape[1]) == 3, np.inf, h), h)
    fixed = (np.arange(x.shape[1]) == 4) & (rng.random((len(q), 1)) < 0.4)
    lower, upper = np.where(fixed, x, p.lower), np.where(fixed, x, p.upper)
    # Bounds on both sides, so that any q has a solution.
    lower, upper = np.maximum(lower, x - 3), np.minimum(upper, x + 3)
    q = choose(np.zeros_like(q), q)
    return Program(p.Q, q, A, b, G, h, lower, upper)


def _opposed(rng: np.random.Generator, p: Program, x: np.ndarray, room: np.ndarray) -> Program:
    """Rows of which the second leaves so much room beside the first; or beside the bounds."""
    A, b, G, h, lower, upper = (part.copy() for part in p[2:])
    how = rng.integers(0, 3, len(b))
    G[how == 0, 1], h[how == 0, 1] = -G[how == 0, 0], -h[how == 0, 0]
    h[how == 0, 1] += room[how == 0]
    G[how == 1, 2], h[how == 1, 2] = A[how == 1, 0], b[how == 1, 0] + room[how == 1]
    third = how == 2  # the row asks for more than the bounds have
    sum_of = np.where(np.arange(x.shape[1]) < 3, 1.0, 0)
    upper[third, :3] = np.minimum(upper[third, :3], x[third, :3] + 1)
    G[third, 3] = -sum_of
    h[third, 3] = -upper[third, :3].sum(1) + room[third]
    return p._replace(A=A, b=b, G=G, h=h, lower=lower, upper=upper)


def _infeasible(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    return _opposed(rng, p, x, -(10.0 ** rng.uniform(-2, 1, len(x))))


def _thin(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    """A strip between the hyperplanes, within wide bounds."""
    p = _opposed(rng, p, x, 10.0 ** rng.uniform(-5, -1, len(x)))
    G, h = p.G.copy(), p.h.copy()
    opposed = (G[:, 1] == -G[:, 0]).all(1)
    h[opposed, 2:] = np.inf
    slack = (G[:, 3] == np.where(np.arange(x.shape[1]) < 3, -1.0, 0)).all(1)
    h[slack, :3] = np.inf
    A, b = p.A.copy(), p.b.copy()
    A[slack] = np.where(np.arange(x.shape[1]) < 3, 0, A[slack])
    b[slack] = apply(A[slack], x[slack])
    far = np.full_like(x, 30.0)
    wide = ~slack[:, None] | (np.arange(x.shape[1]) >= 3)
    return p._replace(A=A, b=b, G=G, h=h, lower=np.where(wide, -far, p.lower - 3),
                      upper=np.where(wide, far, p.upper))


def _unbounded(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    """Along e_5, or e_4 + e_5, nothing changes but the objective, which falls by 0.01 to 3."""
    Q, q, A, b, G, h, lower, upper = (part.copy() for part in p)
    both = (rng.random(len(q)) < 0.5).astype(float)[:, None]
    A[:, :, 5] = -both * A[:, :, 4]
    G[:, :, 5] = -both * G[:, :, 4]
    Q[:, 5] = -both * Q[:, 4]
    Q[:, :, 5] = -both * Q[:, :, 4]
    Q[:, 5, 5] = both[:, 0] * Q[:, 4, 4]
    G[:, :, 5] -= rng.uniform(0, 1, G.shape[:2]) * (rng.random((len(q), 1)) < 0.5)
    b, h = apply(A, x), apply(G, x) + rng.uniform(0, 2, h.shape)
    upper[:, 4:] = np.inf
    q[:, 5] = -both[:, 0] * q[:, 4] - 10.0 ** rng.uniform(-2, 0.5, len(q))
    return Program(Q, q, A, b, G, h, lower, upper)


def _far(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    p = _unbounded(rng, p, x)
    upper = p.upper.copy()
    upper[:, 5] = x[:, 5] + 10.0 ** rng.uniform(1, 5, len(x))
    return p._replace(upper=upper, lower=np.maximum(p.lower, x - 1e5))


def _odd(rng: np.random.Generator, p: Program, x: np.ndarray) -> Program:
    """In a third of the problems one entry of one part is special; not of Q, which has to be so."""
    where = rng.integers(0, 24, len(x))
    parts = [part.copy() for part in p]
    for k, part in enumerate(parts[1:]):
        flat = part.reshape(len(x), -1)
        flat[where == k, 0] = rng.choice(SPECIAL, (where == k).sum())
    return Program(*parts)
