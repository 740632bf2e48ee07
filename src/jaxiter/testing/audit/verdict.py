"""What the judges of the audit share: verdicts, the tolerances that were claimed, odd numbers."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxiter.solution import Status

#: The default tolerances as they are promised, `(rtol, atol)`; not read from the library.
TOLERANCES = {"float64": (1e-8, 1e-9), "float32": (1e-5, 1e-6), "bfloat16": (1e-2, 1e-3),
              "float16": (1e-2, 1e-3)}
#: The relative residual that linear solvers promise by default.
LINEAR_TOLERANCES = {"float64": 1e-10, "float32": 1e-6, "bfloat16": 1e-2, "float16": 1e-2}
#: Entries that odd inputs are made of.
SPECIAL = (0.0, 1e-44, 1e-30, 1e30, 3e38, np.inf, np.nan)
#: A gradient further off than this, relative to its length, is a wrong number.
WRONG = 2e-2


class Verdict(NamedTuple):
    """Counts over a batch: solves, those that say CONVERGED, and five kinds of failure.

    false: CONVERGED where the answer itself, judged in float64, contradicts it; or a certificate
    that proves nothing, or that nothing solves what has a solution. silent: a
    gradient that is a number, and more than 2 per cent off. unsolved: no CONVERGED where the
    mathematics promises it (a contraction under a guarded solver) and the numbers can carry it.
    lost: a gradient that is not a number although its problem is well conditioned. early: an error
    believed to be small before the slowest direction showed in the steps. proven: certificates,
    which are no failure.
    """

    family: str
    solves: int
    converged: int
    false: int
    silent: int = 0
    unsolved: int = 0
    lost: int = 0
    early: int = 0
    proven: int = 0


def verdict(family: str, status: Any, false: Any, **others: Any) -> Verdict:
    """The counts of boolean arrays; `status` holds one code a solve."""
    status = np.asarray(status)
    counts = {name: int(np.sum(value)) for name, value in others.items()}
    return Verdict(family, status.size, int((status == Status.CONVERGED).sum()),
                   int(np.sum(false)), **counts)


def name(dtype: Any) -> str:
    """Such as float32."""
    return jnp.dtype(dtype).name


def half_ulp(dtype: Any) -> float:
    """The largest relative error of one rounding."""
    return float(jnp.finfo(dtype).eps) / 2


def smallest(dtype: Any) -> float:
    """Magnitudes below this may come out as zero."""
    info = jnp.finfo(dtype)
    # 16-bit floats of IEEE are computed in float32, where their smallest numbers are normal.
    return float(info.smallest_subnormal if name(dtype) == "float16" else info.tiny)


def threshold(
    dtype: Any, scale: np.ndarray, start: np.ndarray, rtol: float | None = None,
    atol: float | None = None,
) -> np.ndarray:
    """What `tolerance(rtol, atol)` promises: a default atol shrinks with data below 1.

    `start` is `max(|x0|, |T x0|)`.
    """
    relative, absolute = TOLERANCES[name(dtype)]
    relative = relative if rtol is None else rtol
    absolute = absolute * np.minimum(1, start) if atol is None else atol
    return absolute + relative * scale


def lengths(x: np.ndarray) -> np.ndarray:
    """l2 norms of all but the first axis, `[count]`."""
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def magnitudes(
    rng: np.random.Generator, count: int, largest: float = 9.0, special: tuple = ()
) -> np.ndarray:
    """Scales `[count]` from 10^-largest to 10^largest, a third of them of the special ones."""
    scale = 10.0 ** rng.uniform(-largest, largest, count)
    if special:
        odd = rng.random(count) < 0.35
        scale[odd] = rng.choice(special, odd.sum())
    return scale


def offsets(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Vectors `[count, n]` of every scale, a third of them with an odd first entry."""
    b = rng.normal(size=(count, size)) * 10.0 ** rng.integers(-20, 20, (count, 1))
    odd = rng.random(count) < 0.3
    b[odd, 0] = rng.choice(SPECIAL, odd.sum())
    return b


def apply(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Matrices `[..., n, m]` times vectors `[..., m]`."""
    return np.matmul(a, x[..., None])[..., 0]


def rounding(a: np.ndarray, x: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
    """Norms `[count]` of the most that evaluating `a x + b` in this dtype may be off."""
    with np.errstate(all="ignore"):
        terms = apply(np.abs(a), np.abs(x)) + np.abs(b)
    return (x.shape[-1] + 2) * half_ulp(dtype) * lengths(terms)


def cast(dtype: Any, *arrays: np.ndarray) -> tuple:
    """jax arrays of this dtype; what overflows in it is infinite."""
    with np.errstate(all="ignore"):
        return tuple(jnp.asarray(np.asarray(array)).astype(dtype) for array in arrays)


def exactly(*arrays: Any) -> tuple:
    """The same numbers in float64."""
    return tuple(np.asarray(array).astype(np.float64) for array in arrays)


def wrong_gradients(
    slope: np.ndarray, exact: np.ndarray, regular: np.ndarray, slack: Any = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """`(silent, lost)`: wrong numbers anywhere, and NaN where the problem is regular.

    slack: what rounding may add to the 2 per cent, relative to the length of `exact`.
    """
    number = np.isfinite(slope).reshape(len(slope), -1).all(1)
    with np.errstate(all="ignore"):
        off = lengths(slope - exact) > (WRONG + slack) * lengths(exact)
    return number & off, regular & ~number
