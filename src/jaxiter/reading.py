"""What identifies a call: its structure, its static values, and all that its functions refer to.

A function is its code with what that reads: enclosing and global variables, defaults, attributes of
modules and classes. What can be changed in place is read by content; arrays of jax, which cannot,
by identity. What can change without a sign, such as an object with attributes or a clock, makes a
call `Unkeyed`, and so does what looks things up by names that are made as it runs.
"""

import builtins
import dataclasses
import dis
import enum
import functools
import inspect
import math
import types
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, cast

import jax
import jax.core
import numpy as np

from jaxiter.values import Call, Made, remade

PyTree = Any

#: A numpy array that a function refers to is compared by content up to so many bytes.
COMPARED = 1 << 20
#: Functions of these packages refer to nothing that their user rebinds.
TRUSTED = frozenset({
    "jax", "jaxlib", "numpy", "optax", "equinox", "jaxiter", "jaxtyping", "math", "operator",
    "_operator", "functools", "_functools", "itertools", "builtins", "collections", "_collections",
    "typing", "dataclasses", "abc", "enum", "inspect"})
#: Functions that find what no name in the code tells.
SEARCHING = frozenset({getattr, vars, dir, globals, locals, eval, exec, open, input, __import__})
#: Functions that read one number from an array, as does a branch.
READING = frozenset({"bool", "int", "float", "complex", "any", "all", "item", "tolist"})
#: Descriptors that only say where a field is.
PLACES = (types.MemberDescriptorType, types.GetSetDescriptorType,
          type(vars(Call)["factory"]))


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
        self._met: dict[int, tuple[int, Any]] = {}  # what was read; kept, so that ids stay theirs
        self._owners: list = []
        self._names: set[str] = set()
        self._reads = False  # whether some code may read a number that is differentiated
        self.held = 0  # bytes of the arrays of jax that it refers to

    def call(self, *trees: tuple[PyTree, tuple]) -> tuple:
        """The token of the arguments of a call, given with the kinds of their operands."""
        token = *(self.tree(tree, kinds) for tree, kinds in trees), *self._attributes()
        if self._reads and any(tracer.size == 1 for tracer in self.tracers):
            raise Unkeyed
        return token

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
            return self._factory(factory), leaf._place, self.tree((args, keywords), kinds)
        return self.value(leaf)

    def structure(self, structure: Any) -> Any:
        """The token of a tree's structure; its nodes may hold functions, its types have methods."""
        data = structure.node_data()
        if data is None:
            return "leaf"
        kind, extra = data
        children = tuple(map(self.structure, structure.children()))
        if kind in (tuple, list, type(None)):
            return kind, children
        return self.value(kind), self.value(extra), children

    def value(self, value: Any) -> Any:
        """The token of something that a call refers to."""
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes, types.CodeType):
            return kind, value
        if kind in (float, complex):
            return kind, repr(value)  # tells 0.0 from -0.0, and finds NaN equal
        if id(value) in self._met:
            return "met", self._met[id(value)][0]
        self._met[id(value)] = len(self._met), value
        if isinstance(value, jax.core.Tracer):
            self.tracers.append(value)
            return "traced", jax.typeof(value)
        if isinstance(value, jax.Array):
            self.held += value.nbytes
            return Identity(value)
        if isinstance(value, np.ndarray | np.generic):
            if value.nbytes > COMPARED or value.dtype.hasobject or (
                    isinstance(value, np.ndarray) and kind is not np.ndarray):
                raise Unkeyed
            return kind, value.dtype, value.shape, value.tobytes()
        return self._compound(value, kind)

    def _compound(self, value: Any, kind: type) -> Any:
        if isinstance(value, Made):
            factory, *given = value._call
            return self._factory(factory), value._place, self.value(given)
        if isinstance(value, types.ModuleType):
            if value.__name__.startswith("numpy.random"):
                raise Unkeyed
            self._owners.append(value)
            return Identity(value)
        if isinstance(value, type):
            return self._type(value)
        if isinstance(value, PLACES):
            return Identity(value)
        if isinstance(value, property | functools.cached_property):
            return kind, self.value(value.fget if isinstance(value, property) else value.func)
        if kind is object:
            return Identity(value)  # a sentinel
        if callable(value) or isinstance(value, staticmethod | classmethod):
            return self._function(value)
        if isinstance(value, tuple | list) and not getattr(value, "__dict__", None):
            return self.value(kind), *map(self.value, value)
        if kind is dict:
            return kind, *map(self.value, cast(dict, value).items())
        if kind in (set, frozenset):
            return kind, frozenset(map(self.value, value))
        return self._object(value)

    def _object(self, value: Any) -> Any:
        """The token of an instance: its class and its fields, where only they make it."""
        kind = type(value)
        leaves, structure = jax.tree.flatten(value)
        is_tree = len(leaves) != 1 or leaves[0] is not value
        fixed = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore
        if (is_tree or fixed or isinstance(value, enum.Enum)) and hasattr(value, "__dict__"):
            return self.value(kind), self.value(dict(vars(value)))  # a tree may leave some out
        if is_tree:
            return self.structure(structure), *map(self.value, leaves)
        if not _trusted(kind.__module__) or kind.__eq__ is object.__eq__ or isinstance(
                value, weakref.ref):
            raise Unkeyed
        hash(value)
        return kind, value

    def _type(self, value: type) -> Any:
        """The token of a class: its methods, which operators may call without a name."""
        if not _trusted(type(value).__module__):
            raise Unkeyed
        token: list = [Identity(value)]
        for owner in value.__mro__:
            if not _trusted(owner.__module__):
                self._owners.append(owner)
                token += [(name, self.value(part)) for name, part in vars(owner).items()
                          if hasattr(type(part), "__get__")]
        return tuple(token)

    def _attributes(self) -> Iterator:
        """Attributes of all modules and classes met that some code met may look up."""
        read: set[tuple[int, str]] = set()
        while True:
            if {np, "numpy"} & {*self._owners, *self._names} and any(
                    name.endswith(".random") and name != "jax.random" for name in self._names):
                raise Unkeyed  # numpy's own random numbers
            found = {(i, name) for i, owner in enumerate(self._owners)
                     if not _trusted(owner.__name__ if isinstance(owner, types.ModuleType)
                                     else owner.__module__)
                     for name in self._names & vars(owner).keys()} - read
            if not found:
                return
            read |= found
            for i, name in sorted(found):
                yield i, name, self.value(vars(self._owners[i])[name])

    def _factory(self, factory: Callable) -> Any:
        """The token of what makes values, without the wrapper of all such."""
        return self.value(getattr(factory, "__wrapped__", factory))

    def _function(self, f: Any) -> Any:
        """The token of a function: its code, and all that it refers to."""
        if isinstance(f, functools.partial):
            return "partial", *map(self.value, (f.func, f.args, f.keywords, vars(f)))
        if isinstance(f, types.MethodType):
            return "method", self.value(f.__func__), self.value(f.__self__)
        if isinstance(f, staticmethod | classmethod):
            return type(f), self.value(f.__func__)
        if not isinstance(f, types.FunctionType):
            return self._callable(f)
        # Not by __module__, which functools.wraps copies.
        trusted = _trusted(f.__globals__.get("__name__"))
        if trusted and f.__closure__ is None:
            return Identity(f)
        token = [f.__code__, self.value(f.__defaults__), self.value(f.__kwdefaults__)]
        for cell in f.__closure__ or ():
            try:
                token.append(self.value(cell.cell_contents))
            except ValueError:  # not bound yet
                token.append("empty")
        if not trusted:
            token += self._lookups(f.__code__, f.__globals__)
            token.append(self.value(f.__dict__))
        return tuple(token)

    def _lookups(self, code: types.CodeType, scope: dict) -> Iterator:
        """What a piece of code finds outside itself; what it may find there is noted."""
        names = _names(code)
        if not all(map(_trusted, names.modules)) or "__dict__" in names.attributes:
            raise Unkeyed
        self._names |= names.attributes | names.modules
        self._reads |= names.reads
        for name in names.variables:
            if name in scope:
                yield name, self.value(scope[name])
            elif vars(builtins).get(name) in SEARCHING:
                raise Unkeyed

    def _callable(self, f: Any) -> Any:
        """A callable that is no Python function."""
        kind = type(f)
        if isinstance(f, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = f.__self__
            if not isinstance(owner, types.ModuleType | type):
                return f.__name__, self.value(owner)
            home = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
            if f in SEARCHING or not _trusted(home):
                raise Unkeyed
            return Identity(f)
        if isinstance(f, types.WrapperDescriptorType | types.MethodDescriptorType
                      | types.ClassMethodDescriptorType):
            if not _trusted(f.__objclass__.__module__):
                raise Unkeyed
            return Identity(f)
        if isinstance(f, np.ufunc):
            if vars(np).get(f.__name__) is not f:
                raise Unkeyed
            return Identity(f)
        home, inner = kind.__module__.split(".")[0], inspect.unwrap(f)
        if home == "jaxlib":  # of jit: what it wraps is traced once and for all
            return Identity(f)
        if home == "jax" and isinstance(inner, types.FunctionType) and not inner.__closure__ and (
                _trusted(inner.__globals__.get("__name__"))):
            return Identity(f)
        if home == "jax" and hasattr(f, "__dict__"):
            return kind, self.value(vars(f))
        return self._object(f)


#: What may be traced of a call: all numbers, all but numpy arrays (tables that are read on the
#: host), or no more than there must be.
NUMBERS, FLOATS, FEWEST = (float, np.ndarray, np.generic), (float, np.generic), ()


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
        return remade(factory, args, keywords, leaf._place)

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [leaf(x) for x in leaves])


