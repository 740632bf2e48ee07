"""What a factory returns, as a value: it compares, hashes and pickles by the call that made it."""

import inspect
from collections.abc import Callable
from functools import update_wrapper, wraps
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import is_array, is_concrete

Factory = TypeVar("Factory", bound=Callable)


class Call(NamedTuple):
    """A factory, and the arguments that it was called with, defaults included."""

    factory: Callable
    args: tuple
    keywords: dict


class Made:
    """One function that a factory returned; equal to those of equal calls.

    The functions carry the call, not what holds them: so optax transformations and stop rules
    stay the plain tuples that others unpack, and are equal where their functions are.
    """

    def __init__(self, function: Callable, call: Call, place: int | None) -> None:
        # A factory may hand on what another one made: its own call is the whole story.
        function = function._function if isinstance(function, Made) else function
        update_wrapper(self, function)
        self._function, self._call, self._place = function, call, place

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """What the function says."""
        return self._function(*args, **keywords)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Made):
            return NotImplemented
        mine, theirs = self._call, other._call
        if mine.factory is not theirs.factory or self._place != other._place:
            return False
        (ours, structure), (others, shape) = (jax.tree.flatten(call[1:]) for call in (mine, theirs))
        return structure == shape and all(map(_same, ours, others))

    def __hash__(self) -> int:
        leaves, structure = jax.tree.flatten(self._call[1:])
        return hash((self._call.factory, self._place, structure, *map(_hash, leaves)))

    def __repr__(self) -> str:
        given = [repr(a) for a in self._call.args]
        given += [f"{name}={value!r}" for name, value in self._call.keywords.items()]
        return f"{self._call.factory.__name__}({', '.join(given)})"

    def __reduce__(self) -> tuple:
        return remade, (*self._call, self._place)


def remade(factory: Callable, args: tuple, keywords: dict, place: int | None) -> Callable:
    """What stands at a place of what the factory makes, or all of it."""
    made = factory(*args, **keywords)
    return made if place is None else made[place]


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same; tracers are so only to themselves."""
    if a is b:
        return True
    if type(a) is not type(b) or not is_concrete(a, b):
        return False
    if is_array(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.extended):
            return False  # a key, which numpy cannot read
        one, other = np.asarray(a), np.asarray(b)
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.tobytes() == other.tobytes())
    return bool(a == b)


def _hash(argument: Any) -> int:
    if is_array(argument):
        return hash((argument.shape, argument.dtype))
    try:
        return hash(argument)
    except TypeError:
        return hash(type(argument))


def as_value(factory: Factory) -> Factory:
    """A factory of a function, or of a tuple of functions, whose products compare as values.

    Two calls with equal arguments give equal products: equal static arguments of `jax.jit`,
    which is then compiled once. They can be pickled where the arguments can. Arrays are equal
    by dtype, shape and content, tracers by identity, functions as Python has it.

    >>> import pickle
    >>> from jaxiter import anderson
    >>> anderson(5) == anderson(memory=5) == pickle.loads(pickle.dumps(anderson(5)))
    True
    >>> anderson(5) == anderson(6)
    False
    """
    signature = inspect.signature(factory)

    @wraps(factory)
    def make(*args: Any, **keywords: Any) -> Any:
        made = factory(*args, **keywords)
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        call = Call(make, bound.args, bound.kwargs)
        if not isinstance(made, tuple):
            return Made(made, call, None)
        parts = [Made(part, call, place) if callable(part) else part
                 for place, part in enumerate(made)]
        return cast(Any, type(made))(*parts)

    return cast(Factory, make)
