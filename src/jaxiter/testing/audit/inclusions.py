"""Inclusions `0 in M z + c + d(w |z|_1) + N(z)` by every splitting and method that solves them."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.operators import (
    admm,
    davis_yin,
    finite_sum_inclusion,
    minimax,
    primal_dual,
    projective_splitting,
    prox_l1,
    proximal_gradient,
    tseng,
    variational_inequality,
)
from jaxiter.solution import Status
from jaxiter.splitting import solve_splitting
from jaxiter.testing.audit.verdict import (
    SPECIAL,
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    lengths,
    smallest,
    threshold,
    verdict,
    wrong_gradients,
)

#: Methods of `variational_inequality` that take a resolvent.
METHODS = ("extragradient", "past", "reflected", "optimistic", "forward_reflected", "anchored")
#: Fronts that want a symmetric M, and those that need not arrive in so few steps.
SYMMETRIC = ("proximal_gradient", "davis_yin", "primal_dual", "admm", "projective_splitting")
SLOW = ("projective_splitting", "finite_sum_inclusion single", "finite_sum_inclusion nested")
FRONTS = (*(f"variational_inequality {method}" for method in METHODS), "minimax", "tseng",
          *SYMMETRIC, *SLOW[1:])
KINDS = ("regular", "scaled", "turning", "odd")
SIZE, ROWS, STEPS = 4, 16, 3000
#: The natural residual with step 1 / |M| may be so many times what was asked for: methods have
#: steps of their own, of a share of that and more.
ROOM = 10
#: Coordinates this near to an edge, relative to the point, have no derivative to judge.
EDGE = 2e-2


class Inclusion(NamedTuple):
    """Leaves `[count, ...]`: M, c, weights of |z|, bounds; K diagonal; M in parts, c in parts."""

    M: Any
    c: Any
    w: Any
    lower: Any
    upper: Any
    K: Any
    parts: Any
    shifts: Any


class Found(NamedTuple):
    """In which units a front promises its residual.

    Attributes:
      size: the length of the point that moved.
      step: 0 where it is about 1 / |M|.
      dual: of "primal_dual", `[n]`.
      sigma: its step.
    """

    size: Any
    step: Any
    dual: Any
    sigma: Any


def drawn_inclusions(
    rng: np.random.Generator, count: int, kind: str, front: str
) -> Inclusion:
    """Inclusions of one kind, as a front takes them.

    "regular": strongly monotone, of condition up to 20. "scaled": the same, M and z of sizes 1e-3
    to 1e3. "turning": nearly skew. "odd": also singular and not monotone, numbers of any kind.
    """
    basis = np.linalg.qr(rng.normal(size=(count, SIZE, SIZE)))[0]
    values = 10.0 ** -rng.uniform(0, 1.3, (count, SIZE))
    if kind == "turning":
        values *= 0.03
    if kind == "odd":
        values[rng.random(count) < 0.2, 0] = 0.0
        values[rng.random(count) < 0.2, 0] *= -1
    M = (basis * values[:, None]) @ np.swapaxes(basis, 1, 2)
    if front == "minimax":  # no coupling but the payoff's
        M[:, :2, 2:] = M[:, 2:, :2] = 0
    if front not in SYMMETRIC:
        turn = rng.normal(size=M.shape)
        if front == "minimax":
            turn[:, :2, :2] = turn[:, 2:, 2:] = 0
        M = M + (turn - np.swapaxes(turn, 1, 2)) / 4
    c, z0 = rng.normal(size=(2, count, SIZE))
    free = front in ("admm", "minimax")
    lower, upper = (np.full((count, SIZE), sign * np.inf) if free else
                    sign * rng.uniform(0.3, 3, (count, SIZE)) for sign in (-1, 1))
    K = rng.uniform(0.5, 2, (count, SIZE))
    w = np.zeros((count, SIZE)) if free and front == "minimax" else 0.3 * K
    a, s = 10.0 ** rng.uniform(-3, 3, (2, count, 1)) if kind == "scaled" else np.ones((2, 1, 1))
    M, c, w = M * a[..., None], c * a * s, w * a * s
    if kind == "odd":
        c[:, 0] *= 10.0 ** rng.integers(-20, 20, count)
        odd = rng.random(count) < 0.3
        c[odd, 1] = rng.choice(SPECIAL, odd.sum())
        odd = rng.random(count) < 0.1
        # What is more curved the proximal map of "admm", which divides by it, takes for a wall.
        M[odd, 0, 0] = rng.choice(SPECIAL[:4] if front == "admm" else SPECIAL, odd.sum())
    noise = rng.normal(size=(count, ROWS // 2, SIZE, SIZE)) / 8 * a[..., None, None]
    moved = rng.normal(size=(count, ROWS // 2, SIZE)) * (a * s)[..., None]
    parts = M[:, None] + np.concatenate([noise, -noise], 1)
    shifts = c[:, None] + np.concatenate([moved, -moved], 1)
    return Inclusion(M, c, w, lower * s, upper * s, K, parts, shifts)


def _near(v: Any, step: Any, p: Inclusion) -> jax.Array:
    """The resolvent of what is not smooth."""
    return jnp.clip(prox_l1(v, step, p.w), p.lower, p.upper)


def _affine(z: jax.Array, p: Inclusion) -> jax.Array:
    return p.M @ z + p.c


def _smooth(z: jax.Array, p: Inclusion) -> jax.Array:
    return z @ (p.M @ z) / 2 + p.c @ z


def _payoff(x: jax.Array, y: jax.Array, p: Inclusion) -> jax.Array:
    down, up = x @ (p.M[:2, :2] @ x), y @ (p.M[2:, 2:] @ y)
    return (down - up) / 2 + x @ (p.M[:2, 2:] @ y) + p.c[:2] @ x - p.c[2:] @ y


def _splitting(front: str) -> Any:
    def weight(p: Inclusion) -> jax.Array:
        return p.w / p.K

    def clipped(v: jax.Array, step: Any, p: Inclusion) -> jax.Array:
        return jnp.clip(v, p.lower, p.upper)

    def quadratic(v: jax.Array, step: Any, p: Inclusion) -> jax.Array:
        """`argmin x'Mx/2 + c'x + |K x - v|^2 / (2 step)`."""
        return jnp.linalg.solve(step * p.M + jnp.diag(p.K**2), p.K * v - step * p.c)

    times = (lambda x, p: p.K * x, lambda y, p: p.K * y)
    return {
        "tseng": lambda: tseng(_affine, _near),
        "davis_yin": lambda: davis_yin(lambda v, step, p: prox_l1(v, step, p.w), clipped, _affine),
        "primal_dual": lambda: primal_dual(
            clipped, lambda v, step, p: prox_l1(v, step, weight(p)), times, gradient=_affine),
        "admm": lambda: admm(
            quadratic, lambda v, step, p: prox_l1(v, step, weight(p)), A=times),
    }[front]()


def _solve(front: str, p: Inclusion, key: jax.Array) -> tuple:
    """The answer, what is promised of it, the status."""
    z0, most = jnp.zeros_like(p.c), {"max_steps": STEPS}
    name, _, method = front.partition(" ")
    step, dual, sigma = jnp.zeros(()), jnp.zeros_like(z0), jnp.zeros(())
    if name == "variational_inequality":
        out = variational_inequality(_affine, z0, p, resolvent=_near, method=method, **most)
    elif name == "minimax":
        out = minimax(_payoff, z0[:2], z0[2:], p, **most)
        out = out._replace(solve=out.solve, value=jnp.concatenate([out.x, out.y]))
    elif name == "proximal_gradient":
        out = proximal_gradient(_smooth, _near, z0, p, **most)
        step = out.solve.state.answer.memory.size
        # Its moves are beside those of the gradient alone, if these are longer.
        z0 = step * _affine(out.value, p)
    elif name == "projective_splitting":
        factor = jnp.linalg.cholesky(p.M)  # M = L L'; a block for each column of L
        aim = jax.scipy.linalg.solve_triangular(factor, -p.c, lower=True)
        out = projective_splitting(
            _near, lambda v, step, block, p: (v + step * block[1]) / (1 + step),
            lambda x, block: block[0] @ x, z0, (factor.T, aim), p, key=key, probability=0.7, **most)
        step = 1 / (SIZE**0.5 * jnp.linalg.norm(factor, 2))
        z0 = _state(out.solve.value)
    elif name == "finite_sum_inclusion":
        data, size = (p.parts, p.shifts), jnp.sqrt(jnp.mean(jnp.sum(p.parts**2, (1, 2))))
        slope = jnp.linalg.eigvalsh((p.M + p.M.T) / 2)[0]
        constant = size if method == "nested" else size**2 / jnp.maximum(slope, 1e-3 * size)
        out = finite_sum_inclusion(
            lambda z, row, p: row[0] @ z + row[1], z0, data, p, key=key, lipschitz=constant,
            resolvent=_near, method=method, step_scale=4.0, max_steps=600)
        step, z0 = 1 / constant, _state(out.solve.value)
    else:
        out = solve_splitting(_splitting(front), z0, p, **most)
        memory = out.solve.state.answer.memory
        step = 1 / memory.now if front == "admm" else step
        z0 = out.solve.value
        if front == "primal_dual":  # its point in the metric of now
            step, dual, sigma = memory.tau, out.dual, memory.sigma
            z0 = z0[0], dual * jnp.sqrt(step / sigma)
        if front == "admm":  # its point in units of the penalty of now
            z0 = z0[0], z0[1] * (memory.first / memory.now)
    size = jnp.maximum(trees.norm(out.value), trees.norm(z0))
    return out.value, Found(size, step, dual, sigma), out.status


def _state(state: Any) -> list:
    """What of a process its tolerance is relative to: all of its floating-point leaves."""
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


@cache
def _program(front: str) -> Callable:
    def one(c: jax.Array, p: Inclusion, weights: jax.Array, key: jax.Array) -> tuple:
        shifts = p.shifts + (c - p.c)
        z, *others = _solve(front, p._replace(c=c, shifts=shifts), key)
        return jnp.sum(weights * z), (z, *others)

    def both(p: Inclusion, weights: jax.Array, key: jax.Array) -> tuple:
        return jax.value_and_grad(one, has_aux=True)(p.c, p, weights, key)

    return jax.jit(jax.vmap(both))


def resolvent(v: np.ndarray, step: np.ndarray, p: Inclusion) -> np.ndarray:
    """Shrunk by the weights, then clipped."""
    return np.clip(np.sign(v) * np.maximum(np.abs(v) - step * p.w, 0), p.lower, p.upper)


def _moved(p: Inclusion, x: np.ndarray, found: Found) -> np.ndarray:
    """By how much a primal-dual step moves the pair, in units of x."""
    tau, sigma, y = found.step[:, None], found.sigma[:, None], found.dual
    new = np.clip(x - tau * (apply(p.M, x) + p.c + p.K * y), p.lower, p.upper)
    dual = np.clip(y + sigma * p.K * (2 * new - x), -p.w / p.K, p.w / p.K)
    return np.hypot(lengths(new - x), np.sqrt(tau / sigma)[:, 0] * lengths(dual - y))


def audit_inclusion(seed: int, count: int, front: str, kind: str = "regular") -> Verdict:
    """Inclusions of one kind, judged by the natural residual with step 1 / |M|, and the gradient.

    Args:
      front: one of `FRONTS`. kind: one of `KINDS`.
    """
    rng = np.random.default_rng(seed)
    p = Inclusion(*cast(jnp.float32, *drawn_inclusions(rng, count, kind, front)))
    weights = rng.normal(size=(count, SIZE))
    keys = jax.random.split(jax.random.key(seed), count)
    (_, (z, found, status)), slope = _program(front)(p, *cast(jnp.float32, weights), keys)
    p, (z, slope), found = Inclusion(*exactly(*p)), exactly(z, slope), Found(*exactly(*found))
    if front.startswith("finite_sum_inclusion"):
        p = p._replace(M=p.parts.mean(1), c=p.shifts.mean(1))
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(np.where(np.isfinite(p.M), p.M, 0), 2, axis=(1, 2))
        step = np.where(found.step > 0, found.step, 1 / np.maximum(norm, 1e-30))[:, None]
        forward = z - step * (apply(p.M, z) + p.c)
        left = lengths(z - resolvent(forward, step, p))
        if front == "primal_dual":
            left = _moved(p, z, found)
        begin = step[:, 0] * lengths(p.c)
        limit = threshold(jnp.float32, np.maximum(lengths(z), found.size), begin)
        terms = lengths(z) + step[:, 0] * (lengths(apply(np.abs(p.M), np.abs(z))) + lengths(p.c))
        room = 8 * half_ulp(jnp.float32) * terms + smallest(jnp.float32)
        false = good & ~(left <= ROOM * limit + room)
        exact, clear = _slopes(p, z, forward, step, weights)
    calm = clear & good & (kind != "odd")
    silent, lost = wrong_gradients(slope, exact, calm, 1e-3)
    none = np.abs(exact).max(1) == 0
    silent = np.where(none, np.abs(slope).max(1) > 1e-3 * step[:, 0], silent) & calm
    certain = front not in SLOW and kind in ("regular", "scaled")
    unsolved = ~good & certain
    return verdict(f"{front}, {kind}", status, false, silent=silent, lost=lost, unsolved=unsolved)


def _slopes(
    p: Inclusion, z: np.ndarray, forward: np.ndarray, step: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `weights'z` by c, and where no coordinate is near to an edge."""
    shrunk = np.sign(forward) * np.maximum(np.abs(forward) - step * p.w, 0)
    edges = np.stack([np.abs(np.abs(forward) - step * p.w) + (p.w == 0),
                      np.abs(shrunk - p.lower), np.abs(shrunk - p.upper)])
    clear = edges.min((0, 2)) > EDGE * np.maximum(np.abs(forward), np.abs(z)).max(1)
    moves = (np.abs(forward) > step * p.w) & (shrunk > p.lower) & (shrunk < p.upper)
    exact = np.zeros_like(z)
    for k in np.flatnonzero(clear):
        on = moves[k]
        if on.any():
            exact[k, on] = -np.linalg.solve(p.M[k][np.ix_(on, on)].T, weights[k, on])
    return exact, clear
