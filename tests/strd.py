"""NIST's nonlinear regression problems: models, data, starts and certified values (strd.json).

Source: National Institute of Standards and Technology, "Statistical Reference Datasets: nonlinear
regression", public domain.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


def _exponentials(b: Any, x: Any) -> Any:
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def _peaks(b: Any, x: Any) -> Any:
    return (b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-((x - b[3]) / b[4]) ** 2)
            + b[5] * jnp.exp(-((x - b[6]) / b[7]) ** 2))


def _cubic(b: Any, x: Any) -> Any:
    top = b[0] + x * (b[1] + x * (b[2] + x * b[3]))
    return top / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def _chwirut(b: Any, x: Any) -> Any:
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def _enso(b: Any, x: Any) -> Any:
    out = b[0] + b[1] * jnp.cos(jnp.pi * x / 6) + b[2] * jnp.sin(jnp.pi * x / 6)
    for period, c, s in ((b[3], b[4], b[5]), (b[6], b[7], b[8])):
        angle = 2 * jnp.pi * x / period
        out = out + c * jnp.cos(angle) + s * jnp.sin(angle)
    return out


#: `model(b, x)` of every set; the observations of Nelson are logarithms, its x two columns.
MODELS: dict[str, Callable] = {
    "Misra1a": lambda b, x: b[0] * (1 - jnp.exp(-b[1] * x)),
    "Chwirut2": _chwirut,
    "Chwirut1": _chwirut,
    "Lanczos3": _exponentials,
    "Gauss1": _peaks,
    "Gauss2": _peaks,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Kirby2": lambda b, x: (b[0] + x * (b[1] + x * b[2])) / (1 + x * (b[3] + x * b[4])),
    "Hahn1": _cubic,
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * jnp.exp(-b[2] * x[1]),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-b[3] * x) + b[2] * jnp.exp(-b[4] * x),
    "Lanczos1": _exponentials,
    "Lanczos2": _exponentials,
    "Gauss3": _peaks,
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
    "ENSO": _enso,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "Thurber": _cubic,
    "BoxBOD": lambda b, x: b[0] * (1 - jnp.exp(-b[1] * x)),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "MGH10": lambda b, x: b[0] * jnp.exp(b[1] / (x + b[2])),
    "Eckerle4": lambda b, x: b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
}


class Reference(NamedTuple):
    """A set: its model, x and y, both starts `[2, n]`, certified values and their deviations."""

    level: str
    model: Callable
    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    certified: np.ndarray
    deviation: np.ndarray
    rss: float

    def digits(self, value: Any) -> float:
        """Correct digits of the worst unknown; 11 are certified."""
        error = np.max(np.abs(np.asarray(value) - self.certified) / np.abs(self.certified))
        return float(-np.log10(max(error, 1e-11)))


def load(name: str) -> Reference:
    """One set, in float64."""
    raw = json.loads((Path(__file__).parent / "strd.json").read_text())[name]
    data = np.array(raw["data"])
    y, x = data[:, 0], data[:, 1:].T
    y, x = (np.log(y), x) if name == "Nelson" else (y, x[0])
    return Reference(raw["level"], MODELS[name], x, y, np.array([raw["start1"], raw["start2"]]),
                     np.array(raw["certified"]), np.array(raw["deviation"]), raw["rss"])
