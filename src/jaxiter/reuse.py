"""Calls from outside any trace: a public function runs the program that an equal call compiled.

Equal are calls of the same function with equal structures, shapes and dtypes, the same values of
what is static, and functions that refer to the same things. Arrays and floats are operands: new
ones compile nothing. Inside a trace nothing of this happens.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.core
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from jaxiter.known import Check, again, recording
from jaxiter.numerics import is_array, without_constants
from jaxiter.reading import FEWEST, FLOATS, NUMBERS, Reader, Unkeyed, rebuilt

PyTree = Any
Front = TypeVar("Front", bound=Callable)

#: Programs kept; the one that was not used for longest goes first.
KEPT = 64
#: Bytes of arrays that the programs kept may refer to, the newest apart.
HELD = 1 << 30
#: Traces that evaluate what they are given, rather than record it.
EVALUATING = frozenset({"EvalTrace", "JVPTrace", "LinearizeTrace"})
#: The setting with which nothing is compiled.
OFF = "jax_disable_jit"
#: Settings that a trace depends on.
FLAGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion",
         "jax_numpy_rank_promotion", "jax_debug_nans", "jax_default_prng_impl",
         "jax_default_device")


class Program(NamedTuple):
    """A compiled call.

    Attributes:
      run: `run(constants, operands) -> computed leaves`, compiled.
      constants: arrays that the call refers to.
      places: of tracers among them: index among the constants to index among those found.
      sources: where each leaf of the answer comes from: ("computed" | "operand" | "constant", i).
      finish: leaves to the answer.
      checks: those of the operands' values.
    """

    run: Callable
    constants: list
    places: dict[int, int]
    sources: list[tuple[str, int]]
    finish: Callable
    checks: list[Check]


def recording_trace() -> bool:
    """Whether operations are being recorded now (jit, scan, shard_map, vmap), not evaluated."""
    trace = jex.core.find_top_trace(())
    while trace is not None:
        if type(trace).__name__ not in EVALUATING:
            return True
        trace = getattr(trace, "parent_trace", None)
    return False


#: Programs, each with the bytes that it holds, by what identifies the call.
_programs: OrderedDict = OrderedDict()
_lock = threading.RLock()
#: In place of a program: a call that cannot be traced with those operands.
_REFUSED = object()


def reused(front: Front) -> Front:
    """A public function whose calls from outside any trace reuse compiled programs.

    Floats among the signature's `*args` stay static, as the maps that get them expect.
    """
    code = inspect.unwrap(front).__code__
    named = code.co_argcount if code.co_flags & inspect.CO_VARARGS else 99

    @wraps(front)
    def call(*args: Any, **keywords: Any) -> Any:
        if getattr(jax.config, OFF) or recording_trace():
            return front(*args, **keywords)
        context = _context()
        for kinds in (NUMBERS, FLOATS, FEWEST):
            given = Given(args[:named], args[named:], keywords).with_steps(kinds)
            try:
                reader = Reader()
                key = front, kinds, given.read(reader, kinds), context
                program = _known(key)
            except (Unkeyed, TypeError, ValueError, RecursionError):
                break
            if program is None:
                program = _remember(key, front, given, reader, kinds)
            if program is not _REFUSED:
                return _answer(program, reader)
        return front(*args, **keywords)

    return cast(Front, call)


class Given(NamedTuple):
    """The arguments of a call: those that the front names, those of the map, keywords."""

    named: tuple
    rest: tuple
    keywords: dict

    def with_steps(self, kinds: tuple) -> "Given":
        """`max_steps` as a number like others, although it is an integer."""
        steps = self.keywords.get("max_steps")
        if kinds is FEWEST or type(steps) is not int or not 0 <= steps < 2**31:
            return self
        return self._replace(keywords=self.keywords | {"max_steps": np.int32(steps)})

    def read(self, reader: Reader, kinds: tuple) -> tuple:
        """Tokens of all of them."""
        return reader.call(((self.named, self.keywords), kinds), (self.rest, _of_a_map(kinds)))

    def rebuilt(self, operands: list, kinds: tuple) -> "Given":
        """The same call with other operands."""
        left = iter(operands)
        named, keywords = rebuilt((self.named, self.keywords), left, kinds)
        return Given(named, rebuilt(self.rest, left, _of_a_map(kinds)), keywords)


def _of_a_map(kinds: tuple) -> tuple:
    """What may be traced of the args of a map, which may branch on a float."""
    return tuple(kind for kind in kinds if kind is not float)


def _context() -> tuple:
    flags = tuple(getattr(jax.config, name) for name in FLAGS)
    return *flags, jax.sharding.get_abstract_mesh()


def _known(key: Any) -> Any:
    """The program of a call, which becomes the one used last."""
    with _lock:
        program, _ = _programs.get(key, (None, 0))
        if program is not None:
            _programs.move_to_end(key)
    return program


def _remember(key: Any, front: Callable, given: Given, reader: Reader, kinds: tuple) -> Any:
    """A new program, or that there is none."""
    try:
        program = _trace(front, given, reader, kinds)
    except Exception:  # the plain call finds the words for it
        program = _REFUSED
    with _lock:
        _programs[key] = program, reader.held
        while len(_programs) > KEPT or len(_programs) > 1 and (
                sum(held for _, held in _programs.values()) > HELD):
            _programs.popitem(last=False)
    return program


def _equations(jaxpr: Any) -> Iterator:
    yield from jaxpr.eqns
    for inner in jex.core.subjaxprs(jaxpr):
        yield from _equations(inner)


def _bound(equation: Any, differentiated: bool) -> bool:
    """Whether an equation belongs to the first call alone.

    It calls back into objects of that call, or hides a tracer in a rule of its own, whose
    derivative would be lost without a word.
    """
    name = equation.primitive.name
    return "callback" in name or (
        differentiated and name.startswith("custom_") and bool(equation.params.get("num_consts")))


def _trace(front: Callable, given: Given, reader: Reader, kinds: tuple) -> Any:
    """The program of a call; refused where it refers to tracers in a way that is not seen."""
    kept: dict = {}

    def record(operands: list) -> list:
        with recording(operands) as checks:
            named, rest, keywords = given.rebuilt(operands, kinds)
            leaves, structure = jax.tree.flatten(front(*named, *rest, **keywords))
        traced = [is_array(leaf) for leaf in leaves]
        own = {id(leaf) for leaf in jax.tree.leaves(tuple(given))}
        if any(callable(leaf) and id(leaf) not in own for leaf in leaves):
            raise Unkeyed  # a function that it made may refer to this trace
        static = [None if t else leaf for leaf, t in zip(leaves, traced, strict=True)]
        kept.update(checks=checks, structure=structure, traced=traced, static=static)
        return [leaf for leaf, t in zip(leaves, traced, strict=True) if t]

    closed = jax.make_jaxpr(record)(reader.operands)
    jaxpr, constants = without_constants(closed), list(closed.consts)
    found = {id(tracer): i for i, tracer in enumerate(reader.tracers)}
    places = {i: found[id(c)] for i, c in enumerate(constants) if id(c) in found}
    if any(isinstance(c, jax.core.Tracer) for i, c in enumerate(constants) if i not in places):
        return _REFUSED
    if any(_bound(equation, bool(places)) for equation in _equations(jaxpr)):
        return _REFUSED
    inputs = {id(v): ("operand", i) for i, v in enumerate(jaxpr.invars)} | {
        id(v): ("constant", i) for i, v in enumerate(jaxpr.constvars)}
    sources = [inputs.get(id(v), ("computed", i)) for i, v in enumerate(jaxpr.outvars)]
    computed = [i for kind, i in sources if kind == "computed"]

    @jax.jit
    def run(constants: list, operands: list) -> dict:
        out = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, constants))(*operands)
        return {place: out[place] for place in computed}

    def finish(arrays: Iterator) -> PyTree:
        leaves = [next(arrays) if t else leaf
                  for t, leaf in zip(kept["traced"], kept["static"], strict=True)]
        return jax.tree.unflatten(kept["structure"], leaves)

    return Program(run, [None if i in places else c for i, c in enumerate(constants)], places,
                   sources, finish, kept["checks"])


def _answer(program: Program, reader: Reader) -> PyTree:
    again(program.checks, reader.operands)
    constants = list(program.constants)
    for i, j in program.places.items():
        constants[i] = reader.tracers[j]
    leaves = {"operand": reader.operands, "constant": constants,
              "computed": program.run(constants, reader.operands)}
    found = (leaves[kind][i] for kind, i in program.sources)
    # An operand that is handed back may be a plain number.
    return program.finish(x if isinstance(x, jax.Array) else jnp.asarray(x) for x in found)
