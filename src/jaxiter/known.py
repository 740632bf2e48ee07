"""Checks of values, wherever they can be read: now, or at every reuse of a compiled call."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import is_concrete
from jaxiter.values import Made, remade

PyTree = Any

#: An array on another device is read for its error messages only up to so many entries.
SMALL = 1 << 16


class Operand(int):
    """Stands for an operand of a compiled call, by its index."""


class Later(NamedTuple):
    """Stands for what a factory makes of operands."""

    factory: Callable
    given: Any
    place: int | None


class Check(NamedTuple):
    """`check(*values)` raises where they make no sense; operands stand there as `Operand`."""

    check: Callable
    values: Any


class _Recorder(threading.local):
    operands: dict[int, int] | None = None
    checks: list[Check] | None = None


_recorder = _Recorder()


def known(check: Callable, *values: Any) -> None:
    """`check(*values)`, which raises for what makes no sense, if the values can be read.

    Within a call whose program will be used again it is remembered, for values that are operands
    of the call, or constants: check before you convert. The check itself must not refer to any
    traced value.
    """
    if readable(*values):
        check(*values)
    elif _recorder.operands is not None and _recorder.checks is not None:
        located = _located(values, _recorder.operands)
        if is_concrete(located):
            _recorder.checks.append(Check(check, located))


def _located(tree: PyTree, operands: dict[int, int]) -> PyTree:
    """The tree with operands replaced by what stands for them."""
    def leaf(leaf: Any) -> Any:
        if id(leaf) in operands:
            return Operand(operands[id(leaf)])
        if not isinstance(leaf, Made):
            return leaf
        factory, args, keywords = leaf._call
        return Later(factory, _located((args, keywords), operands), leaf._place)

    return jax.tree.map(leaf, tree)


def _present(tree: PyTree, operands: list) -> PyTree:
    """The opposite of `_located`, with the operands of another call."""
    def leaf(leaf: Any) -> Any:
        if isinstance(leaf, Operand):
            return operands[leaf]
        if not isinstance(leaf, Later):
            return leaf
        args, keywords = _present(leaf.given, operands)
        return remade(leaf.factory, args, keywords, leaf.place)

    return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, Later))


def readable(*values: Any) -> bool:
    """Whether values can be read here, and at no great cost: not large ones from another device."""
    for leaf in jax.tree.leaves(values):
        if isinstance(leaf, Made):
            if not readable(leaf._call[1:]):
                return False
        elif not is_concrete(leaf):
            return False
        elif isinstance(leaf, jax.Array) and leaf.size > SMALL:
            if any(device.platform != "cpu" for device in leaf.devices()):
                return False
    return True


@contextmanager
def recording(operands: list) -> Any:
    """Collect the checks made of these tracers."""
    before = _recorder.operands, _recorder.checks
    _recorder.operands = {id(operand): i for i, operand in enumerate(operands)}
    _recorder.checks = []
    try:
        yield _recorder.checks
    finally:
        _recorder.operands, _recorder.checks = before


def again(checks: list[Check], operands: list) -> None:
    """Make the checks of a compiled call on its new operands."""
    for check, values in checks:
        now = _present(values, operands)
        if readable(*now):
            check(*now)


def check_count(**numbers: Any) -> None:
    """Raise ValueError for what is no integer of at least 1."""
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {number!r}.")


def check_floating(kind: Any = jnp.floating, /, **trees: Any) -> None:
    """Raise TypeError for leaves that are no real floating-point numbers, or none of the kind."""
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            dtype = jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, kind):
                raise TypeError(f"{name} must be floating point, got {dtype}.")


def check_positive(**numbers: Any) -> None:
    """Refuse numbers that are known and not positive; traced ones pass."""
    for name, number in numbers.items():
        known(partial(_within, name, "be positive", lambda n: n > 0), number)


def check_not_negative(**numbers: Any) -> None:
    """Refuse numbers that are known and negative or NaN; traced ones pass."""
    for name, number in numbers.items():
        known(partial(_within, name, "not be negative", lambda n: n >= 0), number)


def check_fraction(**numbers: Any) -> None:
    """Refuse numbers that are known and outside [0, 1)."""
    for name, number in numbers.items():
        known(partial(_within, name, "be in [0, 1)", lambda n: (n >= 0) & (n < 1)), number)


def check_share(**numbers: Any) -> None:
    """Refuse numbers that are known and outside (0, 1]."""
    for name, number in numbers.items():
        known(partial(_within, name, "be in (0, 1]", lambda n: (n > 0) & (n <= 1)), number)


def check_finite(**arrays: Any) -> None:
    """Refuse arrays that are known and not finite; None and what is no array pass."""
    for name, array in arrays.items():
        known(partial(_finite, name), array)


def _finite(name: str, array: Any) -> None:
    if isinstance(array, list | tuple | float | int | np.ndarray | np.generic | jax.Array):
        if not np.all(np.isfinite(np.asarray(array))):
            raise ValueError(f"{name} contains NaN or infinity.")


def _within(name: str, must: str, holds: Callable, number: Any) -> None:
    if isinstance(number, int | float | np.ndarray | np.generic | jax.Array) and not np.all(
            holds(np.asarray(number))):
        raise ValueError(f"{name} must {must}, got {number}.")
