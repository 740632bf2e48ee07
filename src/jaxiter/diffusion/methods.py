"""The `method=` of parallel samplers: those of recurrences that serve them too, and their own."""

import equinox as eqx

from jaxiter.known import check_count, check_not_negative
from jaxiter.recurrence.methods import Jacobi, Picard, RowMethod, Secant


class Gaussian(RowMethod):
    """See `gaussian`."""

    name = "gaussian"


def gaussian() -> RowMethod:
    """Slopes of Gaussian data with the denoiser's standard deviation; exact for such data."""
    return Gaussian()


class Jvp(RowMethod):
    """See `jvp`."""

    name = "jvp"


def jvp() -> RowMethod:
    """The secant mended by one jvp of the model a round, which is then two calls deep."""
    return Jvp()


class Paratta(RowMethod):
    """See `paratta`."""

    name = "paratta"
    order: int = eqx.field(static=True, default=20)
    memory: int = eqx.field(static=True, default=1)


def paratta(order: int = 20, memory: int = 1) -> RowMethod:
    """ParaTAA: maps of `order` rows, mixed over the differences of `memory` rounds.

    Args:
      order: rows that a map runs at once, at most those of the window.
      memory: rounds of a triangular Anderson step; 0 is the plain map.

    Raises:
      ValueError: order below 1, memory below 0.

    Reference: Tang, Tang, Luo, Wang and Chang, "Accelerating parallel sampling of diffusion
    models", 2024.

    >>> paratta(memory=2) == paratta(20, 2)
    True
    """
    check_count(order=order)
    check_not_negative(memory=memory)
    return Paratta(order, memory)


#: What `sample_parallel` takes.
KINDS = (Secant, Gaussian, Jvp, Picard, Jacobi, Paratta)
