"""How a dense program is solved: the methods with a factorisation, and their defaults."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxiter import trees
from jaxiter.implicit import as_adjoint, implicit
from jaxiter.known import check_positive
from jaxiter.linear import dense, gmres
from jaxiter.numerics import machine_epsilon
from jaxiter.operators.programs import admm, interior
from jaxiter.operators.programs.certificates import displaced
from jaxiter.operators.programs.checks import convex, in_memory, valid
from jaxiter.operators.programs.equilibrate import balanced
from jaxiter.operators.programs.program import PrimalDual, Program
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.solvers.mixing import damped
from jaxiter.stop import tolerance

PyTree = Any

METHODS = ("interior", "admm")
#: Up to so many unknowns of x "interior" is the default.
FACTORISED = 300
#: Up to so many unknowns and multipliers the matrix of the adjoint is factorised.
DENSE = 256
#: The first penalty of "admm", and its over-relaxation.
PENALTY, RELAXED = 0.1, 1.6


class Way(NamedTuple):
    """How a program is solved.

    start: `start(scaled program, its units, point) -> (governing point, args, units)`, where the
    point may be None and other units are those of the program in args. read: the `PrimalDual` of
    `read(solution, *args)`. proof: `proof(point, image, memory, *args)`, what a step proves.
    """

    problem: Problem
    options: Options
    start: Callable
    read: Callable
    proof: Callable


def as_way(
    front: str, program: Program, method: str | None, penalty: Any, options: SolveOptions
) -> Way:
    """The method, with its defaults.

    Raises:
      ValueError: an unknown method; options that it does not take.
    """
    if method is None:
        method = "interior" if program.q.size <= FACTORISED else "admm"
    if not all(map(in_memory, program[::2][:3])):
        raise TypeError(f'method={method!r} factorises matrices; sparse ones and pairs are for '
                        'method="halpern".')
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    numbers = program.q.size + program.b.size + program.h.size
    adjoint = implicit(dense() if numbers <= DENSE else gmres())
    if method == "interior":
        if penalty is not None:
            raise ValueError('penalty is for method="admm".')
        rtol = 1e-6 if machine_epsilon(program.q) > 1e-12 else 1e-9
        chosen = choose(
            front, options, {"solver": 'its steps are its own; method="admm" takes one'},
            adjoint=adjoint, stop=tolerance(rtol=rtol, atol=0.0), max_steps=50, keep_best=True)
        _refuse_unrolled(front, chosen)
        return Way(
            _checked(interior.interior_problem()), chosen,
            _begun,
            lambda solve, scaled: interior.settled(scaled, solve.value),
            lambda point, image, room, scaled: displaced(scaled, point, image))
    check_positive(**({} if penalty is None else {"penalty": penalty}))
    rtol = 1e-5 if machine_epsilon(program.q) > 1e-12 else 1e-8
    chosen = choose(front, options, {}, adjoint=adjoint, stop=tolerance(rtol=rtol, atol=0.0),
                    max_steps=5000, solver=damped(RELAXED))

    def start(scaled: Program, units: PrimalDual, point: PrimalDual | None) -> tuple:
        rho = jnp.asarray(PENALTY if penalty is None else penalty, scaled.q.dtype)
        given = point or trees.zeros_like(PrimalDual(scaled.q, scaled.b, scaled.h))
        scaled = marked(scaled)
        second = rho if penalty is None else admm.factorised(scaled, rho)
        return admm.start(scaled, given, rho), (scaled, second), units

    return Way(
        _checked(admm.admm_problem(penalty is not None)), chosen, start,
        lambda solve, scaled, second: admm.primal_dual(
            scaled, solve.value, solve.state.answer.memory),
        lambda point, image, memory, scaled, second: admm.proof(image, memory, scaled))


def _begun(scaled: Program, units: PrimalDual, point: PrimalDual | None) -> tuple:
    scaled = marked(scaled)
    point = interior.start(scaled) if point is None else point
    scaled, units, point = balanced(scaled, units, point)
    return point, (scaled,), units


def _refuse_unrolled(front: str, options: Options) -> None:
    if as_adjoint(options.adjoint).differentiates_loop:
        raise ValueError(f"{front} by an interior-point method cannot be unrolled: its last steps "
                         "divide by what vanishes; use implicit().")


def _checked(problem: Problem) -> Problem:
    """The problem, for which a program whose numbers make no sense is BAD_INPUT."""
    return problem._replace(valid=lambda point, program, *rest: valid(program))


def marked(program: Program) -> Program:
    """The program, its Q NaN where it is not convex: looked at once, whatever follows.

    What is factorised next thereby waits for this factorisation: of two that do not wait for each
    other, jaxlib 0.10 may run both of a batch on all threads of a small CPU, each for the other.
    """
    if program.Q is None or not in_memory(program.Q):
        return program
    return program._replace(Q=jnp.where(convex(program), program.Q, jnp.nan))