class Names(NamedTuple):
    """What a piece of code looks up, with the functions within it.

    Attributes:
      variables: of the module, or builtin.
      attributes: of anything, and `name.attribute`.
      modules: that it imports as it runs.
      reads: whether it branches on a value, not on a comparison, or reads one as a number.
    """

    variables: frozenset
    attributes: frozenset
    modules: frozenset
    reads: bool


@lru_cache(1024)
def _names(code: types.CodeType) -> Names:
    variables, attributes, modules = set(), set(), set()
    reads, last, before = False, "", ""
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if "GLOBAL" in operation or operation == "LOAD_NAME":
            variables.add(name)
        elif operation == "IMPORT_NAME":
            modules.add(name)
        elif any(word in operation for word in ("ATTR", "METHOD", "IMPORT_FROM")):
            attributes |= {name, f"{last}.{name}"}
        branch = "JUMP" in operation and "_IF_" in operation and "NONE" not in operation
        reads |= operation == "UNARY_NOT" or branch and before not in ("COMPARE_OP", "IS_OP")
        last, before = name if isinstance(name, str) else "", operation
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return Names(
        frozenset(variables).union(*(names.variables for names in inner)),
        frozenset(attributes).union(*(names.attributes for names in inner)),
        frozenset(modules).union(*(names.modules for names in inner)),
        reads or bool(READING & (variables | attributes)) or any(names.reads for names in inner))


def _trusted(module: str | None) -> bool:
    return (module or "").split(".")[0] in TRUSTED
