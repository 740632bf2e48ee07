"""Sixty maps of ten kinds with known fixed points, for choosing solvers: seeds and sizes are fixed.

Half of each kind is for tuning, the other half for reporting. The data are rounded to float32
first; the answers belong to the rounded data and are computed in float64 by numpy.
`python benchmarks/maps.py` prints what they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.testing.problems import DEATHS, poisson_mixture

EPSILON = float(np.finfo(np.float32).eps)
#: The relative error that is asked for, where float32 can hold it.
ACCURACY = 1e-5


class Map(NamedTuple):
    """A map with its answer.

    Attributes:
      name, kind: for tables. half: "tune" or "report".
      step: `T(x, *args)`, of numpy or jax arrays. x0, args: float32. answer: float64.
      target: the absolute l2 error that is asked for: 1e-5 of the answer, or what float32 can
        hold where the map is too ill conditioned: epsilon |(I - T')^-1| of the answer.
      slope: the largest modulus of an eigenvalue of T' at the answer.
    """

    name: str
    kind: str
    half: str
    step: Callable
    args: tuple
    x0: np.ndarray
    answer: np.ndarray
    target: float
    slope: float

    def __call__(self, x: jax.Array) -> jax.Array:
        """T(x)."""
        return self.step(x, *self.args)


def _xp(x: Any) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def _matmul(a: Any, x: Any) -> Any:
    return a @ x if isinstance(x, np.ndarray) else jnp.matmul(a, x, precision="highest")


def _orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def _affine(x: Any, a: Any, b: Any) -> Any:
    return _matmul(a, x) + b


def symmetric(rng: np.random.Generator, i: int) -> tuple:
    """Linear, symmetric: the spectrum in [0, q], or in [-q, q]."""
    q, n = ((.5, 20), (.9, 2), (.97, 200), (.99, 50), (.997, 500), (.999, 100))[i]
    basis = _orthogonal(rng, n)
    low = (0, -q)[i // 2 % 2]
    spectrum = np.append(rng.uniform(low, q, n - 1), q)
    return _affine, (basis * spectrum @ basis.T, rng.normal(size=n)), np.zeros(n)


def non_normal(rng: np.random.Generator, i: int) -> tuple:
    """Linear of spectral radius q, far from normal; norms beyond 1."""
    q, n = ((.999, 5), (.9, 30), (.5, 500), (.99, 10), (.97, 200), (.995, 60))[i]
    if i % 3 == 0:
        a = np.diag(rng.uniform(0, 1, n)) + 0.4 * np.triu(rng.normal(size=(n, n)), 1) / n**.5
    else:
        a = rng.normal(size=(n, n))
    a *= q / np.abs(np.linalg.eigvals(a)).max()
    return _affine, (a, rng.normal(size=n)), np.zeros(n)


def rotation(rng: np.random.Generator, i: int) -> tuple:
    """Planar rotations about a centre: nonexpansive, Picard circles for ever."""
    n = (2, 10, 20, 8, 100, 40)[i]
    angles = rng.uniform(*((1, 2), (.3, 3), (.1, 3.04), (.02, .2), (.5, 2), (.05, 1.5))[i], n // 2)
    a = np.zeros((n, n))
    for k, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        a[2 * k:2 * k + 2, 2 * k:2 * k + 2] = [[c, -s], [s, c]]
    basis = _orthogonal(rng, n)
    a = basis @ a @ basis.T
    centre = rng.normal(size=n)
    return _affine, (a, centre - a @ centre), np.zeros(n)


def _averaged(x: Any, frames: Any, point: Any) -> Any:
    """The mean of the projections onto affine subspaces through one point; frames: [k, n, d]."""
    xp, y = _xp(x), x - point
    inner = xp.einsum("knd,n->kd", frames, y)
    return point + xp.mean(xp.einsum("knd,kd->kn", frames, inner), axis=0)


def _reflected(x: Any, frames: Any, point: Any) -> Any:
    """Douglas-Rachford for two affine subspaces through one point."""
    xp, y = _xp(x), x - point

    def project(z: Any, k: int) -> Any:
        return _matmul(frames[k], _matmul(xp.swapaxes(frames[k], 0, 1), z))

    first = project(y, 0)
    return x + project(2 * first - y, 1) - first


def projections(rng: np.random.Generator, i: int) -> tuple:
    """Subspaces that meet in one point: averaged projections, and Douglas-Rachford."""
    n, k = ((6, 2), (50, 2), (100, 3), (10, 2), (40, 4), (30, 2))[i]
    d = n - n // k - (k > 2)
    frames = np.stack([np.linalg.qr(rng.normal(size=(n, d)))[0] for _ in range(k)])
    point = rng.normal(size=n)
    return (_reflected if k == 2 and i % 2 else _averaged), (frames, point), np.zeros(n)


def _poisson_mixture(x: Any, counts: Any) -> Any:
    return poisson_mixture(x, counts, _xp(x))


def _gaussian_mixture(x: Any, data: Any) -> Any:
    """EM for k Gaussians on the line; x = (weights, means, variances), k each."""
    xp = _xp(x)
    weights, means, variances = x.reshape(3, -1)
    log = xp.log(weights) - 0.5 * xp.log(variances) - 0.5 * (data[:, None] - means)**2 / variances
    shares = xp.exp(log - xp.max(log, axis=1, keepdims=True))
    shares = shares / xp.sum(shares, axis=1, keepdims=True)
    total = xp.sum(shares, axis=0)
    means = xp.sum(shares * data[:, None], axis=0) / total
    variances = xp.sum(shares * (data[:, None] - means)**2, axis=0) / total
    return xp.concatenate([total / len(data), means, variances])


def em(rng: np.random.Generator, i: int) -> tuple:
    """Expectation and maximisation: Hasselblad's Poisson mixture, Gaussian mixtures."""
    if i < 2:
        return _poisson_mixture, (DEATHS,), np.array(((.3, 1.0, 2.5), (.6, 0.5, 3.0))[i])
    k, apart = ((2, 3.0), (3, 3.0), (2, 2.2), (3, 4.0))[i - 2]
    data = np.concatenate([rng.normal(apart * j, 1 + 0.3 * j, 200) for j in range(k)])
    start = np.concatenate([np.full(k, 1 / k), apart * np.arange(k) + 0.4, np.full(k, 1.5)])
    return _gaussian_mixture, (data,), start


def _tanh(x: Any, w: Any, b: Any) -> Any:
    return _xp(x).tanh(_matmul(w, x) + b)


def deq(rng: np.random.Generator, i: int) -> tuple:
    """A deep equilibrium layer, W of spectral norm s."""
    s, n = ((.7, 64), (.9, 500), (1.2, 32), (1.0, 200), (1.5, 100), (.99, 16))[i]
    w = rng.normal(size=(n, n))
    w = (w + w.T) if i % 3 == 2 else w
    return _tanh, (w * s / np.linalg.norm(w, 2), 0.3 * rng.normal(size=n)), np.zeros(n)


def _bellman(x: Any, p: Any, r: Any, gamma: Any) -> Any:
    xp = _xp(x)
    product = xp.einsum("sat,t->sa", p, x) if xp is np else jnp.einsum(
        "sat,t->sa", p, x, precision="highest")
    return xp.max(r + gamma * product, axis=1)


def value_iteration(rng: np.random.Generator, i: int) -> tuple:
    """Value iteration with discount gamma: sparse successors, or a walk on a line."""
    gamma, n = ((.9, 100), (.95, 20), (.99, 50), (.99, 300), (.995, 40), (.999, 100))[i]
    p = np.zeros((n, 3, n))
    for s in range(n):
        for a in range(3):
            if i % 3 == 2:  # local moves, so that the discount is not the whole story
                where = np.clip(s + np.array([-1, 0, 1]) * (a + 1), 0, n - 1)
                np.add.at(p[s, a], where, rng.dirichlet(np.ones(3)))
            else:
                p[s, a, rng.choice(n, 4, replace=False)] = rng.dirichlet(np.ones(4))
    return _bellman, (p, rng.uniform(size=(n, 3)), np.float64(gamma)), np.zeros(n)


def _logit(x: Any, a: Any, b: Any) -> Any:
    xp = _xp(x)
    z = _matmul(a, x) + b
    z = xp.exp(z - xp.max(z))
    return z / xp.sum(z)


def _sinkhorn(x: Any, cost: Any) -> Any:
    """Both half-steps of the log domain for uniform weights, centred; cost in units of epsilon."""
    xp = _xp(x)

    def soft_min(z: Any, axis: int) -> Any:
        low = xp.min(z, axis=axis, keepdims=True)
        rest = -xp.log(xp.mean(xp.exp(low - z), axis=axis))
        return rest + xp.squeeze(low, axis)

    f = soft_min(cost - soft_min(cost - x[:, None], 0)[None, :], 1)
    return f - xp.mean(f)


def softmax(rng: np.random.Generator, i: int) -> tuple:
    """Logit equilibria of a game, and Sinkhorn's potentials."""
    if i % 2 == 0:
        n, beta = ((3, 4.0), (50, 30.0), (200, 60.0))[i // 2]
        a = rng.normal(size=(n, n))
        a = -(a + a.T) / 2 if i == 2 else a
        return _logit, (beta * a / np.linalg.norm(a, 2), 0.5 * rng.normal(size=n)), np.full(
            n, 1 / n)
    n, epsilon = ((30, .1), (100, .03), (60, .01))[i // 2]
    x, y = rng.uniform(size=(n, 2)), rng.uniform(size=(n, 2))
    cost = ((x[:, None] - y[None])**2).sum(-1)
    return _sinkhorn, (cost / (epsilon * cost.mean()),), np.zeros(n)


def _forward(x: Any, a: Any, b: Any, tau: Any) -> Any:
    return x - tau * (_matmul(a, x) + 0.5 * _xp(x).tanh(x) - b)


def monotone(rng: np.random.Generator, i: int) -> tuple:
    """Forward steps of a strongly monotone operator with a large skew part."""
    n, mu, skew = ((4, .3, 1.0), (60, .1, 1.0), (20, .05, 2.0), (200, .3, 1.0), (10, .02, .5),
                   (100, .05, 1.0))[i]
    s, k = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    s = s @ s.T
    k = k - k.T
    a = mu * np.eye(n) + 0.5 * s / np.linalg.norm(s, 2) + skew * k / np.linalg.norm(k, 2)
    tau = 0.9 * (mu + 0.2) / np.linalg.norm(a + 0.5 * np.eye(n), 2)**2
    return _forward, (a, rng.normal(size=n), np.float64(tau)), np.zeros(n)


def _descent(x: Any, a: Any, b: Any, tau: Any) -> Any:
    xp = _xp(x)
    return x - tau * (_matmul(xp.swapaxes(a, 0, 1), xp.tanh(_matmul(a, x) - b)) + 0.05 * x)


def _response(x: Any, coupling: Any, gain: Any) -> Any:
    return 1 / (1 + _xp(x).exp(gain * (x + _matmul(coupling, x) - 0.8)))


def oscillating(rng: np.random.Generator, i: int) -> tuple:
    """Slopes below -1: symmetric maps, descent with too long a step, best responses."""
    if i < 2:
        n, s = ((30, 1.2), (100, 2.5))[i]
        basis = _orthogonal(rng, n)
        spectrum = rng.uniform(-s, .9, n)
        spectrum[0] = -s
        return _affine, (basis * spectrum @ basis.T, rng.normal(size=n)), np.zeros(n)
    if i < 4:
        n, excess = ((20, 1.1), (150, 1.6))[i - 2]
        a = rng.normal(size=(2 * n, n)) / (2 * n)**.5
        b = 0.3 * rng.normal(size=2 * n)
        tau = 2 * excess / (np.linalg.norm(a, 2)**2 * 0.9)
        return _descent, (a, b, np.float64(tau)), np.zeros(n)
    n, gain = ((2, 6.0), (50, 9.0))[i - 4]
    return _response, (0.2 * rng.normal(size=(n, n)) / n**.5, np.float64(gain)), np.full(n, .2)


KINDS: dict[str, Callable] = {
    "symmetric": symmetric, "non-normal": non_normal, "rotation": rotation,
    "projections": projections, "EM": em, "DEQ": deq, "value iteration": value_iteration,
    "softmax": softmax, "monotone": monotone, "oscillating": oscillating,
}
EACH = 6


def _slopes(step: Callable, x: np.ndarray) -> np.ndarray:
    """The Jacobian by central differences in float64."""
    width = 1e-6 * max(1.0, float(np.abs(x).max()))
    units = width * np.eye(len(x))
    return np.stack([(step(x + u) - step(x - u)) / (2 * width) for u in units], axis=1)


def _answer(step: Callable, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fixed point that damped steps lead to, by Newton at the end, and the Jacobian there."""
    x = x0
    for _ in range(40_000):
        residual = step(x) - x
        if np.linalg.norm(residual) <= 1e-6 * np.linalg.norm(x):
            break
        x = x + 0.4 * residual
    for _ in range(20):
        slopes = _slopes(step, x)
        move = np.linalg.solve(np.eye(len(x)) - slopes, step(x) - x)
        x = x + move
        if np.linalg.norm(move) <= 1e-11 * np.linalg.norm(x):
            return x, slopes
    raise RuntimeError("Newton's method did not settle")


def make(kind: str, i: int) -> Map:
    """Map i of a kind."""
    seed = 1000 * list(KINDS).index(kind) + i
    step, args, x0 = KINDS[kind](np.random.default_rng(seed), i)
    small = tuple(np.asarray(leaf, np.float32) for leaf in args)
    start = np.asarray(x0, np.float32)
    wide = tuple(leaf.astype(np.float64) for leaf in small)
    answer, slopes = _answer(lambda x: step(x, *wide), start.astype(np.float64))
    inverse = np.linalg.norm(np.linalg.inv(np.eye(len(answer)) - slopes), 2)
    target = max(ACCURACY, EPSILON * inverse) * np.linalg.norm(answer)
    return Map(f"{kind} {i}", kind, ("tune", "report")[i % 2], step,
               tuple(map(jnp.asarray, small)), start, answer, float(target),
               float(np.abs(np.linalg.eigvals(slopes)).max()))


def all_maps(half: str | None = None) -> list[Map]:
    """All maps, or those of one half."""
    wanted = [i for i in range(EACH) if half is None or ("tune", "report")[i % 2] == half]
    return [make(kind, i) for kind in KINDS for i in wanted]


if __name__ == "__main__":
    for m in all_maps():
        print(f"{m.name:20} {m.half:7} n = {m.x0.size:4} largest eigenvalue {m.slope:.5f} "
              f"relative target {m.target / np.linalg.norm(m.answer):.1e}")
