"""What identifies a call: its structure, its static values, and all that its functions refer to.

A function is its code with what that reads: enclosing and global variables, defaults, attributes of
modules and classes. What can be changed in place is read by content; arrays of jax, which cannot,
by identity. What can change without a sign, such as an object with attributes, makes a call
`Unkeyed`.
"""

import dis
import functools
import math
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.core
import numpy as np

from jaxiter.values import Made

PyTree = Any

#: A numpy array that a function refers to is compared by content up to so many bytes.
COMPARED = 1 << 20
#: Functions of these packages refer to nothing that their user rebinds.
TRUSTED = frozenset({"jax", "jaxlib", "numpy", "optax", "equinox", "jaxiter", "math", "operator",
                     "functools", "itertools", "builtins", "collections", "typing", "jaxtyping"})


class Unkeyed(Exception):
    """Something that may change without a sign: the call is not reused."""


class Identity:
    """An object that is equal to itself alone; it is kept alive, so that its place is its own."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


class Reader:
    """One reading of a call: what identifies it, its operands, the tracers it refers to."""

    def __init__(self) -> None:
        self.operands: list = []
        self.tracers: list = []
        self._open: list[int] = []

    def tree(self, tree: PyTree, kinds: tuple) -> tuple:
        """The token of arguments, whose leaves of these kinds are operands."""
        leaves, structure = jax.tree.flatten(tree)
        return self.structure(structure), *(self.leaf(leaf, kinds) for leaf in leaves)

    def leaf(self, leaf: Any, kinds: tuple) -> Any:
        """The token of a leaf; operands are collected in the order of `rebuilt`."""
        if is_operand(leaf, kinds):
            self.operands.append(leaf)
            return jax.typeof(leaf)
        if isinstance(leaf, Made):
            factory, args, keywords = leaf._call
            return factory, leaf._place, self.tree((args, keywords), kinds)
        return self.value(leaf, NOTHING)

    def structure(self, structure: Any) -> Any:
        """The token of a tree's structure; its nodes may hold functions, its types have methods."""
        data = structure.node_data()
        if data is None:
            return "leaf"
        kind, extra = data
        children = tuple(map(self.structure, structure.children()))
        if kind in (tuple, list, type(None)):
            return kind, children
        return self.value(kind, NOTHING), self.value(extra, NOTHING), children

    def value(self, value: Any, names: frozenset) -> Any:
        """The token of something that a call refers to; `names`: attributes that may be read."""
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes, types.CodeType):
            return kind, value
        if kind in (float, complex):
            return kind, repr(value)  # tells 0.0 from -0.0, and finds NaN equal
        if isinstance(value, jax.core.Tracer):
            self.tracers.append(value)
            return "traced", jax.typeof(value)
        if isinstance(value, jax.Array):
            return Identity(value)
        if isinstance(value, np.ndarray | np.generic):
            if value.nbytes > COMPARED or value.dtype.hasobject:
                raise Unkeyed
            return kind, value.dtype, value.shape, value.tobytes()
        if id(value) in self._open:
            return "itself", self._open.index(id(value))
        self._open.append(id(value))
        try:
            return self._compound(value, kind, names)
        finally:
            self._open.pop()

    def _compound(self, value: Any, kind: type, names: frozenset) -> Any:
        if isinstance(value, Made):
            factory, *given = value._call
            return factory, value._place, self.value(given, names)
        if isinstance(value, types.ModuleType):
            return self._attributes(value, value.__name__, names)
        if isinstance(value, type):
            return self._type(value, names)
        if callable(value):
            return self.function(value, names)
        if isinstance(value, tuple | list):
            return self.value(kind, names), *(self.value(item, names) for item in value)
        if kind is dict:
            return kind, *(self.value(item, names) for item in value.items())
        if kind in (set, frozenset):
            return kind, frozenset(self.value(item, names) for item in value)
        return self._object(value, names)

    def _object(self, value: Any, names: frozenset) -> Any:
        """The token of an instance: a tree, or what has an equality and a hash of its own."""
        leaves, structure = jax.tree.flatten(value)
        if len(leaves) != 1 or leaves[0] is not value:
            return self.structure(structure), *(self.value(leaf, names) for leaf in leaves)
        kind = type(value)
        if kind.__hash__ is None or kind.__eq__ is object.__eq__:
            raise Unkeyed
        hash(value)
        return value

    def _type(self, value: type, names: frozenset) -> Any:
        """The token of a class: its methods, and what they and others may read of it."""
        token: list = [value]
        for owner in value.__mro__:
            if _trusted(owner.__module__):
                continue
            token.append(self._attributes(owner, owner.__module__, names))
            for method in vars(owner).values():
                method = method.fget if isinstance(method, property) else method
                if isinstance(method, types.FunctionType | classmethod | staticmethod):
                    token.append(self.value(method, names))
        return tuple(token)

    def _attributes(self, owner: Any, package: str, names: frozenset) -> tuple:
        """An object whose attributes anybody may rebind: those that may be read."""
        if package.startswith("numpy.random"):
            raise Unkeyed
        if _trusted(package):
            return (owner,)
        read = sorted(name for name in names if name in vars(owner))
        return owner, *((name, self.value(vars(owner)[name], names)) for name in read)

    def function(self, f: Callable, names: frozenset) -> Any:
        """The token of a function: its code, and all that it refers to."""
        if isinstance(f, functools.partial):
            return "partial", self.value((f.func, f.args, dict(f.keywords)), names)
        if isinstance(f, types.MethodType):
            return "method", self.value((f.__func__, f.__self__), names)
        if isinstance(f, staticmethod | classmethod):
            return type(f), self.value(f.__func__, names)
        if not isinstance(f, types.FunctionType):
            return self._callable(f, names)
        trusted = _trusted(f.__module__)
        if trusted and f.__closure__ is None:
            return Identity(f)
        names = names | _names(f.__code__)
        token = [f.__code__, *(self.value(part, names) for part in (
            f.__defaults__, f.__kwdefaults__))]
        for cell in f.__closure__ or ():
            try:
                token.append(self.value(cell.cell_contents, names))
            except ValueError:  # not bound yet
                token.append("empty")
        if not trusted:
            scope = f.__globals__
            for name in _names(f.__code__):
                if name in scope:
                    if scope[name] is np and f"{name}.random" in names:
                        raise Unkeyed
                    token.append((name, self.value(scope[name], names)))
            token.append(self.value(f.__dict__, names))
        return tuple(token)

    def _callable(self, f: Any, names: frozenset) -> Any:
        """A callable that is no Python function."""
        if isinstance(f, jax.custom_jvp | jax.custom_vjp):
            return type(f), *(self.value(part, names) for part in vars(f).values())
        if isinstance(f, types.BuiltinFunctionType):
            home = f.__self__.__name__ if isinstance(f.__self__, types.ModuleType) else (
                f.__self__.__module__ if isinstance(f.__self__, type) else "")
        elif isinstance(f, types.WrapperDescriptorType | types.MethodDescriptorType):
            home = f.__objclass__.__module__
        else:  # of jit: what it wraps is traced once and for all
            home = "jax" if isinstance(f, np.ufunc) else type(f).__module__
            home = home if home.split(".")[0] in ("jax", "jaxlib") else ""
        return Identity(f) if _trusted(home) else self._object(f, names)


