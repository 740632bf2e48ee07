"""Random programs in numpy, and their solutions by SLSQP and one linear solve in float64."""

from typing import NamedTuple

import numpy as np
import scipy.optimize


class Case(NamedTuple):
    """A program in float64; fields as in `jaxiter.operators.programs.program.Program`."""

    Q: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    G: np.ndarray
    h: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def given(self, kind: type = np.float32) -> dict:
        """As keyword arguments of `quadratic_program`."""
        return {name: value.astype(kind) for name, value in self._asdict().items()}


class Answer(NamedTuple):
    """x, multipliers of the rows, and the reduced cost."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    r: np.ndarray


def random_case(
    seed: int, n: int, p: int, m: int, bounds: bool = True, scale: float = 1.0
) -> Case:
    """A feasible program about a third of whose inequalities are active."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    Q = root @ root.T / n + 0.05 * np.eye(n)
    inside = 0.3 * rng.normal(size=n)
    A, G = rng.normal(size=(p, n)), rng.normal(size=(m, n))
    room = 0.5 * np.abs(rng.normal(size=m))
    wide = np.full(n, np.inf)
    if bounds:
        wide[::2] = 0.4
    units = scale ** rng.uniform(-1, 1, n)  # of x
    case = Case(Q, 2 * rng.normal(size=n), A, A @ inside, G, G @ inside + room,
                inside - wide, inside + 2 * wide)
    return Case(case.Q * units * units[:, None], case.q * units, case.A * units, case.b,
                case.G * units, case.h, case.lower / units, case.upper / units)


def padded(program: dict, p: int, m: int) -> dict:
    """The same program with p and m rows and all bounds, for several to share what is compiled.

    Rows of zeros that say nothing, and infinite bounds, are added.
    """
    n = program["q"].size
    full = {"Q": program["Q"], "q": program["q"]}
    for matrix, side, count, nothing in (("A", "b", p, 0.0), ("G", "h", m, np.inf)):
        rows = program.get(matrix, np.zeros((0, n), np.float32))
        more = count - len(rows)
        full[matrix] = np.concatenate([rows, np.zeros((more, n), np.float32)])
        full[side] = np.concatenate([
            program.get(side, np.zeros(0, np.float32)), np.full(more, nothing, np.float32)])
    for bound, nothing in (("lower", -np.inf), ("upper", np.inf)):
        full[bound] = np.broadcast_to(np.float32(program.get(bound, nothing)), (n,))
    return full


def stacked(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """All inequalities with a finite side as `C x <= c`, and where they stand among all."""
    n = case.q.size
    C = np.concatenate([case.G, -np.eye(n), np.eye(n)])
    return C, np.concatenate([case.h, -case.lower, case.upper])


def active_set(case: Case) -> np.ndarray:
    """Which of `stacked` are active, by SLSQP."""
    C, c = stacked(case)
    there = np.isfinite(c)
    constraints = [{"type": "ineq", "fun": lambda x: c[there] - C[there] @ x,
                    "jac": lambda x: -C[there]}]
    if case.b.size:
        constraints.append({"type": "eq", "fun": lambda x: case.A @ x - case.b,
                            "jac": lambda x: case.A})
    out = scipy.optimize.minimize(
        lambda x: x @ case.Q @ x / 2 + case.q @ x, np.zeros(case.q.size),
        jac=lambda x: case.Q @ x + case.q, constraints=constraints, method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500})
    active = np.zeros(c.size, bool)
    active[there] = c[there] - C[there] @ out.x < 1e-6
    return active


def solution(case: Case, active: np.ndarray) -> Answer:
    """The solution with these constraints active: one linear system."""
    C, c = stacked(case)
    n, p, m = case.q.size, case.b.size, case.h.size
    rows = np.concatenate([case.A, C[active]])
    size = n + len(rows)
    matrix = np.zeros((size, size))
    matrix[:n, :n], matrix[:n, n:], matrix[n:, :n] = case.Q, rows.T, rows
    out = np.linalg.solve(matrix, np.concatenate([-case.q, case.b, c[active]]))
    dual = np.zeros(c.size)
    dual[active] = out[n + p:]
    return Answer(out[:n], out[n:n + p], dual[:m], dual[m:m + n] - dual[m + n:])


def solved(case: Case) -> Answer:
    """The solution, which is checked to be one."""
    answer = solution(case, active_set(case))
    C, c = stacked(case)
    assert np.all(answer.z > -1e-9) and np.all(C @ answer.x <= c + 1e-9)
    low = answer.r[~np.isfinite(case.lower)]
    assert np.all(low < 1e-9)
    return answer
