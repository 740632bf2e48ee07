"""The options of a solve, by the same names in every front function."""

from typing import Any, NamedTuple, TypedDict

import optax

from jaxiter.adjoint import Adjoint
from jaxiter.monitor import Monitor
from jaxiter.solution import LoopState
from jaxiter.stop import Stop


class SolveOptions(TypedDict, total=False):
    """What a front function takes beside its own arguments; their meaning is `fixed_point`'s.

    A front that writes `**options: Unpack[SolveOptions]` takes all of these and says in its
    docstring which it refuses.
    """

    solver: optax.GradientTransformation | None
    stop: Stop | None
    adjoint: Adjoint | None
    max_steps: Any
    check_every: int
    keep_best: bool
    monitor: Monitor | None
    resume: LoopState | None


class Options(NamedTuple):
    """The options of one call, complete: those that were given, the front's defaults for others.

    `fixed_point(problem, x0, *args, **options._asdict())` is what it would do with them.
    """

    solver: Any = None
    stop: Stop | None = None
    adjoint: Adjoint | None = None
    max_steps: Any = 1000
    check_every: int = 1
    keep_best: bool = False
    monitor: Monitor | None = None
    resume: LoopState | None = None


def choose(front: str, options: SolveOptions, refused: dict[str, str], **defaults: Any) -> Options:
    """The options of a call of `front`, checked.

    Args:
      front: the function's name, for messages.
      options: what its caller gave; None stands for the default, as does leaving one out.
      refused: options that mean nothing here, each with what to do instead.
      **defaults: of this front, where they differ from `fixed_point`'s.

    Raises:
      TypeError: an option that no front knows.
      ValueError: one that this front refuses.

    >>> choose("sample", {"max_steps": 5}, {"resume": "start again"}).max_steps
    5
    >>> choose("sample", {"resume": ...}, {"resume": "start again"})
    Traceback (most recent call last):
    ValueError: sample takes no resume: start again.
    """
    unknown = [name for name in options if name not in Options._fields]
    if unknown:
        known = ", ".join(name for name in Options._fields if name not in refused)
        raise TypeError(f"{front} got an unexpected argument {unknown[0]!r}; its options of a "
                        f"solve are {known}.")
    usual = Options(**defaults)
    for name, reason in refused.items():
        value = options.get(name)
        if value is not None and value is not getattr(usual, name):
            raise ValueError(f"{front} takes no {name}: {reason}.")
    given = {name: value for name, value in options.items() if value is not None}
    return usual._replace(**given)