NOTHING: frozenset = frozenset()
#: What may be traced of a call: all numbers, the arrays alone, or no more than there must be.
NUMBERS, ARRAYS, FEWEST = (float, np.ndarray, np.generic), (np.ndarray, np.generic), ()


def is_operand(leaf: Any, kinds: tuple) -> bool:
    """Whether a leaf of the arguments is traced: a jax array, or of one of these kinds."""
    if isinstance(leaf, jax.Array):
        return True
    if type(leaf) is float:
        return float in kinds and math.isfinite(leaf)  # inf stands for "none", often
    return isinstance(leaf, kinds) and not leaf.dtype.hasobject


def rebuilt(tree: PyTree, operands: Iterator, kinds: tuple) -> PyTree:
    """The tree with other operands, in the order of `Reader.tree`."""
    def leaf(leaf: Any) -> Any:
        if is_operand(leaf, kinds):
            return next(operands)
        if not isinstance(leaf, Made):
            return leaf
        factory, args, keywords = leaf._call
        args, keywords = rebuilt((args, keywords), operands, kinds)
        made = factory(*args, **keywords)
        return made if leaf._place is None else made[leaf._place]

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [leaf(x) for x in leaves])


@lru_cache(1024)
def _names(code: types.CodeType) -> frozenset:
    """Names that a piece of code may look up, in functions within it too, and `name.attribute`."""
    names, last = set(code.co_names), ""
    for instruction in dis.get_instructions(code):
        if "ATTR" in instruction.opname or "METHOD" in instruction.opname:
            names.add(f"{last}.{instruction.argval}")
        last = instruction.argval if isinstance(instruction.argval, str) else ""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(names).union(*map(_names, inner))


def _trusted(module: str | None) -> bool:
    return (module or "").split(".")[0] in TRUSTED
