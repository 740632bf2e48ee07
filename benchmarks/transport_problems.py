"""The seeded transport problems of the benchmarks; all of them float64 numpy."""

import numpy as np
from sklearn.datasets import load_digits


def rand(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, n))


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0)


def uni2(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(n, 2)), rng.uniform(size=(n, 2))
    return _squared(x, y)


def gau5(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 5)), 0.7 * rng.normal(size=(n, 5)) + 1
    return _squared(x, y)


def grid(metric: str = "W2", pair: str = "DIGIT") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost and two images on a 28 x 28 grid, floored: `[784, 784]`, `[784]`, `[784]`."""
    index = np.stack(np.meshgrid(*[np.arange(28.0)] * 2, indexing="ij"), -1).reshape(-1, 2)
    if metric == "W2":
        cost = _squared(index, index)
    else:
        cost = np.abs(index[:, None] - index[None]).sum(-1)
    if pair == "DIGIT":
        from scipy.ndimage import zoom

        data = load_digits()
        images = [np.clip(zoom(data.images[np.flatnonzero(data.target == k)[0]], 3.5, order=1),
                          0, None) for k in (0, 1)]
    else:
        yy, xx = np.meshgrid(np.linspace(0, 1, 28), np.linspace(0, 1, 28), indexing="ij")
        ring = np.exp(-(((np.hypot(xx - 0.5, yy - 0.5) - 0.28) / 0.05) ** 2))
        bar = np.exp(-(((xx - 0.5) / 0.06) ** 2)) * (np.abs(yy - 0.5) < 0.36)
        images = [ring, bar]
    weights = []
    for image in images:
        p = image.ravel() / image.sum()
        p = (1 - 0.01 / 8) * p + 0.01 / (8 * 784)
        weights.append(p / p.sum())
    return cost / cost.max(), weights[0], weights[1]


def named(name: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cost, a, b) of a problem by name; GRID ignores n."""
    if name == "GRID":
        return grid()
    cost = {"RAND": rand, "UNI2": uni2, "GAU5": gau5}[name](n)
    return cost, np.full(n, 1 / n), np.full(n, 1 / n)
