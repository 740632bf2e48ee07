"""The judges of the audit: they find answers that are wrong by construction, and only these."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from tests.games import by_linear_program

import jaxiter as ji
from jaxiter.stop import Stop
from jaxiter.testing.audit import (
    audit_fixed_point,
    audit_near_singular,
    audit_rows,
    audit_sample,
    audit_sixteen,
    games,
    inclusions,
    programs,
)
from jaxiter.testing.audit.accuracy import SPECTRA, random_spectra
from jaxiter.testing.audit.drawn_programs import KINDS, SOLVABLE, drawn_programs, in_units, inverse
from jaxiter.testing.audit.maps import random_maps
from jaxiter.testing.audit.piecewise import STEPS, random_network
from jaxiter.testing.audit.roots import SYSTEMS, believable, stretch
from jaxiter.testing.audit.transport import _plan_slope, marginal_errors, plans
from jaxiter.testing.audit.verdict import rounding, threshold

LIAR = Stop(lambda info: (), lambda info, state: (jnp.int32(ji.Status.CONVERGED), state))
WRONG = ji.implicit(lambda matvec, b, x0=None: ji.linear.bicgstab()(
    matvec, jax.tree.map(lambda leaf: 1.05 * leaf, b))._replace(
        residual=jnp.float32(0), condition=jnp.float32(1)))


def test_a_rule_that_always_says_converged_is_found():
    verdict = audit_fixed_point(0, 100, 2, jnp.float32, ji.picard(), "picard", kind="expansive",
                                stop=LIAR)
    assert verdict.converged == 100 and verdict.false > 80


def test_a_rule_that_asks_for_less_is_found():
    verdict = audit_fixed_point(0, 100, 2, jnp.float32, ji.picard(), "picard", kind="scaled",
                                steps=600, stop=ji.tolerance(rtol=1e-3, atol=0.0))
    assert verdict.false > 30


def test_a_stricter_rule_is_believed():
    verdict = audit_fixed_point(1, 100, 2, jnp.float32, ji.picard(), "picard",
                                steps=600, stop=ji.tolerance(rtol=5e-6, atol=0.0))
    assert verdict.converged > 10 and verdict.false == 0


def test_gradients_five_per_cent_off_are_found():
    # Beyond a condition of 1e6 rounding may be as large.
    assert audit_near_singular(0, 40, WRONG, "wrong").silent > 25
    assert audit_rows(0, 40, WRONG, "wrong").silent > 20
    assert audit_sixteen(0, 40, 6, jnp.float16, WRONG, "wrong").silent > 35


def test_a_sample_with_a_loose_tolerance_is_found():
    verdict = audit_sample(0, 40, "picard", tolerance=1e-4)
    assert verdict.converged > 20
    off = np.abs(np.random.default_rng(0).normal(size=(4, 3)))
    assert np.all(threshold(jnp.float32, np.zeros(4), off[:, 0]) <= 1e-6)


def test_roots_are_what_numpy_finds():
    rng = np.random.default_rng(0)
    for name, system in SYSTEMS.items():
        p = system.draw(rng, 50)
        roots, terms = system.roots(p), system.terms
        start = rng.normal(size=(50, 2))
        for k in range(roots.shape[1]):
            x = roots[:, k]
            assert np.all(np.abs(system.f(np, x, p)) <= 1e-9 * terms(x, p)), name
            assert np.all(believable(system, x, start, p, jnp.float32)), name
            away = x + 0.01 * np.maximum(1, np.abs(x)) * rng.choice([-1, 1], x.shape)
            largest, least = stretch(system, x, p)
            regular = largest < 1e4 * least
            assert np.mean(regular) > 0.5, name
            assert not np.any(believable(system, away, start, p, jnp.float64)[regular]), name


def test_maps_are_what_their_kind_says():
    rng = np.random.default_rng(0)
    a, _, _ = random_maps(rng, 200, 3, "scaled")
    assert np.linalg.norm(a, 2, axis=(1, 2)).max() <= 0.9 + 1e-9
    a, _, _ = random_maps(rng, 200, 3, "expansive")
    assert np.abs(np.linalg.eigvals(a)).min() > 1
    for spectrum in SPECTRA:
        a, rate = random_spectra(rng, 100, 4, spectrum)
        assert np.allclose(np.abs(np.linalg.eigvals(a)).max(1), rate, rtol=1e-5)


def test_networks_contract_at_their_rate():
    rng = np.random.default_rng(0)
    for kind, order in (("layers", 2), ("pieces", np.inf), ("bellman", np.inf)):
        p, _ = random_network(rng, kind, 300, 5, (0.9,))
        x, y = rng.normal(size=(2, 300, 5)) * 10
        ratio = (np.linalg.norm(STEPS[kind](np, x, p) - STEPS[kind](np, y, p), order, axis=1)
                 / np.linalg.norm(x - y, order, axis=1))
        assert ratio.max() <= 0.9 + 1e-9 and ratio.max() > 0.3


def test_plans_and_their_slopes():
    rng = np.random.default_rng(0)
    cost, weights = rng.uniform(size=(2, 3, 4))
    f, g = rng.normal(size=3) / 4, rng.normal(size=4) / 4
    plan = plans(cost[None], f[None], g[None], np.array([0.5]))
    assert np.allclose(plan[0], np.exp((f[:, None] + g - cost) / 0.5))
    a, b = plan.sum(2), plan.sum(1)
    assert marginal_errors(plan, a, b)[0] < 1e-12
    assert np.isclose(marginal_errors(plan, a + 0.1, b)[0], 0.3)

    def balanced(cost):  # Sinkhorn in float64, long enough
        u, v = np.ones(3), np.ones(4)
        kernel = np.exp(-cost / 0.5)
        for _ in range(500):
            u = a[0] / (kernel @ v)
            v = b[0] / (kernel.T @ u)
        return 0.5 * np.sum(weights * u[:, None] * kernel * v)

    exact, gap = _plan_slope(plan[0], weights)
    shift = np.zeros_like(cost)
    shift[1, 2] = 1e-5
    assert gap > 1e-2
    assert np.isclose((balanced(cost + shift) - balanced(cost - shift)) / 2e-5, exact[1, 2])


def test_rounding_bounds_what_float32_does():
    rng = np.random.default_rng(0)
    a, x, b = rng.normal(size=(200, 5, 5)), rng.normal(size=(200, 5)), rng.normal(size=(200, 5))
    a, x, b = (part.astype(np.float32) for part in (a, x, b))
    single = np.einsum("kij,kj->ki", a, x) + b
    double = np.einsum("kij,kj->ki", a.astype(float), x.astype(float)) + b
    off = np.linalg.norm(single - double, axis=1)
    bound = rounding(a.astype(float), x.astype(float), b.astype(float), jnp.float32)
    assert np.all(off <= bound) and np.all(bound < 20 * 6e-8 * 20)


def by_highs(p, k):
    """What scipy says of the linear part of program k: 0 solved, 2 infeasible, 3 unbounded."""
    sides = np.isfinite(p.h[k])
    bounds = list(zip(p.lower[k], p.upper[k], strict=True))
    return scipy.optimize.linprog(p.q[k], A_ub=p.G[k][sides], b_ub=p.h[k][sides], A_eq=p.A[k],
                                  b_eq=p.b[k], bounds=bounds)


def test_programs_are_what_their_kind_says():
    wanted = {"infeasible": (2, 4), "unbounded": (3, 4)}
    for kind in KINDS[:-1]:
        p = drawn_programs(np.random.default_rng(0), 12, kind, quadratic=False).program
        outs = [by_highs(p, k) for k in range(12)]
        assert all(out.status in wanted.get(kind, (0,)) for out in outs), kind
    assert kind not in SOLVABLE


def test_errors_of_programs_are_those_of_their_multipliers():
    drawn = drawn_programs(np.random.default_rng(1), 12, "units", quadratic=False)
    p = drawn.program
    back = in_units(in_units(p, drawn.units), inverse(drawn.units))
    assert all(np.allclose(a, b) for a, b in zip(p, back, strict=True))
    outs = [by_highs(p, k) for k in range(12)]
    x, y, z = (np.array(part) for part in zip(*(
        (out.x, -out.eqlin.marginals, -out.ineqlin.marginals) for out in outs), strict=True))
    assert programs.kkt_errors(p, x, y, z).max() < 1e-9
    for moved in ((x + 1e-3, y, z), (x, y + 1e-3, z), (x, y, z + 1e-3)):
        assert programs.kkt_errors(p, *moved).min() > 1e-5
    none = np.zeros(12, bool)
    assert not programs.proves(p, (x, y, z), none, np.ones(12)).any()


def test_games_and_inclusions_are_judged_by_what_is_known():
    A, _ = games.drawn_games(np.random.default_rng(2), 5, "regular")
    for a in A:
        x, value = by_linear_program(a)
        y, other = by_linear_program(-a.T)
        assert np.isclose(value, -other)
        assert abs(games.exploitability(a[None], x[None], y[None])[0]) < 1e-9
        assert games.exploitability(a[None], np.full((1, 4), 0.25), y[None])[0] > 1e-3
    p = inclusions.drawn_inclusions(np.random.default_rng(3), 6, "regular", "tseng")
    z, step = np.zeros_like(p.c), np.full((6, 1), 0.3)
    for _ in range(3000):  # forward-backward with a short step: strongly monotone
        z = inclusions.resolvent(z - 0.1 * ((p.M @ z[..., None])[..., 0] + p.c), 0.1, p)
    forward = (p.M @ z[..., None])[..., 0] + p.c
    assert np.abs(z - inclusions.resolvent(z - step * forward, step, p)).max() < 1e-9


def test_fronts_that_always_say_converged_are_found(monkeypatch):
    def said(count):
        return np.full(count, ji.Status.CONVERGED)

    def play(A, temperature):  # all alike
        x, y = (np.full((len(A), size), 1 / size) for size in A.shape[1:])
        return (None, (x, y, games.exploitability(np.asarray(A, float), x, y), said(len(A)))), A

    def stay(p, weights, keys):  # at 0
        none = inclusions.Found(*np.zeros((2, len(keys))), np.zeros_like(p.c), np.zeros(len(keys)))
        return (None, (np.zeros_like(p.c), none, said(len(keys)))), p.c

    def wish(p, weights):  # for an x within its bounds, and nothing else
        x = np.clip(0, p.lower, p.upper)
        point = ji.operators.PrimalDual(x, np.zeros_like(p.b), np.zeros_like(p.h))
        nothing = jax.tree.map(np.zeros_like, point)
        gap = np.zeros(len(x))
        out = ji.operators.ProgramResult(*point, x, gap, gap, nothing, said(len(x)))
        return (None, out), (p.q, p.h)

    for room, program in ((games, play), (inclusions, stay), (programs, wish)):
        monkeypatch.setattr(room, "_program", lambda *names, program=program: program)
    assert games.audit_game(0, 40, "sharp").false > 35
    assert inclusions.audit_inclusion(0, 40, "tseng").false > 30
    for kind in ("regular", "units", "infeasible", "unbounded"):
        found = programs.audit_program(0, 40, "quadratic_program", "admm", kind)
        assert found.false == 40, kind
