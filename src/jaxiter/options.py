"""The options of a solve, by the same names in every front function."""

from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.adjoint import Adjoint
from jaxiter.known import check_count, known
from jaxiter.monitor import Monitor
from jaxiter.packed import Packed
from jaxiter.solution import LoopState
from jaxiter.stop import Stop, tolerance


class SolveOptions(TypedDict, total=False):
    """What a front function takes beside its own arguments; their meaning is `fixed_point`'s.

    A front that writes `**options: Unpack[SolveOptions]` takes all of these and says in its
    docstring which it refuses.
    """

    solver: optax.GradientTransformation | None
    stop: Stop | None
    adjoint: Adjoint | None
    max_steps: Any
    min_steps: Any
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
    min_steps: Any = 0
    check_every: int = 1
    keep_best: bool = False
    monitor: Monitor | None = None
    resume: LoopState | None = None

    @property
    def rule(self) -> Stop:
        """The stop rule: `tolerance()` where none was given."""
        return tolerance() if self.stop is None else self.stop


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
    strange = [name for name in options if name not in Options._fields]
    if strange:
        usual = ", ".join(name for name in Options._fields if name not in refused)
        raise TypeError(f"{front} got an unexpected argument {strange[0]!r}; its options of a "
                        f"solve are {usual}.")
    usual = Options(**defaults)
    for name, reason in refused.items():
        value = options.get(name)
        if value is not None and value is not getattr(usual, name):
            raise ValueError(f"{front} takes no {name}: {reason}.")
    given = {name: value for name, value in options.items() if value is not None}
    return checked(usual._replace(**given))


def checked(options: Options) -> Options:
    """The options, each of the kind that it must be; which adjoints fit the front itself says.

    Raises:
      TypeError: another kind, such as a factory that was not called, or a solution for a state.
      ValueError: check_every below 1, a negative max_steps or min_steps.
    """
    solver = options.solver
    kinds = {
        "solver": (solver is None or hasattr(solver, "init") and hasattr(solver, "update"),
                   "an optax transformation such as anderson()"),
        "stop": (isinstance(options.stop, Stop | None), "a rule such as tolerance()"),
        "monitor": (isinstance(options.monitor, Monitor | None),
                    "record(), printer(), progress() or callback(f)"),
        "keep_best": (isinstance(options.keep_best, bool), "True or False"),
        "resume": (isinstance(options.resume, LoopState | Packed | None),
                   "the state of a solution"),
    }
    for name, (good, wanted) in kinds.items():
        value = getattr(options, name)
        if not good:
            called = "; did you forget to call it?" if callable(value) else ""
            state = "; pass its .state" if hasattr(value, "state") else ""
            raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}{called}{state}.")
    check_count(check_every=options.check_every)
    _check_steps("max_steps", options.max_steps)
    _check_steps("min_steps", options.min_steps)
    return options


def _check_steps(name: str, steps: Any) -> None:
    """Refuse steps that are no int32 of at least 0, as far as that is known.

    Raises:
      TypeError: when it is not an integer.
      ValueError: when it is negative or beyond int32.
    """
    if not isinstance(steps, int | np.integer | np.ndarray | jax.Array) or (
            not jnp.issubdtype(jnp.result_type(steps), jnp.integer)):
        raise TypeError(f"{name} must be an integer, got {steps!r}.")
    if np.ndim(steps):
        raise TypeError(f"{name} must be a scalar, got shape {np.shape(steps)}; map the "
                        "solve over it with vmap.")
    known(partial(_in_range, name), steps)


def _in_range(name: str, steps: Any) -> None:
    host = np.asarray(steps)
    if np.any(host < 0) or np.any(host > 2**31 - 1):
        raise ValueError(f"{name} must be from 0 to 2**31 - 1, got {steps}.")
