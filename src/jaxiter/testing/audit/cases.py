"""The whole audit as a table: every front, solver and method on every kind of problem."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import linear
from jaxiter.bilevel import neumann_series
from jaxiter.implicit import implicit
from jaxiter.solvers import (
    anderson,
    damped,
    guard,
    halpern,
    inertial,
    overrelaxed,
    picard,
    restarted,
)
from jaxiter.testing.audit.accuracy import SPECTRA, audit_accuracy
from jaxiter.testing.audit.bilevel import audit_hypergradient, audit_inner, audit_unrolled
from jaxiter.testing.audit.drawn_programs import KINDS as PROGRAMS
from jaxiter.testing.audit.fits import LOSSES, audit_fit
from jaxiter.testing.audit.games import FRONTS as GAME_FRONTS
from jaxiter.testing.audit.games import KINDS as GAMES
from jaxiter.testing.audit.games import audit_game
from jaxiter.testing.audit.gradients import audit_near_singular, audit_rows, audit_sixteen
from jaxiter.testing.audit.inclusions import FRONTS as INCLUSION_FRONTS
from jaxiter.testing.audit.inclusions import KINDS as INCLUSIONS
from jaxiter.testing.audit.inclusions import audit_inclusion
from jaxiter.testing.audit.kinds import audit_process, audit_splitting, audit_stages
from jaxiter.testing.audit.maps import audit_fixed_point
from jaxiter.testing.audit.piecewise import audit_logits, audit_piecewise
from jaxiter.testing.audit.programs import audit_program
from jaxiter.testing.audit.resumed import audit_resume
from jaxiter.testing.audit.roots import ALL as SYSTEMS
from jaxiter.testing.audit.roots import audit_root
from jaxiter.testing.audit.sequences import audit_recurrence, audit_sample
from jaxiter.testing.audit.systems import audit_linear
from jaxiter.testing.audit.transport import (
    COSTS,
    KINDS,
    audit_batched,
    audit_clouds,
    audit_grids,
    audit_sinkhorn,
    audit_unbalanced,
)
from jaxiter.testing.audit.verdict import Verdict

#: A share of the count, and what judges so many problems: `case(seed, count) -> Verdict`.
Case = tuple[float, Callable[[int, int], Verdict]]

#: Solvers that converge on every contraction, and others.
CERTAIN = {"picard": picard(), "damped": damped(0.7), "anderson": anderson(3),
           "anderson-1": anderson(3, kind=1), "guarded": guard(damped(0.5))}
OTHERS = {"halpern": halpern("adaptive"), "restarted": restarted(halpern(), every=8),
          "overrelaxed": overrelaxed(), "inertial": inertial(0.3)}
SOLVERS = {**CERTAIN, **OTHERS}
#: Anderson over memories 1 to 30, periods 1 to 4 and both kinds.
MEMORIES = {"anderson(1, 1)": anderson(1, 1), "anderson(3, 1, kind=1)": anderson(3, 1, kind=1),
            "anderson()": anderson(), "anderson(5, 3)": anderson(5, 3)}
LARGE = {"anderson(20, 1)": anderson(20, 1), "anderson(30, 3, kind=1)": anderson(30, 3, kind=1),
         "anderson(10, 4)": anderson(10, 4)}
LINEAR = {"bicgstab": linear.bicgstab(), "gmres": linear.gmres(),
          "normal_cg": linear.normal_cg(), "dense": linear.dense()}
ADJOINTS = {"implicit": implicit(), "implicit vjp": implicit(mode="vjp"),
            "gmres": implicit(LINEAR["gmres"]), "normal_cg": implicit(LINEAR["normal_cg"]),
            "dense": implicit(LINEAR["dense"])}


def in_float64(case: Callable) -> partial:
    """The case under 64 bits."""
    return partial(_in_float64, case)


def _in_float64(case: Callable, seed: int, count: int) -> Verdict:
    with jax.enable_x64(True):
        return case(seed, count)


def maps() -> Iterator[Case]:
    """Linear maps: odd ones, contractions of every scale, expansions; lanes and options."""
    kinds = ((1, jnp.float32), (3, jnp.float32), (7, jnp.bfloat16), (2, jnp.float16))
    names = ("picard", "damped", "anderson", "anderson-1", "halpern", "restarted")
    for name in names:
        for size, dtype in kinds:
            yield 1, partial(audit_fixed_point, size=size, dtype=dtype, solver=SOLVERS[name],
                             solver_name=name, certain=name in CERTAIN)
    scaled: dict[str, Any] = {"kind": "scaled", "steps": 600}
    for name, solver in SOLVERS.items():
        one: dict[str, Any] = {"dtype": jnp.float32, "solver": solver, "solver_name": name,
                               "size": 3, "certain": name in CERTAIN}
        yield 1, partial(audit_fixed_point, **one, **scaled)
        yield 1, partial(audit_fixed_point, **one, kind="expansive")
        if name not in ("picard", "anderson"):
            continue
        yield 1, partial(audit_fixed_point, **one | {"dtype": jnp.bfloat16}, **scaled)
        yield 1, partial(audit_fixed_point, **one, **scaled, check_every=4)
        yield 1, partial(audit_fixed_point, **one, keep_best=True)
        yield 1, partial(audit_fixed_point, **one, lanes=32)
        yield 1, partial(audit_fixed_point, **one, **scaled, lanes=32)
        double = one | {"dtype": jnp.float64}
        yield 1, in_float64(partial(audit_fixed_point, **double))
        yield 1, in_float64(partial(audit_fixed_point, **double, **scaled))


def contractions() -> Iterator[Case]:
    """Piecewise-linear contractions and expansions, dynamic programs, stiff logits."""
    some = {**MEMORIES, "picard": picard(), "damped": damped(0.7)}
    for name, solver in some.items():
        for kind in ("layers", "pieces", "bellman"):
            yield 0.4, partial(audit_piecewise, size=6, kind=kind, solver=solver,
                               solver_name=name)
    yield 0.4, partial(audit_piecewise, size=6, kind="layers", solver=OTHERS["restarted"],
                       solver_name="restarted", certain=False)
    for name, solver in {"picard": picard(), **LARGE}.items():
        yield 0.2, partial(audit_piecewise, size=31, kind="bellman", solver=solver,
                           solver_name=name, scaled=False)
    for name in ("picard", "anderson()"):
        yield 0.4, partial(audit_piecewise, size=6, kind="layers", solver=some[name],
                           solver_name=name, rates=(1.1, 2.0, 8.0))
        yield 0.1, in_float64(partial(audit_piecewise, size=31, kind="bellman",
                                      solver=some[name], solver_name=name, dtype=jnp.float64,
                                      scaled=False))
    mixers: dict[str, Callable] = {
        "anderson(mixing)": lambda alpha: anderson(mixing=alpha),
        "anderson(period=1, mixing)": lambda alpha: anderson(period=1, mixing=alpha),
        "damped": damped}
    for name, make in mixers.items():
        yield 0.4, partial(audit_logits, make_solver=make, solver_name=name)


def equations() -> Iterator[Case]:
    """Roots, with and without; linear systems; finished solves resumed."""
    solvers: dict[str, Any] = {
        "default": None, "anderson()": anderson(), "anderson(period=1)": anderson(period=1),
        "damped(0.5)": damped(0.5)}
    for name, solver in solvers.items():
        for system in SYSTEMS:
            yield 0.3, partial(audit_root, system=system, solver=solver, solver_name=name,
                               free=name == "default")
    for method in ("krylov", "anderson"):
        for system in SYSTEMS:
            yield 0.3, partial(audit_root, system=system, solver=None, solver_name=method,
                               method=method, free=method == "anderson")
    for system in SYSTEMS:
        yield 0.3, in_float64(partial(audit_root, system=system, solver=None, free=True,
                                      solver_name="default", dtype=jnp.float64))
    for name, solver in {**LINEAR, "cg": linear.cg()}.items():
        for kind in ("odd", "conditioned"):
            for size in (1, 5):
                yield 1, partial(audit_linear, size=size, solver=solver, solver_name=name,
                                 symmetric=name == "cg", kind=kind,
                                 rtol=1e-5 if name == "dense" else None)
    for name in ("picard", "anderson", "halpern"):
        for change in ("args", "rule", "nothing"):
            yield 0.6, partial(audit_resume, solver=SOLVERS[name], solver_name=name,
                               change=change, certain=name in CERTAIN)


def gradients() -> Iterator[Case]:
    """Adjoints that are nearly singular, singular in some rows, or of 16 bits."""
    for name, adjoint in ADJOINTS.items():
        yield 1, partial(audit_near_singular, adjoint=adjoint, adjoint_name=name)
    for name, solver in (("implicit", None), ("gmres", LINEAR["gmres"])):
        yield 1.6, partial(audit_rows, adjoint=implicit(solver, rows=True), adjoint_name=name)
    for name in ("implicit", "gmres", "normal_cg"):
        for dtype in (jnp.bfloat16, jnp.float16):
            for size in (6, 64):
                yield 0.4, partial(audit_sixteen, size=size, dtype=dtype, adjoint=ADJOINTS[name],
                                   adjoint_name=name)


def transport() -> Iterator[Case]:
    """Every method and front of transport on every kind of cost."""
    for kind in KINDS:
        for method, share in (("log", 0.8), ("kernel", 0.8), ("auto", 0.3), ("newton", 0.3)):
            yield share, partial(audit_sinkhorn, method=method, kind=kind)
        yield 0.8, partial(audit_sinkhorn, method="kernel", kind=kind, solver=anderson(),
                           solver_name="anderson")
        yield 0.8, partial(audit_batched, front="sinkhorn_many", kind=kind)
        yield 0.8, partial(audit_batched, front="sinkhorn_histograms", kind=kind)
        for both in (True, False):
            for method in ("log", "kernel"):
                yield 0.4, partial(audit_unbalanced, method=method, kind=kind, both=both)
        if kind in ("odd", "offset", "scaled", "sharp"):
            yield 0.4, partial(audit_grids, kind=kind)
    for kind in ("odd", "far", "sharp"):
        for method in ("log", "kernel"):
            yield 0.4, in_float64(partial(audit_sinkhorn, method=method, kind=kind,
                                          dtype=jnp.float64))
            yield 0.4, partial(audit_sinkhorn, method=method, kind=kind, dtype=jnp.bfloat16)
    for cost in COSTS:
        yield 0.8, partial(audit_clouds, cost=cost)
        yield 0.4, partial(audit_clouds, cost=cost, solver=anderson(), solver_name="anderson")


def sequences() -> Iterator[Case]:
    """Recurrences by every method, samples by every method, whole and in windows."""
    for method in ("newton", "diagonal", "elk", "secant", "picard", "jacobi", "gauss_seidel"):
        for window in (None, 6):
            yield 0.5, partial(audit_recurrence, method=method, window=window)
    for method in ("secant", "gaussian", "picard", "jacobi", "jvp", "paratta"):
        for sampler, window in (("ddim", None), ("third order", 7)):
            yield 0.5, partial(audit_sample, method=method, window=window, sampler=sampler)
    for method in ("secant", "paratta"):
        one: dict[str, Any] = {"method": method, "window": 7}
        yield 0.5, partial(audit_sample, **one, sampler="third order in x0")
        yield 0.5, partial(audit_sample, **one, tolerance=1e-3, scale="noise")
        yield 0.5, in_float64(partial(audit_sample, **one, sampler="third order",
                                      dtype=jnp.float64, tolerance=1e-6))
    yield 0.5, partial(audit_sample, method="paratta", window=7, memory=3)
    yield 0.5, partial(audit_sample, method="paratta", window=7, memory=0)


def bilevel() -> Iterator[Case]:
    """Hypergradients by linear solves and unrolled, inner solves."""
    series = neumann_series(50, rtol=1e-5)
    for name, solve in (("cg", None), ("dense", linear.dense()), ("neumann", series)):
        for kind in ("odd", "conditioned"):
            yield 1, partial(audit_hypergradient, solve=solve, solve_name=name, kind=kind)
    for mode in ("reverse", "checkpoint", "forward"):
        yield 0.6, partial(audit_unrolled, mode=mode)
    for kind in ("odd", "scaled"):
        yield 1, partial(audit_inner, kind=kind)


def kinds() -> Iterator[Case]:
    """Splittings plain and accelerated, processes, stages."""
    for kind in ("odd", "regular"):
        for method in ("forward_backward", "douglas_rachford"):
            for name, solver in (("plain", None), ("anderson", anderson())):
                yield 0.8, partial(audit_splitting, method=method, solver=solver, solver_name=name,
                                   kind=kind)
        for check_every in (1, 10):
            yield 0.8, partial(audit_process, check_every=check_every, kind=kind)
        for name, solver in (("plain", None), ("anderson", anderson())):
            yield 0.8, partial(audit_stages, solver=solver, solver_name=name, kind=kind)


def fits() -> Iterator[Case]:
    """Fits by every loss, with and without bounds."""
    for loss in LOSSES:
        for bounded in (False, True):
            yield 0.5, partial(audit_fit, loss=loss, bounded=bounded)
    for bounded in (False, True):
        yield 0.5, in_float64(partial(audit_fit, bounded=bounded, dtype=jnp.float64))


def operators() -> Iterator[Case]:
    """Programs by every method, with a solution and without; inclusions, games."""
    methods = {"quadratic_program": ("interior", "admm", "halpern"),
               "linear_program": ("interior", "halpern")}
    for front, ways in methods.items():
        for method in ways:
            for kind in PROGRAMS:
                yield 0.4, partial(audit_program, front=front, method=method, kind=kind)
    for front in INCLUSION_FRONTS:
        for kind in INCLUSIONS:
            yield 0.4, partial(audit_inclusion, front=front, kind=kind)
    for front in GAME_FRONTS:
        for kind in GAMES:
            yield 0.4, partial(audit_game, front=front, kind=kind)


def accuracies(stop: Callable, name: str) -> Iterator[Case]:
    """True distances, for a rule `stop(rtol, atol)` that claims them."""
    rule: dict[str, Any] = {"stop": stop, "stop_name": name}
    for kind in (*SPECTRA, "layers", "pieces", "bellman", "bounded slope"):
        for solver in ("picard", "anderson"):
            yield 0.5, partial(audit_accuracy, kind=kind, solver=SOLVERS[solver],
                               solver_name=solver, certain=solver == "picard", **rule)
    for kind in ("negative", "complex"):
        yield 0.5, partial(audit_accuracy, kind=kind, solver=SOLVERS["damped"],
                           solver_name="damped", **rule)
        yield 0.5, in_float64(partial(
            audit_accuracy, kind=kind, solver=SOLVERS["picard"], solver_name="picard",
            dtype=jnp.float64, rtol=1e-6, **rule))


def all_cases(stop: Callable | None = None, name: str = "accuracy") -> list[Case]:
    """Every case; those of accuracy where there is a rule for it."""
    rooms = [maps, contractions, equations, gradients, transport, sequences, bilevel, kinds,
             fits, operators]
    cases = [case for room in rooms for case in room()]
    return cases if stop is None else cases + list(accuracies(stop, name))
